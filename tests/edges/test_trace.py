"""Edges through frozen components, what all sources of a target sum to, and what a selection keeps.

Each test's name is the law. Compared numbers are asserted to be non-zero; the oracle is Hugging Face's own modules.
"""

from __future__ import annotations

import functools
import itertools

import pytest
import torch
from support.close import assert_close
from support.families import FAMILIES, hf_model
from support.frozen_blocks import FrozenBlocks
from support.traced_edges import trace

from circuitgraph.edges.influence import node_influence
from circuitgraph.nodes import Site
from circuitgraph.paths.linear_maps import skip_map

# transformers' norms are hooked beside their forward pass; that replacing a scale leaves it is what is wanted here.
pytestmark = pytest.mark.filterwarnings("ignore:A forward hook edited")

FAMILY_NAMES = ["gpt2", "gpt_neox", "llama", "gemma2"]
BASELINES = ["corrupted", "zero"]
each = pytest.mark.parametrize("family", FAMILY_NAMES)
both = pytest.mark.parametrize("baseline", BASELINES)

TRANSCODERS = (("ln2_normalized.0", "mlp_out.0", "jumprelu"), ("mlp_in.1", "mlp_out.1", "relu"))
SKIPS = (
    ("mlp_in.0", "mlp_out.0", "relu", {"skip": True}),
    ("ln2_normalized.1", "mlp_out.1", "topk", {"skip": True}),
)
HEADS = (("z.0", "z.0", "relu"), ("z.1", "z.1", "topk"))
COVERED = (HEADS[0], TRANSCODERS[0], HEADS[1], TRANSCODERS[1])
TREATMENTS = {
    "transcoders": (TRANSCODERS, "frozen", "node"),
    "residual": ((("resid_post.0", "resid_post.0", "relu"), *TRANSCODERS), "frozen", "node"),
    "heads": (HEADS, "node", "frozen"),
    "everything": ((("z.1", "z.1", "relu"),), "frozen", "frozen"),
    "residual_between": ((("resid_post.0", "resid_post.0", "relu"), ("z.1", "z.1", "relu")), "frozen", "frozen"),
    "ends": ((("mlp_out.1", "mlp_out.1", "relu"), ("resid_post.1", "resid_post.1", "topk")), "frozen", "frozen"),
}


def column(values):
    return torch.tensor(list(values), dtype=torch.float64)


# linear maps -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def maps(loaded, tiny_pairs):
    """family -> (traced, layer -> name -> map), for one pair."""

    @functools.cache
    def make(family):
        traced = trace(loaded(family), (), tiny_pairs[:1], attention="frozen", mlp="frozen")
        found = {(site.kind, site.layer): linear for site, linear in traced.frozen.items()}
        generator = torch.Generator().manual_seed(5)
        W_skip = torch.randn(16, 16, generator=generator, dtype=torch.float64)
        for kind, layer in (("mlp_in", 0), ("ln2_normalized", 1)):
            sites = Site(kind, layer), Site("mlp_out", layer)
            found[kind, layer] = skip_map(traced.model, *sites, W_skip, traced.clean.values)
        return traced, found

    return make


@each
def test_pulling_back_is_the_transpose_of_applying(maps, family):
    traced, found = maps(family)
    assert len(found) == 6
    generator = torch.Generator().manual_seed(1)
    n_pos = traced.gradient.shape[1]
    x = torch.randn(1, n_pos, 16, generator=generator, dtype=torch.float64)
    for linear in found.values():
        added = linear.apply(x)
        for first, n in ((0, n_pos), (2, 3), (n_pos - 1, 1)):
            r = torch.randn(1, 2, 3, n, 16, generator=generator, dtype=torch.float64)
            pulled, start = linear.pull_back(r, first)
            assert pulled.shape[:3] == r.shape[:3]
            read = torch.einsum("brhpd,bpd->rh", r, added[:, first : first + n])
            assert_close(torch.einsum("brhpd,bpd->rh", pulled, x[:, start : start + pulled.shape[3]]), read)


