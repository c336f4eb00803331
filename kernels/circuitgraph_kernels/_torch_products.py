"""Products with rows chosen by index, in plain PyTorch: gather-dots, decoding of lists, groups.

In come vectors, indices and a matrix with one row per feature; out come dot products or weighted sums of rows. This
module checks nothing.
"""

from __future__ import annotations

import logging
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

logger = logging.getLogger(__name__)

# Gathered elements per block where the native gather-dot cannot be used: 0.5 MiB in float32, twice. Four times as
# many cost three times the CPU time.
GATHER_ELEMENTS = 1 << 17
WIDTH = 1 << 14  # bytes of a row per dot product


def gather_dots(vectors: Tensor, rows: Tensor, W: Tensor, columns: Tensor) -> Tensor:
    """vectors[k, rows[i]] . W[columns[i]], [K, n], for vectors [K, T, d]; see `products.gather_dot`."""
    dots = [gather_dot(each, rows, W, columns) for each in vectors]
    return torch.stack(dots) if dots else vectors.new_zeros((0, len(rows)))


def decode_entries(starts: Tensor, feature: Tensor, acts: Tensor, W: Tensor) -> Tensor:
    """sum of acts * W[feature] over the entries start[t] to start[t + 1] of each token, [T, d]."""
    if not len(feature):
        return acts.new_zeros(len(starts) - 1, W.shape[1])
    if W.dtype != acts.dtype:  # only the rows in use are widened
        used, feature = torch.unique(feature, return_inverse=True)
        W = W[used].to(acts.dtype)
    return embedding_bag(feature, W, starts[:-1], mode="sum", per_sample_weights=acts)


def grouped_products(
    readers: Tensor, reader_starts: Tensor, W: Tensor, columns: Tensor, column_starts: Tensor, out_starts: Tensor
) -> Tensor:
    """readers[i] . W[columns[j]] for every i and j of the same group, group after group."""
    bounds = torch.stack((reader_starts, column_starts, out_starts), dim=1).tolist()
    out = readers.new_empty(bounds[-1][2])
    for (i, j, start), (i_end, j_end, end) in zip(bounds[:-1], bounds[1:], strict=True):
        if end > start:
            rows = W[columns[j:j_end]].to(readers.dtype)
            torch.mm(readers[i:i_end], rows.T, out=out[start:end].view(i_end - i, -1))
    return out


def gather_dot(vectors: Tensor, rows: Tensor, W: Tensor, columns: Tensor) -> Tensor:
    """vectors[rows[i]] . W[columns[i]], [n], in an order of summation that only the width decides."""
    if len(rows) == 0:
        return vectors.new_zeros(0)
    step = WIDTH // vectors.dtype.itemsize
    if vectors.shape[1] > step:  # MKL shares out a longer dot product between threads, if few of them are asked for
        parts = slices(vectors.shape[1], step)
        dots = [gather_dot(vectors[:, part], rows, W[:, part], columns) for part in parts]
        return torch.stack(dots).cumsum(0)[-1]
    if W.dtype == vectors.dtype and _native_gather_dot_works(vectors.device, vectors.dtype):
        return _native_gather_dot(vectors.contiguous(), rows, W, columns)
    return _blocked_gather_dot(vectors, rows, W, columns)


def _native_gather_dot(vectors: Tensor, rows: Tensor, W: Tensor, columns: Tensor) -> Tensor:
    """The gradient of embedding_bag by its weights is this dot product, computed without gathering any row."""
    offsets = torch.zeros(1, dtype=rows.dtype, device=rows.device)
    dots: Tensor = torch.ops.aten._embedding_bag_per_sample_weights_backward(vectors, W, columns, offsets, rows, 0)
    return dots


def _blocked_gather_dot(vectors: Tensor, rows: Tensor, W: Tensor, columns: Tensor) -> Tensor:
    dots = [
        torch.linalg.vecdot(vectors.index_select(0, rows[part]), W.index_select(0, columns[part]).to(vectors.dtype))
        for part in slices(len(rows), max(1, GATHER_ELEMENTS // vectors.shape[-1]))
    ]
    return torch.cat(dots)


@lru_cache
def _native_gather_dot_works(device: torch.device, dtype: torch.dtype) -> bool:
    """The operator is private to PyTorch, so it is tried once on small integers, where it must be exact."""
    vectors = torch.arange(12, dtype=dtype, device=device).view(3, 4)
    W = torch.arange(20, dtype=dtype, device=device).view(5, 4) - 7
    rows, columns = (torch.tensor(index, device=device) for index in ([0, 2, 2, 1], [4, 0, 3, 3]))
    expected = (vectors[rows] * W[columns]).sum(dim=-1)
    try:
        works = torch.equal(_native_gather_dot(vectors, rows, W, columns), expected)
    except (AttributeError, NotImplementedError, RuntimeError):
        works = False
    if not works:
        logger.warning("native gather-dot does not work for %s on %s, using blocks of gathered rows", dtype, device)
    return works


def slices(total: int, step: int) -> list[slice]:
    return [slice(start, min(start + step, total)) for start in range(0, total, step)]


def sum_by(group: Tensor, values: Tensor, n_groups: int) -> Tensor:
    """Sum of the values of each group, in list order on every device."""
    sums = values.new_zeros(n_groups)
    if values.is_cuda:  # index_add_ is atomic there; index_put_ sorts
        return sums.index_put_((group,), values, accumulate=True)
    return sums.index_add_(0, group, values)
