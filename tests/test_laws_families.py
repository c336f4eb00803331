"""The laws of attribution for every family of models and every kind of dictionary.

The numbers of test_laws: 3 sums, 7 total input, 8 the whole gradient of a component, 9 perturbation, 10 splicing, 11
whole circuits. Compared numbers are asserted to be non-zero, and how many there are.
"""

from __future__ import annotations

import functools

import pytest
import torch
from support.cases import build_case
from support.close import assert_close
from support.dictionary_kinds import SETS, dictionary_set, random_kind
from support.families import FAMILIES, hf_model, hooked_transformer
from support.frozen_blocks import FrozenBlocks, change_of, run_without
from support.traced_edges import trace

from circuitgraph.attribution.node_gradients import path_start
from circuitgraph.attribution.treatment import error_targets, node_sites
from circuitgraph.dictionaries.collection import Dictionaries
from circuitgraph.dictionaries.dictionary import check_fit
from circuitgraph.discovery import discover
from circuitgraph.errors import CircuitGraphError
from circuitgraph.evaluation.circuits import (
    circuit_edits,
    circuit_mask,
    node_values,
    run_with_nodes,
    stack_masks,
)
from circuitgraph.evaluation.dictionary_check import check_splice
from circuitgraph.evaluation.evidence import evaluate
from circuitgraph.evaluation.patching import patch_effects
from circuitgraph.models.load import load_model
from circuitgraph.nodes import Site
from circuitgraph_kernels import compute_dtype

# transformers' norms are hooked beside their forward pass; that replacing a scale leaves it is what is wanted here.
pytestmark = pytest.mark.filterwarnings("ignore:A forward hook edited")

each = pytest.mark.parametrize("family", FAMILIES)
with_each_set = pytest.mark.parametrize("name", SETS)
LINEAR = ("z", "attn_out", "ln2_normalized", "mlp_in", "resid_pre", "resid_post")
ATTENTION = ("z", "attn_out")
# Every family with one set, and every set with one family with and one without post-norms.
WHOLE = [(family, "transcoders") for family in FAMILIES] + [
    (family, name) for family in ("gpt2", "gemma2") for name in SETS if name != "transcoders"
]


@pytest.fixture(scope="module")
def cases(loaded, tiny_pairs):
    """(family, set, baseline) -> the run of both pairs."""

    @functools.cache
    def make(family, name, baseline):
        return build_case(loaded(family), dictionary_set(loaded(family), name), tiny_pairs, baseline=baseline)

    return make


@pytest.fixture(scope="module")
def single(loaded, tiny_pairs):
    """(family, set, baseline) -> the run of one pair alone, so that every number of an edge belongs to one example."""

    @functools.cache
    def make(family, name, baseline):
        return build_case(loaded(family), dictionary_set(loaded(family), name), tiny_pairs[:1], baseline=baseline)

    return make


@pytest.fixture(scope="module")
def edges(single):
    """(family, set, baseline) -> (targets, sources, kind -> local weights [targets, sources]); each weight is asserted to be chained."""

    @functools.cache
    def make(family, name, baseline):
        case = single(family, name, baseline)
        found = case.edges()
        sources = [node for table in case.tables for node in table.nodes()]
        targets = sorted({edge.target for edge in found}, key=lambda node: node.order)
        row, column = ({node: i for i, node in enumerate(nodes)} for nodes in (targets, sources))
        weights, slopes = {}, [node_gradient(case, target) for target in targets]
        assert_close([edge.weight for edge in found], [slopes[row[edge.target]] * edge.local_weight for edge in found])
        with_heads = [edge for edge in found if edge.heads]
        assert_close([sum(edge.heads) for edge in with_heads], [edge.local_weight for edge in with_heads], zeros=True)
        for edge in found:
            dense = weights.setdefault(edge.kind, torch.zeros(len(targets), len(sources), dtype=torch.float64))
            assert dense[row[edge.target], column[edge.source]] == 0, "two edges of one kind between two nodes"
            dense[row[edge.target], column[edge.source]] = edge.local_weight
            assert len(edge.heads) == (case.model.n_heads if edge.kind in ("ov", "q", "k") else 0)
        return targets, sources, weights

    return make


