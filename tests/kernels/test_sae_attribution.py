"""Promises of `sae_attribution`: every backend equals the definition, and the edges hold."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from support.attribution_bounds import attribution_bounds
from support.close import assert_close
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import circuitgraph_kernels
from circuitgraph_kernels import ACTIVATIONS, SaeAttribution, SaeWeights, encode, sae_attribution
from circuitgraph_kernels import _torch_screen as torch_backend

BACKENDS = pytest.mark.parametrize(
    "backend", ["reference", "torch", "triton"] if not torch.cuda.is_available() else ["reference", "torch"]
)
SIZES = {
    "tokens": st.integers(1, 12),
    "d_in": st.integers(1, 20),
    "d_sae": st.integers(1, 70),
    "d_out": st.integers(1, 20),
}


def draw(random: torch.Generator, *shape: int, grid: bool = False) -> Tensor:
    """Normal numbers, or multiples of 1/4 in [-1, 1], whose short sums of products are exact even in float32."""
    if grid:
        return torch.randint(-4, 5, shape, generator=random).double() / 4
    return torch.randn(*shape, generator=random, dtype=torch.float64)


def make_weights(
    random: torch.Generator, activation: str, d_in: int, d_sae: int, d_out: int, *, grid: bool = False, **fields: object
) -> SaeWeights:
    """Random float64 weights of any kind."""
    if activation == "jumprelu":
        fields["threshold"] = draw(random, d_sae, grid=grid)
    if activation == "batchtopk":
        fields["threshold"] = torch.tensor(0.5).double()
    if activation == "topk":
        fields["k"] = 1 + d_sae // 4
    if activation == "gated":
        fields |= {name: draw(random, d_sae, grid=grid) for name in ("b_gate", "r_mag", "b_mag")}
    b_enc = torch.zeros(d_sae).double() if activation == "gated" else draw(random, d_sae, grid=grid) - 0.5
    W_enc, W_dec = draw(random, d_in, d_sae, grid=grid), draw(random, d_sae, d_out, grid=grid)
    return SaeWeights(W_enc, b_enc, W_dec, draw(random, d_out, grid=grid), activation, **fields)


def cast(weights: SaeWeights, dtype: torch.dtype) -> SaeWeights:
    tensors = {name: value.to(dtype) for name, value in vars(weights).items() if isinstance(value, Tensor)}
    return replace(weights, **tensors)


def make_case(seed: int = 0, *, tokens: int = 9, d: int = 8, d_sae: int = 40, grid: bool = False, **fields: object):
    """clean, baseline, gradient and weights of an SAE in float64."""
    random = torch.Generator().manual_seed(seed)
    clean, baseline, gradient = draw(random, 3, tokens, d, grid=grid)
    return (
        clean,
        baseline,
        gradient,
        make_weights(random, fields.pop("activation", "relu"), d, d_sae, d, grid=grid, **fields),
    )


def dense(result: SaeAttribution, tokens: int, d_sae: int) -> Tensor:
    """Clean activation, baseline activation and attribution as [3, T, d_sae]."""
    table = torch.zeros(3, tokens, d_sae, dtype=torch.float64)
    columns = torch.stack((result.clean_acts, result.baseline_acts, result.attribution)).double()
    table[:, result.token, result.feature] = columns
    return table


def same_bits(left: SaeAttribution, right: SaeAttribution) -> bool:
    pairs = ((getattr(left, name), getattr(right, name)) for name in vars(left))
    return all(torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in pairs)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@given(seed=st.integers(0, 10**6), zero=st.booleans(), small_blocks=st.booleans(), scaled=st.booleans(), **SIZES)
@settings(max_examples=25, deadline=None)
def test_torch_equals_the_reference(
    activation: str, seed: int, zero: bool, small_blocks: bool, scaled: bool, **sizes: int
) -> None:
    random = torch.Generator().manual_seed(seed)
    tokens, d_in, d_sae, d_out = (sizes[name] for name in ("tokens", "d_in", "d_sae", "d_out"))
    fields = {"rescale_acts_by_decoder_norm": scaled} if activation == "topk" else {}
    if scaled and activation != "topk":
        d_out, fields = d_in, {"apply_b_dec_to_input": True}
    weights = make_weights(random, activation, d_in, d_sae, d_out, **fields)
    clean, baseline = draw(random, 2, tokens, d_in)
    gradient = draw(random, 2, tokens, d_out)
    written = draw(random, 2, tokens, d_out)
    outs = {"clean_out": written[0]} | ({} if zero else {"baseline_out": written[1]})

    with pytest.MonkeyPatch.context() as patch:
        if small_blocks:  # many blocks of tokens and of features, the last ones partial
            patch.setattr(torch_backend, "COLUMNS", 16)
            patch.setattr(torch_backend, "BUFFER_ELEMENTS", 100)
        got, expected = (
            sae_attribution(clean, None if zero else baseline, gradient, weights, **outs, backend=name)
            for name in ("torch", "reference")
        )

    assert torch.equal(got.token, expected.token) and torch.equal(got.feature, expected.feature)
    assume(len(got.token) > 0)
    assert got.attribution.abs().max() > 0 and got.error.abs().max() > 0
    bounds = attribution_bounds(weights, torch.stack((clean, baseline)), gradient, written)
    for name, (n_terms, scale) in bounds.items():
        zeros = name.endswith("acts")  # one of the runs may have no active feature
        assert_close(getattr(got, name), getattr(expected, name), n_terms=n_terms, scale=scale, zeros=zeros, name=name)


@pytest.mark.parametrize("activation", ["relu", "jumprelu", "topk", "batchtopk", "identity"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mixed", [False, True])
def test_narrow_types_are_computed_in_float32(activation: str, dtype: torch.dtype, mixed: bool) -> None:
    """On the grid every sum is exact, ties at thresholds and among the k largest included: equality, not closeness."""
    *runs, weights = make_case(activation=activation, grid=True)
    expected = sae_attribution(*runs, weights, backend="reference")
    weights = cast(weights, torch.float32 if mixed else dtype)
    got = sae_attribution(*(run.to(dtype) for run in runs), weights)
    assert got.attribution.dtype == got.error.dtype == torch.float32 and got.precision == "float32"
    assert expected.attribution.abs().max() > 0 and expected.error.abs().max() > 0
    for name in ("token", "feature", "clean_acts", "baseline_acts", "attribution", "error"):
        assert torch.equal(getattr(got, name).double(), getattr(expected, name).double()), name


@pytest.mark.parametrize("zero", [False, True])
def test_float32_stays_within_the_rounding_bound(zero: bool) -> None:
    clean, baseline, gradient, weights = make_case(tokens=33, d=48, d_sae=300)
    arguments = clean, None if zero else baseline, gradient
    expected = sae_attribution(*arguments, weights, backend="reference")
    narrow = (None if x is None else x.float() for x in arguments)
    got = sae_attribution(*narrow, cast(weights, torch.float32))
    scale = float(weights.W_enc.norm(dim=0).max() * (clean.norm(dim=1).max() + baseline.norm(dim=1).max()) + 2)
    writes = float(gradient.norm(dim=1).max() * weights.W_dec.norm(dim=1).max())
    tables = dense(got, 33, 300), dense(expected, 33, 300)
    assert tables[1][2].abs().max() > 1
    assert_close(tables[0][:2], tables[1][:2], n_terms=48, dtype=torch.float32, scale=scale)
    assert_close(tables[0][2], tables[1][2], n_terms=96, dtype=torch.float32, scale=scale * writes)
    assert_close(got.error, expected.error, n_terms=300, scale=300 * scale * writes)


@BACKENDS
@pytest.mark.parametrize("zero", [False, True])
def test_error_is_the_gradient_times_what_the_decoder_misses(backend: str, zero: bool) -> None:
    clean, baseline, gradient, weights = make_case()
    result = sae_attribution(clean, None if zero else baseline, gradient, weights, backend=backend)
    acts = [torch.relu(run @ weights.W_enc + weights.b_enc) for run in (clean, baseline)]
    errors = [run - (act @ weights.W_dec + weights.b_dec) for run, act in zip((clean, baseline), acts, strict=True)]
    if zero:
        acts[1], errors[1] = torch.zeros_like(acts[1]), torch.zeros_like(errors[1])
    by_hand = (acts[0] - acts[1]) * (gradient @ weights.W_dec.T)
    assert by_hand.abs().max() > 0.1 and result.error.abs().max() > 0.1
    assert_close(dense(result, 9, 40)[2], by_hand, n_terms=40, scale=1e3)
    assert_close(result.error, (gradient * (errors[0] - errors[1])).sum(dim=1), n_terms=40, scale=1e3)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_many_gradients_give_the_bits_of_single_calls(activation: str) -> None:
    clean, baseline, gradient, weights = make_case(activation=activation)
    gradients = torch.stack((gradient, 2 - gradient, gradient.flip(0)))
    together = sae_attribution(clean, baseline, gradients, weights)
    assert together.attribution.shape == (3, len(together.token)) and together.error.shape == (3, 9)
    for index, each in enumerate(gradients):
        alone = sae_attribution(clean, baseline, each, weights)
        assert alone.attribution.abs().max() > 0
        rows = {name: getattr(together, name)[index] for name in ("attribution", "error")}
        assert same_bits(alone, replace(together, **rows))


@pytest.mark.parametrize("activation", ["relu", "jumprelu", "topk"])
def test_tokens_do_not_see_each_other(activation: str) -> None:
    *runs, weights = make_case(activation=activation, tokens=17)
    whole = dense(sae_attribution(*runs, weights), 17, 40)
    order = torch.randperm(17, generator=torch.Generator().manual_seed(1))
    permuted = dense(sae_attribution(*(run[order] for run in runs), weights), 17, 40)
    parts = [dense(sae_attribution(*(run[rows] for run in runs), weights), n, 40)
             for n, rows in ((5, slice(0, 5)), (1, slice(5, 6)), (11, slice(6, 17)))]  # fmt: skip
    assert whole[2].abs().max() > 0
    assert torch.equal(permuted, whole[:, order]) and torch.equal(torch.cat(parts, dim=1), whole)


@BACKENDS
def test_fields_that_are_strided_in_memory_change_nothing(backend: str) -> None:
    random = torch.Generator().manual_seed(0)
    runs = draw(random, 3, 5, 8)
    for activation in ("gated", "jumprelu"):
        weights = make_weights(random, activation, 8, 40, 8)
        names = [
            name for name in ("b_enc", "threshold", "b_gate", "r_mag", "b_mag") if getattr(weights, name) is not None
        ]
        wide = {name: torch.stack([getattr(weights, name)] * 3, dim=1)[:, 0] for name in names}
        assert not wide["b_enc"].is_contiguous()
        got, expected = (sae_attribution(*runs, w, backend=backend) for w in (replace(weights, **wide), weights))
        assert same_bits(got, expected) and got.attribution.abs().max() > 0


@BACKENDS
def test_strided_rows_that_are_normalised_change_nothing(backend: str) -> None:
    clean, baseline, gradient, weights = make_case(tokens=3, d=33, d_sae=20, normalize="layer_norm")
    got, expected = (
        sae_attribution(*rows, gradient, weights, backend=backend)
        for rows in ([x.T.contiguous().T for x in (clean, baseline)], [clean, baseline])
    )
    assert len(got.token) > 20 and (backend == "reference" or same_bits(got, expected))


@BACKENDS
def test_weights_that_change_in_place_are_noticed(backend: str) -> None:
    clean, baseline, gradient, weights = make_case(tokens=3, d_sae=20)
    before = sae_attribution(clean, baseline, gradient, weights, backend=backend)
    weights.b_enc.add_(20)
    after = sae_attribution(clean, baseline, gradient, weights, backend=backend)
    assert len(before.token) < len(after.token) == 60


@BACKENDS
def test_autocast_changes_nothing(backend: str) -> None:
    clean, baseline, gradient, weights = make_case(tokens=3, d_sae=20)
    runs, narrow = [x.float() for x in (clean, baseline, gradient)], cast(weights, torch.bfloat16)
    expected = sae_attribution(*runs, narrow, backend=backend)
    with torch.autocast("cpu", torch.bfloat16):
        got = sae_attribution(*runs, narrow, backend=backend)
    assert same_bits(got, expected) and got.attribution.abs().max() > 0


@BACKENDS
def test_what_underflows_is_not_lost(backend: str) -> None:
    """x . w = 2^-120 > 2^-121, though the square of x or of w is no float32."""
    for small in (0, 1):
        x, w = [(2.0**20, 2.0**-140), (2.0**-140, 2.0**20)][small]
        bias = torch.full((3,), -(2.0**-121))
        rows = torch.full((3, 1), w)
        weights = SaeWeights(rows.T, bias, rows, torch.zeros(1))
        result = sae_attribution(torch.full((1, 1), x), None, torch.ones(1, 1), weights, backend=backend)
        assert result.feature.tolist() == [0, 1, 2] and result.clean_acts.min() > 0


def test_topk_ranks_before_it_scales() -> None:
    """Both scores times the row's scale are the same float32, the larger one wins all the same."""
    h = torch.tensor([1.8764441, 1.8764442])
    for seed in range(200):
        x = torch.randn(1, 4, generator=torch.Generator().manual_seed(seed))
        scale = x.norm(dim=1) / 2
        if h[0] * scale == h[1] * scale:
            break
    weights = SaeWeights(
        torch.zeros(4, 2), h, torch.ones(2, 4), torch.zeros(4), "topk", k=1, normalize="constant_norm_rescale"
    )
    assert h[0] < h[1] and h[0] * scale == h[1] * scale
    for backend in ("torch", "triton"):
        assert sae_attribution(x, None, torch.ones(1, 4), weights, backend=backend).feature.tolist() == [1]


