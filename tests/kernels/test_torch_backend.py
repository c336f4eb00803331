"""The torch backend's own promises: the screen loses nothing, and nothing but a pair's own rows decides its bits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from support.close import assert_close
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from circuitgraph_kernels import ACTIVATIONS, SaeWeights, decode, encode, gather_dot, sae_attribution
from circuitgraph_kernels import _torch as torch_backend
from circuitgraph_kernels import _torch_products as torch_products
from circuitgraph_kernels import _torch_screen as torch_screen

SCREENS = (torch.bfloat16, torch.float32)
LISTS = ("token", "feature", "clean_acts", "baseline_acts", "attribution")
NORMALIZATIONS = ("none", "constant_norm_rescale", "layer_norm")
D_SAE = 90


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make_case(
    activation: str = "relu", *, tokens: int = 21, d: int = 37, scale: float = 1.0, **fields: Any
) -> tuple[Tensor, Tensor, Tensor, SaeWeights]:
    """Three runs in float32 and a dictionary in which a few of each hundred features are active."""
    own: dict[str, dict[str, Any]] = {
        "jumprelu": {"threshold": draw(5, D_SAE).abs() * scale},
        "batchtopk": {"threshold": torch.tensor(0.8 * scale)},
        "topk": {"k": 7},
        "gated": {"b_gate": draw(6, D_SAE) - 4, "r_mag": draw(7, D_SAE), "b_mag": draw(8, D_SAE)},
    }
    bias = torch.zeros(D_SAE) if activation == "gated" else (draw(2, D_SAE) - 6) * scale
    tensors = draw(1, d, D_SAE), bias, draw(3, D_SAE, d), draw(4, d)
    weights = SaeWeights(*tensors, activation, **(own.get(activation, {}) | fields))
    clean, other, gradient = (draw(seed, tokens, d) for seed in (10, 11, 12))
    return clean * scale, (0.8 * clean + 0.6 * other) * scale, gradient, weights


@pytest.fixture
def screen_in(monkeypatch: pytest.MonkeyPatch) -> Callable[[torch.dtype | None], None]:
    """Forces the screen's dtype; None makes every pair a candidate."""

    def force(screen: torch.dtype | None) -> None:
        monkeypatch.setattr(torch_screen, "LARGE", 0.0 if screen is None else 2.0**120)
        monkeypatch.setattr(torch_screen, "screen_dtype", lambda dtype, device, n_rows: screen or dtype)
        torch_screen._FEATURES.clear()

    return force


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The number of candidates of each block."""
    counts: list[int] = []
    refined = torch_backend._refined

    def counting(rows: Any, weights: SaeWeights, token: Tensor, *others: Tensor) -> Any:
        counts.append(len(token))
        return refined(rows, weights, token, *others)

    monkeypatch.setattr(torch_backend, "_refined", counting)
    yield counts


def bits(case: tuple[Any, ...], order: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Activations and attribution as [3, T, d_sae] (NaN where not listed), and the errors."""
    clean, baseline, gradient, weights = case
    if order is not None:
        clean, gradient = clean[order], gradient[order]
        baseline = None if baseline is None else baseline[order]
    result = sae_attribution(clean, baseline, gradient, weights, backend="torch")
    table = torch.full((3, len(clean), weights.d_sae), float("nan"), dtype=clean.dtype)
    table[:, result.token, result.feature] = torch.stack((result.clean_acts, result.baseline_acts, result.attribution))
    assert len(result.token) > 0 and result.attribution.abs().max() > 0 and result.error.abs().min() > 0
    return table, result.error


