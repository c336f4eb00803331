"""The weights of one dictionary and the formulas of its encoder and decoder.

In come tensors and the name of an activation function; out come pre-activations, activations and
reconstructions. This module does not know where the weights were loaded from, nor what is attributed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

ACTIVATIONS = ("relu", "jumprelu", "topk", "batchtopk", "gated", "identity")

_TENSORS = ("W_enc", "b_enc", "W_dec", "b_dec", "threshold", "b_gate", "r_mag", "b_mag")
_GATED = ("b_gate", "r_mag", "b_mag")


@dataclass(frozen=True, eq=False)
class SaeWeights:
    """Weights of one SAE (d_in == d_out) or transcoder, checked when built.

    With x' = x - b_dec if `apply_b_dec_to_input` else x, and h = x' @ W_enc + b_enc::

        relu        acts = relu(h)
        jumprelu    acts = relu(h) * (h > threshold)             threshold [d_sae]
        batchtopk   acts = relu(h) * (h > threshold)             threshold: one number (the form used after training)
        topk        acts = relu(h) on the k largest h per token; of equal h the lowest indices win
        gated       acts = relu(h * exp(r_mag) + b_mag) * (h + b_gate > 0)      b_enc must be zero
        identity    acts = h                                     active where it is not 0

        x_hat = acts @ W_dec + b_dec

    `rescale_acts_by_decoder_norm` (topk only, as sae-lens has it): the k largest are chosen by h * |W_dec|, where
    |W_dec| is the norm of each row. sae-lens then reports relu(h * |W_dec|) and divides by |W_dec| in its decoder; the
    activations here are already divided, so that x_hat = acts @ W_dec + b_dec holds for every dictionary.

    W_enc and W_dec are copied unless the weights of each feature (column, row) lie next to each other in memory.
    Raises ValueError, in one line, for a wrong shape, dtype, device, missing or superfluous field, or a NaN or Inf.
    """

    W_enc: Tensor  # [d_in, d_sae]
    b_enc: Tensor  # [d_sae]
    W_dec: Tensor  # [d_sae, d_out]
    b_dec: Tensor  # [d_out]
    activation: str = "relu"
    threshold: Tensor | None = None
    k: int | None = None
    apply_b_dec_to_input: bool = False
    b_gate: Tensor | None = None  # [d_sae], gated only, as are the next two
    r_mag: Tensor | None = None
    b_mag: Tensor | None = None
    rescale_acts_by_decoder_norm: bool = False

    def __post_init__(self) -> None:
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"SaeWeights: activation is {self.activation!r}, expected one of {', '.join(ACTIVATIONS)}")
        _check_kinds(self)
        _check_fields(self)
        _check_shapes(self)
        _check_values(self)
        # Gathering 16,500 rows of a strided W_dec took 320 ms instead of 7, and the product of 80 tokens with a W_enc
        # [768, 24576] 130 ms instead of 65 (README).
        object.__setattr__(self, "W_enc", self.W_enc.T.contiguous().T)
        object.__setattr__(self, "W_dec", self.W_dec.contiguous())

    @property
    def d_in(self) -> int:
        return self.W_enc.shape[0]

    @property
    def d_sae(self) -> int:
        return self.W_enc.shape[1]

    @property
    def d_out(self) -> int:
        return self.W_dec.shape[1]

    @cached_property
    def decoder_norm(self) -> Tensor:
        """The Euclidean norm of each row of W_dec, [d_sae], in the dtype computed in."""
        norm: Tensor = torch.linalg.vector_norm(self.W_dec.detach(), dim=-1, dtype=compute_dtype(self.W_dec.dtype))
        return norm


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 for float64, float32 for every narrower type."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def pre_activations(x: Tensor, weights: SaeWeights) -> Tensor:
    """The number h [..., d_sae] that the activation function of each feature is applied to, for x [..., d_in].

    `acts` equals it wherever the feature is active (gated: the magnitude path h * exp(r_mag) + b_mag; topk with
    rescaling: before the multiplication by the decoder norm). Differentiable; computed in float32 or float64.
    """
    return activate(_linear(x, weights), weights)[0]


def encode(x: Tensor, weights: SaeWeights) -> Tensor:
    """Activations [..., d_sae] of x [..., d_in], zero where inactive; formulas in `SaeWeights`.

    Differentiable: the set of active features is a constant, so d acts / d x is W_enc of the active features.
    """
    pre_acts, active = activate(_linear(x, weights), weights)
    return pre_acts if weights.activation == "identity" else torch.where(active, pre_acts, 0.0)


def decode(acts: Tensor, weights: SaeWeights) -> Tensor:
    """x_hat = acts @ W_dec + b_dec, [..., d_out]; a skip connection is the caller's to add."""
    return acts @ weights.W_dec.to(acts.dtype) + weights.b_dec.to(acts.dtype)


def center(x: Tensor, weights: SaeWeights) -> Tensor:
    """x in the dtype computed in, less b_dec if the dictionary subtracts it from its input."""
    x = x.to(compute_dtype(x.dtype))
    return x - weights.b_dec.to(x.dtype) if weights.apply_b_dec_to_input else x


