"""The whole way from prompt pairs to a circuit graph. READ THIS FIRST.

In come a model, dictionaries, prompt pairs and settings; out comes a graph. Each line below is one module.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import networkx as nx

from circuitgraph.attribution.alignment import ALIGN, Alignment, align_pairs
from circuitgraph.attribution.gradients import metric_gradients, mlp_slopes
from circuitgraph.attribution.node_attribution import attribute_nodes
from circuitgraph.attribution.node_gradients import node_gradients
from circuitgraph.attribution.runs import run_baseline, run_clean, sites_of
from circuitgraph.attribution.strongest import strongest_nodes
from circuitgraph.attribution.tables import NodeTable
from circuitgraph.attribution.targets import Objective, TargetSpec, given_targets, likeliest_logits, target_nodes
from circuitgraph.attribution.treatment import ComponentTreatment, error_targets, frozen_components
from circuitgraph.dictionaries.collection import Dictionaries
from circuitgraph.edges.influence import GraphScores, graph_scores, prune_by_influence
from circuitgraph.edges.influence import node_influence as influence_of
from circuitgraph.edges.inputs import input_of, input_report
from circuitgraph.edges.position_sums import POSITIONS, SumTracer, sum_positions, terms
from circuitgraph.edges.table import EdgeTable
from circuitgraph.edges.trace import QK, Selection, TracedEdges, Tracer, attribute_edges, check_inputs
from circuitgraph.errors import CircuitGraphError, did_you_mean
from circuitgraph.graphs.provenance import graph_facts
from circuitgraph.graphs.build import build_graph
from circuitgraph.metrics import MetricFunction, build_metric
from circuitgraph.models.model import Model
from circuitgraph.models.tokens import TokenizedPairs, tokenize_pairs
from circuitgraph.nodes import Site
from circuitgraph.prompts import PromptPair
from circuitgraph_kernels import backend_name

METHODS = ("gradient", "integrated")

# told (stage, steps done, steps in all) as the work goes on
Progress = Callable[[str, int, int], None]


def discover_circuit(
    model: Model,
    dictionaries: Dictionaries,
    pairs: Sequence[PromptPair],
    *,
    metric: str | MetricFunction = "logit_difference",
    targets: str | Sequence[TargetSpec] | Mapping[TargetSpec, float] = "metric",
    baseline: str = "corrupted",
    method: str = "gradient",
    steps: int = 10,
    rule: str = "gauss-legendre",
    attention: str = "node",
    mlp: str = "node",
    qk: str = "derivative",
    errors_as_targets: bool = False,
    align: str = "position",
    positions: str = "each",
    max_nodes: int = 1000,
    max_traced: int | None = None,
    edge_threshold: float = 0.001,
    relative_threshold: float = 0.0,
    top_k: int | None = None,
    node_influence: float | None = None,
    edge_influence: float | None = None,
    memory: float = 1.0,
    backend: str = "auto",
    progress: Progress = lambda stage, done, total: None,
) -> nx.MultiDiGraph:
    """The circuit graph of the metric's difference between clean and baseline, averaged over the pairs.

    The max_nodes nodes with the largest |attribution| are candidates; from the metric down, edges with
    |weight| > edge_threshold (a fraction of |metric clean - corrupted|) connect them, at most top_k per target, each at
    least relative_threshold of what its target reads. targets "logits" explains the likeliest next tokens in place of the
    metric, and a list (or a mapping to weights) what it names: token texts, pairs of them whose logits are subtracted,
    features such as "mlp_out.3/f17@5", and `targets.Probe`s. attention, mlp: what these are where no dictionary is: "node",
    "frozen" or "dropped" (`attribution.ComponentTreatment`). method "integrated" averages the gradient over `steps` points from baseline
    to clean; the slopes of edges inside the model, and the metric's own inputs, stay those of the clean run. qk
    "ablate" measures q and k edges by the change of the pattern. errors_as_targets: errors are targets too, of what they bring
    to the metric (not those of transcoders). max_traced: trace only so many features (and
    errors, where these are targets), the most influential first. node_influence, edge_influence: keep the nodes and edges that carry these shares of all influence
    on the targets (circuit-tracer's pruning). align: nodes of different pairs are one node at the same "position", of pairs
    of one length, or at the same place relative to the words they name ("role", `alignment`); a pair without that place
    counts as 0 in every mean. positions "sum": one node per feature, and edges added up over positions before any is
    selected (`position_sums`). memory: GiB that input directions and what they read may take at once. `progress` is told
    (stage, steps done, steps in all). Raises a CircuitGraphError for prompts, metrics or dictionaries that do not fit.
    """
    settings = dict(locals())
    resolved = _check_settings(settings)
    treatment = ComponentTreatment(attention, mlp)
    check_inputs(model, dictionaries.values(), qk)
    tokens = tokenize_pairs(model, pairs, by_role=align == "role")
    places = align_pairs(tokens, align)
    objective = _objective(model, dictionaries, tokens, targets, places)
    score = build_metric(metric, tokens.answers, tokens.wrong_answers) if objective is None else objective.metric()
    reads = [] if objective is None else objective.reads
    if errors_as_targets:
        reads += error_targets(model, dictionaries, treatment)
    neurons, scores = mlp == "frozen", qk == "ablate"
    sites = sites_of(model, dictionaries.values(), reads=reads, neurons=neurons, scores=scores)

    progress("running clean and corrupted prompts", 0, 1)
    clean = run_clean(model, tokens, sites, score)
    base = run_baseline(model, tokens, sites, score, baseline, mean=None if places.trivial else places.mean)

    progress("gradients of the metric", 0, 1)
    gradients = node_gradients(model, dictionaries, tokens, clean, base, score, method=method, steps=steps, rule=rule)
    last = Site("resid_post", model.n_layers - 1)
    stream_gradient = metric_gradients(clean, [last])
    slopes = places.gather(mlp_slopes(clean, [*(dictionary.reads for dictionary in dictionaries.values()), *reads]))
    frozen = frozen_components(model, dictionaries, clean, treatment, places)
    # from here on, places stand where positions were
    clean, base = places.of_run(model, clean), places.of_baseline(base)
    values, gradients = clean.values, places.gather(gradients)
    metric_gradient = places.gather(stream_gradient)[last]

    progress("attributing every feature", 0, 1)
    tables = attribute_nodes(
        model, dictionaries, values, base, gradients, treatment=treatment, frozen=frozen, errors_as_targets=errors_as_targets,
        backend=backend,
    )  # fmt: skip
    tables = places.mask(tables)
    sums = positions == "sum"
    nodes = [sum_positions(table) for table in tables] if sums else tables
    nodes, report = strongest_nodes(nodes, max_nodes, saturated=qk == "ablate")
    candidates = list(map(terms, tables, nodes)) if sums else nodes

    unit = abs(float((clean.metric - base.metric).mean())) or abs(float(clean.metric.mean()))
    tops = [] if objective is None else target_nodes(model, objective, clean, base)
    traced = attribute_edges(
        model,
        candidates,
        values,
        metric_gradient,
        base=base.values,
        targets=tops,
        slopes=slopes,
        maps=list(frozen.values()),
        qk=qk,
        selection=Selection(edge_threshold * unit, relative_threshold, top_k, max_traced),
        memory=int(memory * (1 << 30)),
        tracer_type=SumTracer if sums else Tracer,
        progress=progress,
    )
    edges, reports = traced.table, [report, *input_report(traced)]
    graph_score: GraphScores | None = None
    if node_influence is not None or edge_influence is not None:
        progress("pruning by influence", 0, 1)
        edges, graph_score = _by_influence(traced, node_influence or 1.0, edge_influence or 1.0)
        reports.append(f"influence: {len(edges)} of {len(traced.table)} edges kept")

    recorded = _recorded(settings, score.name, resolved)
    if objective is not None:
        recorded["targets"] = objective.record()
    facts = graph_facts(model, dictionaries, pairs, tokens, clean, base, recorded, places)
    if graph_score is not None:
        facts["scores"] = {key: value for key, value in asdict(graph_score).items() if value is not None}
    graph = build_graph(model, nodes, edges, facts, targets=tops, inputs=input_of(traced, edges, qk))
    reached = len(graph) - len(tops) - 1
    unreached = sum(map(len, nodes)) - reached
    reports.append(f"edge_threshold {edge_threshold:g}: {unreached} of them have no path of such edges to the metric")
    if not reached:
        reports.append(_why_empty(tables, len(pairs)))
    graph.graph["reports"] = reports
    return graph


def _by_influence(traced: TracedEdges, node_share: float, edge_share: float) -> tuple[EdgeTable, GraphScores]:
    """The edges that carry these shares of the influence, and the scores of all."""
    influence = influence_of(traced.table, traced.weights)
    shares: dict[str, Any] = {"node_share": node_share, "edge_share": edge_share, "influence": influence}
    pruned = prune_by_influence(traced.table, traced.weights, **shares)
    return pruned, graph_scores(traced.table, traced.weights, influence)


def _why_empty(tables: Sequence[NodeTable], n_pairs: int) -> str:
    if not any(bool(table.attribution.any()) for table in tables):
        return "the graph is empty: no node changes the metric between clean and baseline"
    cancelled = ", or pairs cancel in the mean" if n_pairs > 1 else ""
    return f"the graph is empty: no edges above the thresholds reach the metric{cancelled}"


def _objective(
    model: Model,
    dictionaries: Dictionaries,
    tokens: TokenizedPairs,
    targets: str | Sequence[TargetSpec] | Mapping[TargetSpec, float],
    places: Alignment,
) -> Objective | None:
    """What is to be explained; None for the metric."""
    if targets == "metric":
        return None
    if targets == "logits":
        return likeliest_logits(model, tokens.at_end(model.run(tokens.clean)[0]))
    if not isinstance(targets, Mapping | Sequence) or isinstance(targets, str):
        given = repr(targets) if isinstance(targets, str) else f"one {type(targets).__name__}"
        raise CircuitGraphError(
            f"targets is {given}; expected 'metric', 'logits' or a list such as [' Mary', 'mlp_out.3/f17@5']"
        )
    objective = given_targets(model, dictionaries, targets, tokens.clean.shape[1])
    if objective.reads and not places.trivial:
        raise CircuitGraphError(
            f"target {objective.targets[0].name!r} stands at one position of every prompt, and these prompts have the same role"
            " at different ones; build one graph per form of prompt (--length)"
        )
    return objective


def _check_settings(settings: Mapping[str, Any]) -> str:
    """The backend that will run; CircuitGraphError for a setting that makes no sense, before any work is done."""
    for name, known in (("method", METHODS), ("qk", QK), ("align", ALIGN), ("positions", POSITIONS)):
        if settings[name] not in known:
            value = settings[name]
            raise CircuitGraphError(
                f"{name} {value!r} is unknown; expected one of {', '.join(known)}.{did_you_mean(value, known)}"
            )
    for name in ("max_nodes", "top_k", "max_traced"):
        value = settings[name]
        if value is not None and (not isinstance(value, int) or value < 1):
            raise CircuitGraphError(f"{name} is {value!r}; expected at least 1, a whole number")
    for name in ("edge_threshold", "relative_threshold", "node_influence", "edge_influence", "memory"):
        if not isinstance(settings[name], int | float | None):
            raise CircuitGraphError(f"{name} is {settings[name]!r}; expected a number")
    for name in ("edge_threshold", "relative_threshold"):
        if not 0 <= settings[name] < float("inf"):
            of = "the metric's difference" if name == "edge_threshold" else "what the target reads"
            raise CircuitGraphError(f"{name} is {settings[name]}; expected a number >= 0, as a fraction of {of}")
    for name in ("node_influence", "edge_influence"):
        if settings[name] is not None and not 0 < settings[name] <= 1:
            raise CircuitGraphError(f"{name} is {settings[name]}; expected a share above 0 and at most 1")
    if not 0 < settings["memory"] < float("inf"):
        raise CircuitGraphError(f"memory is {settings['memory']}; expected a number of GiB above 0")
    if settings["qk"] == "ablate" and "frozen" in (settings["attention"], settings["mlp"]):
        raise CircuitGraphError("qk 'ablate' passes no component that is 'frozen'; take 'derivative' or 'node'")
    try:
        return backend_name(settings["backend"], settings["model"].device)
    except ValueError as error:
        raise CircuitGraphError(str(error)) from None


def _recorded(settings: Mapping[str, Any], metric: str, backend: str) -> dict[str, Any]:
    """The settings as the provenance keeps them."""
    left_out = {"model", "dictionaries", "pairs", "progress", "memory"}
    if settings["method"] != "integrated":
        left_out |= {"steps", "rule"}
    kept = {key: value for key, value in settings.items() if key not in left_out}
    return kept | {"metric": metric, "backend": backend}