@pytest.fixture(scope="module")
def blocks(folder, single):
    """family -> its blocks written out at the clean run of one pair."""

    @functools.cache
    def make(family):
        return FrozenBlocks(hf_model(folder(family)), single(family, "transcoders", "corrupted").tokens.clean)

    return make


def reading(case, node):
    """d(pre-activation)/d(what is read) of a feature, the input's norm frozen, [d_in]."""
    return case.dictionaries[node.site].input_directions(torch.tensor([node.feature]))[0]


def node_gradient(case, node):
    """d metric / d pre-activation of a feature that is active, 1 for the metric."""
    if node.kind == "metric":
        return 1.0
    d, clean = case.dictionaries[node.site], case.clean.values
    if d.encode(clean[d.reads])[0, node.pos, node.feature] == 0:
        return 0.0
    row = d.weights.W_dec[node.feature]
    return float(sum(case.gradients[site][0, node.pos] @ row[d.columns(site)] for site in d.sites))


def shifted(case, frozen, site):
    """What skip connections bring to the site from the stream in the clean run: all but the norm's own bias."""
    for d in case.dictionaries.values():
        if d.W_skip is not None and d.writes == site:
            x = case.clean.values[d.reads]
            return (x - frozen.norm(site.layer, "ln2")(torch.zeros_like(x), gain=d.reads.kind == "mlp_in")) @ d.W_skip
    return torch.zeros_like(case.clean.values[site])


# 3 -------------------------------------------------------------------------------------------------------------------


@each
@with_each_set
def test_all_nodes_of_a_site_sum_to_gradient_times_difference(cases, family, name):
    case = cases(family, name, "corrupted")
    clean, base = case.clean.values, case.base.values
    found, expected = {}, {}
    for site in node_sites(case.model, case.dictionaries):
        difference = clean[site] - base[site]
        for d in case.dictionaries.values():
            if d.W_skip is not None and d.writes == site:
                difference = difference - (clean[d.reads] - base[d.reads]) @ d.W_skip
        found[site] = case.total(site, ("feature", "error", "bias"))
        expected[site] = (case.gradients[site] * difference).sum(-1)
    assert_sums(case, found, expected)


@each
@with_each_set
def test_with_baseline_zero_all_nodes_of_a_site_sum_to_gradient_times_activation(cases, blocks, family, name):
    case = cases(family, name, "zero")
    found, expected, scale = {}, {}, 0.0
    for site in node_sites(case.model, case.dictionaries):
        found[site] = case.total(site, ("feature", "error", "bias"))
        terms = case.gradients[site] * (case.clean.values[site] - shifted(case, blocks(family), site))
        expected[site] = terms.sum(-1) + (case.gradients[site.output] * blocks(family).behind(site)).sum(-1)
        scale = max(scale, float(terms.abs().sum(-1).max()))
    assert_sums(case, found, expected, scale=scale)


QUADRATURE = 5e-4  # of 128 Gauss-Legendre steps across the kinks at which features become active


@pytest.mark.parametrize(("family", "name"), WHOLE)
@pytest.mark.parametrize("baseline", ["corrupted", "zero"])
def test_integrated_attributions_sum_to_the_effect_of_each_site(cases, tiny_pairs, family, name, baseline):
    """Of taking the site to the start of the path, everything upstream as in the clean run; to quadrature."""
    model, dictionaries = cases(family, name, baseline).model, cases(family, name, baseline).dictionaries
    case = build_case(model, dictionaries, tiny_pairs, baseline=baseline, method="integrated", steps=128)
    shared = {site for d in case.dictionaries.values() if d.later for site in d.sites}
    compared = 0
    for site in node_sites(case.model, case.dictionaries):
        start = path_start(case.dictionaries, case.base, case.clean.values, site)
        start = start.expand_as(case.clean.values[site])
        if site in shared:
            continue
        logits, _ = case.model.run(case.tokens.clean, replace={site: lambda x, recorded, start=start: start})
        effect = case.clean.metric - case.metric(logits)
        found = case.total(site, ("feature", "error")).sum(1)
        skips = [d for d in case.dictionaries.values() if d.W_skip is not None and d.writes == site]
        if baseline == "corrupted":
            bias = case.total(site, ("bias",)).sum(1)
            passed = [(case.clean.values[d.reads] - case.base.values[d.reads]) @ d.W_skip for d in skips]
            found = found + bias + sum((case.gradients[site] * x).sum((1, 2)) for x in passed)
        assert_close(found, effect, dtype=torch.float32, allowance=QUADRATURE)
        compared += 1
    assert compared >= 2


