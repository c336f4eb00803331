"""What a graph says of its making: the model, dictionaries, prompts, settings and versions that it was built with.

In come the runs and settings of a discovery; out come graph attributes as plain values. This module attributes nothing.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from circuitgraph.attribution.alignment import Alignment
from circuitgraph.attribution.runs import Baseline, CleanRun
from circuitgraph.dictionaries.collection import Dictionaries
from circuitgraph.edges.position_sums import ALL
from circuitgraph.models.model import Model
from circuitgraph.models.tokens import TokenizedPairs
from circuitgraph.prompts import PromptPair, record_of


def graph_facts(
    model: Model,
    dictionaries: Dictionaries,
    pairs: Sequence[PromptPair],
    tokens: TokenizedPairs,
    clean: CleanRun,
    base: Baseline,
    settings: dict[str, Any],
    places: Alignment,
) -> dict[str, Any]:
    """The graph attributes: what was run, on what, with which settings."""
    runs = [tokens.clean, tokens.corrupted]
    aligned: dict[str, Any] = {}
    if settings["align"] == "position":
        shown = [model.token_strings(ids[0].tolist()) for ids in runs]
    else:
        shown = places.shown(runs, lambda token: model.token_strings([token])[0])
        aligned["alignment"] = {"positions": list(places.names), "index": places.index.tolist()}
    if settings["positions"] == "sum":
        shown = [[ALL], [ALL]]
    libraries = ("circuitgraph-engine", "torch", "transformers", "transformer-lens", "sae-lens")
    versions = {name: importlib.metadata.version(name) for name in libraries if _installed(name)}
    return {
        "tokens": {"clean": shown[0], "corrupted": shown[1]},
        "logits": {"clean": _top_tokens(model, clean.logits), "corrupted": _top_tokens(model, base.logits)},
        "metric": {
            "name": settings["metric"],
            "clean": float(clean.metric.mean()),
            "corrupted": float(base.metric.mean()),
        },
        "n_layers": model.n_layers,
        "n_examples": len(pairs),
        "provenance": {
            "model": model.name,
            "dictionaries": {str(site): dictionary.name for site, dictionary in dictionaries.items()},
            **_names_on_neuronpedia(dictionaries),
            "prompts": [record_of(pair) for pair in pairs],
            "settings": settings,
            **aligned,
            "versions": versions,
            "device": str(model.device),
            "dtype": str(model.dtype).removeprefix("torch."),
        },
    }


def _names_on_neuronpedia(dictionaries: Dictionaries) -> dict[str, Any]:
    """{"neuronpedia": {model, sources by site}} of the dictionaries that have pages there under the first one's model."""
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
