"""The Triton kernels over finished lists: compact, errors, decoding, and dot products of chosen rows.

Names, widths and determinism are those of `_triton_kernels`. The sum over the entries of a token starts at its first
entry, so that it does not depend on what else is in the list.
"""

from __future__ import annotations

import triton
import triton.language as tl

from circuitgraph_kernels._triton_kernels import at_row, row_dots


@triton.jit
def compact(
    p_token, p_feature, p_clean, p_baseline, p_attribution, p_ends,
    p_out_token, p_out_feature, p_out_clean, p_out_baseline, p_out_attribution,
    n_gradients, capacity, BP: tl.constexpr,
):  # fmt: skip
    """The entries that are active in either run, in order; ends [capacity] is the running count of them."""
    o_pair = tl.program_id(0).to(tl.int64) * BP + tl.arange(0, BP)
    m_pair = o_pair < capacity
    b_clean = tl.load(p_clean + o_pair, mask=m_pair, other=0.0)
    b_baseline = tl.load(p_baseline + o_pair, mask=m_pair, other=0.0)
    m_kept = m_pair & ((b_clean != 0) | (b_baseline != 0))
    o_place = tl.load(p_ends + o_pair, mask=m_pair, other=1) - 1
    tl.store(p_out_clean + o_place, b_clean, mask=m_kept)
    tl.store(p_out_baseline + o_place, b_baseline, mask=m_kept)
    tl.store(p_out_token + o_place, tl.load(p_token + o_pair, mask=m_kept, other=0).to(tl.int64), mask=m_kept)
    tl.store(p_out_feature + o_place, tl.load(p_feature + o_pair, mask=m_kept, other=0).to(tl.int64), mask=m_kept)
    for _ in range(0, n_gradients):
        b_attribution = tl.load(p_attribution + o_pair, mask=m_kept, other=0.0)
        tl.store(p_out_attribution + o_place, b_attribution, mask=m_kept)
        p_attribution += capacity
        p_out_attribution += capacity


@triton.jit
def token_errors(
    p_gradient, p_difference, p_attribution, p_starts, p_error,
    d_out, n_tokens, stride_gradient_k, stride_gradient, stride_difference, stride_attribution,
    BD: tl.constexpr, BN: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """error [K, tokens] = gradient . difference - the sum of the token's attributions."""
    i_token, i_gradient = tl.program_id(0), tl.program_id(1)
    o_d = tl.arange(0, BD)
    p_g = p_gradient + at_row(i_gradient, stride_gradient_k) + at_row(i_token, stride_gradient)
    p_y = p_difference + at_row(i_token, stride_difference)
    b_sum = tl.zeros([BD], dtype=DTYPE)
    for start in range(0, d_out, BD):
        m_d = start + o_d < d_out
        b_g = tl.load(p_g + start + o_d, mask=m_d, other=0.0)
        b_sum = tl.fma(b_g, tl.load(p_y + start + o_d, mask=m_d, other=0.0), b_sum)
    p_values = p_attribution + at_row(i_gradient, stride_attribution)
    b_explained = tl.zeros([BN], dtype=DTYPE)
    start, end = tl.load(p_starts + i_token), tl.load(p_starts + i_token + 1)
    for first in range(start, end, BN):
        o_entry = first + tl.arange(0, BN)
        b_explained += tl.load(p_values + o_entry, mask=o_entry < end, other=0.0)
    error = tl.sum(b_sum, axis=0) - tl.sum(b_explained, axis=0)
    tl.store(p_error + at_row(i_gradient, n_tokens) + i_token, error)


@triton.jit
def decode_rows(
    p_feature, p_acts, p_starts, p_W, p_out, d, stride_W, BP: tl.constexpr, BD: tl.constexpr, DTYPE: tl.constexpr
):
    """out [tokens, d] = sum over the token's entries of acts * W[feature]; each row of W is read once per entry."""
    i_token, i_d = tl.program_id(0), tl.program_id(1)
    o_d = i_d * BD + tl.arange(0, BD)
    m_d = o_d < d
    start, end = tl.load(p_starts + i_token), tl.load(p_starts + i_token + 1)
    b_sum = tl.zeros([BP, BD], dtype=DTYPE)
    for first in range(start, end, BP):
        o_entry = first + tl.arange(0, BP)
        m_entry = o_entry < end
        o_feature = tl.load(p_feature + o_entry, mask=m_entry, other=0)
        b_acts = tl.load(p_acts + o_entry, mask=m_entry, other=0.0)
        p_rows = p_W + at_row(o_feature, stride_W)[:, None] + o_d[None, :]
        b_W = tl.load(p_rows, mask=m_entry[:, None] & m_d[None, :], other=0.0).to(DTYPE)
        b_sum = tl.fma(tl.broadcast_to(b_acts[:, None], [BP, BD]), b_W, b_sum)
    tl.store(p_out + at_row(i_token, d) + o_d, tl.sum(b_sum, axis=0), mask=m_d)


@triton.jit
def gather_dots(
    p_vectors, p_rows, p_W, p_columns, p_out, n, d, stride_vectors_k, stride_vectors, stride_W,
    BP: tl.constexpr, BD: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """out [K, n] = vectors[k, rows[i]] . W[columns[i]]."""
    i_block, i_k = tl.program_id(0), tl.program_id(1)
    o_pair = i_block.to(tl.int64) * BP + tl.arange(0, BP)
    m_pair = o_pair < n
    p_x = p_vectors + at_row(i_k, stride_vectors_k)
    p_x += at_row(tl.load(p_rows + o_pair, mask=m_pair, other=0), stride_vectors)
    p_w = p_W + at_row(tl.load(p_columns + o_pair, mask=m_pair, other=0), stride_W)
    b_dot = row_dots(p_x, p_w, d, m_pair, BP, BD, DTYPE)
    tl.store(p_out + at_row(i_k, n) + o_pair, b_dot, mask=m_pair)