def assert_sums(case, found, expected, scale=None):
    """Site by site; the sites of a cross-layer transcoder together, whose features belong to all of them."""
    shared = {site for d in case.dictionaries.values() if d.later for site in d.sites}
    for site in found.keys() - shared:
        assert_close(found[site], expected[site], scale=scale)
    if shared:
        assert len(shared) == 2
        assert_close(sum(found[site] for site in shared), sum(expected[site] for site in shared), scale=scale)
    embedding = case.total(Site("embed"), ("embedding",))
    base = 0 if case.base.values is None else case.base.values[Site("embed")]
    assert_close(embedding, (case.gradients[Site("embed")] * (case.clean.values[Site("embed")] - base)).sum(-1))


@each
def test_about_a_third_of_the_features_are_active(cases, family):
    for name in SETS:
        case = cases(family, name, "corrupted")
        for d in case.dictionaries.values():
            share = float((d.encode(case.clean.values[d.reads]) != 0).double().mean())
            assert share == 1 if d.weights.activation == "identity" else 0.1 < share < 0.75, (name, d.name, share)


# 7 -------------------------------------------------------------------------------------------------------------------


@each
@with_each_set
def test_with_baseline_zero_the_total_input_is_what_is_read_less_the_constants(single, edges, blocks, family, name):
    """Constants: what a norm, the values or the output of attention add; a norm's bias behind a skip is a node's."""
    case, frozen = single(family, name, "zero"), blocks(family)
    targets, _, weights = edges(family, name, "zero")
    found, expected = [], []
    for row, node in enumerate(targets):
        if node.kind == "metric" or case.dictionaries[node.site].reads.kind not in LINEAR:
            continue
        site = case.dictionaries[node.site].reads
        found.append(sum(float(w[row].sum()) for kind, w in weights.items() if kind in ("ov", "mlp", "residual")))
        x = case.clean.values[site] - read_without_nodes(case, frozen, site)
        expected.append(float(x[0, node.pos] @ reading(case, node)))
    assert len(found) > 12
    assert_close(
        torch.tensor(found, dtype=torch.float64),
        torch.tensor(expected, dtype=torch.float64),
        dtype=FAMILIES[family].precision,
    )


def read_without_nodes(case, frozen, site):
    """What is read at the site if no node adds anything to the stream: constants only, [1, pos, d]."""
    written = {s for d in case.dictionaries.values() for s in d.sites}
    stream = torch.zeros_like(case.clean.values[Site("embed")])
    for layer in range(site.layer + 1):
        if Site("resid_pre", layer) in written:
            stream = torch.zeros_like(stream)
        if site == Site("resid_pre", layer):
            return stream
        pattern = case.clean.values[Site("pattern", layer)]
        if site.layer == layer and site.kind in ATTENTION:
            return frozen.attention(layer, stream, pattern)[site.kind == "attn_out"][None]
        norm = frozen.norm(layer, "ln2")
        if site.layer == layer and site.kind in ("ln2_normalized", "mlp_in"):
            return norm(stream, gain=site.kind == "mlp_in")
        if site == Site("resid_post", layer):
            return stream
        if Site("resid_post", layer) in written:
            stream = torch.zeros_like(stream)
    raise AssertionError(site)


# 8 and 9 -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def taken_out(single, edges):
    """(family, set) -> what reaches every place less when one source at a time is taken out of the real model."""
    return functools.cache(
        lambda family, name: run_without(single(family, name, "corrupted"), edges(family, name, "corrupted")[1])
    )


@each
def test_the_blocks_written_out_are_those_of_the_model(single, blocks, family):
    case = single(family, "neurons", "corrupted")
    clean, frozen = case.clean.values, blocks(family)
    for layer in range(case.model.n_layers):
        found = frozen.attention(layer, frozen.seen["ln1", layer])
        found += frozen.mlp(layer, frozen.seen["ln2", layer])
        for kind, value in zip(("z", "attn_out", "mlp_post", "mlp_out"), found, strict=True):
            assert_close(value[None], clean[Site(kind, layer)], dtype=FAMILIES[family].precision)


