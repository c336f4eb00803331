"""Sets of random dictionaries that cover a small two-layer model, one set per kind of dictionary.

In comes a model and the name of a set; out come dictionaries by the site that each writes, about a third of their features
active. Knows nothing of families: sizes are the model's.
"""

from __future__ import annotations

import zlib
from dataclasses import replace

import torch

from circuitgraph.dictionaries.collection import Dictionaries
from circuitgraph.dictionaries.dictionary import Dictionary, check_fit
from circuitgraph.nodes import Site
from circuitgraph_kernels import SaeWeights

D_SAE = 12

# Per set: (reads, writes, activation, further settings); "all.1" writes at layer 1 as well.
SETS = {
    "transcoders": (
        ("z.0", "z.0", "relu"),
        ("ln2_normalized.0", "mlp_out.0", "jumprelu"),
        ("z.1", "z.1", "topk"),
        ("mlp_in.1", "mlp_out.1", "relu"),
    ),
    "output_saes": (
        ("attn_out.0", "attn_out.0", "gated"),
        ("mlp_out.0", "mlp_out.0", "relu", {"normalize": "layer_norm"}),
        ("attn_out.1", "attn_out.1", "batchtopk", {"apply_b_dec_to_input": True}),
        ("mlp_out.1", "mlp_out.1", "jumprelu", {"normalize": "constant_norm_rescale"}),
    ),
    "skip_transcoders": (
        ("z.0", "z.0", "relu", {"normalize": "constant_norm_rescale", "apply_b_dec_to_input": True}),
        ("mlp_in.0", "mlp_out.0", "relu", {"skip": True}),
        ("attn_out.1", "attn_out.1", "topk"),
        ("ln2_normalized.1", "mlp_out.1", "topk", {"skip": True}),
    ),
    "skips_below_a_floor": (
        ("ln2_normalized.0", "mlp_out.0", "relu", {"skip": True}),
        ("resid_post.0", "resid_post.0", "relu"),
        ("z.1", "z.1", "relu"),
        ("mlp_in.1", "mlp_out.1", "jumprelu", {"skip": True}),
    ),
    "cross_layer": (
        ("z.0", "z.0", "identity"),
        ("mlp_in.0", "mlp_out.0", "jumprelu", {"later": "mlp_out.1"}),
        ("z.1", "z.1", "relu"),
        ("mlp_in.1", "mlp_out.1", "relu"),
    ),
    "residual": (
        ("resid_pre.0", "resid_pre.0", "relu"),
        ("attn_out.0", "attn_out.0", "topk"),
        ("mlp_out.0", "mlp_out.0", "relu"),
        ("resid_post.0", "resid_post.0", "jumprelu"),
        ("attn_out.1", "attn_out.1", "relu", {"normalize": "layer_norm"}),
        ("mlp_out.1", "mlp_out.1", "batchtopk"),
        ("resid_post.1", "resid_post.1", "relu", {"normalize": "constant_norm_rescale"}),
    ),
    "neurons": (
        ("z.0", "z.0", "topk", {"rescale_acts_by_decoder_norm": True}),
        ("mlp_post.0", "mlp_post.0", "identity"),
        ("z.1", "z.1", "topk", {"rescale_acts_by_decoder_norm": True}),
        ("mlp_post.1", "mlp_post.1", "relu"),
    ),
}


def dictionary_set(model, name, dtype=torch.float64):
    """The dictionaries of the set, by the site that each writes; their sizes are checked against the model."""
    result = []
    for reads, writes, activation, *rest in SETS[name]:
        dictionary = random_kind(model, reads, writes, activation, **(rest[0] if rest else {}))
        check_fit(dictionary, model)
        if dtype != torch.float64:
            dictionary = in_dtype(dictionary, dtype)
        result.append(dictionary)
    return Dictionaries(result)


def in_dtype(dictionary, dtype):
    """The dictionary with its weights in that dtype."""
    weights = {name: x.to(dtype) for name, x in vars(dictionary.weights).items() if isinstance(x, torch.Tensor)}
    W_skip = None if dictionary.W_skip is None else dictionary.W_skip.to(dtype)
    narrow = replace(dictionary.weights, **weights)
    return Dictionary(narrow, dictionary.reads, dictionary.writes, dictionary.name, W_skip, dictionary.later)


def random_kind(model, reads, writes, activation, *, skip=False, later=None, **settings):
    """A float64 dictionary between the sites, its weights drawn by its name; an identity at z or mlp_post is neurons."""
    read, written = Site.parse(reads), Site.parse(writes)
    d_in, d_out = model.width(read), model.width(written) * (2 if later else 1)
    name = f"{reads}-{writes}-{activation}"
    if activation == "identity":
        eye, zero = torch.eye(d_in, dtype=torch.float64), torch.zeros(d_in, dtype=torch.float64)
        return Dictionary(SaeWeights(eye, zero, eye, zero, activation=activation), read, written, name)
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))

    def randn(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    fields = {
        "relu": lambda: {},
        "topk": lambda: {"k": 4},
        "jumprelu": lambda: {"threshold": 0.2 * randn(D_SAE).abs()},
        "batchtopk": lambda: {"threshold": torch.tensor(0.3, dtype=torch.float64)},
        "gated": lambda: {"b_gate": 0.3 * randn(D_SAE), "r_mag": 0.3 * randn(D_SAE), "b_mag": 0.3 * randn(D_SAE)},
    }[activation]()
    weights = SaeWeights(
        0.5 * randn(d_in, D_SAE),
        torch.zeros(D_SAE, dtype=torch.float64) if activation == "gated" else 0.3 * randn(D_SAE) - 0.5,
        0.4 * randn(D_SAE, d_out),
        0.3 * randn(d_out),
        activation=activation,
        **fields,
        **settings,
    )
    W_skip = 0.3 * randn(d_in, d_out) if skip else None
    return Dictionary(weights, read, written, name, W_skip, (Site.parse(later),) if later else ())


def random_dictionary(
    reads: str, writes: str, *, activation: str = "relu", d: int = 16, d_sae: int = 24, seed: int = 0
):
    """A float64 dictionary of random weights, about a third of its features active."""
    from circuitgraph.dictionaries.dictionary import Dictionary
    from circuitgraph.nodes import Site
    from circuitgraph_kernels import SaeWeights

    generator = torch.Generator().manual_seed(1000 + seed)

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    settings = {"jumprelu": {"threshold": 0.2 * randn(d_sae).abs()}, "topk": {"k": 6}}.get(activation, {})
    weights = SaeWeights(
        randn(d, d_sae),
        0.3 * randn(d_sae) - 0.6,
        0.4 * randn(d_sae, d),
        0.3 * randn(d),
        activation=activation,
        **settings,
    )
    return Dictionary(weights, Site.parse(reads), Site.parse(writes), f"{writes}-{activation}")
