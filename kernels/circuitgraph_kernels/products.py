"""Products with rows of a weight matrix that are chosen by index: for lists of entries and for edges.

In come vectors, index lists and a matrix with one row per feature; out come dot products or weighted sums of rows. The
gathered rows are never held as a whole. This module knows no activations, and no loop in it runs over features.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from circuitgraph_kernels._entries import full_precision, row_starts
from circuitgraph_kernels.sae_attribution import BACKENDS, backend_name
from circuitgraph_kernels.weights import compute_dtype


@dataclass(frozen=True, eq=False)
class GroupedProduct:
    """One block [m_p, n_p] per group p, one after the other in `values`."""

    values: Tensor  # [sum of m_p n_p]
    starts: Tensor  # [groups + 1] int64: where each block begins
    columns: Tensor  # [groups] int64: n_p

    def block(self, group: int) -> Tensor:
        """The products of one group, [m_p, n_p]; a view. Raises IndexError for a group that is not there."""
        if not 0 <= group < len(self.columns):
            raise IndexError(f"group {group}, expected 0 to {len(self.columns) - 1}")
        start, stop = self.starts[group : group + 2].tolist()
        return self.values[start:stop].view(-1, max(int(self.columns[group]), 1))[:, : int(self.columns[group])]


@full_precision
def gather_dot(vectors: Tensor, rows: Tensor, W: Tensor, columns: Tensor, *, backend: str = "auto") -> Tensor:
    """vectors[..., rows[i], :] . W[columns[i], :] for each i: [n] for vectors [T, d], [K, n] for vectors [K, T, d].

    rows [n] and columns [n] are int64, W is [F, d]. Computed in float32, or in float64 if vectors is; each result
    depends on its own two rows only. On a CPU a W whose rows are not contiguous costs about fifty times as much per
    pair. Not differentiable.
    Raises ValueError for a shape that does not fit, an index out of range, or tensors on different devices.
    """
    if vectors.ndim not in (2, 3):
        raise ValueError(f"gather_dot: vectors has shape {tuple(vectors.shape)}, expected [T, d] or [K, T, d]")
    _check("gather_dot", vectors, W, {"rows": (rows, vectors.shape[-2]), "columns": (columns, W.shape[0])})
    if len(rows) != len(columns):
        raise ValueError(f"gather_dot: rows has {len(rows)} indices and columns {len(columns)}, expected as many")
    rows, columns = rows.contiguous(), columns.contiguous()
    vectors = vectors.to(compute_dtype(vectors.dtype))
    dots = _backend(backend, vectors).gather_dots(vectors if vectors.ndim == 3 else vectors[None], rows, W, columns)
    result: Tensor = dots if vectors.ndim == 3 else dots[0]
    return result


@full_precision
def decode_entries(
    token: Tensor, feature: Tensor, acts: Tensor, W_dec: Tensor, n_tokens: int, *, backend: str = "auto"
) -> Tensor:
    """sum over the entries of each token of acts * W_dec[feature], [n_tokens, d]: x_hat - b_dec, without dense acts.

    token, feature [n] int64 and acts [n] are a list sorted by token, as `sae_attribution` returns it; the sum of a
    token depends on its own entries only. Not differentiable.
    Raises ValueError for a shape that does not fit, an index out of range, or a list that is not sorted.
    """
    _check(
        "decode_entries", acts[:, None], W_dec, {"token": (token, n_tokens), "feature": (feature, len(W_dec))}, False
    )
    if not len(token) == len(feature) == len(acts):
        raise ValueError(
            f"decode_entries: {len(token)} tokens, {len(feature)} features and {len(acts)} acts, expected as many"
        )
    if bool((token[1:] < token[:-1]).any()):
        raise ValueError("decode_entries: token is not sorted, expected the entries of each token together, in order")
    acts = acts.to(compute_dtype(acts.dtype))
    starts = row_starts(token.contiguous(), n_tokens)
    result: Tensor = _backend(backend, acts).decode_entries(starts, feature.contiguous(), acts.contiguous(), W_dec)
    return result


@full_precision
def grouped_product(
    readers: Tensor, reader_starts: Tensor, W: Tensor, columns: Tensor, column_starts: Tensor, *, backend: str = "auto"
) -> GroupedProduct:
    """readers[i] . W[columns[j]] for every i and j of the same group: all edges of a site, one product per position.

    readers [m, d], grouped: those of group p are reader_starts[p] to reader_starts[p + 1]; columns [n] index rows of
    W [F, d] and are grouped by column_starts in the same way; both starts are [groups + 1] int64. Computed in float32,
    or in float64 if readers is. Not differentiable.
    Raises ValueError for a shape that does not fit, an index out of range, or starts that do not ascend from 0 to the end.
    """
    if readers.ndim != 2:
        raise ValueError(f"grouped_product: readers has shape {tuple(readers.shape)}, expected [m, d]")
    _check("grouped_product", readers, W, {"columns": (columns, len(W))})
    for name, starts, size in (
        ("reader_starts", reader_starts, len(readers)),
        ("column_starts", column_starts, len(columns)),
    ):
        fits = (
            starts.dtype == torch.int64 and starts.shape == reader_starts.shape and starts.ndim == 1 and len(starts) > 0
        )
        if not (fits and int(starts[0]) == 0 and int(starts[-1]) == size and bool((starts.diff() >= 0).all())):
            raise ValueError(f"grouped_product: {name} is not [groups + 1] int64 that ascends from 0 to {size}")
    reader_starts, columns, column_starts = (x.contiguous() for x in (reader_starts, columns, column_starts))
    readers = readers.to(compute_dtype(readers.dtype))
    n_readers, n_columns = reader_starts.diff(), column_starts.diff()
    out_starts = torch.nn.functional.pad((n_readers * n_columns).cumsum(0), (1, 0))
    values = _backend(backend, readers).grouped_products(readers, reader_starts, W, columns, column_starts, out_starts)
    return GroupedProduct(values, out_starts, n_columns)


def _backend(backend: str, x: Tensor) -> Any:
    """The module that computes; these functions have no second definition, so "reference" means torch."""
    name = backend_name(backend, x.device)
    return importlib.import_module(BACKENDS["torch" if name == "reference" else name])


def _check(
    name: str, vectors: Tensor, W: Tensor, indices: dict[str, tuple[Tensor, int]], same_width: bool = True
) -> None:
    if W.ndim != 2 or (same_width and vectors.shape[-1] != W.shape[1]):
        shapes = f"{tuple(vectors.shape)} and {tuple(W.shape)}"
        raise ValueError(f"{name}: vectors and W have shapes {shapes}, expected [..., d] and [F, d]")
    if compute_dtype(vectors.dtype) != compute_dtype(W.dtype):
        raise ValueError(f"{name}: vectors is {vectors.dtype} and W is {W.dtype}, convert one of them")
    for key, (index, size) in indices.items():
        if index.dtype != torch.int64 or index.ndim != 1:
            shape = f"{index.dtype} of shape {tuple(index.shape)}"
            raise ValueError(f"{name}: {key} is {shape}, expected torch.int64 of shape [n]")
        low, high = torch.stack(index.aminmax()).tolist() if len(index) else (0, -1)
        if low < 0 or high >= size:
            raise ValueError(f"{name}: {key} spans {low} to {high}, expected 0 to {size - 1}")
    devices = {str(tensor.device) for tensor in (vectors, W, *(index for index, _ in indices.values()))}
    if len(devices) > 1:
        raise ValueError(f"{name}: tensors are on {', '.join(sorted(devices))}, expected one device")