@each
@with_each_set
def test_taking_a_source_out_changes_what_every_feature_reads_by_the_local_weight(
    single, edges, taken_out, family, name
):
    """In the real model; patterns, norm scales and every other component frozen, skip connections not. Absent edges are 0."""
    case = single(family, name, "corrupted")
    targets, _, weights = edges(family, name, "corrupted")
    read, _ = taken_out(family, name)
    compared = 0
    for site in case.dictionaries:
        reads = case.dictionaries[site].reads
        rows = [i for i, node in enumerate(targets) if node.site == site]
        if reads.kind not in LINEAR or not rows:
            continue
        encoders = torch.stack([reading(case, targets[i]) for i in rows])
        positions = [targets[i].pos for i in rows]
        expected = torch.einsum("srd,rd->rs", read[reads][:, positions], encoders)
        kind = "ov" if reads.kind in ATTENTION else "residual" if reads.kind.startswith("resid") else "mlp"
        assert_close(weights[kind][rows], expected, dtype=FAMILIES[family].precision)
        compared += int((expected.abs() > 1e-6).sum())
    assert compared > 60


@each
@with_each_set
def test_all_paths_together_are_the_gradient_of_the_component_written_out(
    single, edges, taken_out, blocks, family, name
):
    """ov + q + k of what reads attention, mlp of what reads behind the neurons: autograd through Hugging Face's modules."""
    case, frozen = single(family, name, "corrupted"), blocks(family)
    targets, sources, weights = edges(family, name, "corrupted")
    _, stream = taken_out(family, name)
    compared = 0
    for site, dictionary in case.dictionaries.items():
        reads, layer = dictionary.reads, dictionary.reads.layer
        rows = [i for i, node in enumerate(targets) if node.site == site]
        if reads.kind not in ("z", "attn_out", "mlp_post", "mlp_out") or not rows:
            continue
        kind = "attention" if reads.kind in ATTENTION else "mlp"
        x = frozen.seen["ln1" if kind == "attention" else "ln2", layer].clone().requires_grad_()
        value = getattr(frozen, kind)(layer, x)[reads.kind in ("attn_out", "mlp_out")]
        expected = []
        for i in rows:
            scalar = value[targets[i].pos] @ reading(case, targets[i])
            (gradient,) = torch.autograd.grad(scalar, x, retain_graph=True)
            expected.append(torch.einsum("pd,spd->s", gradient[0], stream[kind, layer]))
        kinds = ("ov", "q", "k") if kind == "attention" else ("mlp",)
        found = sum(weights[kind][rows] for kind in kinds)
        assert_close(found, torch.stack(expected), dtype=FAMILIES[family].precision)
        assert all(bool(weights[kind][rows].any()) for kind in kinds)
        compared += int((torch.stack(expected).abs() > 1e-6).sum())
    assert compared > 60


@each
@with_each_set
def test_edges_into_the_metric_are_its_gradient_times_what_reaches_it(single, edges, taken_out, blocks, family, name):
    case = single(family, name, "corrupted")
    targets, _, weights = edges(family, name, "corrupted")
    (row,) = [i for i, node in enumerate(targets) if node.kind == "metric"]
    found = {}

    def detach(module, args, out):
        found["x"] = (out[0] if isinstance(out, tuple) else out).detach().requires_grad_()
        return (found["x"], *out[1:]) if isinstance(out, tuple) else found["x"]

    handle = blocks(family).blocks[-1].register_forward_hook(detach)
    logits = blocks(family).model(case.tokens.clean).logits
    handle.remove()
    (gradient,) = torch.autograd.grad(case.metric(logits).sum(), found["x"])
    expected = torch.einsum("pd,spd->s", gradient[0], taken_out(family, name)[1]["metric", 2])
    assert_close(weights["metric"][row], expected, dtype=FAMILIES[family].precision)
    assert int((expected.abs() > 1e-6).sum()) >= 5


ERRORS = [(family, name) for family in FAMILIES for name in ("residual", "none")] + [
    (family, name) for family in ("gpt2", "gemma2") for name in ("output_saes", "transcoders", "neurons")
]


def with_frozen_scale(dictionary, x):
    """What the dictionary makes of x, up to a constant, the same features active and the scale of its input frozen."""
    weights, active = dictionary.weights, dictionary.encode(x.detach()) != 0
    mean = x.mean(-1, keepdim=True) if weights.normalize == "layer_norm" else 0
    gain = 1 if weights.r_mag is None else weights.r_mag.exp()
    return ((x - mean) @ weights.W_enc * gain * active) @ weights.W_dec + mean


