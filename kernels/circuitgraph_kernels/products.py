"""Products with rows of a weight matrix that are chosen by index. The gathered rows are never held as a whole."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor

from circuitgraph_kernels._entries import full_precision, row_starts
from circuitgraph_kernels.sae_attribution import BACKENDS, backend_name
from circuitgraph_kernels.weights import compute_dtype


@full_precision
def gather_dot(vectors: Tensor, rows: Tensor, W: Tensor, columns: Tensor, *, backend: str = "auto") -> Tensor:
    """vectors[..., rows[i], :] . W[columns[i], :] for each i: [n] for vectors [T, d], [K, n] for vectors [K, T, d].

    Computed in float32, or in float64 if vectors is; each result depends on its own two rows only. Not differentiable.

    Args:
        vectors: [T, d] or [K, T, d].
        rows: [n] int64, a row of `vectors` per product.
        W: [F, d]. On a CPU, a W whose rows are not contiguous costs 25 to 50 times as much per product.
        columns: [n] int64, a row of W per product.
        backend: as for `sae_attribution`; "reference" means torch.

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

    The entries are a list as `sae_attribution` returns it; the sum of a token depends on its own entries only. Not
    differentiable.

    Args:
        token: [n] int64, ascending.
        feature: [n] int64, a row of W_dec per entry.
        acts: [n] the factor of that row.
        W_dec: [F, d].
        n_tokens: rows of the result; tokens without entries have zeros.
        backend: as for `sae_attribution`; "reference" means torch.

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