@BACKENDS
def test_tokens_equal_in_both_runs_have_attribution_and_error_zero(backend: str) -> None:
    clean, baseline, gradient, weights = make_case()
    whole = sae_attribution(clean, baseline, gradient, weights, backend=backend)
    baseline = torch.cat((clean[:4], baseline[4:]))
    result = sae_attribution(clean, baseline, gradient, weights, backend=backend)
    equal = result.token < 4
    assert torch.equal(
        result.clean_acts[equal], dense(result, 9, 40)[0][encode(clean, weights) > 0][: int(equal.sum())]
    )
    assert equal.sum() > 20 and not result.attribution[equal].any() and not result.error[:4].any()
    assert_close(result.error[4:], whole.error[4:], n_terms=40)
    assert result.error[4:].abs().min() > 0
    other_out = clean + 1.0  # now only the output side differs: features keep equal activations, attribution 0
    result = sae_attribution(clean, clean, gradient, weights, clean_out=clean, baseline_out=other_out, backend=backend)
    assert len(result.token) > 0 and not result.attribution.any()
    assert torch.equal(result.clean_acts, result.baseline_acts) and result.clean_acts.min() > 0
    assert_close(result.error, -gradient.sum(dim=1), n_terms=16)


@BACKENDS
@pytest.mark.parametrize("activation", ["relu", "topk"])
def test_no_tokens_none_active_and_all_active(backend: str, activation: str) -> None:
    clean, baseline, gradient, weights = make_case(activation=activation)
    empty = sae_attribution(clean[:0], baseline[:0], gradient[:0], weights, backend=backend)
    assert len(empty.token) == len(empty.error) == 0
    silent = replace(weights, b_enc=torch.full((40,), -1e3).double())
    none = sae_attribution(clean, baseline, gradient, silent, backend=backend)
    total = (gradient * (clean - baseline)).sum(dim=1)
    assert len(none.token) == 0 and total.abs().min() > 0
    assert_close(none.error, total, n_terms=8)
    loud = replace(weights, b_enc=torch.full((40,), 1e3).double(), **({"k": 40} if activation == "topk" else {}))
    everything = sae_attribution(clean, baseline, gradient, loud, backend=backend)
    assert torch.equal(everything.token * 40 + everything.feature, torch.arange(9 * 40))