def equal(left: tuple[Tensor, Tensor], right: tuple[Tensor, Tensor]) -> bool:
    """NaN equals NaN."""
    return all(torch.equal(a.nan_to_num(nan=-1e30), b.nan_to_num(nan=-1e30)) for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("normalize", NORMALIZATIONS)
@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("d", [37, 64])
def test_only_its_own_rows_decide_the_bits_of_a_pair(
    monkeypatch: pytest.MonkeyPatch, screen_in: Any, activation: str, normalize: str, double: bool, d: int
) -> None:
    """Not the order of tokens, the split into calls or blocks, the number of threads, nor the screen."""
    *runs, weights = make_case(activation, normalize=normalize, d=d)
    if double:
        runs = [run.double() for run in runs]
        names = [name for name, value in vars(weights).items() if isinstance(value, Tensor)]
        weights = replace(weights, **{name: getattr(weights, name).double() for name in names})
    case = (*runs, weights)
    if not double:
        screen_in(torch.float32)
    whole = bits(case)
    order = torch.randperm(21, generator=torch.Generator().manual_seed(1))
    permuted = bits(case, order)
    assert equal(permuted, (whole[0][:, order], whole[1][order]))
    for part in (slice(0, 1), slice(1, 6), slice(6, 21)):
        assert equal(bits(case, torch.arange(21)[part]), (whole[0][:, part], whole[1][part]))
    for columns, elements in ((16, 100), (33, 1000), (90, 1 << 23)):
        monkeypatch.setattr(torch_screen, "COLUMNS", columns)
        monkeypatch.setattr(torch_screen, "BUFFER_ELEMENTS", elements)
        assert equal(bits(case), whole)
    if not double:
        screen_in(torch.bfloat16)
        assert equal(bits(case), whole)
    torch.set_num_threads(2)
    try:
        assert equal(bits(case), whole)
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("normalize", NORMALIZATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_single_wide_token_has_the_bits_of_one_among_others(normalize: str, dtype: torch.dtype) -> None:
    """PyTorch shares out the sum of one long row between threads, but not the sums of several rows."""
    tensors = draw(1, 40000, 5), draw(2, 5), draw(3, 5, 40000), draw(4, 40000)
    weights = SaeWeights(*(x.to(dtype) for x in tensors), normalize=normalize)
    alone_equals_the_rest(weights, draw(10, 9, 40000).to(dtype))


def test_a_single_token_of_many_neurons_has_the_bits_of_one_among_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SaeWeights, "basis", property(lambda weights: True))  # an identity of this width takes 6 GiB
    weights = SaeWeights(torch.ones(1, 1), torch.zeros(1), torch.ones(1, 1), torch.zeros(1), "identity")
    monkeypatch.setattr(SaeWeights, "d_in", 40000)
    monkeypatch.setattr(SaeWeights, "d_out", 40000)
    alone_equals_the_rest(weights, draw(10, 9, 40000))


def alone_equals_the_rest(weights: SaeWeights, clean: Tensor) -> None:
    outs = clean.roll(2, 0), clean.roll(1, 0)
    torch.set_num_threads(2)
    try:
        whole, *parts = (
            sae_attribution(
                clean[at], clean[at] / 2, clean[at] + 1, weights, clean_out=outs[0][at], baseline_out=outs[1][at]
            )
            for at in (slice(None), *(slice(token, token + 1) for token in range(len(clean))))
        )
    finally:
        torch.set_num_threads(1)
    assert whole.attribution.abs().max() > 0 and whole.error.abs().min() > 0 and len(set(whole.token.tolist())) > 1
    for name in (*LISTS[1:], "error"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name)), name


def massive(run: Tensor) -> Tensor:
    run = run.clone()
    run[:, 3], run[:, 17] = 1e3, -1e4
    run[5] *= 50  # and one token much longer than the others
    return run


def at_the_end_of_float32(run: Tensor) -> Tensor:
    run = run.clone()
    run[:, 3] = 3.399e38  # infinite in bfloat16
    return run


ADVERSARIES: dict[str, Callable[[Tensor], Tensor]] = {
    "offset": lambda run: run + 300,
    "massive dimensions": massive,
    "tiny": lambda run: run * 1e-20,
    "subnormal": lambda run: run * 1e-38,
    "huge": lambda run: run * 1e15,
    "too large to screen": at_the_end_of_float32,
    "zero": lambda run: run * 0,
}