def activate(linear: Tensor, weights: SaeWeights, columns: slice = slice(None)) -> tuple[Tensor, Tensor]:
    """Pre-activations and the mask of active features, from linear = x' @ W_enc + b_enc restricted to `columns`.

    topk compares all features of a token, so `columns` must then cover all of them.
    """
    if weights.activation == "gated":
        b_gate, r_mag, b_mag = (getattr(weights, name)[columns].to(linear.dtype) for name in _GATED)
        pre_acts = linear * r_mag.exp() + b_mag
        return pre_acts, (linear.detach() + b_gate > 0) & (pre_acts.detach() > 0)
    if weights.activation == "identity":
        return linear, linear.detach() != 0
    if weights.activation == "topk":
        norm = weights.decoder_norm.to(linear.dtype) if weights.rescale_acts_by_decoder_norm else 1.0
        return linear, _top_k(linear.detach() * norm, weights.k or 0)
    return linear, linear.detach() > _floor(weights, columns, linear.dtype)


def _linear(x: Tensor, weights: SaeWeights) -> Tensor:
    x = center(x, weights)
    return x @ weights.W_enc.to(x.dtype) + weights.b_enc.to(x.dtype)


def _floor(weights: SaeWeights, columns: slice, dtype: torch.dtype) -> Tensor | float:
    """What a pre-activation must exceed; never below 0, because of the relu."""
    if weights.threshold is None:
        return 0.0
    threshold = weights.threshold.detach().to(dtype)
    return (threshold.reshape(()) if weights.activation == "batchtopk" else threshold[columns]).clamp(min=0.0)


def _top_k(scores: Tensor, k: int) -> Tensor:
    """Mask of the k largest positive scores in the last dimension; of equal scores the lowest indices."""
    smallest = scores.topk(k, dim=-1, sorted=False).values.amin(dim=-1, keepdim=True)
    active = (scores >= smallest) & (scores > 0)
    crowded = active.sum(dim=-1) > k  # only where several scores equal the smallest
    if crowded.any():
        above = scores[crowded] > smallest[crowded]
        tied = scores[crowded] == smallest[crowded]
        free = k - above.sum(dim=-1, keepdim=True)
        active[crowded] = above | (tied & (tied.cumsum(dim=-1) <= free))
    return active


def _check_kinds(weights: SaeWeights) -> None:
    """Floating tensors of one dtype on one device."""
    first = weights.W_enc
    for name in _TENSORS:
        tensor = getattr(weights, name)
        if tensor is None and name not in _TENSORS[:4]:
            continue
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            kind = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
            raise ValueError(f"SaeWeights: {name} is {kind}, expected a floating-point tensor")
        if (tensor.dtype, tensor.device) != (first.dtype, first.device):
            raise ValueError(
                f"SaeWeights: {name} is {tensor.dtype} on {tensor.device}, expected {first.dtype} on {first.device}"
                " as W_enc is"
            )


def _check_fields(weights: SaeWeights) -> None:
    """Each activation function has its own fields and no others."""
    activation = weights.activation
    owners = {"threshold": ("jumprelu", "batchtopk"), "k": ("topk",), **dict.fromkeys(_GATED, ("gated",))}
    for name, users in owners.items():
        given = getattr(weights, name) is not None
        if given != (activation in users):
            expected = "expected a value" if activation in users else f"it belongs to {' and '.join(users)}"
            raise ValueError(f"SaeWeights: {name} is {'given' if given else 'None'} for {activation}, {expected}")
    if weights.rescale_acts_by_decoder_norm and activation != "topk":
        raise ValueError(f"SaeWeights: rescale_acts_by_decoder_norm is set for {activation}, it belongs to topk")


def _check_shapes(weights: SaeWeights) -> None:
    for name in ("W_enc", "W_dec"):
        shape = tuple(getattr(weights, name).shape)
        if len(shape) != 2 or 0 in shape:
            raise ValueError(f"SaeWeights: {name} has shape {shape}, expected two dimensions, none of them 0")
    d_in, d_sae, d_out = weights.d_in, weights.d_sae, weights.d_out
    expected = {"W_dec": (d_sae, d_out), "b_dec": (d_out,), **dict.fromkeys(("b_enc", *_GATED), (d_sae,))}
    if weights.activation == "jumprelu":
        expected["threshold"] = (d_sae,)
    for name, shape in expected.items():
        tensor = getattr(weights, name)
        if tensor is not None and tuple(tensor.shape) != shape:
            raise ValueError(
                f"SaeWeights: {name} has shape {tuple(tensor.shape)}, expected {shape} (W_enc is [{d_in}, {d_sae}])"
            )
    if weights.activation == "batchtopk" and weights.threshold is not None and weights.threshold.numel() != 1:
        raise ValueError(f"SaeWeights: threshold has shape {tuple(weights.threshold.shape)}, expected one number")
    if weights.k is not None and not 1 <= weights.k <= d_sae:
        raise ValueError(f"SaeWeights: k is {weights.k}, expected 1 to {d_sae}")
    if weights.apply_b_dec_to_input and d_in != d_out:
        raise ValueError(f"SaeWeights: apply_b_dec_to_input needs d_in == d_out, got {d_in} and {d_out}")


def _check_values(weights: SaeWeights) -> None:
    """A NaN would compare as inactive and silently drop its feature."""
    for name in _TENSORS:
        tensor = getattr(weights, name)
        if tensor is None:
            continue
        # one number per tensor instead of a mask as large as the weights; a threshold of +inf is a dead feature
        total = tensor.detach().sum(dtype=compute_dtype(tensor.dtype))
        if total.isnan() if name == "threshold" else not total.isfinite():
            raise ValueError(f"SaeWeights: {name} holds a NaN or Inf, expected finite numbers")
    if weights.activation == "gated" and weights.b_enc.any():
        raise ValueError("SaeWeights: b_enc is not zero for gated, put its bias into b_gate and b_mag")
