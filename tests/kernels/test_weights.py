"""The encoder and decoder formulas equal those of sae-lens, and their corners are settled."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.close import assert_close
from torch import Tensor

from circuitgraph_kernels import ACTIVATIONS, SaeWeights, decode, encode, pre_activations

D_IN, D_SAE, D_OUT = 12, 60, 7


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make_weights(activation: str, **fields: Any) -> SaeWeights:
    own = {
        "jumprelu": {"threshold": draw(5, D_SAE)},
        "batchtopk": {"threshold": torch.tensor([0.7])},
        "topk": {"k": 9},
        "gated": {name: draw(seed, D_SAE) for seed, name in enumerate(("b_gate", "r_mag", "b_mag"), 6)},
    }
    b_enc = torch.zeros(D_SAE) if activation == "gated" else draw(2, D_SAE)
    fields = {
        "W_enc": draw(1, D_IN, D_SAE),
        "b_enc": b_enc,
        "W_dec": draw(3, D_SAE, D_IN),
        "b_dec": draw(4, D_IN),
    } | fields
    return SaeWeights(activation=activation, **own.get(activation, {}), **fields)


@pytest.fixture(scope="module")
def saes() -> Any:
    return pytest.importorskip("sae_lens.saes", reason="sae-lens is not installed")


@pytest.mark.parametrize("centered", [False, True])
@pytest.mark.parametrize(
    ("name", "activation", "scaled"),
    [
        ("StandardSAE", "relu", False),
        ("GatedSAE", "gated", False),
        ("JumpReLUSAE", "jumprelu", False),
        ("TopKSAE", "topk", False),
        ("TopKSAE", "topk", True),
        ("Transcoder", "relu", False),
        ("JumpReLUTranscoder", "jumprelu", False),
    ],
)
def test_encode_and_decode_equal_sae_lens(saes: Any, name: str, activation: str, scaled: bool, centered: bool) -> None:
    centered = centered and "Transcoder" not in name
    options: dict[str, Any] = {"d_in": D_IN, "d_sae": D_SAE, "apply_b_dec_to_input": centered}
    fields: dict[str, Any] = {"apply_b_dec_to_input": centered}
    if "Transcoder" in name:
        options |= {"d_out": D_OUT}
        fields |= {"W_dec": draw(3, D_SAE, D_OUT), "b_dec": draw(4, D_OUT)}
    if activation == "topk":
        options |= {"k": 9, "rescale_acts_by_decoder_norm": scaled}
        fields |= {"rescale_acts_by_decoder_norm": scaled}
    weights = make_weights(activation, **fields)
    theirs = getattr(saes, name)(getattr(saes, name + "Config")(**options))
    theirs.load_state_dict({key: getattr(weights, key) for key in theirs.state_dict()})

    x = draw(0, 3, 5, D_IN) * 2
    with torch.no_grad():
        their_acts = theirs.encode(x)
        their_x_hat = theirs.decode(their_acts)
    acts = encode(x, weights)
    norm = weights.W_dec.norm(dim=-1) if scaled else 1.0
    assert 0 < (acts != 0).sum() < acts.numel() and torch.equal(acts != 0, their_acts != 0)
    assert_close(acts * norm, their_acts, n_terms=D_IN, scale=8 * their_acts.abs().max())
    scale = (their_acts.abs().unsqueeze(-1) * weights.W_dec.abs()).sum(dim=-2).max()
    assert_close(decode(acts, weights), their_x_hat, n_terms=D_SAE, scale=scale)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_active_set_is_a_constant_of_the_derivative(activation: str) -> None:
    weights = make_weights(activation, apply_b_dec_to_input=True)
    x = draw(0, 5, D_IN).requires_grad_()
    acts = encode(x, weights)
    upstream = draw(9, 5, D_SAE)
    (gradient,) = torch.autograd.grad((acts * upstream).sum(), x)
    gain = weights.r_mag.exp() if weights.r_mag is not None else 1.0
    expected = (upstream * (acts != 0) * gain).detach() @ weights.W_enc.T
    assert expected.abs().min() > 0
    assert_close(gradient, expected, n_terms=D_SAE)
    assert torch.equal(acts[acts != 0], pre_activations(x, weights)[acts != 0])


def test_the_identity_has_a_derivative_where_it_is_zero() -> None:
    weights = SaeWeights(torch.eye(3), torch.zeros(3), torch.eye(3), torch.zeros(3), "identity")
    x = torch.tensor([[0.0, -2.0, 3.0]], requires_grad=True)
    assert torch.equal(decode(encode(x, weights), weights), x)
    assert torch.equal(torch.autograd.grad(encode(x, weights).sum(), x)[0], torch.ones(1, 3))


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([3.0, 1, 2, 2, 2], [3.0, 0, 2, 2, 0]),  # the third place is shared: the lowest indices win
        ([2.0, 2, 2, 2, 2], [2.0, 2, 2, 0, 0]),
        ([1.0, 2, 3, 4, 5], [0.0, 0, 3, 4, 5]),
        ([-1.0, 5, 0, 0, 0], [0.0, 5, 0, 0, 0]),  # fewer than k are positive
        ([-1.0, -2, -3, -4, -5], [0.0] * 5),
    ],
)
def test_equal_scores_are_chosen_by_index(scores: list[float], expected: list[float]) -> None:
    weights = SaeWeights(torch.eye(5), torch.zeros(5), torch.ones(5, 5), torch.zeros(5), "topk", k=3)
    x = torch.tensor([scores, [9.0, 8, 7, 6, 5]])
    assert encode(x, weights).tolist() == [expected, [9.0, 8, 7, 0, 0]]
    assert encode(x.view(1, 2, 5), weights).tolist() == [[expected, [9.0, 8, 7, 0, 0]]]


@pytest.mark.parametrize("activation", ["jumprelu", "batchtopk"])
@pytest.mark.parametrize(("threshold", "expected"), [(0.5, [0.0, 0, 0, 0, 1]), (-1.0, [0.0, 0, 0, 0.5, 1])])
def test_a_threshold_must_be_exceeded_and_never_undoes_the_relu(
    activation: str, threshold: float, expected: list[float]
) -> None:
    thresholds = torch.full((5,) if activation == "jumprelu" else (), threshold)
    weights = SaeWeights(torch.eye(5), torch.zeros(5), torch.eye(5), torch.zeros(5), activation, thresholds)
    assert encode(torch.tensor([-2.0, -0.5, 0.0, 0.5, 1.0]), weights).tolist() == expected


def test_weights_of_a_feature_lie_together_and_a_second_copy_is_not_made() -> None:
    weights = make_weights("relu", W_dec=draw(3, D_IN, D_SAE).T)
    assert weights.W_enc.T.is_contiguous() and weights.W_dec.is_contiguous()
    assert torch.equal(weights.W_enc, draw(1, D_IN, D_SAE)) and torch.equal(weights.W_dec, draw(3, D_IN, D_SAE).T)
    again = make_weights("relu", W_enc=weights.W_enc, W_dec=weights.W_dec)
    assert (again.W_enc.data_ptr(), again.W_dec.data_ptr()) == (weights.W_enc.data_ptr(), weights.W_dec.data_ptr())


def test_narrow_inputs_are_encoded_in_float32() -> None:
    weights = make_weights("relu")
    x = draw(0, 5, D_IN).bfloat16()
    assert encode(x, weights).dtype == torch.float32 and encode(x.double(), weights).dtype == torch.float64
    assert torch.equal(encode(x, weights), encode(x.float(), weights))


def test_decoder_norms_follow_a_change_in_place() -> None:
    weights = SaeWeights(torch.ones(4, 6), torch.zeros(6), torch.ones(6, 4), torch.zeros(4), "topk", k=2)
    assert torch.equal(weights.decoder_norm, torch.full((6,), 2.0)) and weights.decoder_norm is weights.decoder_norm
    weights.W_dec.mul_(3)
    assert torch.equal(weights.decoder_norm, torch.full((6,), 6.0))
