"""Q and k edges by the change of the pattern: against attention written out, and in a program that saturates it.

The program counts how often the token at each position occurs, as tracr's `hist` does (Lindner et al. 2023): one head and
one MLP, whose true edges are known.
"""

from __future__ import annotations

import pytest
import torch
from support.close import assert_close
from support.compiled_programs import WORDS
from support.dictionary_kinds import in_dtype, random_kind
from support.families import FAMILIES
from support.traced_edges import shrunk, trace, vector

from circuitgraph.attribution.runs import CleanRun
from circuitgraph.dictionaries.collection import Dictionaries
from circuitgraph.dictionaries.dictionary import Dictionary
from circuitgraph.errors import CircuitGraphError
from circuitgraph.models.load import load_model
from circuitgraph.nodes import Site
from circuitgraph.paths.softmax import Softmax
from circuitgraph.prompts import PromptPair
from circuitgraph.studies.programs import build_model, histogram
from circuitgraph_kernels import SaeWeights

# HookedTransformer can be given any weights; that version 4 drops it is known.
pytestmark = pytest.mark.filterwarnings("ignore:HookedTransformer is deprecated")

COVERED = (
    ("z.0", "z.0", "relu"),
    ("ln2_normalized.0", "mlp_out.0", "jumprelu"),
    ("z.1", "z.1", "topk"),
    ("mlp_in.1", "mlp_out.1", "relu"),
)


def column(values):
    return torch.tensor(list(values), dtype=torch.float64)


