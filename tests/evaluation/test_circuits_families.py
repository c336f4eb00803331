"""Circuits and patched sets of nodes on several families, with dictionaries of the residual stream: against naive runs."""

from __future__ import annotations

import random

import pytest
import torch
from support.cases import build_case
from support.close import assert_close
from support.dictionary_kinds import dictionary_set, random_dictionary
from support.families import FAMILIES
from support.naive_circuits import Naive

from circuitgraph.dictionaries.collection import Dictionaries
from circuitgraph.errors import GraphError
from circuitgraph.evaluation.circuits import (
    ERRORS,
    circuit_mask,
    circuit_metrics,
    node_values,
    run_circuits,
    run_with_nodes,
    stack_masks,
)
from circuitgraph.evaluation.patching import patch_effects
from circuitgraph.nodes import Node, Site

RESID = Site("resid_post", 0)


@pytest.fixture(scope="module", params=["gpt2", "llama", "gpt_neox", "gemma2"])
def family(request, loaded, tiny_pairs):
    """A case of that family with a z-SAE, an SAE of the residual stream and a transcoder, its naive runs, and its rounding."""
    model = loaded(request.param)
    found = [
        random_dictionary("z.0", "z.0", d=model.width(Site("z", 0)), d_sae=12, seed=1),
        random_dictionary("resid_post.0", "resid_post.0", activation="topk", d_sae=16, seed=2),
        random_dictionary("mlp_in.1", "mlp_out.1", activation="jumprelu", d_sae=12, seed=3),
    ]
    dictionaries = Dictionaries(found)
    case = build_case(model, dictionaries, tiny_pairs)
    rounding = {"dtype": FAMILIES[request.param].precision, "scale": float(case.clean.metric.abs().max())}
    return case, Naive(model, dictionaries, case), rounding


def nodes_of(case):
    return [node for table in case.tables for node in table.nodes()]


@pytest.mark.parametrize("complement", [False, True])
def test_circuits_are_those_of_naive_runs_under_every_treatment_of_errors(family, complement):
    case, naive, rounding = family
    baseline_nodes, n_pos = node_values(case.model, case.dictionaries, case.base.values), case.tokens.clean.shape[1]
    kinds = {"feature", "error", "embedding"}
    every = [node for node in nodes_of(case) if node.kind in kinds]
    circuit = set(random.Random(5).sample(every, len(every) * (2 if complement else 8) // 10))
    assert {node.site for node in circuit} >= {RESID, Site("z", 1), Site("mlp_out", 1)}
    makes = [
        lambda errors=errors: circuit_mask(case.model, case.dictionaries, circuit, n_pos, errors, complement=complement)
        for errors in ERRORS
    ]
    found = circuit_metrics(case.model, case.dictionaries, case.tokens.clean, baseline_nodes, case.metric, makes).mean(
        1
    )
    values = {}
    for errors, value in zip(ERRORS, found.tolist(), strict=True):

        def keeps(node, errors=errors):
            inside = (node in circuit) != complement
            if node.kind != "error" or errors == "circuit":
                return inside
            return errors == "keep" or (errors == "stream" and inside and node.site == RESID)

        values[errors] = naive.metric(keeps)
        assert_close(value, values[errors], **rounding, name=errors)
    assert len({round(value, 3) for value in values.values()}) >= 3


def test_the_effect_of_a_set_is_that_of_the_naive_run_with_all_of_it_at_the_baseline(family):
    case, naive, rounding = family
    by_site = {}
    for node in nodes_of(case):
        by_site.setdefault((node.site, node.kind), []).append(node)
    upstream = by_site[Site("z", 0), "feature"][:3]
    downstream = by_site[Site("mlp_out", 1), "feature"][-3:]
    late = [by_site[Site("z", 1), "error"][-1], *by_site[Site("mlp_out", 1), "error"][-2:], *downstream]
    sets = [
        [*upstream, *downstream],
        downstream[0],
        {*late},
        [*by_site[Site("embed"), "embedding"], *by_site[RESID, "error"][:2]],
        [],
        [*by_site[RESID, "feature"][2:9], downstream[1]],
        [downstream[0]],
    ]
    baseline_nodes = node_values(case.model, case.dictionaries, case.base.values)
    starts, run = [], type(case.model).run

    def spy(self, *arguments, start=None, **settings):
        starts.append(start and start[0])
        return run(self, *arguments, start=start, **settings)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(case.model), "run", spy)
        effects = _effects(case, baseline_nodes, sets, batch_rows=2)
    assert starts.count(1) == 4 and starts.count(None) == 3  # the clean run and the sets that touch layer 0
    full = float(case.clean.metric.mean())
    for chosen, effect in zip(sets, effects.mean(1).tolist(), strict=True):
        members = {chosen} if isinstance(chosen, Node) else set(chosen)
        expected = full - naive.metric(lambda node, m=members: node not in m)
        assert_close(effect, expected, **rounding, zeros=not members)
    assert_close(effects[4], torch.zeros_like(effects[4]), **rounding, zeros=True)
    assert_close(effects[1], effects[6], **rounding)
    assert (
        sorted(effects.abs().mean(1).tolist())[2] > 1e-4
    )  # but the empty one and the feature alone, which may be weak
    assert (
        float((effects[0] - _effects(case, baseline_nodes, sets[0]).sum(0)).abs().max()) > 1e-6
    )  # not the sum of its nodes


def _effects(case, baseline_nodes, nodes, **settings):
    clean, tokens = case.clean.values, case.tokens.clean
    return patch_effects(
        case.model, case.dictionaries, tokens, clean, baseline_nodes, case.metric, case.tables, nodes, **settings
    )


@pytest.mark.parametrize("known", [True, False])
def test_a_set_above_what_its_cross_layer_dictionary_reads_is_that_of_the_whole_run(loaded, tiny_pairs, known):
    """The error behind the second layer is what a dictionary misses that reads in the first; the run starts above that
    where the clean run has what is read."""
    model = loaded("gpt2")
    case = build_case(model, dictionary_set(model, "cross_layer"), tiny_pairs)
    site, reads = Site("mlp_out", 1), Site("mlp_in", 0)
    assert reads in {dictionary.reads for dictionary in case.dictionaries.writers(site)}
    baseline_nodes, n_pos = node_values(model, case.dictionaries, case.base.values), case.tokens.clean.shape[1]
    last = [node for node in nodes_of(case) if node.site == site and node.pos == n_pos - 1]  # others reach no logit
    errors = [node for node in nodes_of(case) if node.site == site and node.kind == "error"]
    sets = [errors, last[:3], [*errors[-1:], last[0]]]
    clean = {each: value for each, value in case.clean.values.items() if known or each != reads}
    starts, run = [], type(model).run

    def spy(self, *arguments, start=None, **settings):
        starts.append(start and start[0])
        return run(self, *arguments, start=start, **settings)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(model), "run", spy)
        effects = patch_effects(
            model, case.dictionaries, case.tokens.clean, clean, baseline_nodes, case.metric, case.tables, sets
        )
    assert starts == [None, 1 if known else None]
    for chosen, effect in zip(sets, effects, strict=True):
        others = circuit_mask(model, case.dictionaries, chosen, n_pos, complement=True)
        whole = run_with_nodes(model, case.dictionaries, case.tokens.clean, case.base, others)
        assert_close(effect, case.clean.metric - case.metric(whole))
        assert float(effect.abs().max()) > 1e-3


