"""The laws of attribution that hold for any weights, in float64 on a random model with biases and learned positions.

Each test's name is the law. Compared numbers are asserted to be non-zero.
"""

from __future__ import annotations

import pytest
import torch
from support.cases import build_case, integrated_sum
from support.close import assert_close

from circuitgraph.attribution.gradients import metric_gradients
from circuitgraph.attribution.node_attribution import attribute_nodes
from circuitgraph.attribution.node_gradients import node_gradients
from circuitgraph.attribution.runs import baseline_of, run_clean, run_corrupted, sites_of
from circuitgraph.discovery import discover
from circuitgraph.evaluation.circuits import circuit_mask, node_values, run_with_nodes
from circuitgraph.evaluation.evidence import evaluate
from circuitgraph.evaluation.patching import patch_effects
from circuitgraph.graphs.pruning import prune
from circuitgraph.nodes import Node, Site


@pytest.fixture(scope="module")
def case(tiny_model, tiny_dictionaries, tiny_pairs):
    return build_case(tiny_model, tiny_dictionaries, tiny_pairs)


@pytest.fixture(scope="module")
def single_case(tiny_model, tiny_dictionaries, tiny_pairs):
    """One pair alone, so that every number of an edge belongs to one example."""
    return build_case(tiny_model, tiny_dictionaries, tiny_pairs[:1])


@pytest.fixture(scope="module")
def zero_case(tiny_model, tiny_dictionaries, tiny_pairs):
    return build_case(tiny_model, tiny_dictionaries, tiny_pairs[:1], baseline="zero")


# 1 -------------------------------------------------------------------------------------------------------------------


def test_swapping_clean_and_corrupted_negates_the_total_effect(case, tiny_pairs):
    swapped = [type(p)(p.corrupted, p.clean, p.answers, p.wrong_answers) for p in tiny_pairs]
    other = build_case(case.model, case.dictionaries, swapped)
    total = case.clean.metric - case.corrupted.metric
    assert_close(-(other.clean.metric - other.corrupted.metric), total, n_terms=1)
    both = build_case(case.model, case.dictionaries, [p.swapped() for p in tiny_pairs])
    assert_close(both.clean.metric - both.corrupted.metric, total, n_terms=1)


# 2 -------------------------------------------------------------------------------------------------------------------


def test_gradient_attribution_is_integrated_attribution_with_one_left_step(case, tiny_pairs):
    left = build_case(case.model, case.dictionaries, tiny_pairs, method="integrated", steps=1, rule="left")
    for table, other in zip(case.tables, left.tables, strict=True):
        assert_close(other.attribution, table.attribution)


def test_all_sites_take_one_backward_pass(case, monkeypatch):
    calls = []
    original = torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *a, **k: calls.append(a) or original(*a, **k))
    metric_gradients(case.clean, list(case.dictionaries))
    assert len(calls) == 1 and len(calls[0][1]) == len(case.dictionaries) == 4


# 3 -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["gradient", "integrated"])
@pytest.mark.parametrize("baseline", ["corrupted", "mean"])
def test_features_and_error_sum_to_gradient_times_difference(case, tiny_pairs, baseline, method):
    other = build_case(case.model, case.dictionaries, tiny_pairs, baseline=baseline, method=method, steps=3)
    for site in case.dictionaries:
        difference = other.clean.values[site] - other.base.values[site]
        assert_close(other.total(site), (other.gradients[site] * difference).sum(-1))


def test_with_baseline_zero_features_error_and_bias_sum_to_gradient_times_activation(zero_case):
    for site in zero_case.dictionaries:
        out = Site("attn_out", site.layer) if site.kind == "z" else site
        expected = (zero_case.gradients[out] * zero_case.clean.values[out]).sum(-1)
        assert_close(zero_case.total(site, ("feature", "error", "bias")), expected)


# 4 -------------------------------------------------------------------------------------------------------------------


QUADRATURE = 1e-9  # of 40 Gauss-Legendre steps at sites behind which everything is smooth
QUADRATURE_OF_EMBEDDINGS = 1e-6  # of 60 steps through both layers


@pytest.mark.parametrize("layer", [0, 1])
def test_integrated_gradients_of_the_residual_stream_sum_to_the_metric_difference(case, layer):
    total = integrated_sum(case, Site("resid_post", layer), steps=40)
    assert_close(total, case.clean.metric - case.corrupted.metric, allowance=QUADRATURE)