def attend(model, clean, layer, pos, dq=None, dk=None):
    """The pattern [heads, key] of the query at pos, its query less dq [d_model] or its key at dk[0] less dk[1], each a
    vector of the stream behind the norm at its frozen scale; written out from the weights."""
    weights, size = model.attention(layer), model.d_head
    q, k = (clean[Site(kind, layer)][0].unflatten(-1, (-1, size)).clone() for kind in "qk")
    if dq is not None:
        q[pos] -= torch.einsum("d,hdx->hx", dq, weights.W_Q)
    if dk is not None:
        k[dk[0]] -= torch.einsum("d,hdx->hx", dk[1], weights.W_K)
    cos, sin = (clean.get(Site(kind, layer)) for kind in ("rotary_cos", "rotary_sin"))
    if cos is not None:
        q, k = (
            x * cos[0][:, None] + torch.cat([-x[..., size // 2 :], x[..., : size // 2]], -1) * sin[0][:, None]
            for x in (q, k)
        )
    k = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
    scores = torch.einsum("hx,khx->hk", q[pos], k) * weights.scale
    if weights.soft_cap is not None:
        scores = weights.soft_cap * torch.tanh(scores / weights.soft_cap)
    # what the clean run never attends to is hidden; no pattern of these models underflows
    hidden = clean[Site("pattern", layer)][0, :, pos] == 0
    return scores.masked_fill(hidden, -torch.inf).softmax(-1)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "mistral"])
def test_q_and_k_edges_by_ablation_are_what_is_lost_without_the_source(loaded, tiny_pairs, family):
    model, layer = loaded(family), 1
    traced = trace(model, COVERED, tiny_pairs[:1])
    clean, site = traced.clean.values, Site("z", layer)
    table = next(t for t in traced.tables if t.site == site and t.kind == "feature")
    vectors = {t.node(i): vector(t, i) for t in traced.tables for i in range(len(t))}
    norm, scale = model.norm(site, "ln1"), clean[Site("ln1_scale", layer)][0]
    values = clean[Site("v", layer)][0].unflatten(-1, (-1, model.d_head))
    values = values.repeat_interleave(model.n_heads // values.shape[1], 1)
    measured, found, per_head = [], [], []
    edges = [e for e in traced.edges(qk="ablate").table if e.target.site == site and e.kind in ("q", "k")]
    assert {e.kind for e in edges} == {"q", "k"}
    for edge in edges[:: max(1, len(edges) // 150)]:
        pos, at = edge.target.pos, edge.source.pos
        e = table.dictionary.weights.W_enc[:, edge.target.feature].unflatten(0, (model.n_heads, -1))
        change = norm.apply(vectors[edge.source]) / scale[at]
        whole = attend(model, clean, layer, pos)
        without = attend(model, clean, layer, pos, *((change,) if edge.kind == "q" else (None, (at, change))))
        lost = torch.einsum("hk,khx,hx->h", whole - without, values, e)
        measured.append(float(lost.sum()))
        per_head.append(lost)
        found.append(edge)
        assert_close(whole, clean[Site("pattern", layer)][0, :, pos], dtype=FAMILIES[family].precision)
    assert len(found) > 50
    assert_close(column(e.local_weight for e in found), column(measured), dtype=FAMILIES[family].precision)
    assert_close(
        torch.tensor([e.heads for e in found], dtype=torch.float64),
        torch.stack(per_head),
        dtype=FAMILIES[family].precision,
    )
    # no edge is missing: a source outside the window changes nothing
    derivative = [e for e in traced.edges().table if e.target.site == site and e.kind in ("q", "k")]
    assert {(e.source, e.target, e.kind) for e in edges} == {(e.source, e.target, e.kind) for e in derivative}


@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
def test_for_small_differences_ablation_approaches_the_derivative(loaded, tiny_pairs, family):
    traced = trace(loaded(family), COVERED, tiny_pairs[:1])
    small = [shrunk(table, 1e-4) for table in traced.tables]

    def weights(tables, qk):
        table = traced.edges(tables=tables, qk=qk).table
        return {(e.source, e.target, e.kind): e.local_weight for e in table if e.kind in ("q", "k")}

    derivative, ablated = weights(small, "derivative"), weights(small, "ablate")
    large = weights(traced.tables, "ablate")
    keys = sorted(derivative, key=str)
    assert len(keys) > 100
    expected = column(1e4 * derivative[key] for key in keys)
    near = column(1e4 * ablated.get(key, 0.0) for key in keys) - expected
    far = column(large.get(key, 0.0) for key in keys) - expected
    assert float(near.abs().max()) < 1e-3 * float(expected.abs().max()) < float(far.abs().max())


def test_ablation_with_frozen_components_is_refused(loaded, tiny_pairs):
    traced = trace(loaded("gpt2"), COVERED[:1], tiny_pairs[:1], attention="frozen")
    with pytest.raises(CircuitGraphError, match="qk 'ablate' does not pass frozen attention or MLPs"):
        traced.edges(qk="ablate")
    skipping = trace(loaded("gpt2"), (*COVERED[:1], ("mlp_in.0", "mlp_out.0", "relu", {"skip": True})), tiny_pairs[:1])
    with pytest.raises(CircuitGraphError, match="skips, and qk 'ablate' passes no skip connections"):
        skipping.edges(qk="ablate")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_model_in_half_precision_hides_the_same_keys(folder, tiny_pairs, dtype):
    """Its mask is the smallest number of its own type, which is not small for float16."""
    found = []
    for each in (torch.float32, dtype):
        model = load_model(folder("mistral"), dtype=each)
        made = [in_dtype(random_kind(model, *kind), torch.float32) for kind in COVERED if kind[0].startswith("z")]
        traced = trace(model, Dictionaries(made), tiny_pairs[:1])
        edges = traced.edges(qk="ablate").table
        found.append({(e.source, e.target, e.kind): e.local_weight for e in edges if e.kind in ("q", "k")})
    exact, half = found
    keys = [key for key in exact if key in half]
    assert len(keys) > 100
    error = column(half[key] - exact[key] for key in keys).norm() / column(exact[key] for key in keys).norm()
    assert 0 < float(error) < 0.03


def test_taking_the_only_attended_key_out_moves_the_whole_pattern():
    """A saturated head, in float32: the pattern is 1 at one key up to rounding, and its score drops far below the others."""
    keys = torch.zeros(1, 4, 1, 2)
    keys[0, :, 0, 0] = torch.tensor([60.0, 0.0, 1.0, 30.0])
    hidden = torch.tensor([[[False, False, False, True]]])
    query, s = torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[[3.0, 5.0, -2.0, 100.0]]]])
    softmax = Softmax(query, keys, s, hidden, 1.0, None)
    for drop in (0.0, 59.5, 90.0, 120.0, -120.0):
        for at in range(4):
            change = torch.tensor([[[[drop, 0.0]]]])
            scores = keys[0, :, 0, 0].double().clone()
            before = scores.masked_fill(hidden[0, 0], -torch.inf).softmax(-1) @ s[0, 0, 0].double()
            scores[at] -= drop
            after = scores.masked_fill(hidden[0, 0], -torch.inf).softmax(-1) @ s[0, 0, 0].double()
            lost = softmax.without_key(change, torch.tensor([at]))
            assert_close(float(lost), float(before - after), dtype=torch.float32, scale=s.abs().max(), zeros=True)
    alone = Softmax(query, keys[:, :1], s[..., :1], hidden[..., :1], 1.0, None)
    assert float(alone.without_key(torch.tensor([[[[50.0, 0.0]]]]), torch.tensor([0]))) == 0


# counting ----------------------------------------------------------------------------------------------------------------


def counting_model():
    """The program as a model whose words are a, b and c."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    library = build_model(histogram(n_examples=1)).library
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="BOS"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    library.tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="BOS", eos_token="BOS", pad_token="BOS"
    )
    return load_model(library)


def programs_edges(clean, corrupted, count, **settings):
    """The edges into z and beyond of the program at two prompts, and how much its logit for that count differs."""
    model = counting_model()
    sites = [Site.parse(text) for text in ("z.0", "mlp_post.0")]
    eyes = [torch.eye(model.width(site), dtype=torch.float64) for site in sites]
    neurons = {
        site: Dictionary(SaeWeights(eye, eye[0] * 0, eye, eye[0] * 0, activation="identity"), site, site, str(site))
        for site, eye in zip(sites, eyes, strict=True)
    }

    def logit(logits):
        return logits[:, -1, count - 1]

    # integrated, as the MLP's steps are flat at both ends
    pairs = [PromptPair(clean, corrupted, (" a",))]
    traced = trace(model, neurons, pairs, metric=logit, method="integrated", steps=100)
    return list(traced.edges(**settings).table), float(traced.clean.metric - traced.corrupted.metric)


def by_component(edges):
    """(source, target, kind) -> summed |weight| between the nodes of two components, where there is any."""
    found = {}
    for edge in edges:
        ends = (str(edge.source.site), str(edge.target.site), edge.kind)
        found[ends] = found.get(ends, 0.0) + abs(edge.weight)
    return {ends: weight for ends, weight in found.items() if weight > 1e-6}


def test_recomputing_finds_exactly_the_edges_of_a_program():
    """Every token but the first differs, the counted one as well: it occurs three times, then twice."""
    edges, difference = programs_edges("a b c a a", "b a c c b", 3, qk="ablate")
    assert_close(difference, 1.0)
    found = by_component(edges)
    assert found.keys() == {
        ("embed", "z.0", "q"),
        ("embed", "z.0", "k"),
        ("z.0", "mlp_post.0", "mlp"),
        ("mlp_post.0", "metric", "metric"),
    }
    assert min(found.values()) > 0.1
    # z is a mean of zeros and ones; the derivative, taken as far as the scores of such a program go, leaves that range
    assert all(abs(e.local_weight) <= 1 + 1e-6 for e in edges if e.kind in ("q", "k"))
    derivative, _ = programs_edges("a b c a a", "b a c c b", 3)
    assert max(abs(e.local_weight) for e in derivative if e.kind in ("q", "k")) > 5


def test_the_derivative_misses_keys_that_are_not_attended_to_and_recomputing_does_not():
    """Two keys that could have matched do not: their pattern is 0, and so is its derivative."""
    ablated, _ = programs_edges("a b c b a", "a a c a a", 2, qk="ablate")
    derivative, _ = programs_edges("a b c b a", "a a c a a", 2)
    keys = ("embed", "z.0", "k")
    assert by_component(ablated)[keys] > 0.1 and keys not in by_component(derivative)
    assert {e.source.pos for e in ablated if e.kind == "k" and abs(e.weight) > 0.01} == {2, 4}
    assert by_component(derivative)["mlp_post.0", "metric", "metric"] > 0.1


def test_scores_that_were_not_recorded_are_asked_for(tiny_model, tiny_dictionaries, tiny_pairs):
    case = trace(tiny_model, tiny_dictionaries, tiny_pairs)
    case.clean = CleanRun(
        case.clean.logits,
        case.clean.attached_metric,
        {s: x for s, x in case.clean.attached.items() if s.kind != "attn_scores"},
    )
    with pytest.raises(CircuitGraphError, match=r"needs the attention scores; record them with run_attribution"):
        case.edges(qk="ablate")
