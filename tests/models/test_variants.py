"""Variants in one forward pass are the runs one by one, whichever layer they start from."""

from __future__ import annotations

import pytest
import torch
from support.close import assert_close

from circuitgraph.models.variants import BATCH_ROWS, start_layer, variants_at_once
from circuitgraph.nodes import Site

TOKENS = torch.tensor([[1, 3, 4, 5, 6], [1, 7, 4, 3, 3]])
STREAM = [Site("resid_post", 0), Site("resid_post", 1)]
OBSERVED = [Site("z", 0), Site("resid_post", 0), Site("z", 1), Site("resid_post", 1), Site("pos_embed")]


@pytest.fixture
def clean(tiny_model):
    """The clean run at every site that the tests look at."""
    return tiny_model.run(TOKENS, record=[*OBSERVED, Site("mlp_in", 0)])[1]


@pytest.fixture
def starts(tiny_model, monkeypatch):
    """The layer that each run started from."""
    layers, original = [], type(tiny_model).run

    def run(self, *arguments, start=None, **settings):
        layers.append(0 if start is None else start[0])
        return original(self, *arguments, start=start, **settings)

    monkeypatch.setattr(type(tiny_model), "run", run)
    return layers


@pytest.mark.parametrize(
    ("edited", "start"),
    [
        (["embed"], 0),
        (["z.0"], 0),
        (["resid_pre.1"], 1),
        (["resid_post.0"], 1),  # what a block leaves is what the next one starts from
        (["z.1"], 1),
        (["mlp_out.1", "z.1"], 1),
        (["resid_post.0", "mlp_out.1"], 1),
        (["mlp_out.0", "mlp_out.1"], 0),
        (["resid_post.1"], 2),
        (["final_scale"], 2),
    ],
)
def test_variants_are_the_runs_one_by_one_from_the_lowest_layer_that_is_edited(
    tiny_model, clean, starts, edited, start
):
    """Each edit adds a multiple of what layer 0 had in its own variant, which the clean run has below the start."""
    sites, factors, read = [Site.parse(name) for name in edited], torch.tensor([0.5, -1.0, 2.0]), Site("mlp_in", 0)
    n_reading = sum(site.depth > read.depth for site in sites)

    def of_all(site):
        def edit(x, values):
            assert len(x) == 3
            by = factors.to(x).view(-1, 1, 1, 1)
            return x * (1 + by) if site.depth < read.depth else x + by * values[read][..., : x.shape[-1]]

        return edit

    def of_one(site, factor):
        def edit(x, recorded):
            return x * (1 + factor) if site.depth < read.depth else x + factor * recorded[read][..., : x.shape[-1]]

        return edit

    edits = {site: of_all(site) for site in sites}
    logits, observed = tiny_model.run_variants(
        TOKENS, edits, 3, clean=clean, read=[read] if n_reading else [], observe=OBSERVED
    )
    assert starts == [start] and logits.shape[:2] == (3, 2)
    for i, factor in enumerate(factors.tolist()):
        alone, values = tiny_model.run(
            TOKENS, record=[*OBSERVED, read], replace={site: of_one(site, factor) for site in sites}
        )
        assert_close(logits[i], alone)
        assert float((alone - tiny_model.run(TOKENS)[0]).abs().max()) > 1e-3
        for site in OBSERVED:
            assert_close(observed[site][i].expand_as(values[site]), values[site], name=str(site))
    assert float((logits[0] - logits[1]).abs().max()) > 1e-3


@pytest.mark.parametrize(("lacking", "start"), [("mlp_in.0", 0), ("resid_post.0", 0), ("z.0", 1), ("resid_post.1", 1)])
def test_what_the_clean_run_lacks_below_the_start_is_run_again(tiny_model, clean, starts, lacking, start):
    """The site that an edit reads, or the stream that enters the layer; not what nothing needs."""
    read, site = Site("mlp_in", 0), Site("mlp_out", 1)
    some = {key: value for key, value in clean.items() if key != Site.parse(lacking)}
    edits = {site: lambda x, values: x + values[read]}
    logits, _ = tiny_model.run_variants(TOKENS, edits, 1, clean=some, read=[read])
    assert starts == [start]
    expected, _ = tiny_model.run(TOKENS, record=[read], replace={site: lambda x, recorded: x + recorded[read]})
    assert_close(logits[0], expected)
    assert float((expected - tiny_model.run(TOKENS)[0]).abs().max()) > 1e-3


