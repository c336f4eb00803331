"""Promises of the Triton backend, run in the interpreter where there is no GPU."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import pytest
import torch
import triton
import triton.language as tl
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from support.attribution_bounds import attribution_bounds
from support.close import assert_close
from torch import Tensor

from circuitgraph_kernels import ACTIVATIONS, SaeWeights, _tiles, _triton, _triton_screen, sae_attribution
from circuitgraph_kernels._entries import Inputs
from circuitgraph_kernels._triton_kernels import at_row
from circuitgraph_kernels.weights import pre_activations

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SMALL = _tiles.Tile(16, 32, 32, 4, 2)
SIZES = {
    "tokens": st.integers(1, 7),
    "d_in": st.integers(2, 40),
    "d_sae": st.integers(1, 70),
    "d_out": st.integers(1, 20),
}


@pytest.fixture(autouse=True, scope="module")
def small_tiles() -> Iterator[None]:
    """Programs cost milliseconds each in the interpreter, so shapes are small and so are their paddings."""
    table = {arch: {0: SMALL} for arch in _tiles.SCREEN}
    with patch.multiple(_tiles, SCREEN=table, FEATURES=32, DEPTH=32, PAIRS=64):
        yield


def draw(random: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=random, dtype=torch.float64)


def make_weights(random: torch.Generator, activation: str, d_in: int, d_sae: int, d_out: int, **more: object):
    """Random float64 weights of any kind."""
    fields: dict[str, object] = {
        "jumprelu": {"threshold": draw(random, d_sae)},
        "batchtopk": {"threshold": torch.tensor(0.5).double()},
        "topk": {"k": 1 + d_sae // 5},
        "gated": {name: draw(random, d_sae) / 2 for name in ("b_gate", "r_mag", "b_mag")},
    }.get(activation, {})
    b_enc = torch.zeros(d_sae).double() if activation == "gated" else draw(random, d_sae) - 1
    tensors = draw(random, d_in, d_sae) / d_in**0.5, b_enc, draw(random, d_sae, d_out), draw(random, d_out)
    return to(SaeWeights(*tensors, activation, **fields, **more), torch.float64)


def to(weights: SaeWeights, dtype: torch.dtype) -> SaeWeights:
    names = ("W_enc", "b_enc", "W_dec", "b_dec", "threshold", "b_gate", "r_mag", "b_mag")
    tensors = {name: getattr(weights, name) for name in names}
    return replace(weights, **{k: x.to(DEVICE, dtype) for k, x in tensors.items() if x is not None})


def run(*arguments: object, **options: object):
    """`sae_attribution` on the device; the result is moved back."""
    options = {key: x.to(DEVICE) if isinstance(x, Tensor) else x for key, x in options.items()}
    moved = (x.to(DEVICE) if isinstance(x, Tensor) else x for x in arguments)
    result = sae_attribution(*moved, **{"backend": "triton", **options})
    return replace(result, **{key: x.cpu() for key, x in vars(result).items() if isinstance(x, Tensor)})


def same_bits(left: object, right: object) -> bool:
    pairs = ((getattr(left, name), getattr(right, name)) for name in vars(left))
    return all(torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in pairs)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@given(seed=st.integers(0, 10**6), zero=st.booleans(), norm=st.sampled_from(["none", "layer_norm"]), **SIZES)
@settings(max_examples=5, deadline=None)
def test_triton_equals_the_reference_in_float64(
    activation: str, seed: int, zero: bool, norm: str, tokens: int, d_in: int, d_sae: int, d_out: int
) -> None:
    random = torch.Generator().manual_seed(seed)
    scaled = activation == "topk" and seed % 2 == 0
    d_out = d_in if norm != "none" else d_out
    weights = make_weights(random, activation, d_in, d_sae, d_out, normalize=norm, rescale_acts_by_decoder_norm=scaled)
    runs = draw(random, 2, tokens, d_in)
    gradient, outs = draw(random, 2, tokens, d_out), draw(random, 2, tokens, d_out)
    options = {"clean_out": outs[0]} | ({} if zero else {"baseline_out": outs[1]})
    arguments = runs[0], None if zero else runs[1], gradient, weights
    got, expected = run(*arguments, **options), run(*arguments, **options, backend="reference")
    assert torch.equal(got.token, expected.token) and torch.equal(got.feature, expected.feature)
    assume(len(got.token) > 0)
    assert got.attribution.abs().max() > 0 and got.error.abs().max() > 0
    for name, (n_terms, scale) in attribution_bounds(weights, runs, gradient, outs).items():
        zeros = name.endswith("acts")  # one of the runs may have no active feature
        assert_close(getattr(got, name), getattr(expected, name), n_terms=n_terms, scale=scale, zeros=zeros, name=name)


@pytest.mark.parametrize("activation", ["relu", "jumprelu", "gated"])
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_float32_stays_within_the_rounding_bound(activation: str, stored: torch.dtype) -> None:
    """Also which features are active: only where the float64 value is nearer to the threshold than the bound."""
    random = torch.Generator().manual_seed(3)
    weights = to(make_weights(random, activation, 48, 90, 20), stored)
    runs, gradient, outs = draw(random, 2, 9, 48).float(), draw(random, 9, 20).float(), draw(random, 2, 9, 20).float()
    outputs = {"clean_out": outs[0], "baseline_out": outs[1]}
    got = run(runs[0], runs[1], gradient, weights, **outputs)
    exact = to(weights, torch.float64)
    outputs = {key: x.double() for key, x in outputs.items()}
    expected = run(runs[0].double(), runs[1].double(), gradient.double(), exact, **outputs, backend="reference")
    assert torch.equal(got.token, expected.token) and torch.equal(got.feature, expected.feature) and len(got.token) > 90
    for name, (n_terms, scale) in attribution_bounds(exact, runs.double(), gradient.double(), outs.double()).items():
        assert_close(getattr(got, name), getattr(expected, name), n_terms=n_terms, scale=scale, name=name)
    assert (got.attribution - expected.attribution).abs().max() > 0 and got.precision == "float32"


HARD = {
    "plain": lambda x: x,
    "large common offset": lambda x: x + 300,
    "massive dimensions": lambda x: x * torch.tensor([1e4, *[1.0] * (x.shape[1] - 2), 1e-3]),
    "one massive token": lambda x: x * torch.tensor([1e4] + [1.0] * (x.shape[0] - 1))[:, None],
    "tiny": lambda x: x * 1e-20,
    "huge": lambda x: x * 1e15,
    "zeros": lambda x: x * (torch.arange(x.shape[0]) % 2)[:, None],
}


# The screen compares in two ways: with a level (relu; jumprelu and gated have another level) and by rank (topk).
CASES = [(kind, activation) for kind in HARD for activation in ("relu", "topk")]
CASES += [(kind, activation) for kind in ("plain", "massive dimensions") for activation in ("jumprelu", "gated")]


@pytest.mark.parametrize(("kind", "activation"), CASES)
def test_the_screen_loses_nothing(kind: str, activation: str) -> None:
    """Every feature's bias is set so that its pre-activation at one token is a hair above what makes it active.

    Two tiles along features and depth, the second ones partial.
    """
    n_tokens, d, d_sae = 4, 40, 57
    random = torch.Generator().manual_seed(1)
    weights = to(make_weights(random, activation, d, d_sae, d), torch.float32)
    runs = [HARD[kind](draw(random, n_tokens, d).float()).to(DEVICE) for _ in range(2)]
    if activation != "topk":
        token = torch.arange(d_sae, device=DEVICE) % n_tokens
        linear = (runs[0].double() @ weights.W_enc.double())[token, torch.arange(d_sae, device=DEVICE)]
        level = 0.0 if weights.threshold is None else weights.threshold.double().clamp(min=0)
        bias = (level - linear + 1e-7 * linear.abs()).float()
        weights = replace(weights, **{"b_gate" if activation == "gated" else "b_enc": bias})
    gradient = draw(random, n_tokens, d).float().to(DEVICE)
    found: list[_triton_screen.Candidates] = []

    def recorded(*arguments: Any) -> _triton_screen.Candidates:
        found.append(_triton_screen.screened(*arguments))
        return found[-1]

    with patch.object(_triton, "screened", recorded):
        screened = run(*runs, gradient, weights)
    candidates = list(zip(found[0].token.tolist(), found[0].feature.tolist(), strict=True))
    assert candidates == sorted(set(candidates)) and len(candidates) == int(found[0].total)

    def everything(rows: list[Tensor], weights: SaeWeights, capacity: int | None) -> _triton_screen.Candidates:
        return _triton_screen._everything(n_tokens, d_sae, rows[0].device, capacity)

    with patch.object(_triton, "screened", everything):
        unscreened = run(*runs, gradient, weights)
    assert same_bits(screened, unscreened) and len(unscreened.token) >= 10 + (weights.k or 0)
    if kind in ("plain", "one massive token") and activation != "gated":
        assert len(candidates) < n_tokens * d_sae and len(candidates) <= 1.5 * len(unscreened.token) + 20


@pytest.mark.parametrize("side", ["x", "w"])
def test_the_margin_is_needed_where_all_roundings_point_one_way(side: str) -> None:
    """1 + 2^-12 is rounded to 1 in float16: the product then misses exactly what the Cauchy-Schwarz bound allows."""
    ones, above = torch.ones(4, 64, device=DEVICE), torch.full((4, 64), 1 + 2.0**-12, device=DEVICE)
    x, rows = (above, ones) if side == "x" else (ones, above)
    bias = torch.full((4,), -64 * (1 + 2.0**-12) * (1 - 1e-6), device=DEVICE)
    weights = SaeWeights(rows.T, bias, rows, torch.zeros(64, device=DEVICE))
    found = _triton_screen.screened([x], weights)
    assert int(found.total) == 16
    assert int(_triton_screen.screened([x], replace(weights, b_enc=bias * (1 + 1e-3))).total) == 0


def test_topk_keeps_the_largest_where_rounding_reverses_the_order() -> None:
    """Two features of true score 64 (1 + 2^-12) are rounded below the others, whose true score is near 64."""
    rows = torch.ones(96, 64, device=DEVICE)
    rows[:, ::2], rows[:, 1::2] = 1 + 2.0**-11 + 2.0**-20, 1 - 2.0**-11
    rows[[40, 70]] = 1 + 2.0**-12
    weights = SaeWeights(rows.T, torch.zeros(96, device=DEVICE), rows, torch.zeros(64, device=DEVICE), "topk", k=2)
    rounded = rows.half().float().sum(dim=1)
    assert rounded[40] < rounded[0] and rows[40].sum() > rows[0].sum()
    result = run(torch.ones(3, 64), None, torch.ones(3, 64), weights)
    assert result.feature.tolist() == [40, 70] * 3 and result.attribution.abs().min() > 0


@pytest.mark.parametrize("activation", ["relu", "gated", "topk"])
def test_results_do_not_depend_on_batch_order_or_tiles(activation: str) -> None:
    random = torch.Generator().manual_seed(2)
    weights = to(make_weights(random, activation, 37, 70, 37), torch.float32)
    runs = [x.float() for x in draw(random, 3, 9, 37)]
    whole = run(*runs, weights)
    assert whole.attribution.abs().max() > 0 and len(whole.token) > 50

    order = torch.randperm(9, generator=random)
    permuted = run(*(x[order] for x in runs), weights)
    back = torch.sort(order[permuted.token], stable=True).indices
    lists = ("feature", "clean_acts", "baseline_acts", "attribution")
    assert all(torch.equal(getattr(permuted, name)[back], getattr(whole, name)) for name in lists)
    assert torch.equal(permuted.error, whole.error[order])

    parts = [run(*(x[rows] for x in runs), weights) for rows in (slice(0, 4), slice(4, 5), slice(5, 9))]
    assert all(torch.equal(torch.cat([getattr(p, n) for p in parts]), getattr(whole, n)) for n in (*lists, "error"))

    wide = _tiles.Tile(32, 64, 64, 4, 2)
    with patch.multiple(_tiles, SCREEN={arch: {0: wide} for arch in _tiles.SCREEN}, FEATURES=64, DEPTH=64, WORDS=4):
        assert same_bits(run(*runs, replace(weights)), whole)
    with patch.object(_triton, "MASK_BYTES", 2 * 70 * 3 // 8):  # three tokens at a time
        assert same_bits(run(*runs, weights), whole)


@pytest.mark.parametrize("activation", ["relu", "topk", "identity"])
def test_a_fixed_capacity_changes_no_bit_and_reports_an_overflow(activation: str) -> None:
    random = torch.Generator().manual_seed(4)
    weights = to(make_weights(random, activation, 20, 40, 20), torch.float32)
    clean, baseline, gradient = (x.float().to(DEVICE) for x in draw(random, 3, 6, 20))
    inputs = Inputs(clean, baseline, gradient[None], clean, baseline, weights)
    free = _triton.attribute(inputs)
    padded = _triton.attribute_padded(inputs, capacity=300)
    n = int(padded.n_active)
    assert 0 < n == len(free.token) <= int(padded.n_candidates) <= 300
    for got, expected in zip(padded.entries[:5], free[:5], strict=True):
        assert torch.equal(got[..., :n], expected) and expected.abs().max() > 0
    assert torch.equal(padded.entries.error, free.error)
    assert int(_triton.attribute_padded(inputs, capacity=10).n_candidates) == int(padded.n_candidates) > 10


@pytest.mark.filterwarnings("ignore:invalid value encountered")  # the interpreter's, for Inf - Inf
def test_padding_is_never_a_candidate() -> None:
    """A row too large for the screen lets every feature pass, but none behind the last."""
    random = torch.Generator().manual_seed(7)
    weights = make_weights(random, "relu", 20, 40, 20)
    x = draw(random, 3, 20) * torch.tensor([1.0, 1e45, 1.0], dtype=torch.float64)[:, None]
    found = _triton_screen.screened([x.to(DEVICE)], weights)
    assert found.feature.max() == 39 and (found.token == 1).sum() == 40
    got, expected = (run(x, None, x, weights, backend=name) for name in ("triton", "torch"))
    assert torch.equal(got.feature, expected.feature) and torch.equal(got.token, expected.token) and len(got.token) > 20


def test_a_captured_graph_needs_a_gpu() -> None:
    from circuitgraph_kernels import CapturedAttribution

    weights = SaeWeights(torch.ones(4, 6), torch.zeros(6), torch.ones(6, 4), torch.zeros(4))
    with pytest.raises(ValueError, match="the weights are on cpu, expected a CUDA device"):
        CapturedAttribution(weights, 16, 100)


@triton.jit
def write_offset(p_out, stride):
    tl.store(p_out, at_row(tl.program_id(0) + 3, stride))


def test_row_offsets_do_not_wrap_at_two_to_the_31() -> None:
    """T * d_sae = 3 * 2^30 and d_sae * d_in: an offset in 32 bits would be negative."""
    out = torch.zeros(1, dtype=torch.int64, device=DEVICE)
    write_offset[(1,)](out, 2**30)
    assert int(out) == 3 * 2**30


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="needs a CUDA device")
def test_a_captured_graph_gives_the_same_bits() -> None:
    from circuitgraph_kernels import CapturedAttribution

    random = torch.Generator().manual_seed(5)
    weights = to(make_weights(random, "relu", 64, 512, 64), torch.float32)
    captured = CapturedAttribution(weights, 16, 16 * 512)
    for _ in range(2):
        runs = [x.float().to(DEVICE) for x in draw(random, 3, 16, 64)]
        eager, replayed = (f(*runs) for f in (lambda *x: sae_attribution(*x, weights), captured))
        assert same_bits(eager, replayed) and len(eager.token) > 0
    with pytest.raises(ValueError, match="candidates, expected at most 10"):
        CapturedAttribution(weights, 16, 10)(*runs)


def test_pre_activations_of_the_refine_are_those_of_the_formula() -> None:
    """Activations of a jumprelu equal its pre-activations bit for bit on a grid, where every sum is exact."""
    random = torch.Generator().manual_seed(6)
    grid = [torch.randint(-4, 5, shape, generator=random).float() / 4 for shape in ((2, 6, 24), (24, 50), (50, 24))]
    runs, W_enc, W_dec = (x.to(DEVICE) for x in grid)
    weights = SaeWeights(
        W_enc, W_dec[:, 0].clone(), W_dec, W_enc[:, 0].clone(), "jumprelu", threshold=W_dec[:, 1].clone()
    )
    got = run(runs[0], runs[1], runs[0], weights)
    exact = pre_activations(runs[0], weights).cpu()[got.token, got.feature]
    active = got.clean_acts != 0
    assert torch.equal(got.clean_acts[active], exact[active]) and active.sum() > 20
