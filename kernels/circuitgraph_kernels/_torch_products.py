"""Products with rows chosen by index, in plain PyTorch: dot products of gathered rows, and decoding of lists.

The results are the same bits wherever a row lies in memory and whatever else is computed in the same call.
"""

from __future__ import annotations

import logging
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

logger = logging.getLogger(__name__)

# MKL's dot product adds in an order that depends on where its rows begin in memory (on AMD's CPUs, 512 numbers have up
# to eight sums). So every row begins at a multiple of this many bytes.
ALIGNMENT = 64
# Elements per block where rows of W must be copied: 0.5 MiB in float32. For 16,500 rows of 769, blocks of a quarter
# of that take 10.3 instead of 7.3 ms; longer ones leave the cache.
GATHER_ELEMENTS = 1 << 17
WIDTH = 1 << 14  # bytes of a row per dot product: MKL shares out a longer one between threads, if few are asked for


def gather_dots(vectors: Tensor, rows: Tensor, W: Tensor, columns: Tensor) -> Tensor:
    """vectors[k, rows[i]] . W[columns[i]], [K, n], for vectors [K, T, d]; see `products.gather_dot`."""
    dots = [gather_dot(each, rows, W, columns) for each in vectors]
    return torch.stack(dots) if dots else vectors.new_zeros((0, len(rows)))


def decode_entries(starts: Tensor, feature: Tensor, acts: Tensor, W: Tensor) -> Tensor:
    """sum of acts * W[feature] over the entries start[t] to start[t + 1] of each token, [T, d]."""
    if not len(feature):
        return acts.new_zeros(len(starts) - 1, W.shape[1])
    if W.dtype != acts.dtype or W.stride(1) != 1:  # PyTorch has other code, with other bits, for rows that are strided
        used, feature = torch.unique(feature, return_inverse=True)
        W = W[used].to(acts.dtype).contiguous()
    return embedding_bag(feature, W, starts[:-1], mode="sum", per_sample_weights=acts)


def gather_dot(vectors: Tensor, rows: Tensor, W: Tensor, columns: Tensor) -> Tensor:
    """vectors[rows[i]] . W[columns[i]], [n], in an order of summation that only the width decides."""
    if len(rows) == 0:
        return vectors.new_zeros(0)
    step = WIDTH // vectors.dtype.itemsize
    if vectors.shape[1] > step:
        parts = slices(vectors.shape[1], step)
        dots = [gather_dot(vectors[:, part], rows, W[:, part], columns) for part in parts]
        return torch.stack(dots).cumsum(0)[-1]
    native = _native_gather_dot_works(vectors.device, vectors.dtype)
    dot = _native_gather_dot if native else _gathered_dot
    vectors = _aligned(vectors, vectors.dtype)
    if native and _is_aligned(W, vectors.dtype):
        return dot(vectors, rows, W, columns)
    found = []
    for part in slices(len(rows), max(1, GATHER_ELEMENTS // vectors.shape[1])):
        gathered = _aligned(W.index_select(0, columns[part]), vectors.dtype)
        found.append(dot(vectors, rows[part], gathered, torch.arange(len(gathered), device=W.device)))
    return torch.cat(found)


def _native_gather_dot(vectors: Tensor, rows: Tensor, W: Tensor, columns: Tensor) -> Tensor:
    """The gradient of embedding_bag by its weights is this dot product, computed without gathering any row."""
    offsets = torch.zeros(1, dtype=rows.dtype, device=rows.device)
    dots: Tensor = torch.ops.aten._embedding_bag_per_sample_weights_backward(vectors, W, columns, offsets, rows, 0)
    return dots


def _gathered_dot(vectors: Tensor, rows: Tensor, W: Tensor, columns: Tensor) -> Tensor:
    """The same by a product and a sum along each row, whose order is the same at every place."""
    dots: Tensor = torch.linalg.vecdot(vectors.index_select(0, rows), W.index_select(0, columns))
    return dots


@lru_cache
def _native_gather_dot_works(device: torch.device, dtype: torch.dtype) -> bool:
    """The operator is private to PyTorch, so it is tried once: right, and of the same bits at every place."""
    random = torch.Generator().manual_seed(0)
    places = torch.arange(33, device=device)
    every, one = places.repeat_interleave(33), places[:1]
    try:
        for width in (3, 16, 37, 65, 769):
            left, right = torch.randn(2, 1, width, generator=random, dtype=torch.float64).to(device, dtype)
            vectors, W = (_aligned(row.repeat(33, 1), dtype) for row in (left, right))
            dots = _native_gather_dot(vectors, every, W, places.repeat(33))
            alone = _native_gather_dot(vectors, one, W, one)
            terms = left.double() * right.double()
            missed = (dots.double() - terms.sum()).abs().max()
            if not (missed <= width * torch.finfo(dtype).eps * terms.abs().sum() and bool((dots == alone).all())):
                raise RuntimeError(f"dot products of width {width} are wrong, or differ from place to place")
    except (AttributeError, NotImplementedError, RuntimeError) as error:
        logger.warning("no native dot product of gathered rows for %s on %s, copying rows: %s", dtype, device, error)
        return False
    return True


def _is_aligned(x: Tensor, dtype: torch.dtype) -> bool:
    """Whether every row lies in one piece from a multiple of ALIGNMENT bytes on, in this dtype."""
    starts = x.data_ptr() % ALIGNMENT == 0 and x.stride(0) * x.dtype.itemsize % ALIGNMENT == 0
    return x.dtype == dtype and x.stride(1) == 1 and starts


def _aligned(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x [n, d] with aligned rows in this dtype: itself, or a copy with gaps between the rows."""
    if _is_aligned(x, dtype):
        return x
    unit = ALIGNMENT // dtype.itemsize
    stride = -(-x.shape[1] // unit) * unit
    buffer = torch.empty(len(x) * stride + unit, dtype=dtype, device=x.device)
    first = -buffer.data_ptr() % ALIGNMENT // dtype.itemsize
    rows = buffer[first : first + len(x) * stride].view(len(x), stride)[:, : x.shape[1]]
    return rows.copy_(x)


def slices(total: int, step: int) -> list[slice]:
    """0 to total in pieces of `step`, the last one shorter."""
    return [slice(start, min(start + step, total)) for start in range(0, total, step)]


def sum_by(group: Tensor, values: Tensor, n_groups: int) -> Tensor:
    """Sum of the values of each group, in list order on every device."""
    sums = values.new_zeros(n_groups)
    if values.is_cuda:  # index_add_ is atomic there; index_put_ sorts
        return sums.index_put_((group,), values, accumulate=True)
    return sums.index_add_(0, group, values)