@pytest.mark.parametrize("site", ["attn_out.0", "z.1", "mlp_out.0", "mlp_out.1"])
def test_integrated_gradients_of_a_component_sum_to_the_effect_of_patching_it(case, site):
    site = Site.parse(site)
    patched, _ = case.model.run(case.tokens.clean, replace={site: lambda x, recorded: case.base.values[site]})
    assert_close(integrated_sum(case, site, steps=40), case.clean.metric - case.metric(patched), allowance=QUADRATURE)


def test_integrated_embedding_attributions_sum_to_the_metric_difference(case, tiny_pairs):
    """Everything that differs between the two runs enters through the token embeddings."""
    integrated = build_case(case.model, case.dictionaries, tiny_pairs, method="integrated", steps=60)
    total = integrated.total(Site("embed"), ("embedding",)).sum(1)
    assert_close(total, case.clean.metric - case.corrupted.metric, allowance=QUADRATURE_OF_EMBEDDINGS)
    assert float((total - case.total(Site("embed"), ("embedding",)).sum(1)).abs().min()) > 1e-3


def test_the_left_rule_converges_like_one_over_n_and_midpoint_like_its_square(case):
    total = case.clean.metric - case.corrupted.metric
    for rule, factor in (("left", 2), ("midpoint", 4)):
        errors = [
            (integrated_sum(case, Site("resid_post", 0), steps=n, rule=rule) - total).abs().max() for n in (40, 80)
        ]
        assert errors[1] > 1e-9
        assert float(errors[0] / errors[1]) == pytest.approx(factor, rel=0.15)


# 5 -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rule", "steps"), [("midpoint", 4), ("gauss-legendre", 3)])
def test_symmetric_rules_are_antisymmetric_under_clean_and_corrupted(case, tiny_pairs, rule, steps):
    swapped = [type(p)(p.corrupted, p.clean, p.answers, p.wrong_answers) for p in tiny_pairs]
    other = build_case(case.model, case.dictionaries, swapped)
    site = Site("resid_post", 0)
    assert_close(
        -integrated_sum(other, site, steps=steps, rule=rule), integrated_sum(case, site, steps=steps, rule=rule)
    )


def test_the_left_rule_is_not_antisymmetric(case, tiny_pairs):
    swapped = [type(p)(p.corrupted, p.clean, p.answers, p.wrong_answers) for p in tiny_pairs]
    other = build_case(case.model, case.dictionaries, swapped)
    site = Site("resid_post", 0)
    difference = integrated_sum(other, site, steps=4, rule="left") + integrated_sum(case, site, steps=4, rule="left")
    assert float(difference.abs().max()) > 1e-3


# 6 -------------------------------------------------------------------------------------------------------------------


def test_support_is_the_union_of_the_two_active_sets(case):
    for table in (t for t in case.tables if t.kind == "feature"):
        dictionary = case.dictionaries[table.site]
        active = [dictionary.encode(values[dictionary.reads]) != 0 for values in (case.clean.values, case.base.values)]
        union = (active[0] | active[1]).any(0)
        found = torch.zeros_like(union)
        found[table.pos, table.feature] = True
        assert torch.equal(found, union)
        assert 0 < int(union.sum()) < union.numel()


# 7 -------------------------------------------------------------------------------------------------------------------


def _total_input(edges, kinds):
    total_input: dict[Node, float] = {}
    for edge in edges:
        if edge.kind in kinds:
            total_input[edge.target] = total_input.get(edge.target, 0.0) + edge.local_weight
    return total_input


def _pre_activation(case, node):
    """The linear part x . e of the target's pre-activation, without b_enc."""
    dictionary = case.dictionaries[node.site]
    x = case.clean.values[dictionary.reads][0, node.pos]
    return x @ dictionary.input_directions(torch.tensor([node.feature]))[0]


def test_with_baseline_zero_the_total_input_is_the_pre_activation(zero_case):
    case = zero_case
    edges = case.edges()
    for kinds, site_kind in ((("mlp",), "mlp_out"), (("ov",), "z")):
        total_input = {node: value for node, value in _total_input(edges, kinds).items() if node.site.kind == site_kind}
        assert len(total_input) > 20
        expected = [float(_pre_activation(case, node) - _constant(case, node)) for node in total_input]
        assert_close(
            torch.tensor(list(total_input.values()), dtype=torch.float64), torch.tensor(expected, dtype=torch.float64)
        )


