"""Features and directions as targets: what a graph of them explains, measured and summed without the engine."""

from __future__ import annotations

import pytest
import torch
from support.close import assert_close
from support.dictionary_kinds import dictionary_set, random_dictionary
from support.families import FAMILIES
from support.traced_edges import assert_explained, shrunk, trace

from circuitgraph.attribution.objective import given_targets, recorded_objective
from circuitgraph.attribution.targets import Probe
from circuitgraph.dictionaries.collection import Dictionaries
from circuitgraph.discovery import discover
from circuitgraph.edges.products import EdgeProducts
from circuitgraph.errors import GraphError, MetricError
from circuitgraph.evaluation.circuits import node_values
from circuitgraph.evaluation.edge_effects import measure_edges
from circuitgraph.evaluation.evidence import evaluate
from circuitgraph.evaluation.patching import patch_effects
from circuitgraph.formats.native import graph_to_text, text_to_graph
from circuitgraph.graphs.schema import check_graph
from circuitgraph.nodes import DICTIONARY_SITES, Node, Site

POS = 4


def assert_measured(measured, predicted, share):
    """Equal up to a share of the largest value: finite differences have the error of their step beside that of rounding."""
    largest = float(predicted.abs().max())
    assert largest > 0 and float((measured - predicted).abs().max()) <= share * largest