@pytest.mark.parametrize("adversary", ADVERSARIES)
@pytest.mark.parametrize("activation", [name for name in ACTIVATIONS if name != "identity"])
@pytest.mark.parametrize("screen", SCREENS)
@pytest.mark.parametrize("without_baseline", [False, True])
def test_the_screen_loses_nothing(
    screen_in: Any, counted: list[int], adversary: str, activation: str, screen: torch.dtype, without_baseline: bool
) -> None:
    """Equal to the refine of all pairs, with biases that put the floor of some feature at each token's own value."""
    clean, baseline, gradient, weights = make_case(activation)
    clean, baseline = ADVERSARIES[adversary](clean), ADVERSARIES[adversary](baseline)
    W_enc = weights.W_enc.clone()
    W_enc[:, 40:60] = W_enc[:, :20]  # duplicates: only the bias or the threshold tells them apart
    W_enc *= 1e-38 if adversary == "too large to screen" else 1.0
    rows = torch.arange(D_SAE) % len(clean)
    value = gather_dot(clean, rows, W_enc.T.contiguous(), torch.arange(D_SAE))
    change: dict[str, Any] = {"W_enc": W_enc, "b_enc": -value}
    if activation == "jumprelu":  # one unit above the value, the value, one below
        steps = torch.tensor([float("inf"), 0.0, -float("inf")]).repeat(D_SAE // 3)
        moved = torch.where(steps == 0, value, torch.nextafter(value, steps.where(steps != 0, value)))
        change = {"W_enc": W_enc, "b_enc": torch.zeros(D_SAE), "threshold": moved}
    if activation == "gated":
        change = {"W_enc": W_enc, "b_gate": -value}
    weights = replace(weights, **change)
    runs = clean, None if without_baseline else baseline, gradient

    results = {}
    for chosen in (None, screen):
        screen_in(chosen)
        counted.clear()
        results[chosen] = sae_attribution(*runs, weights, backend="torch")
        candidates = sum(counted)
        assert chosen is not None or candidates == len(clean) * D_SAE
    for name in LISTS:
        assert torch.equal(getattr(results[screen], name), getattr(results[None], name)), name
    assert value.isfinite().all() and candidates >= len(results[None].token)
    if adversary in ("offset", "massive dimensions", "huge"):
        assert 0 < len(results[None].token) < candidates <= len(clean) * D_SAE
        assert results[None].clean_acts.abs().max() > 0


@pytest.mark.parametrize("rounded", ["rows", "weights"])
def test_a_value_that_rounding_takes_below_its_floor_is_kept(screen_in: Any, counted: list[int], rounded: str) -> None:
    """Every element rounds down, so the whole of |x| |w - w~| or |x - x~| |w~| is lost."""
    down = 1 + 0.49 * 2.0**-7
    x, W = torch.ones(1, 64), torch.ones(64, 30)
    (x if rounded == "rows" else W).fill_(down)
    weights = SaeWeights(W, torch.full((30,), -64 * down + 1e-3), torch.ones(30, 64), torch.zeros(64))
    screen_in(torch.bfloat16)
    result = sae_attribution(x, None, torch.ones(1, 64), weights)
    assert len(result.token) == 30 == sum(counted) and 5e-4 < result.clean_acts.min() <= result.clean_acts.max() < 2e-3


@pytest.mark.parametrize("screen", SCREENS)
@pytest.mark.parametrize("activation", ["relu", "jumprelu", "gated", "topk"])
def test_the_screen_keeps_few_besides_the_active(
    screen_in: Any, counted: list[int], screen: torch.dtype, activation: str
) -> None:
    """One long token must not widen the margin of the others."""
    clean, baseline, gradient, weights = make_case(activation, tokens=40)
    clean[7] *= 1000
    screen_in(screen)
    result = sae_attribution(clean, baseline, gradient, weights, backend="torch")
    assert 200 < len(result.token) < 0.5 * 40 * D_SAE
    assert len(result.token) <= sum(counted) < 1.3 * len(result.token) + 60


@pytest.mark.parametrize("setting", ["high", "medium"])
def test_rounded_products_change_no_bit(screen_in: Any, setting: str) -> None:
    case = make_case("jumprelu", tokens=64, d=300)
    screen_in(None)
    whole = bits(case)
    screen_in(torch.float32)
    try:
        torch.set_float32_matmul_precision(setting)
        assert torch_screen._rounds_operands(torch.float32) and not torch_screen._rounds_operands(torch.float64)
        assert equal(bits(case), whole)
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("width", [1, 5, 90])
@pytest.mark.parametrize("tokens", [1, 3, 4])
def test_the_smallest_sizes(screen_in: Any, width: int, tokens: int) -> None:
    weights = SaeWeights(draw(1, 3, width), draw(2, width), draw(3, width, 3), draw(4, 3))
    runs = [draw(seed, tokens, 3) for seed in (10, 11, 12)]
    screen_in(None)
    expected = sae_attribution(*runs, weights)
    for screen in SCREENS:
        screen_in(screen)
        result = sae_attribution(*runs, weights)
        assert len(expected.token) > 0
        assert all(torch.equal(getattr(result, name), getattr(expected, name)) for name in (*LISTS, "error"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("screen", SCREENS)
def test_weights_stored_narrow_are_refined_in_float32(screen_in: Any, dtype: torch.dtype, screen: torch.dtype) -> None:
    *runs, weights = make_case("jumprelu")
    names = [name for name, value in vars(weights).items() if isinstance(value, Tensor)]
    narrow = replace(weights, **{name: getattr(weights, name).to(dtype) for name in names})
    wide = replace(weights, **{name: getattr(narrow, name).double() for name in names})
    screen_in(screen)
    got = sae_attribution(*runs, narrow)
    expected = sae_attribution(*(run.double() for run in runs), wide, backend="reference")
    assert torch.equal(got.token, expected.token) and torch.equal(got.feature, expected.feature)
    assert_close(got.clean_acts, expected.clean_acts, n_terms=1)


@pytest.mark.parametrize("activation", ["relu", "gated", "identity"])
def test_close_runs_do_not_cancel(activation: str) -> None:
    """The difference of two activations is the dot product of the difference."""
    clean, other, gradient, weights = make_case(activation)
    clean = clean + 300
    baseline = clean + torch.round(other * 64) * 2.0**-12  # exact in float32
    if activation == "relu":
        weights = replace(weights, b_enc=weights.b_enc + 300)
    runs = [run.double() for run in (clean, baseline, gradient)]
    names = [name for name, value in vars(weights).items() if isinstance(value, Tensor)]
    exact = replace(weights, **{name: getattr(weights, name).double() for name in names})
    expected = sae_attribution(*runs, exact, backend="reference").attribution
    got = sae_attribution(clean, baseline, gradient, weights).attribution
    assert len(expected) > 300 and expected.abs().max() > 0.1
    assert_close(got, expected, n_terms=4)


@pytest.mark.parametrize(("screen", "columns"), [(torch.bfloat16, 256), (torch.float32, 128)])
def test_no_tensor_of_the_call_is_large(screen_in: Any, screen: torch.dtype, columns: int) -> None:
    class Largest(TorchDispatchMode):
        bytes = 0

        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            output = function(*args, **(kwargs or {}))
            for tensor in output if isinstance(output, tuple | list) else [output]:
                if isinstance(tensor, Tensor) and tensor.untyped_storage().data_ptr() not in given:
                    self.bytes = max(self.bytes, tensor.untyped_storage().nbytes())
            return output

    *runs, weights = make_case(tokens=64, d=37)
    W_enc, W_dec = draw(1, 37, 9000), draw(3, 9000, 37)
    weights = SaeWeights(W_enc, torch.full((9000,), -18.0), W_dec, weights.b_dec)
    given = {weights.W_enc.untyped_storage().data_ptr(), weights.W_dec.untyped_storage().data_ptr()}
    screen_in(screen)
    with pytest.MonkeyPatch.context() as patch, Largest() as largest:
        patch.setattr(torch_screen, "COLUMNS", columns)
        for module in (torch_screen, torch_products):
            patch.setattr(module, "GATHER_ELEMENTS", 1 << 12)
        result = sae_attribution(*runs, weights)
    assert len(result.token) > 100
    # at most four numbers per feature: less than the weights, and than one byte per token and feature
    assert largest.bytes <= 9000 * 4 * 4 < min(weights.W_enc.nbytes, 64 * 9000)


@pytest.mark.parametrize("normalize", ["constant_norm_rescale", "layer_norm"])
@pytest.mark.parametrize("screen", SCREENS)
def test_normalised_inputs_equal_the_reference(screen_in: Any, normalize: str, screen: torch.dtype) -> None:
    *runs, weights = make_case("relu", normalize=normalize, apply_b_dec_to_input=True)
    screen_in(screen)
    names = [name for name, value in vars(weights).items() if isinstance(value, Tensor)]
    exact = replace(weights, **{name: getattr(weights, name).double() for name in names})
    got = sae_attribution(*runs, weights)
    expected = sae_attribution(*(run.double() for run in runs), exact, backend="reference")
    assert (
        len(got.token) > 100 and torch.equal(got.token, expected.token) and torch.equal(got.feature, expected.feature)
    )
    for name in ("clean_acts", "baseline_acts", "attribution", "error"):
        assert getattr(expected, name).abs().max() > 1
        assert_close(getattr(got, name), getattr(expected, name), n_terms=100, name=name)


@pytest.mark.parametrize("normalize", ["constant_norm_rescale", "layer_norm"])
def test_normalised_inputs_equal_sae_lens(normalize: str) -> None:
    saes = pytest.importorskip("sae_lens.saes", reason="sae-lens is not installed")
    clean, baseline, gradient, weights = make_case("relu", normalize=normalize, apply_b_dec_to_input=True)
    options = {"d_in": 37, "d_sae": D_SAE, "apply_b_dec_to_input": True, "normalize_activations": normalize}
    theirs = saes.StandardSAE(saes.StandardSAEConfig(**options))
    theirs.load_state_dict({key: getattr(weights, key) for key in theirs.state_dict()})
    with torch.no_grad():
        errors = [run - theirs.decode(theirs.encode(run)) for run in (clean, baseline)]
    result = sae_attribution(clean, baseline, gradient, weights)
    expected = (gradient * (errors[0] - errors[1])).sum(dim=-1)
    assert len(result.token) > 100 and expected.abs().max() > 1
    assert_close(result.error, expected, n_terms=400)
    assert_close(decode(encode(clean, weights), weights, clean), clean - errors[0], n_terms=100)