def _constant(case, node):
    """What reaches the reader from no source: the norm's own shift, and the value bias of attention."""
    encoder = case.dictionaries[node.site].input_directions(torch.tensor([node.feature]))[0]
    block = case.model.library.blocks[node.site.layer]
    reads = case.dictionaries[node.site].reads
    if reads.kind == "mlp_in":
        return block.ln2.bias @ encoder
    if reads.kind == "ln2_normalized":
        return torch.zeros((), dtype=torch.float64)
    values = torch.einsum("d,hdx->hx", block.ln1.bias, block.attn.W_V) + block.attn.b_V
    return values.flatten() @ encoder


def test_with_a_corrupted_baseline_the_total_input_is_the_linearised_change(single_case):
    """Norm scales and attention frozen at the clean run.

    The total mlp input is then the change of (the centred stream / clean scale) . e.
    """
    case = single_case
    total_input = _total_input(case.edges(), ("mlp",))
    expected = []
    for node in total_input:
        dictionary, layer = case.dictionaries[node.site], node.site.layer
        change = torch.zeros(16, dtype=torch.float64)
        for runs, sign in ((case.clean.values, 1), (case.base.values, -1)):
            before = runs[Site("resid_post", layer - 1)] if layer else runs[Site("embed")] + runs[Site("pos_embed")]
            change += sign * (before + runs[Site("attn_out", layer)])[0, node.pos]
        change = change - change.mean(-1, keepdim=True)
        if dictionary.reads.kind == "mlp_in":
            change = change * case.model.library.blocks[layer].ln2.weight
        change = change / case.clean.values[Site("ln2_scale", layer)][0, node.pos]
        expected.append(float(change @ dictionary.input_directions(torch.tensor([node.feature]))[0]))
    assert len(total_input) > 20
    assert_close(
        torch.tensor(list(total_input.values()), dtype=torch.float64), torch.tensor(expected, dtype=torch.float64)
    )


# 8 -------------------------------------------------------------------------------------------------------------------


def test_ov_q_and_k_are_the_whole_gradient_of_the_frozen_norm_attention(single_case):
    """Autograd through an attention written out in full, from the residual stream to each reader's pre-activation."""
    case, layer, one = single_case, 1, 0
    attention, clean = case.model.attention(layer), case.clean.values
    block = case.model.library.blocks[layer]
    stream = clean[Site("resid_post", layer - 1)][one].clone().requires_grad_()
    centred = stream - stream.mean(-1, keepdim=True)
    x = centred / clean[Site("ln1_scale", layer)][one] * block.ln1.weight + block.ln1.bias
    q, k, v = (
        torch.einsum("pd,hdx->phx", x, W) + b
        for W, b in ((attention.W_Q, block.attn.b_Q), (attention.W_K, block.attn.b_K), (attention.W_V, block.attn.b_V))
    )
    scores = torch.einsum("phx,khx->hpk", q, k) * attention.scale
    causal = torch.ones(scores.shape[1:]).tril().bool()
    pattern = scores.masked_fill(~causal, -torch.inf).softmax(-1)
    z = torch.einsum("hpk,khx->phx", pattern, v).flatten(1)
    assert_close(z.detach(), clean[Site("z", layer)][one])

    edges = [e for e in case.edges() if e.target.site == Site("z", layer)]
    sources = {table.node(i): _difference(table, i) for table in case.tables for i in range(len(table))}
    dictionary = case.dictionaries[Site("z", layer)]
    targets = sorted({e.target for e in edges}, key=lambda n: n.order)
    assert len(targets) >= 5
    for target in targets:
        encoder = dictionary.input_directions(torch.tensor([target.feature]))[0]
        (gradient,) = torch.autograd.grad(z[target.pos] @ encoder, stream, retain_graph=True)
        measured: dict[Node, float] = {}
        into = [edge for edge in edges if edge.target == target]
        assert_close([sum(edge.heads) for edge in into], [edge.local_weight for edge in into])
        for edge in into:
            measured[edge.source] = measured.get(edge.source, 0.0) + edge.local_weight
        expected = {node: float(gradient[node.pos] @ sources[node]) for node in measured}
        assert_close(
            torch.tensor(list(measured.values()), dtype=torch.float64),
            torch.tensor(list(expected.values()), dtype=torch.float64),
        )


