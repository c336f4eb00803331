"""The whole way from prompt pairs to a circuit graph. READ THIS FIRST.

In come a model, dictionaries, prompt pairs and settings; out comes a graph. Each line below is one module.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import networkx as nx
import torch
from torch import Tensor

from circuitgraph.activations import Baseline, CleanRun, run_baseline, run_clean, sites_of
from circuitgraph.attribution import affine_part, attribute_nodes, node_sites, rank_nodes
from circuitgraph.dictionary import Dictionary
from circuitgraph.edges import attribute_edges, check_readers
from circuitgraph.errors import CircuitGraphError, did_you_mean
from circuitgraph.gradients import integrated_gradients, metric_gradients, mlp_slopes
from circuitgraph.graph import build_graph
from circuitgraph.metrics import Metric, MetricFunction, build_metric
from circuitgraph.model import Model
from circuitgraph.nodes import Site
from circuitgraph.prompts import PromptPair
from circuitgraph.tables import NodeTable
from circuitgraph.tokens import TokenizedPairs, tokenize_pairs
from circuitgraph_kernels import backend_name

METHODS = ("gradient", "integrated")

# told (stage, steps done, steps in all) as the work goes on
Progress = Callable[[str, int, int], None]


def discover_circuit(
    model: Model,
    dictionaries: Mapping[Site, Dictionary],
    pairs: Sequence[PromptPair],
    *,
    metric: str | MetricFunction = "logit_difference",
    baseline: str = "corrupted",
    method: str = "gradient",
    steps: int = 10,
    rule: str = "gauss-legendre",
    max_nodes: int = 1000,
    edge_threshold: float = 0.001,
    top_k: int | None = None,
    backend: str = "auto",
    progress: Progress = lambda stage, done, total: None,
) -> nx.MultiDiGraph:
    """The circuit graph of the metric's difference between clean and baseline, averaged over the pairs.

    The max_nodes nodes with the largest |attribution| are candidates; from the metric down, edges with
    |weight| > edge_threshold (a fraction of |metric clean - corrupted|) connect them, at most top_k per target.
    method "integrated" averages the gradient over `steps` points from baseline to clean; the slopes of edges inside the
    model, and the metric's own inputs, stay those of the clean run. `progress` is told
    (stage, steps done, steps in all). Raises a CircuitGraphError for prompts, metrics or dictionaries that do not fit.
    """
    resolved = _check_settings(model, method, max_nodes, top_k, edge_threshold, backend)
    check_readers(model, dictionaries.values())
    tokens = tokenize_pairs(model, pairs)
    score = build_metric(metric, tokens.answers, tokens.wrong_answers)
    sites = sites_of(model, dictionaries.values())

    progress("running clean and corrupted prompts", 0, 1)
    clean = run_clean(model, tokens, sites, score)
    base = run_baseline(model, tokens, sites, score, baseline)

    progress("gradients of the metric", 0, 1)
    gradients = node_gradients(model, dictionaries, tokens, clean, base, score, method=method, steps=steps, rule=rule)
    last = Site("resid_post", model.n_layers - 1)
    metric_gradient = metric_gradients(clean, [last])[last]

    progress("attributing every feature", 0, 1)
    tables = attribute_nodes(model, dictionaries, clean.values, base, gradients, backend=backend)
    candidates, report = strongest_nodes(tables, max_nodes)

    unit = abs(float((clean.metric - base.metric).mean()))
    edges = attribute_edges(
        model,
        candidates,
        clean.values,
        metric_gradient,
        slopes=mlp_slopes(clean, dictionaries.values()),
        threshold=edge_threshold * unit,
        top_k=top_k,
        progress=progress,
    )

    settings = {"metric": score.name, "baseline": baseline, "method": method, "max_nodes": max_nodes}
    settings |= {"edge_threshold": edge_threshold, "top_k": top_k, "backend": resolved} | (
        {"steps": steps, "rule": rule} if method == "integrated" else {}
    )
    facts = graph_facts(model, dictionaries, pairs, tokens, clean, base, settings)
    graph = build_graph(model, candidates, edges, facts)
    unreached = sum(map(len, candidates)) + 1 - len(graph)
    graph.graph["reports"] = [
        report,
        f"edge_threshold {edge_threshold:g}: {unreached} of them have no path of such edges to the metric",
    ]
    if len(graph) == 1:
        graph.graph["reports"].append("the graph is empty: no node changes the metric between clean and baseline")
    return graph


def _check_settings(
    model: Model, method: str, max_nodes: int, top_k: int | None, edge_threshold: float, backend: str
) -> str:
    """The backend that will run; CircuitGraphError for a setting that makes no sense, before any work is done."""
    if method not in METHODS:
        raise CircuitGraphError(
            f"method {method!r} is unknown; expected one of {', '.join(METHODS)}.{did_you_mean(method, METHODS)}"
        )
    for name, count in (("max_nodes", max_nodes), ("top_k", top_k)):
        if count is not None and count < 1:
            raise CircuitGraphError(f"{name} is {count}; expected at least 1")
    if not 0 <= edge_threshold < float("inf"):
        raise CircuitGraphError(
            f"edge_threshold is {edge_threshold}; expected a number >= 0, as a fraction of the metric's difference"
        )
    try:
        return backend_name(backend, model.device)
    except ValueError as error:
        raise CircuitGraphError(str(error)) from None


def node_gradients(
    model: Model,
    dictionaries: Mapping[Site, Dictionary],
    tokens: TokenizedPairs,
    clean: CleanRun,
    base: Baseline,
    metric: Metric,
    *,
    method: str,
    steps: int,
    rule: str,
) -> dict[Site, Tensor]:
    """The gradient at every site that nodes write to: plain, or integrated from the baseline to the clean value of it.

    Biases of attention, which enter at attn_out, keep the plain gradient.
    """
    written = {Site("embed"), *node_sites(model, dictionaries)}
    outputs = {site.output for site in written}
    gradients = metric_gradients(clean, sorted(written | outputs, key=lambda site: site.depth))
    if method == "integrated":
        start = {site: path_start(dictionaries, base, clean.values, site) for site in written}
        gradients |= integrated_gradients(model, tokens, clean.values, start, metric, steps=steps, rule=rule)
    return gradients


def path_start(
    dictionaries: Mapping[Site, Dictionary], base: Baseline, clean: Mapping[Site, Tensor], site: Site
) -> Tensor:
    """x at the baseline end of the path: with baseline zero no feature and no error, which leaves biases and skips."""
    if base.values is not None:
        return base.values[site]
    start = torch.zeros_like(clean[site])
    for dictionary in dictionaries.values():
        if site in dictionary.sites:
            start = start + affine_part(dictionary, clean[dictionary.reads])[..., dictionary.columns(site)]
    return start


def strongest_nodes(tables: Sequence[NodeTable], max_nodes: int) -> tuple[list[NodeTable], str]:
    """The tables cut down to the max_nodes nodes with the largest |attribution|, and a line that says so."""
    ranked = [(value, node) for value, node in rank_nodes(tables) if value != 0]
    chosen = {node for _, node in ranked[:max_nodes]}
    kept = []
    for table in tables:
        mask = [node in chosen for node in table.nodes()]
        kept.append(table.take(torch.tensor(mask, dtype=torch.bool, device=table.pos.device)))
    return (
        kept,
        f"max_nodes {max_nodes}: {len(chosen)} of {len(ranked)} nodes with a non-zero attribution are candidates",
    )


def graph_facts(
    model: Model,
    dictionaries: Mapping[Site, Dictionary],
    pairs: Sequence[PromptPair],
    tokens: TokenizedPairs,
    clean: CleanRun,
    base: Baseline,
    settings: dict[str, Any],
) -> dict[str, Any]:
    """The graph attributes: what was run, on what, with which settings."""
    libraries = ("circuitgraph-engine", "torch", "transformers", "transformer-lens", "sae-lens")
    versions = {name: importlib.metadata.version(name) for name in libraries if _installed(name)}
    return {
        "tokens": {
            "clean": model.token_strings(tokens.clean[0].tolist()),
            "corrupted": model.token_strings(tokens.corrupted[0].tolist()),
        },
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
            "prompts": [
                asdict(pair) | {"answers": list(pair.answers), "wrong_answers": list(pair.wrong_answers)}
                for pair in pairs
            ],
            "settings": settings,
            "versions": versions,
            "device": str(model.device),
            "dtype": str(model.dtype).removeprefix("torch."),
        },
    }


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