@each
def test_pulling_back_is_the_gradient_of_the_frozen_component(maps, folder, family):
    """Autograd through Hugging Face's own modules: patterns and norm scales of the clean run, neurons with their slope."""
    traced, found = maps(family)
    frozen = FrozenBlocks(hf_model(folder(family)), traced.tokens)
    generator = torch.Generator().manual_seed(2)
    n_pos = traced.gradient.shape[1]
    for (kind, layer), linear in found.items():
        stream = frozen.seen["ln1" if kind == "attn_out" else "ln2", layer].clone().requires_grad_()
        if kind == "attn_out":
            out = frozen.attention(layer, stream, traced.clean.values[Site("pattern", layer)])[1]
        elif kind == "mlp_out":
            out = frozen.mlp(layer, stream)[1]
        else:
            out = (frozen.norm(layer, "ln2")(stream, gain=kind == "mlp_in") @ linear.W_skip)[0]
        r = torch.randn(n_pos, 16, generator=generator, dtype=torch.float64)
        (gradient,) = torch.autograd.grad((out * r).sum(), stream)
        pulled, start = linear.pull_back(r[None, None, None], 0)
        assert start == 0
        assert_close(pulled[0, 0, 0], gradient[0], dtype=FAMILIES[family].precision)


@each
def test_applying_attention_is_what_the_real_model_does_with_its_pattern_and_scales_frozen(maps, family, tiny_pairs):
    traced, found = maps(family)
    model, clean = traced.model, traced.clean.values
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(1, traced.gradient.shape[1], 16, generator=generator, dtype=torch.float64)
    frozen = {
        site: (lambda value, recorded, site=site: clean[site])
        for kind in ("pattern", "ln1_scale", "ln1_post_scale")
        if model.has(site := Site(kind, 0))
    }
    frozen[Site("embed")] = lambda value, recorded: value - x
    tokens = traced.tokens
    _, recorded = model.run(tokens, record=[Site("attn_out", 0)], replace=frozen)
    assert_close(
        found["attn_out", 0].apply(x),
        clean[Site("attn_out", 0)] - recorded[Site("attn_out", 0)],
        dtype=FAMILIES[family].precision,
    )


# total input --------------------------------------------------------------------------------------------------------------


def whole_inputs():
    """(family, baseline, treatment) where sources carry all: a post-norm behind z freezes its scale, see the next but one."""
    for family, baseline, name in itertools.product(FAMILY_NAMES, BASELINES, TREATMENTS):
        has_z = any(kind[0].startswith("z") for kind in TREATMENTS[name][0])
        if not (family == "gemma2" and baseline == "corrupted" and has_z):
            yield family, baseline, name


@pytest.mark.parametrize(("family", "baseline", "name"), whole_inputs())
def test_all_sources_together_are_what_each_target_reads_of_the_streams(loaded, tiny_pairs, family, baseline, name):
    kinds, attention, mlp = TREATMENTS[name]
    found = trace(loaded(family), kinds, tiny_pairs, baseline=baseline, attention=attention, mlp=mlp).edges()
    assert found.total_input.keys() == found.stream_input.keys() and len(found.stream_input) >= 5
    assert_close(
        column(found.total_input[i] for i in found.stream_input),
        column(found.stream_input.values()),
        dtype=FAMILIES[family].precision,
    )


@each
@pytest.mark.parametrize("name", ["transcoders", "heads"])
def test_the_edges_of_a_target_sum_to_its_total_input(loaded, tiny_pairs, family, name):
    kinds, attention, mlp = TREATMENTS[name]
    found = trace(loaded(family), kinds, tiny_pairs[:1], baseline="zero", attention=attention, mlp=mlp).edges()
    targets, weights = found.table.target.long(), found.table.local_weight
    sums = torch.zeros(len(found.table.nodes), dtype=torch.float64).index_add_(0, targets, weights)
    moved = sorted(set(targets.tolist()))  # a feature without a gradient has no edges of any weight
    assert len(moved) > 10
    assert_close(sums[moved], column(found.stream_input[i] for i in moved), dtype=FAMILIES[family].precision)


