"""The screen on a GPU: the pairs that may be active, from one float16 product with a rigorous margin. No active pair is
missed.

The product of the rounded x~ = f16(2^a x) and w~ = f16(2^b w) misses 2^(a+b) x.w by at most (Cauchy-Schwarz)

    |x| |w - w~| + |x - x~| |w~| + c |x~| |w~|          (all scaled by the powers of two)

where c |x| |w| also bounds the rounding of the refined product. A sum of d products in float32, in whatever order,
misses by at most d 2^-24 of the sum of their absolute values; tensor cores cut off instead of rounding, hence 2^-23.
A pair is dropped only where the product plus this margin stays below what makes the feature active.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from weakref import WeakKeyDictionary

import torch
import triton
from torch import Tensor

from circuitgraph_kernels import _tiles
from circuitgraph_kernels import _triton_kernels as kernels
from circuitgraph_kernels.weights import SaeWeights, floor, score_scale


@dataclass(frozen=True, eq=False)
class RoundedRows:
    """Rows as float16 times a power of two, padded to whole tiles with zeros, and bounds on the loss."""

    rounded: Tensor  # [n_pad, d_pad] float16
    power: Tensor  # [n_pad] float32
    norm: Tensor  # [n_pad]: at least |x * power|
    missed: Tensor  # [n_pad]: at least |x * power - rounded|


@dataclass(frozen=True, eq=False)
class FeatureScreen:
    """What the screen needs of one dictionary, made once: half the bytes of W_enc and five vectors."""

    rows: RoundedRows
    limit: Tensor  # [f_pad] what the scaled product must reach; infinite for padding
    spread: Tensor  # [f_pad] error per unit of |x|
    width: Tensor  # [f_pad] error per unit of |x - x~|
    scale: Tensor  # [f_pad] score per unit of the scaled product (topk)
    bias: Tensor  # [f_pad] score of an input of zeros (topk); -infinite for padding
    largest_bias: Tensor  # [] of |bias|
    n_features: int


@dataclass(frozen=True, eq=False)
class Candidates:
    """Pairs in order, [capacity]; those from `total` on are undefined, and a total above capacity means a loss."""

    token: Tensor  # int32
    feature: Tensor  # int32
    total: Tensor  # [1] int64
    ends: Tensor  # [T] int64: candidates up to and including each token


_PREPARED: WeakKeyDictionary[SaeWeights, tuple[object, FeatureScreen]] = WeakKeyDictionary()


def feature_screen(weights: SaeWeights) -> FeatureScreen:
    """The dictionary's side of the screen, kept as long as the weights are, and are what they were."""
    if weights not in _PREPARED or _PREPARED[weights][0] != weights.version:
        _PREPARED[weights] = (weights.version, _prepare(weights))
    return _PREPARED[weights][1]


def screened(runs: list[Tensor], weights: SaeWeights, capacity: int | None = None) -> Candidates:
    """Candidates of the tokens of the runs, [T, d_in] each as `normalized_input` gives them.

    Without a capacity the host waits for their number; with one nothing waits.
    """
    n_tokens, arch = len(runs[0]), _tiles.architecture(runs[0].device)
    if weights.activation == "identity":
        return _everything(n_tokens, weights.d_sae, runs[0].device, capacity)
    prepared = feature_screen(weights)
    tile = _tiles.screen_tile(len(runs) * n_tokens, arch)
    rows = round_rows(runs, prepared.rows.rounded.shape[1], tile.rows)
    if weights.activation == "topk":
        tau = torch.zeros_like(rows.power)
        groups = _product(rows, prepared, tau, tile, "group")[: len(runs) * n_tokens]
        assert weights.k is not None
        if weights.k <= groups.shape[1]:
            least = groups.topk(weights.k, dim=-1, sorted=False).values.amin(dim=-1)
            # 2^-18: the rounding of scores in float32, here and in the refined ones, is below 2^-21 of these
            slack = 2.0**-18 * (least.abs() + 2 * prepared.largest_bias)
            tau[: len(least)] = (least - slack).clamp(min=0)
        mask = _product(rows, prepared, tau, tile, "rank")
    else:
        mask = _product(rows, prepared, rows.power, tile, "mask")
    return _expanded(mask, n_tokens, len(runs), capacity)


def round_rows(parts: list[Tensor], width: int, least: int) -> RoundedRows:
    """The rows of all parts, one after the other, padded to a multiple of `least` rows of `width` elements."""
    n_rows, device = sum(len(part) for part in parts), parts[0].device
    n_pad = _up(max(n_rows, 1), least)
    rounded = torch.empty(n_pad, width, dtype=torch.float16, device=device)
    power, norm, missed = (torch.empty(n_pad, dtype=torch.float32, device=device) for _ in range(3))
    block = _tiles.depth_block(width)
    start = 0
    for index, part in enumerate(parts):
        stop = n_pad if index == len(parts) - 1 else start + len(part)
        outputs = (each[start:stop] for each in (rounded, power, norm, missed))
        shape = (*part.shape, part.stride(0))
        kernels.round_rows[(stop - start,)](part, *outputs, *shape, width, BD=block, **_tiles.OPTIONS)
        start = stop
    return RoundedRows(rounded, power, norm, missed)