def direction(model, site, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(model.width(Site.parse(site)), generator=generator, dtype=torch.float64)


def probes(model, sites, pos=POS):
    return [Probe(site, direction(model, site, i), pos, f"probe {i}") for i, site in enumerate(sites)]


def value_with(model, tokens, probe, site, change):
    """The probe's value, read by hand, when the activation at a site is changed."""
    read = Site.parse(probe.site)
    edit = {site: lambda x, recorded: x + change}
    _, found = model.run(tokens, record=[read], replace=edit)
    return found[read][:, probe.pos] @ probe.vector


@pytest.mark.parametrize("kind", DICTIONARY_SITES)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_gradient_of_a_probe_is_its_change_when_the_model_runs_with_another_embedding(
    loaded, tiny_pairs, family, kind
):
    model = loaded(family)
    assert model.has(Site(kind, 1))
    (probe,) = probes(model, [f"{kind}.1"])
    objective = given_targets(model, Dictionaries(), [probe], 6)
    case = trace(model, Dictionaries(), tiny_pairs, objective=objective)
    (table,) = [table for table in case.tables if table.kind == "embedding"]
    change = case.clean.values[Site("embed")] - case.base.values[Site("embed")]
    step = 1e-5 if FAMILIES[family].precision == torch.float64 else 3e-3
    up, down = (value_with(model, case.tokens, probe, Site("embed"), sign * step * change / 2) for sign in (1, -1))
    slope = (up - down) / step
    assert float(slope.abs().min()) > 1e-4
    assert_measured(table.attribution.sum(1), slope, 1e-7 if FAMILIES[family].precision == torch.float64 else 2e-2)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_residual_probe_reads_is_its_value(loaded, tiny_pairs, family):
    """With baseline zero every source is a node, and a direction of the stream has no constant of its own."""
    model = loaded(family)
    sites = ["resid_post.0", "resid_pre.1", "resid_post.1"]
    dictionaries = dictionary_set(model, "transcoders")
    objective = given_targets(model, dictionaries, probes(model, sites), 6)
    case = trace(model, dictionaries, tiny_pairs, baseline="zero", objective=objective)
    found, n = case.edges(), len(case.nodes)
    for i, (node, target) in enumerate(zip(case.targets, objective.targets, strict=True)):
        recorded = model.run(case.tokens, record=[target.site])[1][target.site]
        by_hand = recorded[:, POS] @ target.vector
        assert float(by_hand.abs().min()) > 1e-3
        rounding = {"dtype": FAMILIES[family].precision}
        assert_close(node.clean, by_hand, **rounding)
        edges = [e for e in found.table if e.target == node.node]
        terms = [e.local_weight for e in edges]
        rounding["scale"] = sum(map(abs, terms))
        assert_close([sum(terms), found.total_input[n + i]], [float(by_hand.mean())] * 2, **rounding)
        assert_close([e.weight for e in edges], [weight / 3 for weight in terms])
        assert {e.kind for e in edges} == {"residual"} and all(e.source.site.depth < target.site.depth for e in edges)


@pytest.mark.parametrize(
    ("qk", "name"),
    [
        (qk, name)
        for qk in ("derivative", "ablate")
        for name in ("transcoders", "output_saes", "residual", "cross_layer", "skip_transcoders")
        if (qk, name) != ("ablate", "skip_transcoders")  # refused: it passes no skip connections
    ],
)
def test_a_feature_as_target_reads_what_the_feature_reads(tiny_model, tiny_pairs, name, qk):
    """The edges into it in a graph of the metric, weighted by the target instead."""
    dictionaries = dictionary_set(tiny_model, name)
    whole = trace(tiny_model, dictionaries, tiny_pairs)
    chosen = {}
    for table in whole.tables:
        if table.kind == "feature" and table.site.layer == 1:
            column = int((table.node_gradient.abs().amin(0) > 1e-6).nonzero()[-1])
            chosen[table.site] = (table.node(column), table.acts[:, column])
    assert len(chosen) > 1
    expected = [edge for edge in whole.edges(qk=qk).table if edge.target in {node for node, _ in chosen.values()}]
    objective = given_targets(
        tiny_model, dictionaries, {str(node): 2.0 + i for i, (node, _) in enumerate(chosen.values())}, 6
    )
    case = trace(tiny_model, dictionaries, tiny_pairs, objective=objective)
    weight = {target.name: target.weight for target in case.targets}
    found = {
        (e.source, e.kind, case.targets[e.target.feature].name): e
        for e in case.edges(qk=qk).table
        if e.target.kind == "probe"
    }
    assert len(expected) > 20 and all(edge.local_weight for edge in expected)
    reached = {(e.source, e.kind, str(e.target)) for e in expected}
    assert set(found) == reached
    same = [found[edge.source, edge.kind, str(edge.target)] for edge in expected]
    assert_close([e.local_weight for e in same], [e.local_weight for e in expected])
    assert_close([e.weight for e in same], [float(weight[str(e.target)][0]) * e.local_weight for e in expected])
    assert [len(e.heads) for e in same] == [len(e.heads) for e in expected]
    assert_close([head for e in same for head in e.heads], [head for e in expected for head in e.heads])
    for target, (node, acts) in zip(case.targets, chosen.values(), strict=True):
        assert target.name == str(node) and target.node.site == dictionaries[node.site].reads
        active = acts != 0
        assert bool(active.any())
        assert_close(target.clean[active], acts[active])  # where it is active, its activation


def test_the_metric_is_the_weighted_sum_and_so_are_the_attributions(tiny_model, tiny_dictionaries, tiny_pairs):
    """Nodes beside or behind all that is read have none; a site's own nodes do not count for what reads there."""
    specs = [*probes(tiny_model, ["z.1", "resid_post.0"]), (" g", " h"), "mlp_out.1/f3@4"]
    weights = (2.0, -1.0, 0.5, 3.0)

    def tables(specs, weights):
        objective = given_targets(tiny_model, tiny_dictionaries, dict(zip(specs, weights, strict=True)), 6)
        return trace(tiny_model, tiny_dictionaries, tiny_pairs, objective=objective)

    together = tables(specs, weights)
    alone = [tables([spec], [weight]) for spec, weight in zip(specs, weights, strict=True)]
    assert_close(together.clean.metric, sum(case.clean.metric for case in alone))
    assert [target.weight.tolist() for target in together.targets] == [[w, w] for w in weights]
    for i, table in enumerate(together.tables):
        parts = [case.tables[i].attribution for case in alone]
        assert_close(table.attribution, sum(parts))
        for part, depth in zip(parts, (Site("z", 1).depth, Site("resid_post", 0).depth), strict=False):
            assert bool(part.any()) == (table.site.depth < depth), table.site
    difference = alone[2].clean.logits[:, -1, [9, 10]]
    assert tiny_model.token_strings([9, 10]) == ["g", "h"]
    assert_close(alone[2].clean.metric, 0.5 * (difference[:, 0] - difference[:, 1]))


@pytest.mark.parametrize("method", ["gradient", "integrated"])
@pytest.mark.parametrize("baseline", ["corrupted", "zero", "mean"])
def test_a_graph_of_features_and_directions_is_evaluated_and_survives_a_file(
    tiny_model, tiny_dictionaries, tiny_pairs, method, baseline
):
    specs = {"mlp_out.1/f3@4": 1.0, Probe("resid_post.0", direction(tiny_model, "resid_post.0"), 3, "<b>"): -0.5}
    graph = discover(
        tiny_pairs, tiny_model, tiny_dictionaries, targets=specs, baseline=baseline, method=method, steps=4,
        edge_threshold=0.0, max_nodes=10**6,
    )  # fmt: skip
    check_graph(graph)
    probed = {n: d for n, d in graph.nodes(data=True) if d["kind"] == "probe"}
    assert set(probed) == {"mlp_in.1/p0@4", "resid_post.0/p1@3"}
    assert {d["label"]: d["target_weight"] for d in probed.values()} == {"mlp_out.1/f3@4": 1.0, "<b>": -0.5}
    for node, attributes in probed.items():
        assert list(graph.successors(node)) == ["metric@5"] and graph.in_degree(node) > 3
        assert Node.parse(node).site.layer is not None
        assert_explained([attributes])
    assert graph.graph["metric"]["name"] == "targets" and graph.graph["metric"]["clean"] != 0
    again = text_to_graph(graph_to_text(graph))
    assert graph_to_text(again) == graph_to_text(graph)
    evaluation = evaluate(
        again, tiny_model, tiny_dictionaries, baselines=(), n_dropped=3, n_patched=10**6, n_edges=10**6
    )
    assert_close(evaluation.metric_clean, graph.graph["metric"]["clean"])
    assert {target for _, target in evaluation.edge_effects} >= set(probed) and evaluation.edges.pearson_r > 0.5
    for node in ("embed@3", "mlp_out.0/error@3", "z.0/error@2"):
        assert abs(evaluation.effects[node]) > 1e-6
    if baseline == "corrupted":
        assert_close(evaluation.faithfulness, 1.0)
        change = tiny_model.run(torch.tensor([[1, 3, 4, 8, 6, 7], [1, 5, 7, 10, 4, 6]]), record=[Site("embed")])[1]
        targets = recorded_objective(tiny_model, tiny_dictionaries, graph.graph["provenance"]["settings"]["targets"], 6)

        def replaced(x, recorded):
            x = x.clone()
            x[:, 3] = change[Site("embed")][:, 3]
            return x

        tokens = torch.tensor([[1, 3, 4, 5, 6, 7], [1, 5, 3, 10, 4, 6]])
        record = [Site("mlp_in", 1), Site("resid_post", 0)]
        runs = [tiny_model.run(tokens, record=record, replace=r) for r in ({}, {Site("embed"): replaced})]
        before, after = (targets.metric()(*run) for run in runs)
        assert_close(evaluation.effects["embed@3"], float((before - after).mean()), scale=before.abs().max())


def test_a_probe_behind_neurons_and_one_through_frozen_components_are_explained(tiny_model, tiny_pairs):
    dictionaries = Dictionaries([random_dictionary("mlp_in.0", "mlp_out.0", seed=1)])
    settings = {"attention": "frozen", "mlp": "frozen", "baseline": "zero", "edge_threshold": 0.0, "max_nodes": 10**6}
    found = probes(tiny_model, ["mlp_post.1", "mlp_out.1", "attn_out.1"])
    graph = discover(tiny_pairs[:1], tiny_model, dictionaries, targets=found, **settings)
    probed = [d for _, d in graph.nodes(data=True) if d["kind"] == "probe"]
    assert len(probed) == 3 and all(abs(d["stream_input"]) > 1e-3 for d in probed)
    assert_explained(probed)


def test_pruning_by_influence_keeps_every_target_and_what_it_brings_to_the_metric(
    tiny_model, tiny_dictionaries, tiny_pairs
):
    settings = {"edge_threshold": 0.0, "max_nodes": 10**6, "baseline": "zero"}
    targets = dict(zip(probes(tiny_model, ["z.1", "resid_post.0"]), (5.0, 1e-3), strict=True))
    whole, pruned = (
        discover(tiny_pairs, tiny_model, tiny_dictionaries, targets=targets, **settings | shares)
        for shares in ({}, {"node_influence": 0.8, "edge_influence": 0.8})
    )
    assert 5 < pruned.number_of_edges() < whole.number_of_edges() / 2
    into = {(u, v): d["weight"] for u, v, d in pruned.in_edges("metric@5", data=True)}
    assert set(into) == {("z.1/p0@4", "metric@5"), ("resid_post.0/p1@4", "metric@5")} and all(into.values())


def test_a_target_that_is_to_fall_is_explained_by_the_same_nodes_as_one_that_is_to_rise(
    tiny_model, tiny_dictionaries, tiny_pairs
):
    settings = {"edge_threshold": 0.0, "max_nodes": 10**6, "baseline": "zero", "max_traced": 7}
    settings |= {"node_influence": 0.9, "edge_influence": 0.95}
    rises, falls = (
        discover(tiny_pairs, tiny_model, tiny_dictionaries, targets={" c": weight}, **settings)
        for weight in (0.5, -0.5)
    )
    assert set(rises.edges(keys=True)) == set(falls.edges(keys=True)) and rises.number_of_edges() > 30
    assert rises.graph["scores"] == falls.graph["scores"] and 0 < rises.graph["scores"]["replacement"] < 1
    pairs = [(falls.edges[edge]["weight"], -rises.edges[edge]["weight"]) for edge in rises.edges(keys=True)]
    assert_close(*map(list, zip(*pairs, strict=True)))


def test_a_direction_may_be_a_weight_in_training(tiny_model, tiny_dictionaries, tiny_pairs):
    vector = torch.nn.Parameter(direction(tiny_model, "resid_post.0"))
    settings = {"node_influence": 0.9, "max_traced": 3}
    graphs = [
        discover(tiny_pairs, tiny_model, tiny_dictionaries, targets=[Probe("resid_post.0", v, 4)], **settings)
        for v in (vector, vector.detach())
    ]
    assert graph_to_text(graphs[0]) == graph_to_text(graphs[1]) and graphs[0].number_of_edges() > 5


@pytest.mark.parametrize("name", ["output_saes", "residual"])
@pytest.mark.parametrize("positions", ["each", "sum"])
def test_memory_bounds_what_is_held_at_once_and_changes_no_number(tiny_model, tiny_pairs, monkeypatch, name, positions):
    """With errors, features, directions and logits as targets."""
    specs = [*probes(tiny_model, ["z.1", "resid_post.0"]), (" g", " h"), "mlp_out.1/f3@4", " c"]
    dictionaries, held = dictionary_set(tiny_model, name), []
    of_paths = EdgeProducts.of_paths

    def watched(products, paths):
        blocks = of_paths(products, paths)
        batch, targets = blocks[0].local.shape[:2]
        summed = sum(2 * batch * targets * block.local.shape[-1] for block in blocks)
        held.append((targets, 8 * (summed + sum(block.local.numel() for block in blocks))))
        return blocks

    monkeypatch.setattr(EdgeProducts, "of_paths", watched)
    found = []
    for memory in (1 << 30, 100_000, 40_000, 1):
        held.clear()
        found.append(
            discover(
                tiny_pairs,
                tiny_model,
                dictionaries,
                targets=specs,
                errors_as_targets=True,
                positions=positions,
                baseline="zero",
                edge_threshold=0.0,
                max_nodes=10**6,
                memory=memory / (1 << 30),
            )  # fmt: skip
        )
        assert all(size <= memory for n, size in held if n > 1), memory
        assert max(n for n, _ in held) > 1 or memory == 1, memory
    one = {key: found[0].edges[key] for key in found[0].edges(keys=True)}
    assert len(one) > 400 and sum(v.rpartition("@")[0].endswith("error") for _, v, _ in one) > 20
    for other in found[1:]:
        assert set(other.edges(keys=True)) == set(one)
        for key in ("weight", "local_weight", "weight_abs"):
            assert_close(*([g.edges[e][key] for e in one] for g in (other, found[0])))


def test_patching_starts_below_what_the_metric_reads(tiny_model, tiny_dictionaries, tiny_pairs):
    """Nodes of the last layer alone in their batch: the first layer's activations are read all the same."""
    objective = given_targets(tiny_model, tiny_dictionaries, probes(tiny_model, ["resid_post.0", "resid_post.1"]), 6)
    case = trace(tiny_model, tiny_dictionaries, tiny_pairs, objective=objective)
    upper = [node for node in case.nodes if node.site.kind == "z" and node.site.layer == 1 and node.pos == POS]
    held = node_values(tiny_model, tiny_dictionaries, case.base.values)
    run = (tiny_model, tiny_dictionaries, case.tokens, case.clean.values, held, objective.metric(), case.tables)
    alone = torch.cat([patch_effects(*run, [node]) for node in upper])
    together = patch_effects(*run, case.nodes)[[case.nodes.index(node) for node in upper]]
    assert len(upper) > 3 and float(alone.abs().max()) > 1e-3
    assert_close(alone, together)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (["mlp_out.1/f99@4"], "dictionary mlp_out.1-relu has features 0-23"),
        (["mlp_out.7/f1@4"], r"no feature of a given dictionary; their sites are z\.0, .*Did you mean 'mlp_out\.1'"),
        (["mlp_out.1/f3@6"], "position 6 is not in the prompts, which have 6 tokens"),
        (["mlp_out.1/f3@x"], "is no feature: node 'mlp_out.1/f3@x' does not parse"),
        ([Probe("z.9", torch.ones(16))], "a probe cannot read z.9; expected one of resid_pre"),
        ([Probe("pattern.1", torch.ones(16))], "a probe cannot read pattern.1"),
        ([Probe("z.1", torch.ones(7))], r"the vector has shape \(7,\); expected 16 finite numbers"),
        ([Probe("z.1", torch.zeros(16))], "finite numbers, not all 0"),
        ([Probe("z.1", torch.ones(16), name="x"), Probe("z.0", torch.ones(16), name="x")], "'x' is given twice"),
        ([(" g", " g")], "is a logit less itself"),
        ({" g": 0.0}, "the weight of target ' ?g' is 0.0; expected a finite number other than 0"),
        ({" g": float("nan")}, "the weight of target"),
        ({" g": "much"}, "the weight of target"),
    ],
)
def test_targets_that_do_not_exist_are_refused_in_one_line(tiny_model, tiny_dictionaries, tiny_pairs, targets, message):
    with pytest.raises((MetricError, GraphError), match=message) as error:
        discover(tiny_pairs, tiny_model, tiny_dictionaries, targets=targets)
    assert "\n" not in str(error.value)