def test_behind_a_post_norm_the_change_of_its_scale_is_no_node(loaded, tiny_pairs):
    """What z adds is linearised with the clean scale: exactly the rest is missing, in front of the metric."""
    model = loaded("gemma2")
    traced = trace(model, COVERED, tiny_pairs)
    found, clean, base = traced.edges(), traced.clean.values, traced.base.values
    gap = torch.zeros(len(tiny_pairs), dtype=torch.float64)
    for layer in range(model.n_layers):
        out, z, scale = Site("attn_out", layer), Site("z", layer), Site("ln1_post_scale", layer)
        rest = clean[out] - base[out] - model.write(z, clean[z] - base[z]) / clean[scale]
        gap += (traced.gradient * rest).sum((1, 2))
    metric = len(found.table.nodes) - 1
    assert abs(float(gap.mean())) > 1e-3
    assert_close(
        found.stream_input[metric] - found.total_input[metric], float(gap.mean()), dtype=FAMILIES["gemma2"].precision
    )


@each
@both
def test_what_a_skip_connection_passes_beyond_its_linear_map_is_no_node(loaded, tiny_pairs, family, baseline):
    """The change of its norm's scale against a corrupted baseline: exactly that is missing at the metric. With baseline
    zero nothing is: the norm's bias, which the skip passes, is in the bias node."""
    model = loaded(family)
    traced = trace(model, SKIPS, tiny_pairs, baseline=baseline, attention="frozen")
    found, clean, base = traced.edges(), traced.clean.values, traced.base.values

    def change(site):
        return clean[site] if base is None else clean[site] - base[site]

    stream = change(Site("embed")) + (change(Site("pos_embed")) if model.has(Site("pos_embed")) else 0)
    missing = torch.zeros_like(stream)
    for table in (t for t in traced.tables if t.kind == "feature"):
        d, attention = table.dictionary, traced.frozen[Site("attn_out", table.site.layer)]
        skip = skip_map(model, d.reads, d.writes, d.W_skip, clean)
        before, passed = stream, missing
        arriving = missing + attention.apply(missing)
        if not model.parallel:
            before, passed = stream + change(Site("attn_out", table.site.layer)), arriving
        missing = arriving + skip.apply(passed) + change(d.reads) @ d.W_skip - skip.apply(before)
        stream = change(Site("resid_post", table.site.layer))
    metric = len(found.table.nodes) - 1
    gap = (traced.gradient * missing).sum((1, 2)).mean()
    measured = torch.tensor(found.stream_input[metric] - found.total_input[metric], dtype=torch.float64)
    if baseline == "zero":
        terms = (traced.gradient * stream).abs().sum((1, 2)).mean()
        assert_close(float(measured), 0.0, dtype=FAMILIES[family].precision, scale=terms, zeros=True)
        assert family in ("llama", "gemma2") or abs(float(gap)) > 1e-3, "without the bias node this would be missing"
    else:
        assert_close(measured, gap, dtype=FAMILIES[family].precision)
        assert abs(float(gap)) > 1e-3


@each
@pytest.mark.parametrize("name", ["transcoders", "heads"])
def test_what_is_cut_is_missing(loaded, tiny_pairs, family, name):
    kinds, attention, mlp = TREATMENTS[name]
    dropped = {
        "attention": "dropped" if attention == "frozen" else attention,
        "mlp": "dropped" if mlp == "frozen" else mlp,
    }
    found = trace(loaded(family), kinds, tiny_pairs, baseline="zero", **dropped).edges()
    gap = column(found.stream_input[i] - found.total_input[i] for i in found.stream_input).abs()
    assert float(gap.max()) > 1e-2


