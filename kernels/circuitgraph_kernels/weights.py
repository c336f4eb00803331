"""The weights of one dictionary, and the formulas of its encoder and decoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

ACTIVATIONS = ("relu", "jumprelu", "topk", "batchtopk", "gated", "identity")
NORMALIZATIONS = ("none", "constant_norm_rescale", "layer_norm")
LAYER_NORM_EPS = 1e-5  # sae-lens's
ROW_PART = 1 << 14  # numbers added at once along a row; PyTorch's threads share 2^15 and more

_TENSORS = ("W_enc", "b_enc", "W_dec", "b_dec", "threshold", "b_gate", "r_mag", "b_mag")
_GATED = ("b_gate", "r_mag", "b_mag")


@dataclass(frozen=True, eq=False)
class SaeWeights:
    """Weights of one SAE (d_in == d_out) or transcoder, checked when built.

    With x' = (x - shift) / scale (see `normalize`), less b_dec if `apply_b_dec_to_input`, and h = x' @ W_enc + b_enc::

        relu        acts = relu(h)
        jumprelu    acts = relu(h) * (h > threshold)             threshold [d_sae]
        batchtopk   acts = relu(h) * (h > threshold)             threshold: one number (the form used after training)
        topk        acts = relu(h) on the k largest h per token; of equal h the lowest indices win
        gated       acts = relu(h * exp(r_mag) + b_mag) * (h + b_gate > 0)      b_enc must be zero
        identity    acts = h                                     active where it is not 0

        x_hat = acts @ W_dec + b_dec

    `normalize` names what the dictionary does to each input row (as sae-lens has it; d_in == d_out)::

        none                     scale = 1                shift = 0
        constant_norm_rescale    scale = |x| / sqrt(d)    shift = 0
        layer_norm               scale = std(x)           shift = mean(x)     (divided by std + 1e-5, multiplied by std)

    sae-lens undoes it after decoding: x_hat = scale * (acts @ W_dec + b_dec) + shift. The activations here are already
    multiplied by scale, in the units of x, so that x_hat = acts @ W_dec + bias with bias = scale * b_dec + shift.

    `rescale_acts_by_decoder_norm` (topk only, as sae-lens has it): the k largest are chosen by h * |W_dec|, where
    |W_dec| is the norm of each row. sae-lens then reports relu(h * |W_dec|) and divides by |W_dec| in its decoder; the
    activations here are already divided, so that x_hat = acts @ W_dec + b_dec holds for every dictionary.

    W_enc and W_dec are copied unless the weights of each feature (column, row) lie next to each other in memory. Do not
    change the tensors behind PyTorch's back (through .data) afterwards: what is derived from them is kept.
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
    normalize: str = "none"

    def __post_init__(self) -> None:
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"SaeWeights: activation is {self.activation!r}, expected one of {', '.join(ACTIVATIONS)}")
        if self.normalize not in NORMALIZATIONS:
            names = ", ".join(NORMALIZATIONS)
            raise ValueError(f"SaeWeights: normalize is {self.normalize!r}, expected one of {names}")
        _check_kinds(self)
        _check_fields(self)
        _check_shapes(self)
        _check_values(self)
        for name in _TENSORS[1:2] + _TENSORS[3:]:
            if getattr(self, name) is not None:
                object.__setattr__(self, name, getattr(self, name).contiguous())
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

    @property
    def version(self) -> tuple[int, ...]:
        """Changes when a tensor is changed in place by PyTorch; what is kept per dictionary is then made anew."""
        tensors = (getattr(self, name) for name in _TENSORS)
        return tuple(x._version for x in tensors if x is not None and not x.is_inference())

    @property
    def encoder_rows(self) -> Tensor:
        """W_enc as one row per feature, [d_sae, d_in], contiguous; a view."""
        return self.W_enc.T

    @property
    def decoder_norm(self) -> Tensor:
        """The Euclidean norm of each row of W_dec, [d_sae], in the dtype computed in; kept while the weights stay."""
        kept: tuple[object, Tensor] | None = self.__dict__.get("_decoder_norm")
        if kept is None or kept[0] != self.version:
            norm = torch.linalg.vector_norm(self.W_dec.detach(), dim=-1, dtype=compute_dtype(self.W_dec.dtype))
            kept = self.version, norm
            self.__dict__["_decoder_norm"] = kept
        return kept[1]

    @property
    def basis(self) -> bool:
        """Whether the features are the coordinates themselves: identity in and out, nothing added; kept as above."""
        if self.activation != "identity" or self.normalize != "none" or not self.d_in == self.d_sae == self.d_out:
            return False
        kept: tuple[object, bool] | None = self.__dict__.get("_basis")
        if kept is None or kept[0] != self.version:
            eye = torch.eye(self.d_in, dtype=self.W_enc.dtype, device=self.W_enc.device)
            same = torch.equal(self.W_enc, eye) and torch.equal(self.W_dec, eye)
            kept = self.version, same and not bool(self.b_enc.any()) and not bool(self.b_dec.any())
            self.__dict__["_basis"] = kept
        return kept[1]


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 for float64, float32 for every narrower type."""
    return torch.float64 if dtype == torch.float64 else torch.float32


class NormalizedInput(NamedTuple):
    """What the encoder's product reads, and what the decoder multiplies and adds again; None where it is 1 and 0."""

    x: Tensor  # [..., d_in], in the dtype computed in, less b_dec where the dictionary subtracts it
    scale: Tensor | None  # [...]
    shift: Tensor | None  # [...]