@pytest.mark.parametrize(("family", "name"), ERRORS)
def test_an_error_as_target_reads_what_changes_its_part_of_the_metric(loaded, blocks, tiny_pairs, family, name):
    """Autograd through Hugging Face's modules and the dictionary, times what each source brings; scales of norms frozen."""
    model, frozen = loaded(family), blocks(family)
    dictionaries = Dictionaries() if name == "none" else dictionary_set(model, name)
    case = build_case(model, dictionaries, tiny_pairs[:1])
    found = trace(model, dictionaries, tiny_pairs[:1], errors_as_targets=True).edges()
    sources = [node for table in case.tables for node in table.nodes()]
    read, stream = run_without(case, sources)
    column, weights = {node: i for i, node in enumerate(sources)}, {}
    for edge in found.table:
        if edge.target.kind == "error":
            row = weights.setdefault(edge.target, torch.zeros(len(sources), dtype=torch.float64))
            row[column[edge.source]] += edge.local_weight
            assert_close(edge.weight, edge.local_weight)
    compared = 0
    for node, row in weights.items():
        site, pos, layer = node.site, node.pos, node.site.layer
        dictionary = dictionaries.get(site)
        if site.kind.startswith("resid"):
            x = case.clean.values[site].clone().requires_grad_()
            value, reached = x[0], read[site]
        else:
            part = "attention" if site.kind in ATTENTION else "mlp"
            x = frozen.seen["ln1" if part == "attention" else "ln2", layer].clone().requires_grad_()
            value, reached = getattr(frozen, part)(layer, x)[site.kind in ("attn_out", "mlp_out")], stream[part, layer]
        missed = value if dictionary is None else value - with_frozen_scale(dictionary, value)
        (gradient,) = torch.autograd.grad(missed[pos] @ case.gradients[site][0, pos], x)
        expected = torch.einsum("pd,spd->s", gradient[0], reached)
        assert_close(row, expected, dtype=FAMILIES[family].precision)
        compared += int((expected.abs() > 1e-6).sum())
    own = [
        site for site in node_sites(model, dictionaries) if site not in dictionaries or dictionaries[site].reads == site
    ]
    exact = {site for site, d in dictionaries.items() if d.weights.activation == "identity"}  # neurons miss nothing
    assert {node.site for node in weights} == set(own) - exact
    assert compared >= 10


def test_an_error_beside_another_dictionarys_output_is_no_target(tiny_model):
    """It also misses what a transcoder of an earlier layer writes there, which reads something else."""
    own = random_kind(tiny_model, "mlp_out.1", "mlp_out.1", "relu")
    earlier = random_kind(tiny_model, "mlp_in.0", "mlp_out.0", "relu", later="mlp_out.1")
    alone, together = (error_targets(tiny_model, Dictionaries(ds)) for ds in ([own], [own, earlier]))
    assert [str(site) for site in alone] == ["z.0", "mlp_out.0", "z.1", "mlp_out.1"]
    assert [str(site) for site in together] == ["z.0", "z.1"]


# 10 ------------------------------------------------------------------------------------------------------------------


@each
@with_each_set
def test_splicing_dictionaries_with_their_errors_changes_neither_logits_nor_gradients(cases, family, name):
    case = cases(family, name, "corrupted")
    check_splice(case.model, case.dictionaries, case.tokens.clean, case.clean.logits)
    written = sorted({site for d in case.dictionaries.values() for site in d.sites}, key=lambda site: site.depth)

    def spliced(site):
        def edit(x, recorded):
            x_hat = case.dictionaries.reconstruct(site, recorded)
            return x_hat + (x - x_hat)

        return edit

    sites = [Site("embed"), Site("resid_post", 0), Site("resid_post", 1)]
    record = sorted({*sites, *(d.reads for d in case.dictionaries.values())}, key=lambda site: site.depth)
    logits, recorded = case.model.run(
        case.tokens.clean, record=record, replace={site: spliced(site) for site in written}, differentiable=True
    )
    assert_close(logits, case.clean.logits, dtype=FAMILIES[family].precision)
    gradients = torch.autograd.grad(case.metric(logits).sum(), [recorded[site] for site in sites])
    attached = [case.clean.attached[site] for site in sites]
    expected = torch.autograd.grad(case.clean.attached_metric.sum(), attached, retain_graph=True)
    for gradient, other in zip(gradients, expected, strict=True):
        assert_close(gradient, other, dtype=FAMILIES[family].precision)