@each
def test_with_attention_passed_the_total_input_is_the_pre_activation_less_the_constants(loaded, tiny_pairs, family):
    """The biases of the encoder and of the norm in front of it; everything else has a node."""
    model = loaded(family)
    traced = trace(model, TRANSCODERS, tiny_pairs[:1], baseline="zero", attention="frozen")
    found, first, compared = traced.edges(), 0, 0
    for table in traced.tables:
        if table.kind == "feature":
            d = table.dictionary
            pre = traced.clean.values[d.reads][0] @ d.weights.W_enc + d.weights.b_enc
            constant = d.weights.b_enc
            norm = model.norm(d.reads, "ln2")
            if d.reads.kind == "mlp_in" and norm.bias is not None:
                constant = constant + norm.bias @ d.weights.W_enc
            rows = [i for i in range(len(table)) if first + i in found.total_input]
            pos, feature = table.pos[rows], table.feature[rows]
            expected = pre[pos, feature] - constant[feature]
            assert_close(column(found.total_input[first + i] for i in rows), expected, dtype=FAMILIES[family].precision)
            compared += len(rows)
        first += len(table)
    assert compared > 20


def test_of_what_is_passed_only_the_constants_and_the_changed_pattern_are_nodes(loaded, tiny_pairs):
    """With baseline zero the rest of attention is its value and output bias, at every position the same."""
    traced = trace(loaded("gpt2"), TRANSCODERS, tiny_pairs, baseline="zero", attention="frozen")
    rest = [t for t in traced.tables if t.site == Site("attn_out", 1)]
    assert [t.kind for t in rest] == ["bias"]
    weights = traced.model.attention(1)
    constant = traced.model.value_bias(Site("z", 1), norm=True) @ weights.W_O.flatten(0, 1) + weights.b_O
    assert_close(rest[0].vectors, constant.expand_as(rest[0].vectors))
    changed = trace(loaded("gpt2"), TRANSCODERS, tiny_pairs, attention="frozen")
    assert [t.kind for t in changed.tables if t.site == Site("attn_out", 1)] == ["error"]
    # llama's attention has no bias at all
    none = trace(loaded("llama"), TRANSCODERS, tiny_pairs, baseline="zero", attention="frozen")
    left = [float(t.vectors.abs().max()) for t in none.tables if t.site == Site("attn_out", 1)]
    scale = none.clean.values[Site("attn_out", 1)].abs().max()
    assert_close(left, [0.0] * len(left), dtype=FAMILIES["llama"].precision, scale=scale, zeros=True)


# selection -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def covered(loaded, tiny_pairs):
    return trace(loaded("gpt2"), COVERED, tiny_pairs[:1], baseline="zero")


def as_rows(table):
    return {(e.source, e.target, e.kind): (e.weight, e.local_weight, e.weight_abs, e.heads) for e in table}


def test_a_relative_threshold_is_a_share_of_what_the_target_reads(covered):
    everything = list(covered.edges().table)
    read = {}
    for edge in everything:
        read[edge.target] = read.get(edge.target, 0.0) + abs(edge.local_weight)
    kept = as_rows(covered.edges(relative_threshold=0.03).table)
    targets = {target for _, target, _ in kept}
    expected = {
        (e.source, e.target, e.kind)
        for e in everything
        if e.target in targets and abs(e.local_weight) >= 0.03 * read[e.target]
    }
    assert set(kept) == expected and 50 < len(expected) < len(everything) / 4


def test_top_k_keeps_the_strongest_inputs_of_every_traced_target(covered):
    everything = {}
    for edge in covered.edges().table:
        everything.setdefault(edge.target, []).append(edge)
    kept = {}
    for edge in covered.edges(top_k=4).table:
        kept.setdefault(edge.target, []).append(edge)
    assert len(kept) >= 3
    for target, edges in kept.items():
        strongest = sorted(everything[target], key=lambda e: -abs(e.weight))[:4]
        assert {(e.source, e.kind) for e in edges} == {(e.source, e.kind) for e in strongest}