def row_sums(x: Tensor) -> Tensor:
    """The sum along the last dimension. PyTorch shares out a single long row between threads, with other bits."""
    if x.shape[-1] <= ROW_PART:
        return x.sum(dim=-1)
    parts = [part.sum(dim=-1) for part in x.split(ROW_PART, dim=-1)]
    return torch.stack(parts).cumsum(dim=0)[-1]


def normalized_input(x: Tensor, weights: SaeWeights) -> NormalizedInput:
    """x as the product with W_enc reads it; the formulas are in `SaeWeights`."""
    x = x.to(compute_dtype(x.dtype))
    scale = shift = None
    if weights.normalize == "constant_norm_rescale":
        scale = torch.linalg.vector_norm(x, dim=-1) / weights.d_in**0.5
        x = x / scale.clamp(min=torch.finfo(x.dtype).tiny)[..., None]  # a row of zeros stays one
    elif weights.normalize == "layer_norm":
        shift = row_sums(x) / weights.d_in
        x = x - shift[..., None]
        # torch.std has other bits for a single row than for the same row among others
        scale = (row_sums(x.square()) / (weights.d_in - 1)).sqrt()
        x = x / (scale + LAYER_NORM_EPS)[..., None]
    if weights.apply_b_dec_to_input:
        x = x - weights.b_dec.to(x.dtype)
    return NormalizedInput(x, scale, shift)


def pre_activations(x: Tensor, weights: SaeWeights) -> Tensor:
    """The number [..., d_sae] that the activation function of each feature is applied to, for x [..., d_in].

    It is h (times the input's scale), and `acts` equals it wherever the feature is active (gated: the magnitude path
    h * exp(r_mag) + b_mag; topk with rescaling: before the multiplication by the decoder norm). Differentiable;
    computed in float32 or float64.
    """
    return _encoded(x, weights)[0]


def encode(x: Tensor, weights: SaeWeights) -> Tensor:
    """Activations [..., d_sae] of x [..., d_in], zero where inactive; formulas in `SaeWeights`.

    Differentiable: the set of active features is a constant, so d acts / d x is W_enc of the active features.
    """
    pre_acts, active = _encoded(x, weights)
    return pre_acts if weights.activation == "identity" else torch.where(active, pre_acts, 0.0)


def decode(acts: Tensor, weights: SaeWeights, x: Tensor | None = None) -> Tensor:
    """x_hat = acts @ W_dec + bias, [..., d_out]; a skip connection is the caller's to add.

    x [..., d_in] is what was encoded: the bias of a dictionary that normalises its input depends on it.
    """
    return acts @ weights.W_dec.to(acts.dtype) + output_bias(weights, x).to(acts.dtype)


def output_bias(weights: SaeWeights, x: Tensor | None = None) -> Tensor:
    """What the decoder adds whatever the activations: b_dec [d_out], or scale * b_dec + shift [..., d_out] for x.

    Raises ValueError without x for a dictionary that normalises its input.
    """
    if weights.normalize == "none":
        return weights.b_dec
    if x is None:
        raise ValueError(f"output_bias: x is None, expected the encoded rows: the dictionary has {weights.normalize}")
    _, scale, shift = normalized_input(x, weights)
    assert scale is not None
    bias = scale[..., None] * weights.b_dec.to(scale.dtype)
    return bias if shift is None else bias + shift[..., None]


