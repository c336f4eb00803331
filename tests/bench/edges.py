"""What edges cost at the size of GPT-2 small: random weights, transcoders of 24,576 features, one process, one thread.

    python tests/bench/edges.py                       the attribution graph of 16 tokens: 4,096 traced features, 10 logits
    python tests/bench/edges.py --tokens 16,64,256    the same for several lengths
    python tests/bench/edges.py --preset leap         z-SAEs and transcoders, 10 pairs

Prints CPU seconds after loading, peak memory, and counts, one line per case. Nothing is downloaded.
"""

from __future__ import annotations

import argparse
import os
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import torch

from circuitgraph.dictionaries.collection import Dictionaries
from circuitgraph.dictionaries.dictionary import Dictionary
from circuitgraph.discovery import discover
from circuitgraph.models.load import load_model
from circuitgraph.models.model import Model
from circuitgraph.nodes import Site
from circuitgraph.presets import PRESETS
from circuitgraph.prompts import PromptPair
from circuitgraph_kernels import SaeWeights


def random_gpt2(folder: Path, *, n_layers: int, d_model: int, vocab: int, n_ctx: int) -> Path:
    """A GPT-2 of that size with random weights and one word per token, as an ordinary checkpoint."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    words = {"<bos>": 0} | {f"w{i}": i for i in range(1, vocab)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<bos>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<bos>", unk_token="<bos>").save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"n_embd": d_model, "n_layer": n_layers, "n_head": d_model // 64, "vocab_size": vocab, "n_positions": n_ctx}
    GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0)).save_pretrained(folder)
    return folder


def random_dictionary(
    model: Model, reads: Site, d_sae: int, l0: int, x: torch.Tensor, dtype: torch.dtype
) -> Dictionary:
    """A jumprelu dictionary whose threshold lets about l0 features pass on the rows x [n, d]."""
    generator = torch.Generator().manual_seed(reads.depth)
    d = x.shape[-1]
    writes = reads if reads.kind == "z" else Site("mlp_out", reads.layer)
    W_enc = torch.randn(d_sae, d, generator=generator).mul_(d**-0.5).to(dtype).T
    W_dec = torch.randn(d_sae, d, generator=generator).mul_(d**-0.5).to(dtype)
    pre = x[:64] @ W_enc.float()
    threshold = pre.flatten().kthvalue(pre.numel() - l0 * len(pre)).values.clamp(min=0)
    weights = SaeWeights(
        W_enc, torch.zeros(d_sae), W_dec, torch.zeros(d), "jumprelu", threshold=threshold.expand(d_sae).clone()
    )
    return Dictionary(weights, reads, writes, f"random {reads}")


def peak_gib() -> float:
    """The largest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)


def main() -> None:
    """Parse, build, time, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="attribution-graph", choices=sorted(PRESETS))
    parser.add_argument("--tokens", default="16")
    parser.add_argument("--pairs", type=int, default=1)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--features", type=int, default=24576)
    parser.add_argument("--l0", type=int, default=32)
    parser.add_argument("--traced", type=int, default=4096, help="features whose inputs are traced")
    parser.add_argument("--edge-threshold", type=float, default=None)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="of the dictionaries")
    options = parser.parse_args()
    lengths = [int(n) for n in options.tokens.split(",")]
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        sizes: dict[str, Any] = {"n_layers": options.layers, "d_model": options.width, "vocab": 50257}
        model = load_model(random_gpt2(Path(folder), **sizes, n_ctx=max(1024, *lengths)))
    ids = torch.randint(1, 50257, (1, 64), generator=torch.Generator().manual_seed(1))
    kinds = ["ln2_normalized"] if options.preset == "attribution-graph" else ["z", "ln2_normalized"]
    reads = [Site(kind, layer) for layer in range(options.layers) for kind in kinds]
    _, found = model.run(ids, record=reads)
    dtype = getattr(torch, options.dtype)
    dictionaries = [random_dictionary(model, s, options.features, options.l0, found[s][0], dtype) for s in reads]
    by_site = Dictionaries(dictionaries)
    print(f"loaded: {peak_gib():.2f} GiB peak", flush=True)
    for n in lengths:
        generator = torch.Generator().manual_seed(n)
        pairs = []
        for _ in range(options.pairs):
            tokens = torch.randint(1, 50257, (n,), generator=generator).tolist()
            other = list(tokens)
            other[n // 2] = (other[n // 2] + 7) % 50000 + 1
            clean, corrupted = (" ".join(f"w{t}" for t in ids[1:]) for ids in (tokens, other))
            pairs.append(PromptPair(clean, corrupted, (" w5",), (" w6",)))
        settings: dict[str, Any] = {"preset": options.preset}
        if options.preset == "attribution-graph":
            settings["max_traced"] = options.traced
        if options.edge_threshold is not None:
            settings["edge_threshold"] = options.edge_threshold
        start = time.process_time()
        graph = discover(pairs, model, by_site, **settings)
        seconds = time.process_time() - start
        print(
            f"{options.preset}: {n} tokens, {options.pairs} pairs: {seconds:.1f} CPU s, {peak_gib():.2f} GiB peak,"
            f" {len(graph)} nodes and {graph.number_of_edges()} edges kept; {'; '.join(graph.graph['reports'])}",
            flush=True,
        )


if __name__ == "__main__":
    main()