def test_a_record_of_targets_that_is_broken_is_refused(tiny_model, tiny_dictionaries):
    with pytest.raises(GraphError, match="the graph's targets cannot be read"):
        recorded_objective(tiny_model, tiny_dictionaries, [{"name": "x", "weight": 1.0, "site": "z.1"}], 6)


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "gemma2"])
def test_small_changes_of_what_targets_read_have_the_predicted_effect(loaded, tiny_pairs, family):
    """Measured in the real model with frozen norms, sources shrunk until the answer is linear."""
    model, precise = loaded(family), FAMILIES[family].precision == torch.float64
    dictionaries = dictionary_set(model, "transcoders")
    n_pos = len(model.tokens(tiny_pairs[0].clean))
    sites = ["resid_post.0", "resid_pre.1", "z.1", "attn_out.1", "ln2_normalized.1", "mlp_in.1", "resid_post.1"]
    specs = [*probes(model, sites), "mlp_out.1/f3@4", " g", (" g", " h")]
    objective = given_targets(model, dictionaries, specs, n_pos)
    case = trace(model, dictionaries, tiny_pairs[:1], objective=objective)
    targets = dict(zip(objective.nodes(n_pos), objective.targets, strict=True))
    predicted = {}
    for edge in case.edges().table:
        if edge.target in targets:
            predicted[edge.source, edge.target] = predicted.get((edge.source, edge.target), 0.0) + edge.local_weight
    assert {target for _, target in predicted} == set(targets) and len(predicted) > 150
    step = 1e-5 if precise else 1e-2
    small = [shrunk(table, step) for table in case.tables]
    pairs, freeze = list(predicted), ["norms"]
    found = measure_edges(
        model, dictionaries, case.tokens, objective.metric(), small, pairs, freeze=freeze, targets=targets
    )[:, 0]  # fmt: skip
    for target in targets:
        rows = [i for i, pair in enumerate(pairs) if pair[1] == target]
        expected = torch.tensor([predicted[pairs[i]] for i in rows], dtype=torch.float64)
        if target.site.kind == "logit":  # the final norm, which edges freeze, answers
            assert torch.corrcoef(torch.stack([found[rows] / step, expected]))[0, 1] > 0.8
            continue
        assert_measured(found[rows] / step, expected, 1e-4 if precise else 3e-2)