def activate(linear: Tensor, weights: SaeWeights, features: slice | Tensor = slice(None)) -> tuple[Tensor, Tensor]:
    """Pre-activations and the mask of active features, from linear = x' @ W_enc + b_enc of these features.

    The last dimension runs over `features`: a slice of all features or one index per entry. topk compares all
    features of a token, so it needs all of them.
    """
    if weights.activation == "gated":
        b_gate, r_mag, b_mag = (getattr(weights, name)[features].to(linear.dtype) for name in _GATED)
        pre_acts = linear * r_mag.exp() + b_mag
        return pre_acts, (linear.detach() + b_gate > 0) & (pre_acts.detach() > 0)
    if weights.activation == "identity":
        return linear, linear.detach() != 0
    if weights.activation == "topk":
        return linear, _top_k(linear.detach() * score_scale(weights, features, linear.dtype), weights.k or 0)
    return linear, linear.detach() > floor(weights, features, linear.dtype)


def score_scale(weights: SaeWeights, features: slice | Tensor, dtype: torch.dtype) -> Tensor | float:
    """What topk multiplies h with before it compares: the decoder's norms, or 1."""
    return weights.decoder_norm[features].to(dtype) if weights.rescale_acts_by_decoder_norm else 1.0


def floor(weights: SaeWeights, features: slice | Tensor, dtype: torch.dtype) -> Tensor | float:
    """What h must exceed (relu, jumprelu, batchtopk); never below 0, because of the relu."""
    if weights.threshold is None:
        return 0.0
    threshold = weights.threshold.detach().to(dtype)
    return (threshold.reshape(()) if weights.activation == "batchtopk" else threshold[features]).clamp(min=0.0)


def _encoded(x: Tensor, weights: SaeWeights) -> tuple[Tensor, Tensor]:
    rows, scale, _ = normalized_input(x, weights)
    pre_acts, active = activate(rows @ weights.W_enc.to(rows.dtype) + weights.b_enc.to(rows.dtype), weights)
    return pre_acts if scale is None else pre_acts * scale[..., None], active


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
    """Floating tensors computed in one dtype on one device."""
    first = weights.W_enc
    for name in _TENSORS:
        tensor = getattr(weights, name)
        if tensor is None and name not in _TENSORS[:4]:
            continue
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            kind = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
            raise ValueError(f"SaeWeights: {name} is {kind}, expected a floating-point tensor")
        same = tensor.dtype == first.dtype
        if name not in ("W_enc", "W_dec"):  # vectors may be wider than the matrices, if they are computed alike
            same = compute_dtype(tensor.dtype) == compute_dtype(first.dtype)
        if not same or tensor.device != first.device:
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
    if weights.k is not None and not (isinstance(weights.k, int) and 1 <= weights.k <= d_sae):
        raise ValueError(f"SaeWeights: k is {weights.k}, expected 1 to {d_sae}")
    if weights.normalize == "layer_norm" and d_in == 1:
        raise ValueError("SaeWeights: normalize is layer_norm, expected d_in of at least 2, got 1")
    for name in ("apply_b_dec_to_input", "normalize"):
        if getattr(weights, name) not in (False, "none") and d_in != d_out:
            raise ValueError(f"SaeWeights: {name} needs d_in == d_out, got {d_in} and {d_out}")


def _check_values(weights: SaeWeights) -> None:
    """A NaN would compare as inactive and silently drop its feature."""
    for name in _TENSORS:
        tensor = getattr(weights, name)
        if tensor is None:
            continue
        # one number per tensor instead of a mask as large as the weights; a threshold of +inf is a dead feature
        total = tensor.detach().sum(dtype=compute_dtype(tensor.dtype))
        broken = tensor.isnan().any() if name == "threshold" else not (total.isfinite() or tensor.isfinite().all())
        if broken:
            raise ValueError(f"SaeWeights: {name} holds a NaN or Inf, expected finite numbers")
    if weights.activation == "gated" and weights.b_enc.any():
        raise ValueError("SaeWeights: b_enc is not zero for gated, put its bias into b_gate and b_mag")