@each
@with_each_set
def test_every_node_kept_is_the_model_bit_for_bit_and_none_the_corrupted_run(cases, family, name):
    case = cases(family, name, "corrupted")
    n_pos = case.tokens.clean.shape[1]
    nothing = circuit_mask(case.model, case.dictionaries, [], n_pos, "remove")
    logits = run_with_nodes(case.model, case.dictionaries, case.tokens.clean, case.base, nothing)
    assert_close(logits, case.corrupted.logits, dtype=FAMILIES[family].precision)
    everything = everything_kept(case)
    logits = run_with_nodes(case.model, case.dictionaries, case.tokens.clean, case.base, everything)
    assert torch.equal(logits, case.clean.logits)
    everything.embeddings[:] = False
    logits = run_with_nodes(case.model, case.dictionaries, case.tokens.clean, case.base, everything)
    assert not torch.equal(logits, case.clean.logits)


def everything_kept(case):
    mask = circuit_mask(case.model, case.dictionaries, [], case.tokens.clean.shape[1], "keep")
    for each in (*mask.features.values(), *mask.biases.values(), mask.embeddings):
        each[:] = True
    return mask


@each
@with_each_set
def test_a_feature_set_to_zero_changes_the_sites_it_writes_by_its_activation_times_its_rows(cases, family, name):
    case = cases(family, name, "zero")
    clean = case.clean.values
    for key, d in case.dictionaries.items():
        acts = d.encode(clean[d.reads])
        pos, feature = divmod(int(acts[0].argmax()), d.d_sae)
        mask = everything_kept(case)
        mask.features[key][pos, feature] = False
        for site in d.sites:
            baseline_nodes = node_values(case.model, case.dictionaries, case.base.values)
            edits, read = circuit_edits(case.dictionaries, baseline_nodes, stack_masks([mask]))
            edited = {}
            case.model.run_variants(
                case.tokens.clean,
                {site: lambda x, values, e=edits[site], to=edited: to.setdefault("x", e(x, values))},
                1,
                clean={},
                read=read,
            )
            expected = torch.zeros_like(clean[site])
            expected[:, pos] = -acts[:, pos, feature, None] * d.weights.W_dec[feature, d.columns(site)]
            assert_close(edited["x"][0] - clean[site], expected)


# 11 ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "name"), WHOLE)
def test_the_whole_graph_is_perfectly_faithful_and_the_empty_one_not_at_all(loaded, tiny_pairs, family, name):
    model = loaded(family)
    dictionaries = dictionary_set(model, name)
    graph = discover(tiny_pairs, model, dictionaries, edge_threshold=0.0, max_nodes=10_000)
    evaluation = evaluate(graph, model, dictionaries, n_patched=10)
    metrics = [evaluation.metric_clean, evaluation.metric_empty]
    assert abs(metrics[0] - metrics[1]) > 1e-2
    rounding = {"dtype": FAMILIES[family].precision, "scale": max(map(abs, metrics))}
    assert_close(metrics[1], graph.graph["metric"]["corrupted"], **rounding)
    rounding["scale"] /= abs(metrics[0] - metrics[1])
    assert_close([evaluation.faithfulness, evaluation.faithfulness_errors_of_circuit], [1.0, 1.0], **rounding)
    assert len(graph) > 40 and graph.number_of_edges() > 300


@pytest.mark.parametrize(("family", "name"), WHOLE)
def test_patching_a_node_is_the_run_without_what_it_is(single, family, name):
    """The strongest node of each table, taken out of the real model with nothing frozen."""
    case = single(family, name, "corrupted")
    nodes = [table.node(int(table.attribution.abs().sum(0).argmax())) for table in case.tables]
    clean = case.clean.values
    baseline_nodes = node_values(case.model, case.dictionaries, case.base.values)
    found = patch_effects(
        case.model, case.dictionaries, case.tokens.clean, clean, baseline_nodes, case.metric, case.tables, nodes
    )
    effects = found[:, 0]
    expected = []
    for node in nodes:
        replace = {}
        for site, change in change_of(case, node).items():
            there = torch.zeros_like(clean[site])
            there[0, node.pos] = change
            replace[site] = lambda x, recorded, there=there: x - there
        logits, _ = case.model.run(case.tokens.clean, replace=replace)
        expected.append(case.clean.metric - case.metric(logits))
    assert_close(effects, torch.cat(expected), dtype=FAMILIES[family].precision)
    assert len(nodes) >= 8 and int((effects.abs() > 1e-6).sum()) >= 5