def _prepare(weights: SaeWeights) -> FeatureScreen:
    width = _up(weights.d_in, _tiles.DEPTH)
    rows = round_rows([weights.encoder_rows.detach()], width, _tiles.FEATURES)
    n_features = len(rows.power)
    double = partial(torch.Tensor.to, dtype=torch.float64)
    power, norm, missed = double(rows.power), double(rows.norm), double(rows.missed)

    everything = slice(None)
    bias = weights.b_gate if weights.b_gate is not None else weights.b_enc
    bias = double(bias.detach())
    limit = power.new_full((n_features,), torch.inf)
    limit[: weights.d_sae] = (floor(weights, everything, torch.float64) - bias) * power[: weights.d_sae]
    score = score_scale(weights, everything, torch.float64)
    scale = torch.zeros_like(power)
    scale[: weights.d_sae] = score / power[: weights.d_sae]
    offset = power.new_full((n_features,), -torch.inf)
    offset[: weights.d_sae] = bias * score

    # d 2^-23 for the screen; the refined sums and the few operations around them are far below the other 16 2^-23
    c = 1.1 * (weights.d_in + 16) * 2.0**-23
    norm = norm + missed
    enlarged = 1 + 2.0**-10
    return FeatureScreen(
        rows,
        _rounded_down(limit),
        ((missed + c * norm) * enlarged).float(),
        (norm * (1 + c) * enlarged).float(),
        scale.float(),
        offset.float(),
        (bias * score).abs().amax().float(),
        weights.d_sae,
    )


def _product(rows: RoundedRows, prepared: FeatureScreen, tau: Tensor, tile: _tiles.Tile, mode: str) -> Tensor:
    """The output of the screen kernel, [n_pad, f_pad / 32]: int32 words of the mask, or float32 group maxima."""
    n_rows, n_features = len(rows.power), len(prepared.limit)
    shape, dtype = (n_rows, n_features // 32), torch.float32 if mode == "group" else torch.int32
    out = torch.empty(shape, dtype=dtype, device=rows.power.device)
    n_row_tiles = triton.cdiv(n_rows, tile.rows)
    kernels.screen[(n_row_tiles * (n_features // tile.features),)](
        rows.rounded, rows.power, rows.norm, rows.missed, tau,
        prepared.rows.rounded, prepared.limit, prepared.spread, prepared.width, prepared.scale, prepared.bias,
        out, n_row_tiles, prepared.n_features, out.stride(0),
        D=rows.rounded.shape[1], BM=tile.rows, BF=tile.features, BK=tile.depth, MODE=mode,
        num_warps=tile.warps, num_stages=tile.stages, enable_fp_fusion=True,
    )  # fmt: skip
    return out


def _expanded(mask: Tensor, n_tokens: int, n_runs: int, capacity: int | None) -> Candidates:
    """The mask as a list."""
    device, n_words = mask.device, mask.shape[1]
    grid = (n_tokens, triton.cdiv(n_words, _tiles.WORDS))
    counts = torch.empty(grid, dtype=torch.int32, device=device)
    layout = {"RUNS": n_runs, "BW": _tiles.WORDS, **_tiles.OPTIONS}
    kernels.count[grid](mask, counts, n_tokens, n_words, mask.stride(0), **layout)
    ends = counts.flatten().cumsum(0, dtype=torch.int64).view(grid)
    size = int(ends[-1, -1]) if capacity is None else capacity
    token, feature = (torch.empty(size, dtype=torch.int32, device=device) for _ in range(2))
    if size:
        kernels.expand[grid](mask, ends, token, feature, n_tokens, n_words, mask.stride(0), size, **layout)
    return Candidates(token, feature, ends.view(-1)[-1:], ends[:, -1])


def _everything(n_tokens: int, d_sae: int, device: torch.device, capacity: int | None) -> Candidates:
    """Every pair, for activation functions without an inactive state."""
    total = n_tokens * d_sae
    pair = torch.arange(total if capacity is None else min(capacity, total), device=device)
    if capacity is not None and capacity > total:
        pair = torch.nn.functional.pad(pair, (0, capacity - total))
    ends = torch.arange(1, n_tokens + 1, device=device) * d_sae
    return Candidates((pair // d_sae).int(), (pair % d_sae).int(), ends[-1:], ends)


def _rounded_down(values: Tensor) -> Tensor:
    """float32, never above the float64 given."""
    narrow = values.float()
    return torch.where(narrow.double() > values, narrow.nextafter(torch.full_like(narrow, -torch.inf)), narrow)


def _up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple
