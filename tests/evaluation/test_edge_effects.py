"""Measured edges of a small change are the predicted ones, on several families, across skip connections and components that are
through."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from support.cases import build_case
from support.close import assert_close
from support.dictionary_kinds import random_kind
from support.families import FAMILIES

from circuitgraph.attribution.attribute import run_attribution
from circuitgraph.attribution.treatment import ComponentTreatment
from circuitgraph.dictionaries.collection import Dictionaries
from circuitgraph.edges.trace import trace_edges
from circuitgraph.errors import CircuitGraphError
from circuitgraph.evaluation.edge_effects import measure_edges
from circuitgraph.metrics import Metric
from circuitgraph.models.tokens import tokenize_pairs
from circuitgraph.nodes import Node, Site
from circuitgraph.settings import Edges, Nodes

pytestmark = pytest.mark.filterwarnings("ignore:A forward hook edited")

SKIPS = [("z.0", "z.0", "relu", {}), ("mlp_in.0", "mlp_out.0", "relu", {"skip": True})] + [
    ("z.1", "z.1", "jumprelu", {}),
    ("mlp_in.1", "mlp_out.1", "relu", {"skip": True}),
]
THROUGH = [("mlp_in.0", "mlp_out.0", "relu", {}), ("z.1", "z.1", "relu", {})]
CROSS = [("mlp_in.0", "mlp_out.0", "relu", {"later": "mlp_out.1"}), ("resid_post.0", "resid_post.0", "relu", {})]
STREAM = [("resid_pre.0", "resid_pre.0", "relu", {}), ("resid_pre.1", "resid_pre.1", "relu", {})]
ALL = ComponentTreatment("frozen", "frozen")
CASES = {
    "skips": (SKIPS, ComponentTreatment(), ["norms"]),
    "skips, frozen attention": (SKIPS, ComponentTreatment(), ["norms", "attention"]),
    "frozen": (THROUGH, ALL, ["norms", "attention"]),
    "residual only": (STREAM, ComponentTreatment(), ["norms"]),
    "cross-layer and residual": (CROSS, ComponentTreatment(), ["norms"]),
}


@pytest.fixture(scope="module", params=["gpt2", "gpt_neox", "gemma2"])
def family(request, loaded):
    return loaded(request.param), FAMILIES[request.param].precision == torch.float64


def traced(model, kinds, treatment, pairs):
    """A case, its tables and its edges, with components in these treatment."""
    found = [random_kind(model, *kind[:3], **kind[3]) for kind in kinds]
    dictionaries = Dictionaries(found)
    case = build_case(model, dictionaries, pairs)
    settings = Nodes(attention=treatment.attention, mlp=treatment.mlp)
    run = run_attribution(model, dictionaries, pairs, settings)
    case, tables = replace(case, clean=run.clean), run.tables
    edges = trace_edges(run, tables, Edges(edge_threshold=0))
    return case, tables, list(edges.table)


def smaller(table, size):
    if table.kind == "feature":
        return replace(table, acts=table.baseline_acts + size * (table.acts - table.baseline_acts))
    return replace(table, vectors=size * table.vectors)


@pytest.mark.parametrize("name", CASES)
def test_a_small_change_has_the_predicted_effect(family, tiny_pairs, name):
    model, exact = family
    kinds, treatment, freeze = CASES[name]
    case, tables, edges = traced(model, kinds, treatment, tiny_pairs[:1])
    predicted: dict[tuple, float] = {}
    for edge in edges:
        if edge.kind not in ("q", "k") or "attention" not in freeze:
            pair = edge.source, edge.target
            predicted[pair] = predicted.get(pair, 0.0) + edge.local_weight
    pairs = list(predicted)[:: max(1, len(predicted) // 60)]
    size = 1e-4 if exact else 1e-2
    found = measure_edges(
        model,
        case.dictionaries,
        case.tokens.clean,
        case.metric,
        [smaller(table, size) for table in tables],
        pairs,
        treatment=treatment,
        freeze=freeze,
    )
    expected = torch.tensor([predicted[pair] for pair in pairs], dtype=torch.float64)
    scale = float(expected.abs().max())
    assert len(pairs) > 8 and scale > 0.05
    # of what the step leaves out, and in models that compute in float32 of rounding beside it
    assert_close(found[:, 0] / size, expected, allowance=(1e-3 if exact else 0.03) * max(1, scale))


def test_across_a_skip_there_is_more_than_the_direct_path(family, tiny_pairs):
    """The same edge with and without what the skip passes."""
    model, _ = family
    case, tables, edges = traced(model, SKIPS, ComponentTreatment(), tiny_pairs[:1])
    across = [(e.source, e.target) for e in edges if e.source.site == Site("embed") and e.target.site == Site("z", 1)]
    plain = Dictionaries(random_kind(model, *kind[:3]) for kind in SKIPS)
    with_skip, without = (
        measure_edges(model, dictionaries, case.tokens.clean, case.metric, tables, across, freeze=["norms"])
        for dictionaries in (case.dictionaries, plain)
    )
    assert len(across) > 3 and float((with_skip - without).abs().max()) > 1e-2


def test_what_cannot_be_frozen_is_refused(tiny_model):
    with pytest.raises(
        CircuitGraphError, match="'norm' cannot be frozen while edges are measured.*Did you mean 'norms'"
    ):
        measure_edges(tiny_model, {}, torch.zeros(1, 3), None, [], [], freeze=["norm"])


def test_edges_into_errors_and_into_metrics_inside_the_model_are_refused(tiny_model, tiny_pairs):
    """An error has no value of its own here: it must not be measured as the metric."""
    inside = Metric("x", lambda logits, recorded: recorded[Site("z", 1)].sum((1, 2)), (Site("z", 1),))
    tokens, source = tokenize_pairs(tiny_model, tiny_pairs[:1]).clean, Node("embedding", Site("embed"), 2)
    for target in (
        Node("error", Site("z", 1), 3),
        Node("logit", Site("logit"), 5, 3),
        Node("metric", Site("metric"), 5),
    ):
        with pytest.raises(CircuitGraphError, match=f"edges into '{target}' are not measured; expected a feature"):
            measure_edges(tiny_model, {}, tokens, inside, [], [(source, target)])