def test_strided_inputs_change_nothing() -> None:
    clean, baseline, gradient, weights = make_case(grid=True)
    runs = clean, baseline, gradient
    strided = [run.T.contiguous().T for run in runs]
    strided[1] = torch.stack((baseline, baseline), dim=2)[..., 0]
    expanded = [clean[:1].expand(9, 8), baseline, gradient[:1].expand(9, 8)]
    turned = SaeWeights(weights.W_enc.T.contiguous().T, weights.b_enc, weights.W_dec.T.contiguous().T, weights.b_dec)
    assert not strided[0].is_contiguous() and weights.d_sae == 40
    assert same_bits(sae_attribution(*strided, turned), sae_attribution(*runs, weights))
    copies = (run.contiguous() for run in expanded)
    assert same_bits(sae_attribution(*expanded, weights), sae_attribution(*copies, weights))


@pytest.mark.parametrize("activation", [name for name in ACTIVATIONS if name != "topk"])
def test_no_tensor_is_as_large_as_tokens_times_features(activation: str) -> None:
    class Largest(TorchDispatchMode):
        elements = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            output = function(*args, **(kwargs or {}))
            for tensor in output if isinstance(output, tuple | list) else [output]:
                self.elements = max(self.elements, tensor.numel() if isinstance(tensor, Tensor) else 0)
            return output

    clean, baseline, gradient, weights = make_case(tokens=50, d_sae=500, activation=activation)
    if activation != "identity":  # few active features, as in a real dictionary
        bias = "b_gate" if activation == "gated" else "b_enc"
        weights = replace(weights, **{bias: getattr(weights, bias) - 7})
    with pytest.MonkeyPatch.context() as patch, Largest() as largest:
        patch.setattr(torch_backend, "COLUMNS", 64)
        result = sae_attribution(clean, baseline, gradient, weights)
    assert len(result.token) > 0
    assert activation == "identity" or largest.elements < 50 * 500


