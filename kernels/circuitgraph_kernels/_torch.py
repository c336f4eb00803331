"""Feature attribution in plain PyTorch without a [tokens, d_sae] tensor: the backend for every device.

In come two runs, gradients and weights; out come the attributions of all active features and of the error node.
This module does not check the values of its inputs and does not know what was asked for besides them.
"""

from __future__ import annotations

import logging
from functools import lru_cache

import torch
from torch import Tensor

from circuitgraph_kernels._reference import Entries, Inputs
from circuitgraph_kernels.weights import SaeWeights, activate, center, compute_dtype

logger = logging.getLogger(__name__)

# Features per product. CPU time is flat from 2048 to 8192 (README); the buffer of 160 token pairs stays in cache.
COLUMNS = 4096
# Pre-activations held at once: 32 MiB in float32. topk needs whole rows, so it takes fewer tokens at a time.
BUFFER_ELEMENTS = 1 << 23
# Gathered elements per block where the native gather-dot cannot be used: 0.5 MiB in float32, twice. Four times as
# many cost three times the CPU time.
GATHER_ELEMENTS = 1 << 17


def attribute(inputs: Inputs) -> Entries:
    """The attributions of `_reference.attribute`, from one product per run and one gather-dot per gradient.

    The decoder is affine, so error = gradient . (x_clean - x_baseline) - sum of the token's attributions, and
    no reconstruction is needed; with a zero baseline, where the error is zero too, x_baseline becomes b_dec.
    """
    weights = inputs.weights
    token, feature, clean_acts, baseline_acts = _active_entries(inputs)
    delta_acts = clean_acts - baseline_acts
    other = weights.b_dec.to(inputs.clean_out.dtype) if inputs.baseline_out is None else inputs.baseline_out
    delta_out = inputs.clean_out - other

    attributions, errors, sums = [], [], []
    for gradient in inputs.gradient:  # one at a time: each gives the same bits as a call with it alone
        attribution = delta_acts * _gather_dot(gradient, token, weights.W_dec, feature)
        total = (gradient * delta_out).sum(dim=-1)
        attributions.append(attribution)
        errors.append(total - _sum_by(token, attribution, len(total)))
        if inputs.want_sum:
            sums.append(_sum_by(feature, attribution, weights.d_sae))
    feature_sum = torch.stack(sums) if sums else None
    return Entries(
        token, feature, clean_acts, baseline_acts, torch.stack(attributions), torch.stack(errors), feature_sum
    )


def gather_dot(vectors: Tensor, rows: Tensor, W: Tensor, columns: Tensor) -> Tensor:
    """vectors[..., rows[i], :] . W[columns[i], :] for each i: [n] for vectors [T, d], [K, n] for vectors [K, T, d].

    rows [n] and columns [n] are int64, W is [F, d]. The gathered rows are never held as a whole. Computed in float32,
    or in float64 if vectors is; each result depends on its own two rows only. A W whose rows are not contiguous costs
    about fifty times as much per pair. Not differentiable.
    Raises ValueError for a shape that does not fit, an index out of range, or tensors on different devices.
    """
    _check_gather(vectors, rows, W, columns)
    with torch.no_grad():
        vectors = vectors.to(compute_dtype(vectors.dtype))
        if vectors.ndim == 2:
            return _gather_dot(vectors, rows, W, columns)
        dots = [_gather_dot(each, rows, W, columns) for each in vectors]
        return torch.stack(dots) if dots else vectors.new_zeros((0, len(rows)))