def _difference(table, i):
    """The clean-minus-baseline vector that a node of a one-example table adds to the residual stream, [d_model]."""
    (change,) = table.differences(i).values()
    return change[0]


# 9 -------------------------------------------------------------------------------------------------------------------


def test_perturbing_a_source_changes_each_pre_activation_by_the_local_weight(single_case):
    """Mlp and ov edges measured in the real model: patterns, norm scales and every other node frozen at the clean run."""
    case, clean, edges = single_case, single_case.clean.values, single_case.edges()
    frozen = {
        Site(kind, layer): clean[Site(kind, layer)]
        for layer in range(2)
        for kind in ("pattern", "ln1_scale", "ln2_scale")
    }
    checked = 0
    for table in case.tables:
        for i in range(0, len(table), 7):
            source = table.node(i)
            here = [e for e in edges if e.source == source and e.kind in ("mlp", "ov")]
            if not here:
                continue
            measured = _perturbed_pre_activations(case, source, _difference(table, i), frozen, [e.target for e in here])
            assert_close(
                torch.tensor(measured, dtype=torch.float64),
                torch.tensor([e.local_weight for e in here], dtype=torch.float64),
            )
            checked += len(here)
    assert checked > 100


def _perturbed_pre_activations(case, source, vector, frozen, targets):
    """Clean minus perturbed linear pre-activation of each target when the source's vector is taken out at its place."""
    out = {"z": Site("attn_out", source.site.layer), "pos_embed": Site("embed")}.get(source.site.kind, source.site)
    replace = {site: (lambda x, recorded, value=value: value) for site, value in frozen.items()}
    for layer in range(2):
        for kind in ("attn_out", "mlp_out"):
            site = Site(kind, layer)
            replace[site] = lambda x, recorded, site=site: case.clean.values[site]

    def take_out(x, recorded):
        x = case.clean.values[out].clone()
        x[:, source.pos] -= vector
        return x

    replace[out] = take_out
    reads = {case.dictionaries[t.site].reads for t in targets}
    _, recorded = case.model.run(case.tokens.clean, record=sorted(reads, key=lambda s: s.depth), replace=replace)
    changes = []
    for target in targets:
        dictionary = case.dictionaries[target.site]
        encoder = dictionary.input_directions(torch.tensor([target.feature]))[0]
        change = case.clean.values[dictionary.reads] - recorded[dictionary.reads]
        changes.append(float(change[0, target.pos] @ encoder))
    return changes


# 10 ------------------------------------------------------------------------------------------------------------------


def test_keeping_every_node_leaves_the_logits_unchanged_bit_for_bit(case):
    everything = circuit_mask(case.model, case.dictionaries, [], 6, "keep")
    for mask in everything.features.values():
        mask[:] = True
    everything.embeddings[:] = True
    logits = run_with_nodes(case.model, case.dictionaries, case.tokens.clean, case.base, everything)
    assert torch.equal(logits, case.clean.logits)
    everything.embeddings[:] = False
    assert not torch.equal(
        run_with_nodes(case.model, case.dictionaries, case.tokens.clean, case.base, everything), case.clean.logits
    )


def test_zeroing_a_feature_changes_its_site_by_its_activation_times_its_decoder_row(zero_case, monkeypatch):
    case = zero_case
    site = Site("mlp_out", 0)
    table = next(t for t in case.tables if t.site == site and t.kind == "feature")
    mask = circuit_mask(case.model, case.dictionaries, [], 6, "keep")
    for each in mask.features.values():
        each[:] = True
    mask.embeddings[:] = True
    i = int(table.acts[0].argmax())
    mask.features[site][table.pos[i], table.feature[i]] = False
    dictionary = case.dictionaries[site]
    edited = {}
    original = type(case.model).run_variants

    def run(self, tokens, edits, n, **settings):
        seen = {site: lambda x, values: edited.setdefault("x", edits[site](x, values))}
        return original(self, tokens, {**edits, **seen}, n, **settings)

    monkeypatch.setattr(type(case.model), "run_variants", run)
    run_with_nodes(case.model, case.dictionaries, case.tokens.clean, case.base, mask)
    change = (edited["x"][0] - case.clean.values[site])[0, table.pos[i]]
    assert_close(change, -table.acts[0, i] * dictionary.weights.W_dec[table.feature[i]])