def test_importing_the_package_brings_neither_triton_nor_circuitgraph() -> None:
    code = (
        "import sys, circuitgraph_kernels; print({'triton', 'circuitgraph'} & {m.split('.')[0] for m in sys.modules})"
    )
    root = Path(circuitgraph_kernels.__file__).parents[1]
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert result.stdout == "set()\n"


def test_auto_takes_torch_and_says_so() -> None:
    case = make_case()
    assert (
        sae_attribution(*case).backend == "torch" and sae_attribution(*case, backend="reference").backend == "reference"
    )
    assert sae_attribution(*case).precision == "float64"
    with pytest.raises(ValueError, match="precision is 'bfloat16' and clean is torch.float64, expected 'exact'"):
        sae_attribution(*case, precision="bfloat16")


@BACKENDS
def test_bfloat16_weights_are_those_rounded_by_hand(backend: str) -> None:
    clean, baseline, gradient, weights = make_case()
    runs, weights = (clean.float(), baseline.float(), gradient.float()), cast(weights, torch.float32)
    rounded = replace(weights, W_enc=weights.W_enc.bfloat16(), W_dec=weights.W_dec.bfloat16())
    got = sae_attribution(*runs, weights, precision="bfloat16", backend=backend)
    expected = sae_attribution(*runs, rounded, backend=backend)
    assert got.precision == "float32, weights in bfloat16" and expected.precision == "float32"
    assert same_bits(got, replace(expected, precision=got.precision)) and got.attribution.abs().max() > 0
    exact = sae_attribution(*runs, weights, backend=backend)
    tables = dense(got, 9, 40)[2], dense(exact, 9, 40)[2]
    assert 0 < (tables[0] - tables[1]).abs().max() < 0.1 * tables[1].abs().max()


