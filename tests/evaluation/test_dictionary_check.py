"""The figures of `check` are what a plain computation gives; a perfect dictionary is seen to be perfect, a broken one refused."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from support.close import assert_close
from support.dictionary_kinds import random_dictionary

from circuitgraph.attribution.runs import baseline_of, run_clean, run_corrupted, sites_of
from circuitgraph.attribution.tables import VectorTable
from circuitgraph.dictionaries.collection import Dictionaries
from circuitgraph.dictionaries.dictionary import Dictionary
from circuitgraph.errors import CircuitGraphError, DictionaryError, PromptError
from circuitgraph.evaluation.dictionary_check import check_dictionaries, check_text, error_effects
from circuitgraph.metrics import build_metric
from circuitgraph.models.tokens import tokenize_pairs
from circuitgraph.nodes import Site
from circuitgraph.prompts import PromptPair
from circuitgraph_kernels import SaeWeights

HOOKS = {"z": "attn.o.hook_in", "mlp_out": "mlp.hook_out", "resid_post": "hook_out"}


@pytest.fixture(scope="module")
def all_dictionaries(tiny_dictionaries):
    """The dictionaries of the circuits, and one of the residual stream."""
    residual = random_dictionary("resid_post.0", "resid_post.0", activation="jumprelu", seed=7)
    return tiny_dictionaries | {Site("resid_post", 0): residual}


@pytest.fixture(scope="module")
def check(tiny_model, all_dictionaries, tiny_pairs):
    """The check that most tests look at."""
    return check_dictionaries(tiny_pairs, tiny_model, all_dictionaries)


def plain_loss(model, tokens, hook=None, value=None):
    """The loss by an ordinary forward pass with an ordinary PyTorch hook, token by token."""
    handle = None
    if hook is not None:
        handle = model.library.hook_dict[hook].register_forward_hook(lambda module, args, output: value.view_as(output))
    logits = model.library(tokens)
    if handle is not None:
        handle.remove()
    losses = [
        -logits[row, pos].log_softmax(-1)[tokens[row, pos + 1]]
        for row in range(len(tokens))
        for pos in range(tokens.shape[1] - 1)
    ]
    return float(torch.stack(losses).mean())


def test_every_figure_is_what_a_dense_computation_gives(tiny_model, all_dictionaries, tiny_pairs, check):
    tokens = tokenize_pairs(tiny_model, tiny_pairs).clean
    _, values = tiny_model.run(tokens, record=[s for d in all_dictionaries.values() for s in {d.reads, d.writes}])
    clean = plain_loss(tiny_model, tokens)
    assert check.loss_clean == pytest.approx(clean) and clean > 0.1
    assert [row.site for row in check.sites] == [str(site) for site in all_dictionaries]
    for row, (site, dictionary) in zip(check.sites, all_dictionaries.items(), strict=True):
        x, active, outputs = values[site].flatten(0, 1), [], []
        for vector in values[dictionary.reads].flatten(0, 1):
            acts = dictionary.encode(vector[None])[0]
            active.append(sum(1 for a in acts.tolist() if a != 0))
            used = sum(a * dictionary.weights.W_dec[i] for i, a in enumerate(acts))
            outputs.append(used + dictionary.weights.b_dec)
        x_hat = torch.stack(outputs)
        assert row.l0 == pytest.approx(sum(active) / len(active)) and 0 < row.l0 < dictionary.d_sae
        missed = sum(float(v.dot(v)) for v in x - x_hat)
        varied = sum(float(v.dot(v)) for v in x - x.sum(0) / len(x))
        assert row.explained_variance == pytest.approx(1 - missed / varied) and row.explained_variance != 0
        norms = [float((a - b).norm() / a.norm()) for a, b in zip(x, x_hat, strict=True)]
        assert row.error_norm == pytest.approx(sum(norms) / len(norms)) and row.error_norm > 0.1
        hook = f"blocks.{site.layer}.{HOOKS[site.kind]}"
        zero = plain_loss(tiny_model, tokens, hook, torch.zeros_like(x))
        spliced = plain_loss(tiny_model, tokens, hook, x_hat)
        assert abs(zero - clean) > 0.01 and abs(spliced - clean) > 0.01
        assert (row.loss_zero, row.loss_spliced) == pytest.approx((zero, spliced))
        assert row.loss_recovered == pytest.approx((zero - spliced) / (zero - clean))
        assert row.loss_matters == (zero > 1.01 * clean)


@pytest.mark.parametrize("baseline", ["corrupted", "zero"])
def test_error_tokens_are_those_of_the_dense_attributions(tiny_model, all_dictionaries, tiny_pairs, baseline):
    check = check_dictionaries(tiny_pairs, tiny_model, all_dictionaries, baseline=baseline, n_listed=100)
    tokens = tokenize_pairs(tiny_model, tiny_pairs)
    score = build_metric("logit_difference", tokens.answers, tokens.wrong_answers)
    sites = sites_of(tiny_model, all_dictionaries.values())
    clean = run_clean(tiny_model, tokens, sites, score)
    base = baseline_of(baseline, run_corrupted(tiny_model, tokens, sites, score))
    some = 0
    for row, (site, dictionary) in zip(check.sites, all_dictionaries.items(), strict=True):
        (gradient,) = torch.autograd.grad(clean.attached_metric.sum(), clean.attached[site], retain_graph=True)
        acts = dictionary.encode(clean.values[dictionary.reads])
        error = clean.values[site] - dictionary.decode(acts)
        bias = 0.0
        if base.values is None:
            bias = (gradient @ dictionary.weights.b_dec).abs()
            if site.kind == "z":
                (after,) = torch.autograd.grad(
                    clean.attached_metric.sum(), clean.attached[Site("attn_out", site.layer)], retain_graph=True
                )
                b_O = tiny_model.output_bias(site)[0]
                bias = (gradient @ dictionary.weights.b_dec + after @ b_O).abs()
        else:
            base_acts = dictionary.encode(base.values[dictionary.reads])
            error = error - (base.values[site] - dictionary.decode(base_acts))
            acts = acts - base_acts
        carried = (error * gradient).sum(-1).abs()
        total = (acts * (gradient @ dictionary.weights.W_dec.T)).abs().sum(-1) + carried + bias
        real = total > 1e-9
        share = torch.where(real, carried / total, 0)
        expected = {(e, p): float(share[e, p]) for e, p in (share > 0.5).nonzero().tolist()}
        assert {(t.example, t.pos): t.share for t in row.error_tokens} == pytest.approx(expected)
        assert row.n_error_tokens == len(expected) and row.n_effect_tokens == int(real.sum()) > 0
        assert row.error_share == pytest.approx(float((carried * real).sum() / (total * real).sum()))
        words = [[tiny_model.token_strings([i])[0] for i in ids] for ids in tokens.clean.tolist()]
        assert all(t.token == words[t.example][t.pos] for t in row.error_tokens)
        sizes = [float(carried[t.example, t.pos]) for t in row.error_tokens]
        assert sizes == sorted(sizes, reverse=True)
        some += len(expected)
    assert some > 0


def test_at_most_n_listed_tokens_are_listed_and_all_are_counted(tiny_model, all_dictionaries, tiny_pairs):
    every = check_dictionaries(tiny_pairs, tiny_model, all_dictionaries, n_listed=100)
    one = check_dictionaries(tiny_pairs, tiny_model, all_dictionaries, n_listed=1)
    assert max(row.n_error_tokens for row in every.sites) > 1
    for long, short in zip(every.sites, one.sites, strict=True):
        assert short.error_tokens == long.error_tokens[:1] and short.n_error_tokens == long.n_error_tokens
        assert len(long.error_tokens) == long.n_error_tokens


def test_an_effect_that_is_only_rounding_beside_the_largest_is_no_effect():
    site, pos = Site("mlp_out", 0), torch.arange(3)
    effects = torch.tensor([[1.0, -1e-3, 1e-15]], dtype=torch.float64)
    error, total = error_effects([VectorTable("error", site, pos, effects, effects[..., None], {})], site, 1, 3)
    assert error.tolist() == total.tolist() == [[1.0, 1e-3, 0.0]]


def perfect(site: str) -> Dictionary:
    """x = relu(x) - relu(-x): nothing is missed."""
    eye = torch.eye(16, dtype=torch.float64)
    zeros = torch.zeros(32, dtype=torch.float64)
    weights = SaeWeights(torch.cat([eye, -eye], 1), zeros, torch.cat([eye, -eye]), zeros[:16], activation="relu")
    return Dictionary(weights, Site.parse(site), Site.parse(site), f"perfect-{site}")


def test_a_dictionary_that_misses_nothing_recovers_the_whole_loss_and_has_no_error_share(tiny_model, tiny_pairs):
    dictionaries = Dictionaries(map(perfect, ("z.0", "mlp_out.0", "z.1", "mlp_out.1")))
    for row in check_dictionaries(tiny_pairs, tiny_model, dictionaries).sites:
        assert abs(row.loss_zero - row.loss_spliced) > 0.01 and row.n_effect_tokens > 0
        assert_close(row.loss_recovered, 1.0)
        assert row.l0 == 16 and row.explained_variance == 1 and row.error_norm == 0
        assert_close(row.error_share, 0.0, scale=1, zeros=True)
        assert row.n_error_tokens == 0 and row.error_tokens == ()


def test_a_dictionary_that_says_nothing_recovers_nothing_and_leaves_all_to_its_error(tiny_model, tiny_pairs):
    one = perfect("mlp_out.0")
    weights = dataclasses.replace(one.weights, b_enc=one.weights.b_enc - 1e6)
    silent = Dictionary(weights, one.reads, one.writes, one.name)
    (row,) = check_dictionaries(tiny_pairs, tiny_model, {silent.writes: silent}).sites
    assert row.l0 == 0 and row.loss_recovered == 0 and row.error_norm == 1
    assert row.error_share == 1 and row.n_error_tokens == row.n_effect_tokens > 0


def test_the_splice_with_errors_is_the_model(check):
    assert check.max_difference <= check.tolerance < 1e-10


@pytest.mark.parametrize("broken", ["too large", "not finite"])
def test_a_reconstruction_beyond_the_precision_is_refused_by_name(tiny_model, tiny_dictionaries, tiny_pairs, broken):
    site = Site("mlp_out", 0)
    found = tiny_dictionaries[site]
    changes = {"b_dec": found.weights.b_dec + 1e12}
    if broken == "not finite":
        signs = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(12)
        changes = {"W_dec": 1e307 * signs[:, None].expand(24, 16), "b_enc": found.weights.b_enc + 1e5}
    weights = dataclasses.replace(found.weights, **changes)
    dictionaries = tiny_dictionaries | {site: Dictionary(weights, found.reads, found.writes, found.name)}
    with pytest.raises(DictionaryError, match=r"change the logits .* most by mlp_out.0-jumprelu at mlp_out.0 "):
        check_dictionaries(tiny_pairs, tiny_model, dictionaries)


def test_prompts_that_have_no_next_token_and_negative_counts_are_refused(
    monkeypatch, tiny_model, tiny_dictionaries, tiny_pairs
):
    monkeypatch.setattr(tiny_model.library.cfg, "default_prepend_bos", False)
    with pytest.raises(PromptError, match="1 token"):
        check_dictionaries([PromptPair("c", "d", (" a",), (" b",))], tiny_model, tiny_dictionaries)
    with pytest.raises(CircuitGraphError, match="n_listed is -1"):
        check_dictionaries(tiny_pairs, tiny_model, tiny_dictionaries, n_listed=-1)


def test_identical_prompts_have_no_effect_to_carry(tiny_model, tiny_dictionaries):
    pairs = [PromptPair("a b c d e", "a b c d e", (" g",), (" h",))]
    check = check_dictionaries(pairs, tiny_model, tiny_dictionaries)
    assert all(row.error_share is None and row.n_effect_tokens == 0 and row.loss_recovered for row in check.sites)
    assert "undefined" in check_text(check) and check_text(check).endswith("at 0 tokens\n")


def test_the_text_has_every_site_and_every_listed_token(check):
    text = check_text(check)
    header, *rows = text.split("\n\n")[1].splitlines()
    assert header.split()[0] == "site" and len(rows) >= len(check.sites)
    for line, row in zip(rows, check.sites, strict=False):
        cells = line.split()
        assert cells[0] == row.site and cells[1] == str(row.d_sae) and cells[2] == f"{row.l0:.1f}"
        assert f"{row.loss_recovered:.3f}" in cells and f"{row.explained_variance:.3f}" in cells
    listed = [token for row in check.sites for token in row.error_tokens]
    assert listed and all(repr(token.token) in text and f"{token.share:.2f}" in text for token in listed)
    assert max(map(len, text.splitlines())) <= 120
    assert repr(check) == text.rstrip()
    doubtful = [row for row in check.sites if not row.loss_matters]
    assert text.count(" ?") == len(doubtful) and ("? setting" in text) == bool(doubtful)