# 11 ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("baseline", ["corrupted", "mean", "zero"])
def test_the_full_circuit_is_perfectly_faithful_and_the_empty_one_not_at_all(
    tiny_model, tiny_dictionaries, tiny_pairs, baseline
):
    graph = discover(tiny_pairs, tiny_model, tiny_dictionaries, baseline=baseline, edge_threshold=0.0)
    assert_close(evaluate(graph, tiny_model, tiny_dictionaries).faithfulness, 1.0)
    empty = graph.subgraph([n for n, kind in graph.nodes(data="kind") if kind == "metric"]).copy()
    evaluation = evaluate(empty, tiny_model, tiny_dictionaries)
    assert_close(evaluation.faithfulness_errors_removed, 0.0, scale=1, zeros=True)
    assert abs(evaluation.metric_clean - evaluation.metric_empty) > 1e-3
    if baseline == "corrupted":
        assert_close(evaluation.metric_empty, graph.graph["metric"]["corrupted"])


def test_the_errors_of_the_circuit_are_those_among_its_nodes(tiny_model, tiny_dictionaries, tiny_pairs):
    graph = discover(tiny_pairs, tiny_model, tiny_dictionaries, edge_threshold=0.0)
    whole = evaluate(graph, tiny_model, tiny_dictionaries)
    assert_close(whole.faithfulness_errors_of_circuit, 1.0)
    assert abs(whole.faithfulness_errors_removed - 1) > 1e-2
    without = graph.subgraph([node for node, kind in graph.nodes(data="kind") if kind != "error"]).copy()
    evaluation = evaluate(without, tiny_model, tiny_dictionaries)
    assert evaluation.faithfulness_errors_of_circuit == evaluation.faithfulness_errors_removed
    assert abs(evaluation.faithfulness_errors_of_circuit - evaluation.faithfulness) > 1e-2


def test_with_every_node_at_its_corrupted_value_the_corrupted_run_comes_out(case):
    nothing = circuit_mask(case.model, case.dictionaries, [], 6, "remove")
    logits = run_with_nodes(case.model, case.dictionaries, case.tokens.clean, case.base, nothing)
    assert_close(logits, case.corrupted.logits)


def test_the_mean_baseline_is_the_mean_over_the_examples_at_each_position(case, tiny_pairs):
    mean = build_case(case.model, case.dictionaries, tiny_pairs, baseline="mean")
    for site in case.dictionaries:
        assert_close(mean.base.values[site][1], (case.base.values[site][0] + case.base.values[site][1]) / 2)


def test_patching_a_node_of_every_kind_gives_the_effect_of_its_difference(case):
    """Against runs in which the node's own difference is subtracted where it is written, one at a time."""
    baseline_nodes = node_values(case.model, case.dictionaries, case.base.values)
    for table in case.tables:
        i = int(table.attribution.abs().sum(0).argmax())
        node = table.node(i)
        out = node.site.output

        def subtract(x, recorded, table=table, i=i, node=node, out=out):
            x = x.clone()
            x[:, node.pos] -= table.differences(i)[out]
            return x

        patched, _ = case.model.run(case.tokens.clean, replace={out: subtract})
        effect = patch_effects(
            case.model,
            case.dictionaries,
            case.tokens.clean,
            case.clean.values,
            baseline_nodes,
            case.metric,
            case.tables,
            [node],
        )
        expected = case.clean.metric - case.metric(patched)
        assert_close(effect[0], expected)


def test_identical_prompts_give_a_stated_empty_graph(tiny_model, tiny_dictionaries, tiny_pairs):
    same = [type(p)(p.clean, p.clean, p.answers, p.wrong_answers) for p in tiny_pairs]
    graph = discover(same, tiny_model, tiny_dictionaries)
    assert list(graph.nodes) == ["metric@5"]
    assert graph.graph["reports"][-1].startswith("the graph is empty")


# 12 ------------------------------------------------------------------------------------------------------------------