@BACKENDS
@pytest.mark.parametrize("rows", [3, 24])  # few and many: the float32 and the bfloat16 screen
def test_a_feature_with_an_infinite_threshold_is_never_listed(backend: str, rows: int) -> None:
    random = torch.Generator().manual_seed(0)
    runs = [x.float() for x in draw(random, 3, rows, 8)]
    weights = cast(make_weights(random, "jumprelu", 8, 40, 8), torch.float32)
    threshold = weights.threshold.clone()
    threshold[::2] = torch.inf
    result = sae_attribution(*runs, replace(weights, threshold=threshold), backend=backend)
    alive = sae_attribution(*runs, weights, backend=backend)
    odd = alive.feature % 2 == 1
    assert 0 < len(result.feature) < len(alive.feature) and torch.equal(result.feature, alive.feature[odd])


@pytest.mark.parametrize("baseline", ["given", "zero"])
@pytest.mark.parametrize("where", ["same", "elsewhere"])
@pytest.mark.parametrize("backend", ["torch", "auto"])
def test_neurons_need_no_products(monkeypatch: pytest.MonkeyPatch, backend: str, baseline: str, where: str) -> None:
    random = torch.Generator().manual_seed(5)
    clean, base, clean_out, base_out = draw(random, 4, 7, 6)
    clean[2, 3] = base[2, 3] = 0.0
    gradient = draw(random, 2, 7, 6)
    eye, zeros = torch.eye(6).double(), torch.zeros(6).double()
    weights = SaeWeights(eye, zeros, eye, zeros, "identity")
    arguments = {"baseline": base if baseline == "given" else None, "gradient": gradient}
    if where == "elsewhere":
        arguments |= {"clean_out": clean_out, "baseline_out": base_out if baseline == "given" else None}
    expected = sae_attribution(clean, weights=weights, backend="reference", **arguments)
    monkeypatch.setattr("circuitgraph_kernels._torch.attribute", None)
    found = sae_attribution(clean, weights=weights, backend=backend, **arguments)
    assert len(found.token) == 7 * 6 - 1 and float(found.attribution.abs().min()) > 0
    assert torch.equal(found.token, expected.token) and torch.equal(found.feature, expected.feature)
    for name in ("clean_acts", "baseline_acts", "attribution", "error"):
        zeros = (name == "baseline_acts" and baseline == "zero") or (name == "error" and where == "same")
        assert_close(getattr(found, name), getattr(expected, name), n_terms=12, scale=10, zeros=zeros, name=name)
    assert (float(found.error.abs().max()) > 0.1) == (where == "elsewhere")
    weights.W_enc[0, 1] = 0.5
    assert not weights.basis, "a dictionary that mixes coordinates is no neurons"
