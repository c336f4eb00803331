"""Transformers whose circuit is known because somebody wrote it: gates, a counting program, and programs that tracr
compiled.

They have no norms, ReLU neurons, and attention in both directions.
"""

from __future__ import annotations

import itertools
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from circuitgraph.errors import CircuitGraphError, ModelError
from circuitgraph.models.load import load_model
from circuitgraph.models.model import Model

_NAMES = {  # ours -> tracr's
    "W_Q": "attn/query/w",
    "b_Q": "attn/query/b",
    "W_K": "attn/key/w",
    "b_K": "attn/key/b",
    "W_V": "attn/value/w",
    "b_V": "attn/value/b",
    "W_O": "attn/linear/w",
    "b_O": "attn/linear/b",
    "W_in": "mlp/linear_1/w",
    "b_in": "mlp/linear_1/b",
    "W_out": "mlp/linear_2/w",
    "b_out": "mlp/linear_2/b",
}


@dataclass(frozen=True, eq=False)
class Program:
    """A transformer with a known circuit.

    Args:
        name: What tables call it.
        n_heads: Heads per layer.
        W_E, W_pos, W_U: Embeddings [vocab, d] and [pos, d], unembedding [d, out].
        layers: Per layer W_Q, W_K, W_V [d, heads * d_head], W_O [heads * d_head, d], W_in [d, d_mlp], W_out [d_mlp, d]
            and the biases b_Q, b_K, b_V, b_O, b_in, b_out.
        clean, corrupted: Token ids [examples, pos].
        edges: The true edges: from embed, pos_embed, a0.h0 or m0 to a0.h0<q>, m0 or logits.
    """

    name: str
    n_heads: int
    W_E: Tensor
    W_pos: Tensor
    W_U: Tensor
    layers: tuple[Mapping[str, Tensor], ...]
    clean: Tensor
    corrupted: Tensor
    edges: frozenset[tuple[str, str]]

    @property
    def d_head(self) -> int:
        return self.layers[0]["W_Q"].shape[1] // self.n_heads


def gate(name: str) -> Program:
    """AND or OR of two bits of one token: head 0 copies the first bit, head 1 the second, and the MLP combines them.

    Coordinates of the stream: the tokens 00, 01, 10, 11; the two copies; the result. Clean is 11, corrupted 00.

    Args:
        name: "and" or "or".
    """
    if name not in ("and", "or"):
        raise CircuitGraphError(f"gate {name!r} is unknown; expected 'and' or 'or'")
    d, n_heads = 7, 2
    layer = {key: torch.zeros(d, n_heads) for key in ("W_Q", "W_K", "W_V")}
    layer |= {key: torch.zeros(n_heads) for key in ("b_Q", "b_K", "b_V")}
    for token, head in itertools.product(range(4), range(2)):
        layer["W_V"][token, head] = token >> (1 - head) & 1
    layer |= {"W_O": torch.zeros(n_heads, d), "b_O": torch.zeros(d)}
    layer["W_O"][0, 4] = layer["W_O"][1, 5] = 1
    layer |= {"W_in": torch.zeros(d, 2), "b_in": torch.tensor([0.0, -1.0])}  # relu(a + b), relu(a + b - 1)
    layer["W_in"][4:6] = 1
    layer |= {"W_out": torch.zeros(2, d), "b_out": torch.zeros(d)}
    layer["W_out"][:, 6] = torch.tensor([0.0, 1.0] if name == "and" else [1.0, -1.0])
    edges = {("embed", "a0.h0<v>"), ("embed", "a0.h1<v>"), ("a0.h0", "m0"), ("a0.h1", "m0"), ("m0", "logits")}
    W_U = torch.zeros(d, 1)
    W_U[6] = 1
    clean, corrupted = torch.tensor([[3], [3]]), torch.tensor([[0], [0]])
    return _program(name.upper(), n_heads, torch.eye(4, d), torch.zeros(1, d), W_U, [layer], clean, corrupted, edges)


def histogram(n_examples: int = 40, seed: int = 0) -> Program:
    """How often each token is in the sequence, in the manner of tracr's `hist`, with weights written here.

    Coordinates of the stream: BOS, a, b, c; the attention w on BOS; the counts 1 to 5. A token attends equally to its
    equals and to BOS, so w = 1 / (count + 1). The MLP turns w into a count by steps between the values that w can have.

    Args:
        n_examples: How many sequences to draw.
        seed: Seed of the draw.
    """
    d, length, sharp = 10, 6, 200.0
    W_Q, W_K, W_V = torch.zeros(d, 4), torch.zeros(d, 4), torch.zeros(d, 4)
    W_Q[1:4, 1:4] = sharp * torch.eye(3)
    W_K[1:4, 1:4] = torch.eye(3)
    W_K[0, 1:4] = 1.0
    W_V[0, 0] = 1.0
    W_O = torch.zeros(4, d)
    W_O[0, 4] = 1.0
    layer = {"W_Q": W_Q, "W_K": W_K, "W_V": W_V, "W_O": W_O, "b_O": torch.zeros(d)}
    layer |= {key: torch.zeros(4) for key in ("b_Q", "b_K", "b_V")}
    steps = [(1 / (n + 1) + 1 / (n + 2)) / 2 for n in range(1, 5)]  # w is above steps[n - 1] for at most n equals
    W_in, b_in, W_out, b_out = torch.zeros(d, 8), torch.zeros(8), torch.zeros(8, d), torch.zeros(d)
    for i, step in enumerate(steps):
        for j in range(2):  # relu(z) - relu(z - 1) is a step of z = sharp * (w - step)
            W_in[4, 2 * i + j], b_in[2 * i + j] = sharp, -sharp * step - j
            W_out[2 * i + j, 5 + i] = 1 - 2 * j
            W_out[2 * i + j, 6 + i] = 2 * j - 1
    b_out[9] = 1.0
    layer |= {"W_in": W_in, "b_in": b_in, "W_out": W_out, "b_out": b_out}
    edges = {("embed", "a0.h0<q>"), ("embed", "a0.h0<k>"), ("a0.h0", "m0"), ("m0", "logits")}
    clean, corrupted = _draw(torch.arange(1, 4), 0, length, n_examples, seed)
    W_U = torch.zeros(d, 5)
    W_U[5:10] = torch.eye(5)
    return _program("count", 1, torch.eye(4, d), torch.zeros(length, d), W_U, [layer], clean, corrupted, edges)


