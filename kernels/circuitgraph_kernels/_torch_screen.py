"""The screen on a CPU: the pairs that may be active, from one product with a rigorous margin. No active pair is missed.

The screen multiplies rounded rows x~ and w~, in bfloat16 where that is fast. Let h be what the refine computes, and
c = (d + 8) eps, where eps is that of the type both add in. A sum of d products in any order misses by at most d eps/2
of the sum of their absolute values, in the screen and in the refine; bias and floor add a few roundings. By
Cauchy-Schwarz,

    h - floor <= x~ . w~ + b - floor + margin
    margin = |x| |w - w~| + |x - x~| |w~| + c (|x| |w| + |b| + |floor|) + what underflows

The margin is a sum of two products and a bias per feature, so all of it fits into four more columns of the product:
[x~, |x|, |x - x~|, 1, 1] . [w~, |w - w~| + c|w|, |w~|, high, low], where high + low is the bias. These columns are
rounded up to bfloat16, so that no product rounds them further. Rounding the result keeps its sign: a pair with a
negative value is not active.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from circuitgraph_kernels._torch_products import GATHER_ELEMENTS, slices
from circuitgraph_kernels.weights import SaeWeights, floor, score_scale

# Features per product of many rows. 1024, 2048, 3072, 4096: 123, 116, 107, 113 ms and 9.8, 12.4, 15.0, 17.3 MiB of
# memory for 320 rows of 768 and 24576 features. Few rows take twice as many: 45 instead of 48 ms for 80 rows of 512.
COLUMNS = 2048
FEW_ROWS = 160
# Values of the screen held at once. topk compares whole rows, so it takes fewer tokens at a time.
BUFFER_ELEMENTS = 1 << 23
EXTRA = 4  # columns that hold margin and bias
DEPTH = 32  # the product's depth is padded to a multiple: 8.9 instead of 15.0 ms at depth 512 + 4
# Rows from which rounding the weights costs less than it saves, by what multiplies bfloat16. AMX (Xeon): 44 instead of
# 38 ms at 32 rows, 45 instead of 57 at 64. AVX-512 (EPYC): 4.5 instead of 3.4 ms at 2 rows, 4.7 instead of 12.0 at 16.
WORTH_ROUNDING = {"AMX": 48, "AVX-512": 16}
LEAST = 16  # smaller bfloat16 products go to other code in PyTorch, which need not accumulate in float32
GROUP = 32  # features per group maximum (topk)
SMALL = 2.0**-110  # above whatever is lost where numbers underflow, even if subnormals count as zero
LARGE = 2.0**120  # rows and weights whose products may come near overflow are not screened


class _Features(NamedTuple):
    """What the screen needs of one dictionary besides its weights."""

    columns: Tensor  # [d_sae, EXTRA] in the screen's dtype
    reach: float  # at least every |w| + |bias|
    slack: list[float]  # topk: how far upper bounds exceed lower ones at most: per |x|, per |x - x~|, and a constant


_FEATURES: WeakKeyDictionary[SaeWeights, dict[object, _Features]] = WeakKeyDictionary()


class Screen:
    """Finds the candidates of one block of tokens after the other, in buffers that all blocks share."""

    def __init__(self, weights: SaeWeights, n_runs: int, n_tokens: int, dtype: torch.dtype) -> None:
        device, whole = weights.W_enc.device, weights.activation == "topk"
        self.weights = weights
        self.dtype = dtype if whole else screen_dtype(dtype, device, n_runs * n_tokens)
        self.features = _features(weights, dtype, self.dtype)
        self.least = LEAST if self.dtype == torch.bfloat16 else 1
        self.columns = COLUMNS * (2 if n_runs * n_tokens <= FEW_ROWS else 1)
        height = max(min(self.columns, weights.d_sae), self.least)
        held = weights.d_sae if whole else height
        self.n_rows = max(1, min(n_tokens, BUFFER_ELEMENTS // (n_runs * held)))
        self.depth = -(-(weights.d_in + EXTRA) // DEPTH) * DEPTH
        rounded = self.dtype != weights.W_enc.dtype or self.dtype == torch.bfloat16
        self.W = torch.zeros(height, self.depth, dtype=self.dtype, device=device) if rounded else None
        width = max(n_runs * self.n_rows, self.least)
        self.values = torch.empty(held * width, dtype=self.dtype, device=device)
        self.lanes = 8 // self.dtype.itemsize
        self.int = {1: torch.int64, 2: torch.int32, 4: torch.int16}[self.lanes]
        self.signs = torch.empty(-(-height * self.n_rows // self.lanes) * self.lanes, dtype=self.int, device=device)

    def candidates(self, runs: list[Tensor]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """token [n], feature [n] and hits [runs, n] of one slice of features after the other, features ascending.

        hits says in which run the pair may be active.
        """
        weights = self.weights
        n_rows, parts = len(runs[0]), slices(weights.d_sae, self.columns)
        rows = None if weights.activation == "identity" else self._rows(runs)
        width = max(len(runs) * n_rows, self.least)
        whole = weights.activation == "topk"
        if whole:
            table = self.values[: weights.d_sae * width].view(-1, width)
            for part in parts:
                self._product(part, rows, table[part])
            if rows is not None:
                self._subtract_least(rows, table)
        for part in parts:
            height = max(part.stop - part.start, self.least)
            values = table[part] if whole else self.values[: height * width].view(height, width)
            if not whole:
                self._product(part, rows, values)
            token, feature, hits = self._positive(values[: part.stop - part.start], len(runs), n_rows)
            yield token, feature + part.start, hits

    def _rows(self, runs: list[Tensor]) -> Tensor | None:
        """The rows' side of the product, [width, depth]; None where the numbers are too large to be screened."""
        x = torch.cat(runs)
        n, d = x.shape
        rows = torch.zeros(max(n, self.least), self.depth, dtype=self.dtype, device=x.device)
        rows[:n, :d] = x
        norm, missed = _norms(x, rows[:n, :d])
        rows[:n, d], rows[:n, d + 1], rows[:n, d + 2 : d + EXTRA] = _up(norm), _up(missed), 1.0
        return rows if (1 + float(norm.max())) * self.features.reach < LARGE else None

    def _product(self, part: slice, rows: Tensor | None, out: Tensor) -> None:
        """Write values that are not negative where the feature may be active; without rows, everywhere."""
        d, W, columns = self.weights.d_in, self.weights.encoder_rows[part], self.features.columns[part]
        if rows is None:
            out.zero_()
        elif self.W is None:
            torch.mm(columns, rows[:, d : d + EXTRA].T, out=out)
            out.addmm_(W, rows[:, :d].T)
        else:
            self.W[: len(W), :d] = W
            self.W[: len(W), d : d + EXTRA] = columns
            torch.mm(self.W[: len(out)], rows.T, out=out)

    def _subtract_least(self, rows: Tensor, table: Tensor) -> None:
        """Turn upper bounds of h, [d_sae, width], into numbers that are negative where the score is not among the k.

        The k-th largest of some upper bounds, less the most by which they exceed lower bounds, is a lower bound of
        the k-th largest score; maxima of groups are as good as all features if there are k groups.
        """
        weights, k, d = self.weights, self.weights.k or 0, self.weights.d_in
        scale = score_scale(weights, slice(None), self.dtype)
        if isinstance(scale, Tensor):
            table *= scale[:, None]
        group = max(1, min(GROUP, weights.d_sae // (4 * k)))
        groups = table[: weights.d_sae // group * group].view(-1, group, table.shape[1]).amax(dim=1)
        least = groups.T.contiguous().topk(k, dim=1, sorted=False).values.amin(dim=1)
        per_norm, per_missed, fixed = self.features.slack
        slack = rows[:, d] * per_norm + rows[:, d + 1] * per_missed + fixed
        slack += 16 * torch.finfo(self.dtype).eps * (least.abs() + slack)  # scores are rounded, here and in the refine
        table -= (least - slack).nan_to_num(nan=0.0).clamp(min=0.0)

    def _positive(self, values: Tensor, n_runs: int, n_rows: int) -> tuple[Tensor, Tensor, Tensor]:
        """Where the value of either run is not negative, for values [features, width]: token, feature, hits."""
        bits = values.view(self.int)
        size = len(values) * n_rows
        signs = self.signs[: -(-size // self.lanes) * self.lanes]
        signs[size:] = -1
        if n_runs == 2:
            torch.bitwise_and(bits[:, :n_rows], bits[:, n_rows : 2 * n_rows], out=signs[:size].view(-1, n_rows))
        else:
            signs[:size].view(-1, n_rows).copy_(bits[:, :n_rows])
        # Most are negative, so several signs are tested at once: 8 instead of 24 ms for 160 x 24576 pairs.
        negative = signs.new_full((self.lanes,), torch.iinfo(self.int).min).view(torch.int64)
        word = signs.view(torch.int64).bitwise_and_(negative).ne(negative).nonzero()
        place = (word * self.lanes + torch.arange(self.lanes, device=signs.device)).view(-1)
        place = place[signs[place] >= 0]
        feature = place.div(n_rows, rounding_mode="floor")
        token = place - feature * n_rows
        flat, start = bits.reshape(-1), feature * bits.shape[1] + token
        return token, feature, torch.stack([flat[start + run * n_rows] >= 0 for run in range(n_runs)])


def screen_dtype(dtype: torch.dtype, device: torch.device, n_rows: int) -> torch.dtype:
    """The type that the screen of n_rows multiplies in: bfloat16 for float32 where that is faster, else `dtype`."""
    if dtype != torch.float32 or device.type != "cpu" or not torch.backends.mkldnn.enabled:
        return dtype
    return torch.bfloat16 if n_rows >= _worth_rounding() else dtype


@lru_cache
def _worth_rounding() -> float:
    """The number of rows from which bfloat16 is faster. What is asked here is private to PyTorch.

    oneDNN is asked too: with ONEDNN_MAX_CPU_ISA=AVX2 it has no such product, and PyTorch's own is four times slower
    than float32.
    """
    try:
        if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            return math.inf
        kinds = {"AMX": torch.cpu._is_amx_tile_supported(), "AVX-512": torch.cpu._is_avx512_bf16_supported()}
    except (AttributeError, RuntimeError):
        return math.inf
    return next((WORTH_ROUNDING[kind] for kind, supported in kinds.items() if supported), math.inf)


def _features(weights: SaeWeights, dtype: torch.dtype, screen: torch.dtype) -> _Features:
    """The weights' side of margin and bias, kept as long as the weights are, and are what they were."""
    kept = _FEATURES.setdefault(weights, {})
    if (key := (screen, _rounds_operands(screen), weights.version)) not in kept:
        kept[key] = _measured(weights, dtype, screen)
    return kept[key]


def _measured(weights: SaeWeights, dtype: torch.dtype, screen: torch.dtype) -> _Features:
    c = (weights.d_in + 8) * torch.finfo(dtype).eps
    parts = []
    for part in slices(weights.d_sae, max(1, GATHER_ELEMENTS // weights.d_in)):
        w = weights.encoder_rows[part].to(dtype)
        parts.append(torch.stack(_norms(w, w.to(screen))))
    norm, missed = torch.cat(parts, dim=1)

    # gated: the gate alone is screened, the magnitude path is left to the refine
    bias = (weights.b_enc if weights.b_gate is None else weights.b_gate).to(dtype)
    least = torch.as_tensor(floor(weights, slice(None), dtype), dtype=dtype, device=bias.device)
    dead = (least >= LARGE).expand_as(bias)  # some write a finite number for infinity
    least = torch.where(dead, 0.0, least)
    size = bias.abs() + least.abs()
    total = bias - least + (1 + 2.0**-10) * (c * size + SMALL)
    high = total.bfloat16().to(dtype)
    low = _up(total - high).to(dtype)
    high, low = torch.where(dead, -LARGE, high), torch.where(dead, 0.0, low)

    spread = _up((missed + c * norm) * (1 + 2.0**-10 + c)).to(dtype)
    width = _up((norm + missed) * (1 + 2.0**-10 + c)).to(dtype)
    columns = torch.stack((spread, width, high, low), dim=1)
    reach = float((norm + missed).max()) + float(size.max()) + 1.0
    scale = score_scale(weights, slice(None), dtype)
    slack = [2 * float((bound * scale).max()) for bound in (spread, width, high + low - bias)]
    return _Features(columns.to(screen), reach, slack)


def _norms(x: Tensor, rounded: Tensor) -> tuple[Tensor, Tensor]:
    """At least |x| and |x - x~| of each row, x~ being what the product makes of `rounded`."""
    norm = _norm(x)
    missed = torch.full_like(norm, SMALL) if rounded.dtype == x.dtype else _norm(x - rounded.to(x.dtype))
    return norm, missed + 2.0**-8 * norm if _rounds_operands(rounded.dtype) else missed


def _norm(x: Tensor) -> Tensor:
    """Not below the exact norm of each row; 2^-50 of the largest number stands for squares that underflow."""
    peak = float(x.abs().max())
    if not 0.0 < peak < math.inf:
        return torch.full_like(x[:, 0], peak) + SMALL
    squares: Tensor = (x / peak).square_().sum(dim=-1)
    return peak * (squares.sqrt() * (1 + 2.0**-10 + x.shape[1] * torch.finfo(x.dtype).eps) + 2.0**-50) + SMALL


def _up(x: Tensor) -> Tensor:
    """The next bfloat16 that is not below."""
    near = x.bfloat16()
    return torch.where(near.to(x.dtype) < x, torch.nextafter(near, torch.full_like(near, math.inf)), near)


def _rounds_operands(dtype: torch.dtype) -> bool:
    """Whether PyTorch was allowed to round the operands of a product in this dtype (to tf32 or bfloat16)."""
    try:
        return dtype == torch.float32 and torch.get_float32_matmul_precision() != "highest"
    except RuntimeError:  # so it answers where the setting was made for one backend
        return True
