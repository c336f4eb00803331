"""What a graph says of its making: the model, dictionaries, prompts, settings and versions that it was built with."""

from __future__ import annotations

import importlib.metadata
from typing import Any

from torch import Tensor

from circuitgraph.attribution.attribute import Attribution, recorded_settings
from circuitgraph.dictionaries.collection import Dictionaries
from circuitgraph.edges.position_sums import ALL
from circuitgraph.models.model import Model
from circuitgraph.prompts import record_of

_LIBRARIES = ("circuitgraph-engine", "torch", "transformers", "transformer-lens", "sae-lens")


def graph_facts(run: Attribution, *, sums: bool) -> dict[str, Any]:
    """The graph attributes: what was run, on what, with which settings.

    Args:
        run: The runs and their settings.
        sums: Whether nodes are sums over positions.
    """
    model, corrupted = run.model, run.corrupted
    alignment: dict[str, Any] = {}
    if run.settings.align == "role":
        names, index = list(run.alignment.names), run.alignment.index.tolist()
        alignment["alignment"] = {"positions": names, "index": index}
    versions = {name: importlib.metadata.version(name) for name in _LIBRARIES if _installed(name)}
    return {
        "tokens": _tokens(run, sums=sums),
        "logits": {
            "clean": _top_tokens(model, run.clean.logits),
            "corrupted": None if corrupted is None else _top_tokens(model, corrupted.logits),
        },
        "metric": {"name": run.metric.name, **run.metric_means},
        "n_layers": model.n_layers,
        "n_examples": len(run.pairs),
        "provenance": {
            "model": model.name,
            "dictionaries": {str(site): dictionary.name for site, dictionary in run.dictionaries.items()},
            **_names_on_neuronpedia(run.dictionaries),
            "prompts": [record_of(pair) for pair in run.pairs],
            "settings": recorded_settings(run),
            **alignment,
            "versions": versions,
            "device": str(model.device),
            "dtype": str(model.dtype).removeprefix("torch."),
        },
    }


def _tokens(run: Attribution, *, sums: bool) -> dict[str, list[str] | None]:
    """{clean, corrupted}: the tokens of the first example, or by aligned position what the examples share."""
    named = {"clean": run.tokens.clean, "corrupted": run.tokens.corrupted}
    ids = {name: tokens for name, tokens in named.items() if tokens is not None}
    if sums:
        shown = [[ALL] for _ in ids]
    elif run.settings.align == "position":
        shown = [run.model.token_strings(tokens[0].tolist()) for tokens in ids.values()]
    else:
        shown = run.alignment.token_texts(list(ids.values()), lambda token: run.model.token_strings([token])[0])
    return {"corrupted": None, **dict(zip(ids, shown, strict=True))}


def _names_on_neuronpedia(dictionaries: Dictionaries) -> dict[str, Any]:
    """{"neuronpedia": {model, sources by site}} of the dictionaries with pages there under the first one's model."""
    named = {site: found.neuronpedia.partition("/") for site, found in dictionaries.items() if found.neuronpedia}
    models = [model for model, _, _ in named.values()][:1]
    sources = {str(site): source for site, (model, _, source) in named.items() if model in models}
    return {"neuronpedia": {"model": models[0], "sources": sources}} if sources else {}


def _installed(name: str) -> bool:
    """Whether the distribution has metadata; a source tree on the path has none."""
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _top_tokens(model: Model, logits: Tensor, n: int = 5) -> list[list[Any]]:
    """[[token, probability], ...] of the most likely next tokens of the first example."""
    top = logits[0, -1].detach().softmax(-1).topk(n)
    return [[token, p] for token, p in zip(model.token_strings(top.indices.tolist()), top.values.tolist(), strict=True)]
