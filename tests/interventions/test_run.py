"""Interventions: their text, what is refused, and that each does exactly what its formula says, on three families."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.close import assert_close
from support.dictionary_kinds import random_dictionary
from support.families import FAMILIES

from circuitgraph.dictionaries.collection import Dictionaries
from circuitgraph.dictionaries.dictionary import Dictionary
from circuitgraph.errors import CircuitGraphError, PromptError
from circuitgraph.interventions.language import Delete, Patch, Scale, Set, SitePart, Span, Steer, parse_intervention
from circuitgraph.interventions.run import run_intervention_sets, run_with_interventions
from circuitgraph.nodes import Node, Site
from circuitgraph.prompts import PromptPair

Z0, MLP0, MLP1 = Site("z", 0), Site("mlp_out", 0), Site("mlp_out", 1)
FEATURE = SitePart(MLP0, "feature", 7, Span(3, 4))


# text ----------------------------------------------------------------------------------------------------------------

spans = st.one_of(
    st.just(Span()),
    st.integers(0, 9).map(lambda a: Span(a, a + 1)),
    st.integers(1, 9).map(lambda a: Span(a, None)),
    st.integers(0, 9).map(lambda a: Span(a, a + 3)),
)
targets = st.one_of(
    st.builds(SitePart, st.just(MLP0), st.just("feature"), st.integers(0, 99), spans),
    st.builds(SitePart, st.just(Z0), st.just("head"), st.integers(0, 3), spans),
    st.builds(SitePart, st.just(Site("mlp_post", 2)), st.just("neuron"), st.integers(0, 99), spans),
    st.builds(SitePart, st.just(MLP0), st.just("error"), st.none(), spans),
    st.builds(SitePart, st.just(Site("embed")), st.just("vector"), st.none(), spans),
)
numbers = st.integers(-40, 40).map(lambda n: n / 8)
names = st.sampled_from(["zero", "mean", "resample", "corrupted", "other_1", "e5"])
whole = st.builds(SitePart, st.just(Z0), st.just("feature"), st.integers(0, 9))
interventions = st.one_of(
    st.builds(Set, targets, numbers),
    st.builds(Scale, targets, numbers),
    st.builds(Patch, targets, names, numbers),
    st.builds(Steer, targets, whole, numbers),
    st.builds(Delete, targets, whole, numbers),
)


@given(interventions)
def test_the_text_of_an_intervention_parses_to_the_same_intervention(one):
    assert parse_intervention(str(one)) == one


def test_the_documented_text_forms():
    assert parse_intervention("mlp_out.3/f17@5=0") == Set(SitePart(Site("mlp_out", 3), "feature", 17, Span(5, 6)), 0.0)
    assert parse_intervention("z.2/h1@4:=mean") == Patch(SitePart(Site("z", 2), "head", 1, Span(4)), "mean")
    assert parse_intervention("resid_post.1@5=corrupted:0.3").keep == 0.3
    assert parse_intervention("resid_pre.4@5+=3*z.2/f17").amount == 3
    assert parse_intervention("resid_pre.4 -= z.2/f17").write == SitePart(Site("z", 2), "feature", 17)
    assert SitePart.of(Node.parse("mlp_out.3/f17@5")) == SitePart(Site("mlp_out", 3), "feature", 17, Span(5, 6))
    assert SitePart.of(Node.parse("embed@2")) == SitePart(Site("embed"), "vector", None, Span(2, 3))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mlp_out.3/f17@5", "does not parse: expected TARGET=VALUE"),
        ("mlp_out.3/f17=inf", "'inf' is neither a finite number nor the name of a run"),
        ("mlp_out.3/g17=0", "target 'mlp_out.3/g17' does not parse"),
        ("mlp_uot.3/f17=0", "Did you mean 'mlp_out'"),
        ("mlp_out.3/f17@5:5=0", "has no positions: 5 is not behind 5"),
        ("resid_pre.4@5+=3*z.2/f17@5", "give them on the left only"),
        ("resid_pre.4@5+=x*z.2/f17", "'x' is neither a finite number"),
    ],
)
def test_text_that_means_nothing_is_refused(text, message):
    with pytest.raises(CircuitGraphError, match=message):
        parse_intervention(text)


@pytest.mark.parametrize("kind", ["metric@5", "mlp_out.0/bias@2", "pos_embed@1"])
def test_nodes_on_which_nothing_can_intervene_are_refused(kind):
    with pytest.raises(CircuitGraphError, match="on which nothing can intervene"):
        SitePart.of(Node.parse(kind))


# what is refused -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["mlp_out.7/f0=0"], "'mlp_out.7/f0=0': tiny has no site mlp_out.7"),
        (["mlp_out.0/f24=0"], "the dictionary at mlp_out.0 has no feature 24; it has 0-23"),
        (
            ["attn_out.0/f2=0"],
            "no dictionary writes first at attn_out.0; there are dictionaries at z.0, mlp_out.0, z.1",
        ),
        (["mlp_out.0/f2@6=0"], r"position 6 is beyond the prompt, which has 6 tokens \(0-5\)"),
        (["mlp_out.0/f2@2:9=0"], "position 8 is beyond the prompt"),
        (["z.0/h2=0"], "z.0 has no head 2; it has 0-1"),
        (["mlp_out.0/h0=0"], "there are no heads at mlp_out.0; they are at z.0"),
        (["mlp_post.1/n64=0"], "mlp_post.1 has no neuron 64; it has 0-63"),
        (["attn_out.0/error=0"], "no dictionary writes at attn_out.0, so nothing there is an error"),
        (["pattern.0=0"], "nothing can intervene at pattern.0"),
        (["z.0/h1=2"], "head z.0/h1 is many numbers and cannot be set to 2"),
        (["z.0/h1=maen"], "there is no run 'maen' to patch from; .* Did you mean 'mean'"),
        (["z.0@5+=z.0/f1"], "only the residual stream can be added to"),
        (["resid_pre.1+=z.0/h1"], "z.0/h1 writes no fixed vector"),
        (["resid_pre.1-=mlp_out.1/f1"], "mlp_out.1/f1 is written after resid_pre.1"),
        (["mlp_out.0/f2@3=0", "mlp_out.0/f2=1"], "'mlp_out.0/f2@3=0' and 'mlp_out.0/f2=1' conflict"),
        (["z.0/h1=0", "z.0/f1@2=0"], "conflict"),
        (["mlp_out.0=0", "mlp_out.0/error@2=0"], "conflict"),
        (["mlp_out.0/f2@3=0", "resid_pre.1@3-=mlp_out.0/f2"], "deleting it is not defined"),
    ],
)
def test_bad_interventions_are_refused_by_name_before_anything_runs(
    tiny_model, tiny_dictionaries, tiny_pairs, monkeypatch, given, message
):
    monkeypatch.setattr(type(tiny_model), "run", lambda *a, **k: pytest.fail("the model ran"))
    with pytest.raises(CircuitGraphError, match=message):
        run_with_interventions(tiny_pairs, tiny_model, tiny_dictionaries, given)


def test_settings_that_make_no_sense_are_refused(tiny_model, tiny_dictionaries, tiny_pairs):
    def run(prompts=tiny_pairs, given=(), **settings):
        run_with_interventions(prompts, tiny_model, tiny_dictionaries, given, **settings)

    with pytest.raises(CircuitGraphError, match="'atention' cannot be frozen.*Did you mean 'attention'"):
        run(freeze=["atention"])
    with pytest.raises(CircuitGraphError, match="it would change nothing, since attn_out.0 is frozen behind z.0"):
        run(given=["z.0/f1=0"], freeze=["attn_out.0"])
    with pytest.raises(CircuitGraphError, match="tiny has no site mlp_out.9 to keep"):
        run(cache=[Site("mlp_out", 9)])
    with pytest.raises(CircuitGraphError, match="a run cannot be named 'mean'"):
        run(references={"mean": ["a b c d e"]})
    with pytest.raises(CircuitGraphError, match="run 'other' has 1 prompts of 3 tokens; expected 2"):
        run(references={"other": ["a b"]})
    with pytest.raises(
        CircuitGraphError, match="no run 'resample' to patch from, since it takes the corrupted run of an"
    ):
        run(tiny_pairs[:1], ["z.0/h1=resample"])
    with pytest.raises(CircuitGraphError, match="no run 'mean' to patch from, since it is the mean over two or more"):
        run(tiny_pairs[:1], ["z.0/h1=mean"])
    with pytest.raises(PromptError, match="the prompts have 3, 4 tokens; expected one length"):
        run(["a b", "a b c"])
    with pytest.raises(PromptError, match="pair 1 has no corrupted prompt and others have one"):
        run(["a b c d e", tiny_pairs[0]])
    with pytest.raises(PromptError, match="there are no prompts"):
        run([])
    with pytest.raises(PromptError, match=r"shape \(3,\); expected whole numbers"):
        run(torch.arange(3))
    for name in ("corrupted", "mean", "resample"):
        reason = f"no run '{name}' to patch from, since the prompts have no corrupted ones; expected one of zero"
        for prompts in (["a b", "b c"], [PromptPair("a b"), PromptPair("b c")]):
            with pytest.raises(CircuitGraphError, match=reason):
                run(prompts, [f"z.0/h1={name}"])


def test_prompts_interventions_and_dictionaries_come_as_they_are(tiny_model, tiny_dictionaries, tiny_folder):
    """One text, one intervention, a loaded library object, one dictionary: as good as lists of them."""
    text, change = "a b c d e", "z.0/f0=2"
    expected = run_with_interventions([text], tiny_model, tiny_dictionaries, [change]).logits
    one = tiny_dictionaries[Z0]
    for run in (
        run_with_interventions(text, tiny_model, one, change),
        run_with_interventions(PromptPair(text), tiny_model.library, [one], parse_intervention(change)),
        run_with_interventions(torch.tensor([tiny_model.tokens(text)]), tiny_model, {Z0: one}, (change,)),
    ):
        assert torch.equal(run.logits, expected)
    assert not torch.equal(expected, run_with_interventions(text, tiny_model, None, []).logits)
    assert repr(run) == "logits [1, 6, 12]"


# what they do --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["gpt2", "llama", "gemma2", "gpt_neox"])
def family(request, loaded):
    """A model of the family with a z-SAE, a skip transcoder, a cross-layer transcoder and a residual SAE."""
    model = loaded(request.param)
    width = model.width(Z0)
    z = random_dictionary("z.0", "z.0", d=width, seed=1)
    plain = random_dictionary("mlp_in.1", "mlp_out.1", activation="jumprelu", seed=2)
    skip = torch.randn(16, 16, generator=torch.Generator().manual_seed(5), dtype=torch.float64) / 8
    wide = random_dictionary("mlp_in.0", "mlp_out.0", seed=3)
    both = random_dictionary("mlp_in.0", "mlp_out.0", seed=4).weights
    weights = type(both)(
        both.W_enc,
        both.b_enc,
        torch.cat([both.W_dec, wide.weights.W_dec], 1),
        torch.cat([both.b_dec, wide.weights.b_dec]),
    )
    found = [
        z,
        Dictionary(plain.weights, plain.reads, plain.writes, "skip", W_skip=skip),
        Dictionary(weights, Site("mlp_in", 0), MLP0, "cross", later=(MLP1,)),
        random_dictionary("resid_post.0", "resid_post.0", seed=6),
    ]
    return model, Dictionaries(found)


TOKENS = torch.tensor([[1, 3, 4, 5, 6, 9], [1, 7, 4, 3, 3, 8]])
OTHER = torch.tensor([[1, 3, 4, 8, 6, 9], [1, 7, 4, 9, 3, 8]])
SITES = [Site(k, layer) for layer in (0, 1) for k in ("z", "attn_out", "mlp_in", "mlp_out", "resid_post")]


def active(model, dictionaries, key, values, pos=3):
    """The most active feature there in the first example."""
    dictionary = dictionaries[key]
    acts = dictionary.encode(values[dictionary.reads])
    index = int(acts[0, pos].argmax())
    assert acts[0, pos, index] > 0
    return index, acts[:, pos, index]


def test_no_intervention_leaves_the_logits_bit_for_bit(family):
    model, dictionaries = family
    plain, _ = model.run(TOKENS)
    assert torch.equal(run_with_interventions(TOKENS, model, dictionaries, []).logits, plain)
    same = ["z.0/f3*=1", "mlp_out.1/error*=1", "mlp_out.0/f3@2:*=1", "z.0/h1*=1"]
    for one in same:
        assert torch.equal(run_with_interventions(TOKENS, model, dictionaries, [one]).logits, plain)


@pytest.mark.parametrize("key", ["z.0", "mlp_out.0", "mlp_out.1", "resid_post.0"])
def test_setting_a_feature_to_zero_changes_its_sites_by_minus_its_activation_times_its_write(family, key):
    model, dictionaries = family
    key = Site.parse(key)
    dictionary = dictionaries[key]
    _, values = model.run(TOKENS, record=SITES)
    index, acts = active(model, dictionaries, key, values)
    run = run_with_interventions(
        TOKENS, model, dictionaries, [Set(SitePart(key, "feature", index, Span(3, 4)), 0)], cache=[key]
    )
    assert repr(run) == f"logits {list(run.logits.shape)}, {key} {list(values[key].shape)}"
    change = run.activations[key] - values[key]
    assert_close(change[:, 3], -acts[:, None] * dictionary.weights.W_dec[index, dictionary.columns(key)])
    assert not change[:, :3].any() and not change[:, 4:].any()
    replace = {
        site: _add(3, -acts[:, None] * dictionary.weights.W_dec[index, dictionary.columns(site)])
        for site in dictionary.sites
    }
    assert_close(run.logits, model.run(TOKENS, replace=replace)[0])


def _add(pos, vector):
    def edit(x, recorded):
        x = x.clone()
        x[:, pos] += vector
        return x

    return edit


def test_scaling_setting_patching_and_interpolating_a_feature(family):
    model, dictionaries = family
    dictionary = dictionaries[Z0]
    _, values = model.run(TOKENS, record=SITES)
    _, other = model.run(OTHER, record=SITES)
    index, acts = active(model, dictionaries, Z0, values)
    theirs = dictionary.encode(other[Z0])[:, 3, index]
    node = f"z.0/f{index}@3"
    expected = {
        f"{node}=2.5": torch.full_like(acts, 2.5),
        f"{node}*=3": 3 * acts,
        f"{node}=other": theirs,
        f"{node}=other:0.25": 0.25 * acts + 0.75 * theirs,
        f"{node}=zero": 0 * acts,
    }
    for text, new in expected.items():
        run = run_with_interventions(TOKENS, model, dictionaries, [text], references={"other": OTHER}, cache=[Z0])
        assert_close(
            run.activations[Z0][:, 3] - values[Z0][:, 3], (new - acts)[:, None] * dictionary.weights.W_dec[index]
        )


def test_errors_heads_neurons_and_whole_vectors(family):
    model, dictionaries = family
    sites = [*SITES, Site("mlp_post", 1)]
    _, values = model.run(TOKENS, record=sites)
    _, other = model.run(OTHER, record=sites)

    def after(text, site):
        run = run_with_interventions(TOKENS, model, dictionaries, [text], references={"other": OTHER}, cache=[site])
        return run.activations[site]

    for site in (Z0, MLP1, Site("resid_post", 0)):
        assert_close(after(f"{site}/error=0", site), dictionaries.reconstruct(site, values))
    error = values[Z0] - dictionaries.reconstruct(Z0, values)
    theirs = other[Z0] - dictionaries.reconstruct(Z0, other)
    assert_close(after("z.0/error@3=other", Z0)[:, 3], (values[Z0] - error + theirs)[:, 3])
    size, head = model.d_head, values[Z0].clone()
    head[:, 2:, size : 2 * size] = other[Z0][:, 2:, size : 2 * size]
    assert torch.equal(after("z.0/h1@2:=other", Z0), head) and not torch.equal(head, values[Z0])
    neuron = values[Site("mlp_post", 1)].clone()
    neuron[..., 5] = 1.5
    assert torch.equal(after("mlp_post.1/n5=1.5", Site("mlp_post", 1)), neuron)
    mixed = 0.25 * values[Site("resid_post", 0)] + 0.75 * other[Site("resid_post", 0)]
    assert_close(after("resid_post.0=other:0.25", Site("resid_post", 0)), mixed)


@pytest.mark.parametrize("site", ["resid_post.0", "resid_pre.1", "attn_out.1", "mlp_out.1"])
def test_deleting_a_node_subtracts_what_it_wrote_and_steering_adds_a_unit_of_it(family, site):
    model, dictionaries = family
    site = Site.parse(site)
    scale = Site("ln1_post_scale", 0)
    record = [*SITES, site, *([scale] if model.has(scale) else [])]
    _, values = model.run(TOKENS, record=record)
    index, acts = active(model, dictionaries, Z0, values)
    by = values[scale] if model.has(scale) else torch.ones(1, dtype=torch.float64)
    write = model.write(Z0, dictionaries[Z0].weights.W_dec[index]) / by
    unit = write[:, 3] if write.ndim == 3 else write

    def change(text):
        run = run_with_interventions(TOKENS, model, dictionaries, [text], cache=[site])
        return run.activations[site] - values[site]

    deleted = change(f"{site}@3-=z.0/f{index}")
    assert_close(deleted[:, 3], -acts[:, None] * unit)
    assert not deleted[:, :3].any() and not deleted[:, 4:].any()
    steered = change(f"{site}@3+=-4*z.0/f{index}")
    assert_close(steered[:, 3], (-4 * unit).expand(2, -1))


def test_deleting_a_head_an_error_and_a_component_takes_their_whole_output(family):
    """All heads, or the component whole, make up what attention writes besides its bias."""
    model, dictionaries = family
    site = Site("resid_post", 0)
    sites = [*SITES, Site("embed"), *([Site("ln1_post_scale", 0)] if model.has(Site("ln1_post_scale", 0)) else [])]
    _, values = model.run(TOKENS, record=sites)
    whole = run_with_interventions(TOKENS, model, dictionaries, [f"{site}-=z.0"], cache=[site]).activations[site]
    heads = [f"{site}-=z.0/h{head}" for head in range(model.n_heads)]
    assert_close(run_with_interventions(TOKENS, model, dictionaries, heads, cache=[site]).activations[site], whole)
    parts = [f"{site}-=mlp_out.0/error", *(f"{site}-=mlp_out.0/f{f}" for f in range(24))]
    left = run_with_interventions(TOKENS, model, dictionaries, parts, cache=[site]).activations[site]
    cross = dictionaries[MLP0]
    assert_close(left, values[site] - values[MLP0] + cross.weights.b_dec[cross.columns(MLP0)])
    assert float((values[site] - whole).abs().max()) > 1e-3


def test_changes_go_on_through_dictionaries_that_encode_anew(family):
    """A feature behind another one: its new value replaces what it became, not what it was."""
    model, dictionaries = family
    _, values = model.run(TOKENS, record=SITES)
    index, _ = active(model, dictionaries, MLP1, values)
    texts = ["resid_post.0@3*=3", f"mlp_out.1/f{index}@3=0"]
    run = run_with_interventions(TOKENS, model, dictionaries, texts, cache=[Site("mlp_in", 1), MLP1])
    alone = run_with_interventions(TOKENS, model, dictionaries, texts[:1], cache=[Site("mlp_in", 1), MLP1])
    dictionary = dictionaries[MLP1]
    now = dictionary.encode(alone.activations[Site("mlp_in", 1)])[:, 3, index]
    before = dictionary.encode(values[Site("mlp_in", 1)])[:, 3, index]
    assert float((now - before).abs().max()) > 1e-3
    assert_close(
        run.activations[MLP1] - alone.activations[MLP1],
        torch.zeros_like(values[MLP1]).index_copy_(
            1, torch.tensor([3]), (-now[:, None] * dictionary.weights.W_dec[index])[:, None]
        ),
    )


def test_many_sets_in_one_pass_are_the_sets_one_by_one(family):
    model, dictionaries = family
    sets = [["z.0/f3@2=1"], ["mlp_out.1/f5=2", "mlp_out.1/error@4=0"], [], ["mlp_out.0/f2=1.5"], ["embed@3=other"]]
    other = {"other": OTHER}
    many = run_intervention_sets(TOKENS, model, dictionaries, sets, references=other, cache=[MLP1], batch_rows=6)
    plain = model.run(TOKENS)[0]
    for chosen, run in zip(sets, many, strict=True):
        alone = run_with_interventions(TOKENS, model, dictionaries, chosen, references=other, cache=[MLP1])
        assert_close(run.logits, alone.logits)
        assert_close(run.activations[MLP1], alone.activations[MLP1])
        assert bool(chosen) == (float((run.logits - plain).abs().max()) > 1e-6)


def test_many_sets_share_one_run_of_what_is_below_their_first_change(family, monkeypatch):
    """What a cross-layer dictionary reads below it is taken from that run too. One or two sets run whole."""
    model, dictionaries = family
    starts = []
    original = type(model).run
    monkeypatch.setattr(
        type(model),
        "run",
        lambda self, *a, **k: starts.append(k.get("start") and k["start"][0]) or original(self, *a, **k),
    )
    late = [["mlp_out.1/f5=2"], ["mlp_out.1/error=0"], ["resid_post.0@3*=2"]]
    many = run_intervention_sets(TOKENS, model, dictionaries, late, cache=[MLP0, MLP1])
    assert starts == [None, 1]
    starts.clear()
    for chosen, run in zip(late, many, strict=True):
        alone = run_with_interventions(TOKENS, model, dictionaries, chosen, cache=[MLP0, MLP1])
        assert_close(run.logits, alone.logits)
        assert_close(run.activations[MLP0], alone.activations[MLP0])
        assert_close(run.activations[MLP1], alone.activations[MLP1])
        assert float((run.logits - original(model, TOKENS)[0]).abs().max()) > 1e-6
    assert starts == [None, None, None]
    starts.clear()
    run_intervention_sets(TOKENS, model, dictionaries, [*late, ["z.0/h1=0"]])
    assert starts == [None, None]


STEER, NEURONS = "resid_post.0{}+=2*z.0/f1", Site("mlp_post", 1)


@pytest.mark.parametrize(
    ("text", "site"),
    [
        ("z.0/f{feature}{{}}=2", Z0),
        ("z.0/f{feature}{{}}*=3", Z0),
        ("z.0/f{feature}{{}}=other", Z0),
        ("z.0/error{}=0", Z0),
        ("z.0/error{}=other", Z0),
        ("z.0/h1{}=0", Z0),
        ("z.0/h1{}=other", Z0),
        ("mlp_post.1/n5{}=1.5", NEURONS),
        ("mlp_out.1{}=0", MLP1),
        ("mlp_out.1{}=other", MLP1),
        (STEER, Site("resid_post", 0)),
        ("resid_post.0{}-=z.0/f{feature}", Site("resid_post", 0)),
        ("resid_post.0{}-=z.0/h1", Site("resid_post", 0)),
    ],
)
@pytest.mark.parametrize(("span", "positions"), [("@3", {3}), ("@2:4", {2, 3}), ("@4:", {4, 5}), ("", set(range(6)))])
def test_an_intervention_acts_at_its_positions_and_nowhere_else(family, text, site, span, positions):
    model, dictionaries = family
    other = torch.tensor([[3, 4, 5, 6, 7, 8], [4, 5, 6, 7, 8, 3]])  # differs from ours everywhere
    _, values = model.run(TOKENS, record=[*SITES, NEURONS])
    dictionary = dictionaries[Z0]
    acts = dictionary.encode(values[Z0])
    feature = int((acts[0] > 0).sum(0).argmax())
    change = text.replace("{feature}", str(feature)).replace("{{}}", "{}").format(span)
    run = run_with_interventions(TOKENS, model, dictionaries, change, references={"other": other}, cache=[site])
    changed = {pos for pos in range(6) if not torch.equal(run.activations[site][:, pos], values[site][:, pos])}
    silent = {pos for pos in range(6) if f"f{feature}" in change and float(acts[:, pos, feature].max()) == 0}
    assert changed <= positions and positions - changed <= silent and changed


def test_what_is_set_anew_is_added_to_whatever_their_order(family):
    """A vector that is set and steered at once: the addition is made to the new value."""
    model, dictionaries = family
    site = Site("resid_post", 0)
    texts = ["resid_post.0@3+=2*z.0/f1", "resid_post.0@3=0"]
    both, turned = (
        run_with_interventions(TOKENS, model, dictionaries, chosen, cache=[site]) for chosen in (texts, texts[::-1])
    )
    assert torch.equal(both.logits, turned.logits)
    plain, steered = (
        run_with_interventions(TOKENS, model, dictionaries, chosen, cache=[site]).activations[site][:, 3]
        for chosen in ([], texts[:1])
    )
    assert_close(both.activations[site][:, 3], steered - plain)
    assert float((steered - plain).abs().max()) > 1e-3


def test_frozen_attention_norms_and_mlps_leave_the_direct_effect(family):
    """With all of them frozen the stream at the end changes by exactly what the feature writes."""
    model, dictionaries = family
    last = Site("resid_post", 1)
    _, values = model.run(TOKENS, record=[*SITES, last])
    index, acts = active(model, dictionaries, MLP0, values)
    dictionary = dictionaries[MLP0]
    text = [f"mlp_out.0/f{index}@3=0"]
    run = run_with_interventions(
        TOKENS, model, dictionaries, text, freeze=["attention", "norms", "mlp"], cache=[last, Site("pattern", 1)]
    )
    free = run_with_interventions(TOKENS, model, dictionaries, text, cache=[last, Site("pattern", 1)])
    total = sum(dictionary.weights.W_dec[index, dictionary.columns(site)] for site in dictionary.sites)
    change = (run.activations[last] - values[last])[:, 3]
    through_attention = run_with_interventions(
        TOKENS, model, dictionaries, text, freeze=["attn_out.1", "mlp"], cache=[last]
    ).activations[last]
    assert_close((through_attention - values[last])[:, 3], -acts[:, None] * total)
    assert float((change - (free.activations[last] - values[last])[:, 3]).abs().max()) > 1e-6
    assert torch.equal(
        run.activations[Site("pattern", 1)], model.run(TOKENS, record=[Site("pattern", 1)])[1][Site("pattern", 1)]
    )


def test_with_the_final_norm_frozen_logits_are_linear_in_the_end_of_the_stream(family):
    """But for Gemma 2, which caps them; the clean logits stay bit for bit."""
    model, dictionaries = family
    frozen = {"freeze": ["final_norm"]}
    plain = run_with_interventions(TOKENS, model, dictionaries, [], **frozen).logits
    assert torch.equal(plain, model.run(TOKENS)[0])

    def change(amount, **settings):
        text = [f"resid_post.1@2+={amount}*resid_post.0/f3"]
        return run_with_interventions(TOKENS, model, dictionaries, text, **settings).logits - plain

    if model.library.cfg.output_logits_soft_cap > 0:
        assert float((change(1, **frozen) - change(1)).abs().max()) > 1e-4
        return
    rounding = {"dtype": FAMILIES[model.name].precision, "scale": plain.abs().max()}
    assert_close(change(2, **frozen), 2 * change(1, **frozen), **rounding)
    assert float((change(2) - 2 * change(1)).abs().max()) > 1e-4


def test_at_a_frozen_site_a_feature_loses_what_it_had_before_all_changes(family):
    """Though what its dictionary reads is changed upstream."""
    model, dictionaries = family
    _, values = model.run(TOKENS, record=SITES)
    index, acts = active(model, dictionaries, MLP1, values)
    texts = ["resid_post.0@3*=3", f"mlp_out.1/f{index}@3=0"]
    run = run_with_interventions(TOKENS, model, dictionaries, texts, freeze=["mlp_out.1"], cache=[MLP1])
    change = run.activations[MLP1] - values[MLP1]
    assert_close(change[:, 3], -acts[:, None] * dictionaries[MLP1].weights.W_dec[index])
    assert not change[:, :3].any() and not change[:, 4:].any()


def test_with_attention_and_norms_frozen_attention_is_linear_in_its_input(family):
    model, dictionaries = family
    site = Site("attn_out", 1)
    base = model.run(TOKENS, record=[site])[1][site]

    def change(amount, freeze):
        text = [f"resid_pre.1@2+={amount}*resid_post.0/f3"]
        run = run_with_interventions(TOKENS, model, dictionaries, text, freeze=freeze, cache=[site])
        return run.activations[site] - base

    rounding = {"dtype": FAMILIES[model.name].precision, "scale": base.abs().max()}
    assert_close(change(2, ["attention", "norms"]), 2 * change(1, ["attention", "norms"]), **rounding)
    assert float((change(2, []) - 2 * change(1, [])).abs().max()) > 1e-4


def test_pairs_bring_the_corrupted_run_its_mean_and_another_examples(tiny_model, tiny_dictionaries, tiny_pairs):
    site = Site("mlp_out", 1)
    pairs = [*tiny_pairs, type(tiny_pairs[0])("h g f e d", "h g f a d", (" a",), (" c",))]
    corrupted = [pair.corrupted for pair in pairs]
    theirs = run_with_interventions(corrupted, tiny_model, tiny_dictionaries, [], cache=[site]).activations[site]

    def after(name, **settings):
        run = run_with_interventions(pairs, tiny_model, tiny_dictionaries, [f"{site}={name}"], cache=[site], **settings)
        return run.activations[site]

    assert torch.equal(after("corrupted"), theirs)
    assert_close(after("mean"), theirs.mean(0, keepdim=True).expand_as(theirs))
    drawn = after("resample", seed=3)
    assert torch.equal(drawn, after("resample", seed=3))
    assert all(any(torch.equal(row, other) for j, other in enumerate(theirs) if j != i) for i, row in enumerate(drawn))
    assert any(not torch.equal(drawn, after("resample", seed=seed)) for seed in range(6))