def read_tracr(path: Path, n_examples: int = 40, seed: int = 0) -> Program:
    """A program that tracr compiled.

    Args:
        path: NAME.npz (tracr's parameters) or NAME.json beside it (encodings, labels of the stream, true edges).
        n_examples: How many sequences to draw.
        seed: Seed of the draw.

    Raises CircuitGraphError for files that are missing or broken.
    """
    try:
        facts: dict[str, Any] = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        with np.load(path.with_suffix(".npz"), allow_pickle=False) as arrays:
            weights = {key: torch.from_numpy(np.array(arrays[key])).double() for key in arrays.files}
        labels, encoding = facts["residual_labels"], facts["input_encoding"]
        layers = [
            {ours: weights[f"transformer/layer_{i}/{theirs}"] for ours, theirs in _NAMES.items()}
            for i in range(facts["n_layers"])
        ]
        out = [i for i, label in enumerate(labels) if label.split(":")[0] == facts["out_label"]]
        words = torch.tensor([encoding[word] for word in facts["vocab"]])
        clean, corrupted = _draw(words, encoding["BOS"], facts["max_seq_len"] + 1, n_examples, seed)
        edges = {(source, target) for source, target in facts["edges"]}
        embed, pos = weights["token_embed/embeddings"], weights["pos_embed/embeddings"]
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise CircuitGraphError(f"{path} is no compiled program: {type(error).__name__} {error}") from None
    W_U = torch.eye(len(labels), dtype=torch.float64)[:, out]
    return _program(facts["task"], facts["n_heads"], embed, pos, W_U, layers, clean, corrupted, edges)


def build_model(program: Program) -> Model:
    """The program as a loaded model in float64, on the CPU. Its tokenizer is a stand-in: token ids are given."""
    from tokenizers import Tokenizer, models

    try:
        from transformer_lens import HookedTransformer, HookedTransformerConfig
    except ImportError:
        raise ModelError("programs need the HookedTransformer of transformer_lens < 4; install an older one") from None
    from transformers import PreTrainedTokenizerFast

    config = HookedTransformerConfig(
        n_layers=len(program.layers),
        d_model=program.W_E.shape[1],
        n_ctx=len(program.W_pos),
        n_heads=program.n_heads,
        d_head=program.d_head,
        d_mlp=program.layers[0]["W_in"].shape[1],
        d_vocab=len(program.W_E),
        d_vocab_out=program.W_U.shape[1],
        act_fn="relu",
        normalization_type=None,
        attention_dir="bidirectional",
        dtype=torch.float64,
        device="cpu",
        model_name=program.name,
    )
    library = HookedTransformer(config)
    words = {str(i): i for i in range(len(program.W_E))}
    library.tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="0")), bos_token="0", eos_token="0", pad_token="0"
    )
    state = {"embed.W_E": program.W_E, "pos_embed.W_pos": program.W_pos, "unembed.W_U": program.W_U}
    state["unembed.b_U"] = torch.zeros(program.W_U.shape[1])
    for i, layer in enumerate(program.layers):
        for name in ("Q", "K", "V"):
            state[f"blocks.{i}.attn.W_{name}"] = layer[f"W_{name}"].unflatten(1, (program.n_heads, -1)).transpose(0, 1)
            state[f"blocks.{i}.attn.b_{name}"] = layer[f"b_{name}"].unflatten(0, (program.n_heads, -1))
        state[f"blocks.{i}.attn.W_O"] = layer["W_O"].unflatten(0, (program.n_heads, -1))
        state[f"blocks.{i}.attn.b_O"] = layer["b_O"]
        state |= {f"blocks.{i}.mlp.{name}": layer[name] for name in ("W_in", "b_in", "W_out", "b_out")}
    library.load_state_dict({key: value.double() for key, value in state.items()}, strict=False)
    return load_model(library)


def _draw(words: Tensor, bos: int, length: int, n: int, seed: int) -> tuple[Tensor, Tensor]:
    """n clean and n corrupted sequences [n, length] of random words behind BOS."""
    generator = torch.Generator().manual_seed(seed)
    drawn = words[torch.randint(len(words), (2, n, length - 1), generator=generator)]
    clean, corrupted = torch.cat([torch.full((2, n, 1), bos), drawn], 2)
    return clean, corrupted


def _program(
    name: str,
    n_heads: int,
    W_E: Tensor,
    W_pos: Tensor,
    W_U: Tensor,
    layers: list[dict[str, Tensor]],
    clean: Tensor,
    corrupted: Tensor,
    edges: set[tuple[str, str]],
) -> Program:
    doubled = tuple({key: value.double() for key, value in layer.items()} for layer in layers)
    weights = (W_E.double(), W_pos.double(), W_U.double())
    return Program(name, n_heads, *weights, doubled, clean, corrupted, frozenset(edges))