@pytest.mark.parametrize("budget", [4, 40])
def test_max_traced_traces_that_many_features_the_most_influential_first(covered, budget):
    """Influence on the metric through what was traced before; fewer than that many have any at first."""
    whole, found = covered.edges(), covered.edges(max_traced=budget)
    n, expected, rounds = len(covered.nodes), set(), 0
    while len(expected) < budget:
        into = torch.tensor([target == n or target in expected for target in whole.table.target.tolist()])
        influence = node_influence(whole.table.take(into), whole.weights).tolist()
        new = [i for i in range(n) if covered.nodes[i].kind == "feature" and influence[i] > 0 and i not in expected]
        expected |= set(sorted(new, key=lambda i: -influence[i])[: budget - len(expected)])
        rounds += 1
    assert [i for i in found.stream_input if i < n] and {i for i in found.stream_input if i < n} == expected
    assert rounds == (1 if budget == 4 else 2)
    targets = {*(covered.nodes[i] for i in expected), whole.table.nodes[n]}
    rows, wanted = as_rows(found.table), {key: row for key, row in as_rows(whole.table).items() if key[1] in targets}
    assert rows.keys() == wanted.keys() and 0 < len(rows) < len(whole.table)
    assert_close(column(rows[key][0] for key in wanted), column(row[0] for row in wanted.values()))


def test_max_traced_above_the_number_of_features_traces_all_that_reach_the_metric(covered):
    whole, found = covered.edges(), covered.edges(max_traced=10**6)
    assert as_rows(found.table) == as_rows(whole.table) and len(whole.table) > 1000


@pytest.mark.parametrize("name", ["transcoders", "heads"])
@pytest.mark.parametrize("memory", [1, 40_000])
def test_memory_changes_no_number(loaded, tiny_pairs, name, memory):
    kinds, attention, mlp = TREATMENTS[name]
    traced = trace(loaded("llama"), kinds, tiny_pairs, attention=attention, mlp=mlp)
    whole, narrow = traced.edges(), traced.edges(memory=memory)
    one, other = as_rows(whole.table), as_rows(narrow.table)
    assert one.keys() == other.keys() and len(one) > 200
    for i in range(3):
        assert_close(column(other[key][i] for key in one), column(row[i] for row in one.values()))
    assert whole.total_input.keys() == narrow.total_input.keys()
    assert_close(column(narrow.total_input[i] for i in whole.total_input), column(whole.total_input.values()))


@pytest.mark.parametrize("qk", ["derivative", "ablate"])
def test_a_batch_is_the_mean_of_its_examples(loaded, tiny_pairs, qk):
    model = loaded("gpt2")
    found = [
        as_rows(trace(model, COVERED, pairs).edges(qk=qk).table)
        for pairs in (tiny_pairs, tiny_pairs[:1], tiny_pairs[1:])
    ]
    keys = list(found[0])
    assert set(keys) == set(found[1]) | set(found[2]) and len(keys) > 500
    nothing = (0.0, 0.0, 0.0, ())
    for i in (0, 2):
        mean = column((found[1].get(key, nothing)[i] + found[2].get(key, nothing)[i]) / 2 for key in keys)
        assert_close(column(found[0][key][i] for key in keys), mean)
    shared = [key for key in keys if key in found[1] and key in found[2]]
    assert len(shared) > 100  # an edge that is absent in one example has a local weight there all the same
    mean = column((found[1][key][1] + found[2][key][1]) / 2 for key in shared)
    assert_close(column(found[0][key][1] for key in shared), mean)


def test_taking_edges_keeps_every_head_with_its_edge(covered):
    table = covered.edges().table
    rows = list(table)
    assert any(row.heads for row in rows) and any(not row.heads for row in rows)
    mask = torch.rand(len(table), generator=torch.Generator().manual_seed(4)) < 0.3
    taken = table.take(mask)
    assert list(taken) == [row for row, keep in zip(rows, mask.tolist(), strict=True) if keep]
    assert list(taken.take(torch.ones(len(taken), dtype=torch.bool))) == list(taken)
    assert list(table.take(torch.zeros(len(table), dtype=torch.bool))) == []
    for row in taken:
        assert len(row.heads) == (4 if row.kind in ("ov", "q", "k") else 0)
    with_heads = [row for row in taken if row.heads]
    assert_close([sum(row.heads) for row in with_heads], [row.local_weight for row in with_heads])