def test_all_nodes_kept_beside_another_circuit_is_the_model_bit_for_bit(family):
    case, _, _ = family
    n_pos = case.tokens.clean.shape[1]
    every, none = (
        circuit_mask(case.model, case.dictionaries, [], n_pos, errors, complement=complement)
        for errors, complement in (("keep", True), ("remove", False))
    )
    baseline_nodes = node_values(case.model, case.dictionaries, case.base.values)
    clean = case.clean.values
    for settings in ({}, {"clean": clean}):
        masks = stack_masks([none, every])
        logits, _ = run_circuits(case.model, case.dictionaries, case.tokens.clean, baseline_nodes, masks, **settings)
        plain, _ = case.model.run(case.tokens.clean.repeat(2, 1))
        assert torch.equal(logits[1], plain[len(plain) // 2 :]) and not torch.equal(logits[0], logits[1])


def test_sets_that_cannot_be_patched_are_refused(family):
    case, _, _ = family
    baseline_nodes = node_values(case.model, case.dictionaries, case.base.values)
    with pytest.raises(GraphError, match="'z.0/f99@1' is the same in the clean run and the baseline"):
        _effects(case, baseline_nodes, [[Node("feature", Site("z", 0), 1, 99), nodes_of(case)[0]]])
    zero = build_case(case.model, case.dictionaries, _pairs(), baseline="zero")
    nothing = node_values(case.model, case.dictionaries, None)
    constant = next(node for node in nodes_of(zero) if node.kind in ("pos_embedding", "bias"))
    with pytest.raises(GraphError, match="is a constant of the model; patch it alone"):
        _effects(zero, nothing, [[constant, nodes_of(zero)[-1]]])
    assert float(_effects(zero, nothing, [[constant]]).abs().max()) > 0


def _pairs():
    from circuitgraph.prompts import PromptPair

    return [PromptPair("a b c d e", "a b f d e", (" g",), (" h",))]