def test_a_batch_is_the_size_weighted_mean_of_its_parts(tiny_model, tiny_dictionaries, tiny_pairs):
    def weights(pairs):
        graph = discover(pairs, tiny_model, tiny_dictionaries, edge_threshold=0.0)
        nodes = dict(graph.nodes(data="attribution"))
        return nodes | {(u, v, k): w for u, v, k, w in graph.edges(keys=True, data="weight")}

    three = [*tiny_pairs, type(tiny_pairs[0])("h g f e d", "h g f a d", (" a",), (" c",))]
    whole, one, two = weights(three), weights(three[:1]), weights(three[1:])
    keys = sorted(whole, key=str)
    assert len(keys) > 1000 and set(one) | set(two) == set(whole)
    mean = torch.tensor([(one.get(key, 0.0) + 2 * two.get(key, 0.0)) / 3 for key in keys], dtype=torch.float64)
    assert_close(torch.tensor([whole[key] for key in keys], dtype=torch.float64), mean)


# 13 ------------------------------------------------------------------------------------------------------------------


def test_larger_thresholds_give_sub_graphs_and_pruning_is_idempotent(tiny_model, tiny_dictionaries, tiny_pairs):
    graph = discover(tiny_pairs, tiny_model, tiny_dictionaries, edge_threshold=0.0)
    previous = graph
    sizes = []
    for threshold in (0.001, 0.01, 0.1):
        pruned = prune(graph, node_threshold=threshold, edge_threshold=threshold)
        assert set(pruned.edges(keys=True)) <= set(previous.edges(keys=True)) and set(pruned) <= set(previous)
        again = prune(pruned, node_threshold=threshold, edge_threshold=threshold)
        assert set(again.edges(keys=True)) == set(pruned.edges(keys=True)) and set(again) == set(pruned)
        previous = pruned
        sizes.append(len(pruned))
    assert len(graph) > sizes[0] > sizes[1] > sizes[2] > 1


@pytest.mark.parametrize("settings", [{"max_nodes": 30}, {"top_k": 3}, {"max_nodes": 60, "top_k": 6}])
def test_pruning_by_count_is_idempotent_and_keeps_every_path_to_the_metric(
    tiny_model, tiny_dictionaries, tiny_pairs, settings
):
    import networkx as nx

    graph = discover(tiny_pairs, tiny_model, tiny_dictionaries, edge_threshold=0.0)
    pruned = prune(graph, **settings)
    again = prune(pruned, **settings)
    assert set(again.edges(keys=True)) == set(pruned.edges(keys=True)) and len(pruned) > 5
    assert nx.ancestors(pruned, "metric@5") | {"metric@5"} == set(pruned)


# 15 ------------------------------------------------------------------------------------------------------------------


def test_where_the_metric_is_linear_attribution_equals_the_measured_effect(case):
    """With the final norm's scale constant and a linear metric, the last MLP's nodes act linearly on the metric."""
    direction = torch.linspace(-1, 2, 16, dtype=torch.float64)
    recorded = {}
    model = case.model
    original = type(model).run

    def run(self, tokens, **settings):
        last = Site("resid_post", 1)
        replace = dict(settings.pop("replace", None) or {})
        replace[last] = lambda x, r: recorded.__setitem__("x", x) or x
        return original(self, tokens, replace=replace, **settings)

    import unittest.mock

    from circuitgraph.metrics import Metric

    with unittest.mock.patch.object(type(model), "run", run):
        metric = Metric("linear", lambda logits: (recorded["x"][:, -1] @ direction)[: len(logits)])
        sites = sites_of(model, case.dictionaries.values())
        clean = run_clean(model, case.tokens, sites, metric)
        base = baseline_of("corrupted", run_corrupted(model, case.tokens, sites, metric))
        gradients, _ = node_gradients(
            model, case.dictionaries, case.tokens, clean, base, metric, method="gradient", steps=1, rule="left"
        )
        tables = attribute_nodes(model, case.dictionaries, clean.values, base, gradients)
        table = next(t for t in tables if t.site == Site("mlp_out", 1) and t.kind == "feature")
        columns = [i for i in range(len(table)) if int(table.pos[i]) == 5]
        nodes = [table.node(i) for i in columns]
        baseline_nodes = node_values(model, case.dictionaries, base.values)
        effects = patch_effects(
            model,
            case.dictionaries,
            case.tokens.clean,
            clean.values,
            baseline_nodes,
            metric,
            tables,
            nodes,
            batch_rows=2,
        )
    assert len(nodes) >= 5
    assert_close(effects, table.attribution[:, columns].T)