def test_without_edits_all_variants_are_the_clean_run(tiny_model, clean, starts):
    expected, _ = tiny_model.run(TOKENS)
    for known, start in ((clean, 2), ({}, 0)):
        starts.clear()
        logits, observed = tiny_model.run_variants(TOKENS, {}, 2, clean=known, observe=[Site("z", 1)])
        assert starts == [start]
        assert_close(observed[Site("z", 1)][1], clean[Site("z", 1)])
        assert_close(logits, expected.expand(2, *expected.shape))


@pytest.mark.parametrize("edited", ["embed", "z.0", "resid_post.0", "mlp_out.1", "resid_post.1"])
def test_gradients_reach_what_an_edit_puts_in(tiny_model, clean, starts, edited):
    site = Site.parse(edited)
    _, values = tiny_model.run(TOKENS, record=[site])
    change = torch.randn(2, *values[site].shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    path = (values[site] + change).requires_grad_()
    logits, _ = tiny_model.run_variants(TOKENS, {site: lambda x, values: path}, 2, clean=clean, differentiable=True)
    (gradient,) = torch.autograd.grad(logits[..., -1, 3].sum(), path)
    for i in range(2):
        alone = (values[site] + change[i]).requires_grad_()
        logits, _ = tiny_model.run(TOKENS, replace={site: lambda x, recorded, to=alone: to}, differentiable=True)
        (expected,) = torch.autograd.grad(logits[..., -1, 3].sum(), alone)
        assert_close(gradient[i], expected)
        assert float(expected.abs().max()) > 1e-3


def test_the_start_is_the_lowest_layer_that_is_touched_and_known():
    known = {Site("resid_post", layer): None for layer in range(4)} | {Site("mlp_in", 0): None}
    late, early = Site("mlp_out", 3), Site("mlp_in", 0)
    assert start_layer(4, [late], [], known) == 3
    assert start_layer(4, [late, Site("z", 1)], [], known) == 1
    assert start_layer(4, [late], [early], known) == 3, "what it reads below is known"
    assert start_layer(4, [late], [Site("z", 2)], known) == 2, "this is not"
    assert start_layer(4, [late], [Site("embed")], known) == 0
    assert start_layer(4, [Site("resid_post", 2)], [], known) == 3
    assert start_layer(4, [Site("final_scale")], [], known) == 4
    assert start_layer(4, [late], [], {Site("resid_post", 1): None}) == 2, "the stream enters no higher layer"
    assert start_layer(4, [], [], known) == 4 and start_layer(4, [late], [], {}) == 0


def test_as_many_variants_run_at_once_as_rows_and_numbers_allow():
    tokens = torch.zeros(8, 16)
    assert variants_at_once(tokens) == BATCH_ROWS // 8
    assert variants_at_once(tokens, batch_rows=20) == 2 and variants_at_once(tokens, batch_rows=3) == 1
    assert variants_at_once(tokens, width=1 << 16) == 4, "8 * 4 rows of 16 * 65536 numbers are 2^25"
    assert variants_at_once(tokens, width=1 << 30) == 1


def test_what_is_one_row_for_all_examples_is_observed_in_every_variant(loaded):
    model, angles = loaded("llama"), Site("rotary_cos", 0)
    _, clean = model.run(TOKENS, record=[angles])
    assert len(clean[angles]) == 1
    _, observed = model.run_variants(TOKENS, {Site("embed"): lambda x, values: 2 * x}, 3, clean={}, observe=[angles])
    assert observed[angles].shape == (3, *clean[angles].shape)
    assert torch.equal(observed[angles][2], clean[angles])
