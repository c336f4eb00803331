"""Arguments that cannot be right are answered in one line that says what was expected."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from circuitgraph_kernels import SaeWeights, sae_attribution


def make_case() -> tuple[Tensor, Tensor, Tensor, SaeWeights]:
    """clean, baseline and gradient of 9 tokens and an SAE of width 8 with 40 features, in float64."""
    random = torch.Generator().manual_seed(0)
    shapes = ((9, 8), (9, 8), (9, 8), (8, 40), (40,), (40, 8), (8,))
    clean, baseline, gradient, *weights = (torch.randn(*shape, generator=random).double() for shape in shapes)
    return clean, baseline, gradient, SaeWeights(*weights)


BAD_CALLS = {
    "backend is 'trch', expected one of auto, reference, torch, triton. Did you mean 'torch'?": {"backend": "trch"},
    "precision is 'tf32', expected one of exact, bfloat16": {"precision": "tf32"},
    "clean has shape (9, 7), expected [9, 8]": {"clean": torch.zeros(9, 7).double()},
    "clean has shape (8,), expected [T, 8]": {"clean": torch.zeros(8).double()},
    "baseline has shape (3, 8), expected [9, 8]": {"baseline": torch.zeros(3, 8).double()},
    "gradient has shape (9, 5), expected [9, 8] or [K, 9, 8]": {"gradient": torch.zeros(9, 5).double()},
    "gradient has shape (0, 9, 8), expected": {"gradient": torch.zeros(0, 9, 8).double()},
    "baseline_out is None, expected with baseline and clean_out": {"clean_out": torch.zeros(9, 8).double()},
    "baseline_out is given, needs both": {"baseline_out": torch.zeros(9, 8).double()},
    "gradient is torch.float32 and clean is torch.float64": {"gradient": torch.zeros(9, 8)},
    "clean is torch.int64 and clean is torch.int64, expected one floating-point": {"clean": torch.zeros(9, 8).long()},
    "baseline is on meta, expected cpu": {"baseline": torch.zeros(9, 8, device="meta").double()},
}


@pytest.mark.parametrize("message", BAD_CALLS)
def test_a_bad_call_is_answered_in_one_line(message: str) -> None:
    names = ("clean", "baseline", "gradient", "weights")
    with pytest.raises(ValueError) as caught:
        sae_attribution(**(dict(zip(names, make_case(), strict=True)) | BAD_CALLS[message]))
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_weights_of_another_precision_or_width_are_refused() -> None:
    clean, baseline, gradient, weights = make_case()
    names = ("W_enc", "b_enc", "W_dec", "b_dec")
    narrow = SaeWeights(*(getattr(weights, name).float() for name in names))
    with pytest.raises(ValueError, match=r"clean is torch.float64 and the weights are torch.float32, convert"):
        sae_attribution(clean, baseline, gradient, narrow)
    transcoder = SaeWeights(weights.W_enc, weights.b_enc, weights.W_dec[:, :5], weights.b_dec[:5])
    with pytest.raises(ValueError, match=r"clean_out is None, expected \[T, 5\]: the dictionary reads 8 numbers"):
        sae_attribution(clean, baseline, gradient[:, :5], transcoder)


@pytest.mark.parametrize("position", range(5))
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_nan_or_inf_row_is_named(position: int, value: float) -> None:
    clean, baseline, gradient, weights = make_case()
    tensors = [clean, baseline, torch.stack((gradient, gradient)), clean.clone(), baseline.clone()]
    name = ("clean", "baseline", "gradient", "clean_out", "baseline_out")[position]
    tensors[position][(1, 6, 2) if name == "gradient" else (6, 2)] = value
    row = "1, 6" if name == "gradient" else "6"
    with pytest.raises(ValueError, match=rf"{name}\[{row}\] holds a NaN or Inf, expected finite numbers"):
        sae_attribution(*tensors[:3], weights, clean_out=tensors[3], baseline_out=tensors[4])


GOOD = {"W_enc": torch.ones(4, 6), "b_enc": torch.zeros(6), "W_dec": torch.ones(6, 4), "b_dec": torch.zeros(4)}
GATED = {"activation": "gated", "b_gate": torch.zeros(6), "r_mag": torch.zeros(6), "b_mag": torch.zeros(6)}
BAD_WEIGHTS = {
    "activation is 'gelu', expected one of relu, jumprelu, topk, batchtopk, gated, identity": {"activation": "gelu"},
    "W_enc has shape (4,), expected two dimensions": {"W_enc": torch.ones(4)},
    "W_dec has shape (6, 0), expected two dimensions, none of them 0": {"W_dec": torch.ones(6, 0)},
    "W_dec has shape (5, 4), expected (6, 4) (W_enc is [4, 6])": {"W_dec": torch.ones(5, 4)},
    "b_enc has shape (4,), expected (6,)": {"b_enc": torch.zeros(4)},
    "b_dec has shape (6,), expected (4,)": {"b_dec": torch.zeros(6)},
    "b_dec is NoneType, expected a floating-point tensor": {"b_dec": None},
    "b_enc is torch.int64, expected a floating-point tensor": {"b_enc": torch.zeros(6).long()},
    "b_dec is torch.float64 on cpu, expected torch.float32 on cpu": {"b_dec": torch.zeros(4).double()},
    "W_dec is torch.float32 on meta, expected torch.float32 on cpu": {"W_dec": torch.ones(6, 4, device="meta")},
    "W_enc holds a NaN or Inf": {"W_enc": torch.full((4, 6), float("inf"))},
    "b_enc holds a NaN or Inf": {"b_enc": torch.full((6,), float("nan"))},
    "threshold is None for jumprelu, expected a value": {"activation": "jumprelu"},
    "threshold is given for relu, it belongs to jumprelu and batchtopk": {"threshold": torch.zeros(6)},
    "threshold has shape (1,), expected (6,)": {"activation": "jumprelu", "threshold": torch.zeros(1)},
    "threshold has shape (6,), expected one number": {"activation": "batchtopk", "threshold": torch.zeros(6)},
    "threshold holds a NaN": {"activation": "jumprelu", "threshold": torch.full((6,), float("nan"))},
    "k is None for topk, expected a value": {"activation": "topk"},
    "k is 7, expected 1 to 6": {"activation": "topk", "k": 7},
    "k is 2.5, expected 1 to 6": {"activation": "topk", "k": 2.5},
    "normalize is 'batch', expected one of none, constant_norm_rescale, layer_norm": {"normalize": "batch"},
    "k is 0, expected 1 to 6": {"activation": "topk", "k": 0},
    "r_mag is None for gated, expected a value": GATED | {"r_mag": None},
    "b_mag has shape (4,), expected (6,)": GATED | {"b_mag": torch.zeros(4)},
    "b_enc is not zero for gated, put its bias into b_gate and b_mag": GATED | {"b_enc": torch.ones(6)},
    "rescale_acts_by_decoder_norm is set for relu, it belongs to topk": {"rescale_acts_by_decoder_norm": True},
    "apply_b_dec_to_input needs d_in == d_out, got 4 and 3": {
        "apply_b_dec_to_input": True,
        "W_dec": torch.ones(6, 3),
        "b_dec": torch.zeros(3),
    },
}


@pytest.mark.parametrize("message", BAD_WEIGHTS)
def test_bad_weights_are_answered_in_one_line(message: str) -> None:
    SaeWeights(**GOOD), SaeWeights(**(GOOD | GATED))
    with pytest.raises(ValueError) as caught:
        SaeWeights(**(GOOD | BAD_WEIGHTS[message]))
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_threshold_of_infinity_is_a_dead_feature() -> None:
    threshold = torch.tensor([0.0, float("inf"), 0, 0, 0, 0])
    weights = SaeWeights(**GOOD, activation="jumprelu", threshold=threshold)
    result = sae_attribution(torch.ones(1, 4), None, torch.ones(1, 4), weights)
    assert result.feature.tolist() == [0, 2, 3, 4, 5]