@each
def test_a_graph_in_bfloat16_has_attributions_near_those_of_float64(folder, loaded, tiny_pairs, family):
    """bfloat16 has 8 bits; its rounding of each layer's output is felt in all that follows."""
    found = []
    for model in (loaded(family), load_model(folder(family), dtype=torch.bfloat16)):
        dictionaries = dictionary_set(model, "transcoders", compute_dtype(model.dtype))
        graph = discover(tiny_pairs, model, dictionaries, edge_threshold=0.0)
        found.append(dict(graph.nodes(data="attribution")))
    keys = sorted({key for one in found for key, value in one.items() if value is not None})
    exact, narrow = (torch.tensor([one.get(key) or 0.0 for key in keys], dtype=torch.float64) for one in found)
    assert len(keys) > 60 and float(exact.norm()) > 0.01
    assert float((narrow - exact).norm()) < 0.15 * float(exact.norm())


# an already loaded HookedTransformer -----------------------------------------------------------------------------------


@each
@pytest.mark.parametrize("name", ["output_saes", "residual", "neurons"])
def test_the_edges_of_a_loaded_hookedtransformer_are_those_of_the_bridge(
    folder, edges, single, tiny_pairs, family, name
):
    case, (targets, sources, weights) = single(family, name, "corrupted"), edges(family, name, "corrupted")
    oracle = hooked_transformer(folder(family))
    oracle.set_tokenizer(case.model.library.tokenizer)
    oracle.cfg.default_prepend_bos = case.model.library.cfg.default_prepend_bos
    other = build_case(load_model(oracle), case.dictionaries, tiny_pairs[:1])
    assert torch.equal(other.tokens.clean, case.tokens.clean)
    row, column = ({node: i for i, node in enumerate(nodes)} for nodes in (targets, sources))
    found = {kind: torch.zeros_like(dense) for kind, dense in weights.items()}
    for edge in other.edges():
        found[edge.kind][row[edge.target], column[edge.source]] = edge.local_weight
    assert len(weights) >= 4
    for kind, dense in weights.items():
        dtype = torch.float64 if family == "gpt2" else torch.float32
        assert_close(found[kind], dense, dtype=dtype, n_terms=10_000)


# refusals --------------------------------------------------------------------------------------------------------------


REFUSED = [
    (("q.0", "mlp_out.0", "relu"), {}, "what is read at q.0 cannot be traced"),
    (("mlp_pre.0", "mlp_post.0", "relu"), {}, "what is read at mlp_pre.0 cannot be traced"),
    (("mlp_in.0", "mlp_in.0", "relu"), {}, "writes mlp_in.0, and what is written there is not simply added"),
    (("ln2_normalized.0", "ln2_normalized.0", "relu"), {}, "writes ln2_normalized.0, and what is written"),
    (("mlp_in.0", "z.0", "relu"), {"later": "z.1"}, "writes z.0, and what is written there"),
    (("resid_pre.0", "mlp_out.0", "relu"), {"skip": True}, "skips from resid_pre.0 to mlp_out.0"),
    (("mlp_in.0", "mlp_out.1", "relu"), {"skip": True}, "skips from mlp_in.0 to mlp_out.1"),
    (("mlp_in.0", "mlp_out.0", "relu"), {"skip": True, "later": "mlp_out.1"}, "skips from mlp_in.0 to mlp_out.0, mlp"),
]


@pytest.mark.parametrize(("sites", "settings", "message"), REFUSED)
def test_a_dictionary_whose_edges_would_be_wrong_is_refused(loaded, tiny_pairs, sites, settings, message):
    dictionary = random_kind(loaded("gpt2"), *sites, **settings)
    check_fit(dictionary, loaded("gpt2"))
    with pytest.raises(CircuitGraphError, match=message):
        discover(tiny_pairs, loaded("gpt2"), {dictionary.writes: dictionary})
