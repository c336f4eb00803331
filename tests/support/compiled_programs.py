"""Programs in the files that tracr's compiler leaves, NAME.npz and NAME.json, written here weight by weight."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from circuitgraph.studies.programs import Program, histogram

WORDS = ["BOS", "a", "b", "c"]
_PARTS = {
    "attn/query": "Q",
    "attn/key": "K",
    "attn/value": "V",
    "attn/linear": "O",
    "mlp/linear_1": "in",
    "mlp/linear_2": "out",
}
SHARP = 200.0


def save_program(folder: Path, program: Program, *, labels: list[str], out_label: str, words: list[str]) -> Path:
    """NAME.npz of a program, after it and its NAME.json are written.

    Args:
        folder: Where to.
        program: Its tokens are words by their position in `words`, of which the first is BOS.
        labels: A name for each coordinate of the stream.
        out_label: What coordinates of the output are called; their labels are `out_label` or `out_label:value`.
        words: The vocabulary.
    """
    arrays = {"token_embed/embeddings": program.W_E, "pos_embed/embeddings": program.W_pos}
    for i, layer in enumerate(program.layers):
        for theirs, ours in _PARTS.items():
            arrays[f"transformer/layer_{i}/{theirs}/w"] = layer[f"W_{ours}"]
            arrays[f"transformer/layer_{i}/{theirs}/b"] = layer[f"b_{ours}"]
    np.savez(folder / f"{program.name}.npz", **{name: value.float().numpy() for name, value in arrays.items()})
    facts = {
        "task": program.name,
        "n_layers": len(program.layers),
        "n_heads": program.n_heads,
        "d_head": program.d_head,
        "d_mlp": program.layers[0]["W_in"].shape[1],
        "causal": False,
        "layer_norm": False,
        "vocab": words[1:],
        "max_seq_len": len(program.W_pos) - 1,
        "out_label": out_label,
        "residual_labels": labels,
        "input_encoding": {word: i for i, word in enumerate(words)},
        "edges": sorted(program.edges),
    }
    (folder / f"{program.name}.json").write_text(json.dumps(facts))
    return folder / f"{program.name}.npz"


def save_histogram(folder: Path) -> Path:
    """`histogram` in files: how often the token at each position occurs; the outputs are the counts 1 to 5."""
    labels = [f"tokens:{word}" for word in WORDS] + ["share_of_BOS"] + [f"count:{n}" for n in range(1, 6)]
    return save_program(folder, histogram(n_examples=1), labels=labels, out_label="count", words=WORDS)


def save_proportion(folder: Path) -> Path:
    """Which share of the words so far are `a`, the output a number: the MLP of layer 0 marks them, and the head of layer 1
    averages the marks over the positions up to its own.

    Coordinates of the stream: BOS, a, b, c; positions 0 to 5, of which 0 is BOS; the mark; the share.
    """
    n_words, n_pos, mark, share, d = 4, 6, 10, 11, 12
    nothing = {f"W_{part}": torch.zeros(d, n_pos) for part in "QKV"} | {
        f"b_{part}": torch.zeros(n_pos) for part in "QKV"
    }
    nothing |= {"W_O": torch.zeros(n_pos, d), "b_O": torch.zeros(d)}
    nothing |= {"W_in": torch.zeros(d, 1), "b_in": torch.zeros(1), "W_out": torch.zeros(1, d), "b_out": torch.zeros(d)}
    marks = {name: value.clone() for name, value in nothing.items()}
    marks["W_in"][1, 0] = marks["W_out"][0, mark] = 1.0
    averages = {name: value.clone() for name, value in nothing.items()}
    positions = slice(n_words, n_words + n_pos)
    averages["W_K"][positions] = torch.eye(n_pos)
    up_to = torch.ones(n_pos, n_pos).tril()
    up_to[1:, 0] = 0  # BOS counts for itself alone
    averages["W_Q"][positions] = SHARP * up_to
    averages["W_V"][mark, 0] = averages["W_O"][0, share] = 1.0
    W_pos = torch.zeros(n_pos, d)
    W_pos[:, positions] = torch.eye(n_pos)
    W_U = torch.zeros(d, 1)
    W_U[share] = 1
    edges = {("embed", "m0"), ("m0", "a1.h0<v>"), ("pos_embed", "a1.h0<q>"), ("pos_embed", "a1.h0<k>")}
    tokens = torch.zeros(1, n_pos, dtype=torch.long)
    program = Program(
        "proportion", 1, torch.eye(n_words, d), W_pos, W_U, (marks, averages), tokens, tokens,
        frozenset({*edges, ("a1.h0", "logits")}),
    )  # fmt: skip
    labels = [f"tokens:{word}" for word in WORDS] + [f"indices:{i}" for i in range(n_pos)] + ["is_a", "share"]
    return save_program(folder, program, labels=labels, out_label="share", words=WORDS)
