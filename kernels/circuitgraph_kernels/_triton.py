"""Feature attribution on a GPU: screen in float16, refine in float32, no [tokens, d_sae] tensor but a mask of bits.

Without a GPU the same kernels run in Triton's interpreter.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from circuitgraph_kernels import _tiles
from circuitgraph_kernels import _triton_kernels as kernels
from circuitgraph_kernels import _triton_products as products
from circuitgraph_kernels._entries import Entries, Inputs, output_difference, top_k_entries
from circuitgraph_kernels._tiles import OPTIONS
from circuitgraph_kernels._triton_screen import Candidates, screened
from circuitgraph_kernels.weights import SaeWeights, floor, normalized_input, score_scale

# The mask of one block of tokens: 64 MiB, which is 11,000 tokens of two runs with 24,576 features.
MASK_BYTES = 1 << 26
DENSE_PAIRS = 1 << 24  # candidates of one block where nothing can be screened
ENTRIES_PER_STEP = 128  # of the sums over lists; part of the order of summation, so a constant
DTYPES = {torch.float32: tl.float32, torch.float64: tl.float64}


@dataclass(frozen=True, eq=False)
class PaddedEntries:
    """Entries in buffers of a fixed capacity; those from `n_active` on are undefined."""

    entries: Entries
    n_active: Tensor  # [] int64
    n_candidates: Tensor  # [1] int64; above the capacity means that entries were lost


def attribute(inputs: Inputs) -> Entries:
    """The attributions of `_reference.attribute`; waits for the GPU twice per block of tokens."""
    n_runs = 1 if inputs.baseline is None else 2
    step = max(1, MASK_BYTES * 8 // (n_runs * inputs.weights.d_sae))
    if inputs.weights.activation == "identity" or (inputs.weights.k or 0) > inputs.weights.d_sae // 32:
        step = max(1, DENSE_PAIRS // inputs.weights.d_sae)
    parts = [_nothing(inputs)]
    with torch.cuda.device_of(inputs.clean):
        for start in range(0, len(inputs.clean), step):
            padded = attribute_padded(inputs.of_tokens(slice(start, start + step)))
            parts.append(_first(padded.entries, int(padded.n_active), start))
    return Entries(*(torch.cat(column, dim=-1) for column in zip(*parts, strict=True)))


def attribute_padded(inputs: Inputs, capacity: int | None = None) -> PaddedEntries:
    """The same in buffers. With a capacity nothing waits for the GPU, so that a CUDA graph can capture the launches."""
    weights, gradient = inputs.weights, _rows(inputs.gradient)
    runs = [inputs.clean] if inputs.baseline is None else [inputs.clean, inputs.baseline]
    normalized = [normalized_input(_rows(run), weights) for run in runs]  # a norm of strided rows has other bits
    rows, scales = [_rows(each.x) for each in normalized], [each.scale for each in normalized]
    found = screened(rows, weights, capacity)
    clean, baseline, attribution = _refined(found, rows, scales, gradient, weights)

    size, n_tokens, n_gradients = len(found.token), len(inputs.clean), len(gradient)
    ends = ((clean != 0) | (baseline != 0)).cumsum(0)
    token, feature = (torch.empty(size, dtype=torch.int64, device=clean.device) for _ in range(2))
    out = [torch.empty_like(each) for each in (clean, baseline, attribution)]
    if size:
        products.compact[(triton.cdiv(size, ENTRIES_PER_STEP),)](
            found.token, found.feature, clean, baseline, attribution, ends, token, feature, *out,
            n_gradients, size, BP=ENTRIES_PER_STEP, **OPTIONS,
        )  # fmt: skip
    # candidates up to each token -> entries up to each token
    starts = torch.nn.functional.pad(ends, (1, 0))[torch.nn.functional.pad(found.ends, (1, 0)).clamp(max=size)]
    error = _token_errors(gradient, _rows(output_difference(inputs)), out[2], starts, n_tokens)
    return PaddedEntries(Entries(token, feature, out[0], out[1], out[2], error), starts[-1], found.total)


def decode_entries(starts: Tensor, feature: Tensor, acts: Tensor, W: Tensor) -> Tensor:
    """sum of acts * W[feature] over the entries start[t] to start[t + 1] of each token, [T, d]."""
    W, n_tokens, d = _rows(W), len(starts) - 1, W.shape[1]
    out = acts.new_empty(n_tokens, d)
    block = _tiles.depth_block(d)
    if n_tokens:
        with torch.cuda.device_of(acts):
            products.decode_rows[(n_tokens, triton.cdiv(d, block))](
                feature, acts, starts, W, out, d, W.stride(0), BP=_tiles.PAIRS, BD=block,
                DTYPE=DTYPES[out.dtype], **OPTIONS,
            )  # fmt: skip
    return out


def gather_dots(vectors: Tensor, rows: Tensor, W: Tensor, columns: Tensor) -> Tensor:
    """vectors[k, rows[i]] . W[columns[i]], [K, n]."""
    vectors, W = _rows(vectors), _rows(W)
    out = vectors.new_empty(len(vectors), len(rows))
    if out.numel():
        with torch.cuda.device_of(vectors):
            products.gather_dots[(triton.cdiv(len(rows), _tiles.PAIRS), len(vectors))](
                vectors, rows, W, columns, out, len(rows), W.shape[1], vectors.stride(0), vectors.stride(1),
                W.stride(0), BP=_tiles.PAIRS, BD=_tiles.depth_block(W.shape[1]), DTYPE=DTYPES[out.dtype], **OPTIONS,
            )  # fmt: skip
    return out


def _refined(
    found: Candidates, rows: list[Tensor], scales: list[Tensor | None], gradient: Tensor, weights: SaeWeights
) -> tuple[Tensor, Tensor, Tensor]:
    """Both activations [capacity] and the attributions [K, capacity] of the candidates, 0 where inactive."""
    size, clean = len(found.token), rows[0]
    acts = [clean.new_empty(size) for _ in range(2)]
    is_topk = weights.activation == "topk"
    delta = clean.new_empty(size if is_topk else 0)
    attribution = clean.new_empty(len(gradient), size)
    if size:
        W_enc, W_dec = weights.encoder_rows, weights.W_dec
        parameters = _activation_parameters(weights, clean.dtype)
        kernels.refine[(triton.cdiv(size, _tiles.PAIRS),)](
            found.token, found.feature, found.total,
            clean, rows[-1], W_enc, weights.b_enc, *parameters, *[clean if s is None else s for s in (scales * 2)[:2]],
            gradient, W_dec, *acts, delta, attribution,
            weights.d_in, weights.d_out, len(gradient), size,
            clean.stride(0), rows[-1].stride(0), W_enc.stride(0),
            gradient.stride(0), gradient.stride(1), W_dec.stride(0),
            ACTIVATION=weights.activation if weights.activation in ("topk", "identity", "gated") else "threshold",
            RUNS=len(rows), SCALED=scales[0] is not None, DTYPE=DTYPES[clean.dtype], BP=_tiles.PAIRS,
            BD_IN=_tiles.depth_block(weights.d_in), BD_OUT=_tiles.depth_block(weights.d_out),
            **_tiles.refine_options(clean.dtype),
        )  # fmt: skip
    if is_topk:
        acts, attribution = _largest(found, acts, delta, attribution, weights, len(clean), scales)
    return acts[0], acts[1], attribution


def _largest(
    found: Candidates,
    pre_acts: list[Tensor],
    delta: Tensor,
    dots: Tensor,
    weights: SaeWeights,
    n_tokens: int,
    scales: list[Tensor | None],
) -> tuple[list[Tensor], Tensor]:
    """topk: the activations among all candidates of each token, and the attributions."""
    n_runs = len(scales)
    assert weights.k is not None
    defined = torch.arange(len(delta), device=delta.device) < found.total
    token = torch.where(defined, found.token, n_tokens).long()  # what is undefined belongs to a token behind the last
    feature = torch.where(defined, found.feature, 0).long()
    scale = score_scale(weights, feature, delta.dtype)
    active = [top_k_entries(token, pre * scale, weights.k, n_tokens + 1) & defined for pre in pre_acts[:n_runs]]
    active += [torch.zeros_like(defined)] * (2 - n_runs)
    acts = [torch.where(mask, pre, 0.0) for mask, pre in zip(active, pre_acts, strict=True)]
    both = active[0] & active[1]
    for run, scale_of_row in enumerate(scales):
        if scale_of_row is not None:
            acts[run] = acts[run] * scale_of_row[token.clamp(max=n_tokens - 1)]
            both = torch.zeros_like(both)
    delta = torch.where(both, delta, acts[0] - acts[1])
    return acts, torch.where(active[0] | active[1], dots * delta, 0.0)


def _activation_parameters(weights: SaeWeights, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """What `activated` reads per feature: the level to exceed, or b_gate, exp(r_mag) and b_mag."""
    if weights.activation == "gated":
        assert weights.b_gate is not None and weights.r_mag is not None and weights.b_mag is not None
        return weights.b_gate.to(dtype), weights.r_mag.to(dtype).exp(), weights.b_mag.to(dtype)
    level = torch.zeros(weights.d_sae, dtype=dtype, device=weights.W_enc.device)
    if weights.threshold is not None:
        level += floor(weights, slice(None), dtype)
    return level, level, level


def _token_errors(gradient: Tensor, difference: Tensor, attribution: Tensor, starts: Tensor, n_tokens: int) -> Tensor:
    n_gradients, d_out = len(gradient), difference.shape[1]
    error = difference.new_empty(n_gradients, n_tokens)
    products.token_errors[(n_tokens, n_gradients)](
        gradient, difference, attribution, starts, error,
        d_out, n_tokens, gradient.stride(0), gradient.stride(1), difference.stride(0), attribution.stride(0),
        BD=_tiles.depth_block(d_out), BN=ENTRIES_PER_STEP, DTYPE=DTYPES[error.dtype], **OPTIONS,
    )  # fmt: skip
    return error


def _first(entries: Entries, n: int, start: int) -> Entries:
    """The first n entries of a block of tokens that begins at `start`."""
    token, feature, clean, baseline, attribution, error = entries
    return Entries(token[:n] + start, feature[:n], clean[:n], baseline[:n], attribution[:, :n], error)


def _nothing(inputs: Inputs) -> Entries:
    """The lists of no tokens."""
    index = torch.zeros(0, dtype=torch.int64, device=inputs.clean.device)
    values, many = inputs.clean.new_zeros(0), inputs.clean.new_zeros(len(inputs.gradient), 0)
    return Entries(index, index, values, values, many, many)


def _rows(x: Tensor) -> Tensor:
    """x with neighbouring elements of a row next to each other in memory."""
    return x if x.stride(-1) == 1 else x.contiguous()