def _active_entries(inputs: Inputs) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """token, feature and both activations of every feature active in either run, tokens then features ascending."""
    weights = inputs.weights
    runs = inputs.clean[None] if inputs.baseline is None else torch.stack((inputs.clean, inputs.baseline))
    n_columns = weights.d_sae if weights.activation == "topk" else min(COLUMNS, weights.d_sae)
    n_rows = max(1, min(runs.shape[1], BUFFER_ELEMENTS // (len(runs) * n_columns)))
    buffer = torch.empty(len(runs) * n_rows * n_columns, dtype=runs.dtype, device=runs.device)

    found = []
    runs = center(runs, weights)
    for rows in _slices(runs.shape[1], n_rows):
        block = runs[:, rows]
        parts = [_block_entries(block, weights, columns, buffer) for columns in _slices(weights.d_sae, n_columns)]
        token, feature, *acts = (torch.cat(column) for column in zip(*parts, strict=True))
        token, order = torch.sort(token, stable=True)  # stable: features stay ascending within a token
        found.append((token + rows.start, feature[order], acts[0][order], acts[1][order]))
    if not found:
        nothing = torch.zeros(0, dtype=torch.int64, device=runs.device)
        return nothing, nothing, runs.new_zeros(0), runs.new_zeros(0)
    token, feature, clean_acts, baseline_acts = (torch.cat(column) for column in zip(*found, strict=True))
    return token, feature, clean_acts, baseline_acts


def _block_entries(
    block: Tensor, weights: SaeWeights, columns: slice, buffer: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The entries of one block of tokens [runs, rows, d_in] and one slice of features."""
    n_runs, n_rows, d_in = block.shape
    W_enc = weights.W_enc[:, columns].to(block.dtype)
    shape = (n_runs * n_rows, W_enc.shape[1])
    linear = buffer[: shape[0] * shape[1]].view(shape)
    torch.addmm(weights.b_enc[columns].to(block.dtype), block.reshape(-1, d_in), W_enc, out=linear)

    pre_acts, active = (flat.view(n_runs, n_rows, -1) for flat in activate(linear, weights, columns))
    union = active[0] if n_runs == 1 else active[0] | active[1]
    token, column = union.nonzero(as_tuple=True)
    acts = torch.where(active[:, token, column], pre_acts[:, token, column], 0.0)
    return token, column + (columns.start or 0), acts[0], acts[1] if n_runs == 2 else torch.zeros_like(acts[0])


def _slices(total: int, step: int) -> list[slice]:
    return [slice(start, min(start + step, total)) for start in range(0, total, step)]


def _sum_by(group: Tensor, values: Tensor, n_groups: int) -> Tensor:
    """Sum of the values of each group, in list order on every device."""
    sums = values.new_zeros(n_groups)
    if values.is_cuda:  # index_add_ is atomic there; index_put_ sorts
        return sums.index_put_((group,), values, accumulate=True)
    return sums.index_add_(0, group, values)


def _gather_dot(vectors: Tensor, rows: Tensor, W: Tensor, columns: Tensor) -> Tensor:
    if len(rows) == 0:
        return vectors.new_zeros(0)
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
        for part in _slices(len(rows), max(1, GATHER_ELEMENTS // vectors.shape[-1]))
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


def _check_gather(vectors: Tensor, rows: Tensor, W: Tensor, columns: Tensor) -> None:
    if vectors.ndim not in (2, 3) or W.ndim != 2 or vectors.shape[-1] != W.shape[1]:
        shapes = f"{tuple(vectors.shape)} and {tuple(W.shape)}"
        raise ValueError(f"gather_dot: vectors and W have shapes {shapes}, expected [T, d] or [K, T, d] and [F, d]")
    if compute_dtype(vectors.dtype) != compute_dtype(W.dtype):
        raise ValueError(f"gather_dot: vectors is {vectors.dtype} and W is {W.dtype}, convert one of them")
    for name, index, size in (("rows", rows, vectors.shape[-2]), ("columns", columns, W.shape[0])):
        if index.dtype != torch.int64 or index.shape != (len(rows),):
            shape = f"{index.dtype} of shape {tuple(index.shape)}"
            raise ValueError(f"gather_dot: {name} is {shape}, expected torch.int64 of shape [n], n the same for both")
        low, high = (int(index.min()), int(index.max())) if len(index) else (0, 0)
        if low < 0 or high >= max(size, 1):
            raise ValueError(f"gather_dot: {name} spans {low} to {high}, expected 0 to {size - 1}")
    devices = {str(tensor.device) for tensor in (vectors, rows, W, columns)}
    if len(devices) > 1:
        raise ValueError(f"gather_dot: tensors are on {', '.join(sorted(devices))}, expected one device")
