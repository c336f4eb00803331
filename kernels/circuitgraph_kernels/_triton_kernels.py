"""The Triton kernels of feature attribution up to the refine: round, screen, count, expand, refine.

Each docstring says what the kernel writes. Names: i_ program index, o_ offsets, m_ mask, p_ pointer, b_ block, UPPER
compile-time constant.

Determinism: no atomics; a number depends on its own rows only, and the order of its sum on the constants alone. Row
indices are widened before they are multiplied with a stride, so that no offset wraps at 2^31.
"""

from __future__ import annotations

import triton
import triton.language as tl

WORD = tl.constexpr(32)  # features per word of the mask
# The bounds of the screen are themselves rounded: enlarged by 2^-10 they still hold (sums of up to 2^13 squares).
ENLARGED = tl.constexpr(1.0 + 2.0**-10)
UNDERFLOWN = tl.constexpr(2.0**-40)


@triton.jit
def at_row(i_row, stride):
    """Offset of a row, in 64 bits."""
    return i_row.to(tl.int64) * stride


@triton.jit
def round_rows(p_x, p_rounded, p_power, p_norm, p_missed, n_rows, d, stride, stride_rounded, BD: tl.constexpr):
    """One row of x as float16 times a power of two, padded with zeros, and bounds on what that loses; rows from n_rows
    on are zeros.

    rounded = float16(x * power), norm >= |x * power|, missed >= |x * power - rounded|; power puts the largest element
    between 2^14 and 2^15. UNDERFLOWN stands for squares too small for float32. A row that holds NaN or Inf, or is too
    large even so, gets a NaN or Inf bound.
    """
    i_row = tl.program_id(0)
    d = tl.where(i_row < n_rows, d, 0)
    p_x += at_row(i_row, stride)
    p_rounded += at_row(i_row, stride_rounded)
    o_d = tl.arange(0, BD)

    b_largest = tl.zeros([BD], dtype=tl.float32)
    for start in range(0, d, BD):
        b_x = tl.load(p_x + start + o_d, mask=start + o_d < d, other=0.0)
        b_largest = tl.maximum(b_largest, tl.abs(b_x).to(tl.float32))
    largest = tl.max(b_largest, axis=0)
    exponent = ((largest.to(tl.int32, bitcast=True) >> 23) & 0xFF) - 127
    shift = tl.minimum(tl.maximum(14 - exponent, -126), 60)
    power = ((shift + 127) << 23).to(tl.float32, bitcast=True)

    b_norm = tl.zeros([BD], dtype=tl.float32)
    b_missed = tl.zeros([BD], dtype=tl.float32)
    for start in range(0, stride_rounded, BD):
        b_x = tl.load(p_x + start + o_d, mask=start + o_d < d, other=0.0) * power
        b_rounded = b_x.to(tl.float16)
        b_gap = (b_x - b_rounded.to(b_x.dtype)).to(tl.float32)
        b_norm += b_x.to(tl.float32) * b_x.to(tl.float32)
        b_missed += b_gap * b_gap
        tl.store(p_rounded + start + o_d, b_rounded, mask=start + o_d < stride_rounded)
    tl.store(p_power + i_row, power)
    tl.store(p_norm + i_row, tl.sqrt(tl.sum(b_norm, axis=0)) * ENLARGED + UNDERFLOWN)
    tl.store(p_missed + i_row, tl.sqrt(tl.sum(b_missed, axis=0)) * ENLARGED + UNDERFLOWN)


@triton.jit
def screen(
    p_x, p_power, p_norm, p_missed, p_tau,  # rows
    p_w, p_limit, p_spread, p_width, p_scale, p_bias,  # features
    p_out, n_row_tiles, n_features, stride_out,
    D: tl.constexpr, BM: tl.constexpr, BF: tl.constexpr, BK: tl.constexpr, MODE: tl.constexpr,
):  # fmt: skip
    """Which features can be active at which rows, from one float16 product; every operand is padded to whole tiles.

    With margin = norm[r] * spread[f] + missed[r] * width[f], never less than the error of this product and of the
    refined one together:

    MODE "mask":  bit f of out [rows, words] = not (product + margin < power[r] * limit[f]), so set for a NaN
    MODE "rank":  the same for score >= tau[r], score = product / power[r] * scale[f] + bias[f]
    MODE "group": out [rows, words] = the largest (score - its margin) of each 32 features
    """
    # consecutive programs share a tile of W: it is read once and stays in L2 for all rows
    i_program = tl.program_id(0)
    i_m, i_f = i_program % n_row_tiles, i_program // n_row_tiles
    o_m, o_f, o_k = i_m * BM + tl.arange(0, BM), i_f * BF + tl.arange(0, BF), tl.arange(0, BK)

    p_x += at_row(o_m, D)[:, None] + o_k[None, :]
    p_w += at_row(o_f, D)[None, :] + o_k[:, None]
    b_product = tl.zeros([BM, BF], dtype=tl.float32)
    for _ in range(0, D, BK):
        b_product = tl.dot(tl.load(p_x), tl.load(p_w), b_product, input_precision="ieee")
        p_x += BK
        p_w += BK

    b_margin = tl.load(p_norm + o_m)[:, None] * tl.load(p_spread + o_f)[None, :]
    b_margin += tl.load(p_missed + o_m)[:, None] * tl.load(p_width + o_f)[None, :]
    b_power = tl.load(p_power + o_m)[:, None]
    o_words = i_f * (BF // WORD) + tl.arange(0, BF // WORD)
    p_out += at_row(o_m, stride_out)[:, None] + o_words[None, :]
    if MODE == "mask":
        b_lost = b_product + b_margin < b_power * tl.load(p_limit + o_f)[None, :]
    else:
        b_scale, b_bias = tl.load(p_scale + o_f)[None, :] / b_power, tl.load(p_bias + o_f)[None, :]
        if MODE == "group":
            b_low = (b_product - b_margin) * b_scale + b_bias
            tl.store(p_out, tl.max(tl.reshape(b_low, [BM, BF // WORD, WORD]), axis=2))
            return
        b_lost = (b_product + b_margin) * b_scale + b_bias < tl.load(p_tau + o_m)[:, None]
    b_lost = b_lost | (o_f >= n_features)[None, :]
    b_bits = tl.where(b_lost, 0, 1) << (o_f % WORD)[None, :]
    tl.store(p_out, tl.sum(tl.reshape(b_bits, [BM, BF // WORD, WORD]), axis=2))


@triton.jit
def union_bits(p_mask, i_token, n_tokens, stride, o_words, n_words, RUNS: tl.constexpr):
    """[words, 32] 0 or 1: the features of these words that one token's rows (clean, then baseline) let pass."""
    b_words = tl.load(p_mask + at_row(i_token, stride) + o_words, mask=o_words < n_words, other=0)
    if RUNS == 2:
        b_words |= tl.load(p_mask + at_row(i_token + n_tokens, stride) + o_words, mask=o_words < n_words, other=0)
    return (b_words[:, None] >> tl.arange(0, WORD)[None, :]) & 1


@triton.jit
def count(p_mask, p_counts, n_tokens, n_words, stride, RUNS: tl.constexpr, BW: tl.constexpr):
    """counts [tokens, tiles] int32: candidates of one token in one tile of BW words."""
    i_token, i_tile = tl.program_id(0), tl.program_id(1)
    o_words = i_tile * BW + tl.arange(0, BW)
    b_bits = union_bits(p_mask, i_token, n_tokens, stride, o_words, n_words, RUNS)
    tl.store(p_counts + at_row(i_token, tl.num_programs(1)) + i_tile, tl.sum(tl.sum(b_bits, axis=1), axis=0))


@triton.jit
def expand(
    p_mask, p_ends, p_token, p_feature, n_tokens, n_words, stride, capacity, RUNS: tl.constexpr, BW: tl.constexpr
):
    """token, feature [capacity] int32 of every candidate, in order; ends [tokens, tiles] is the running sum of `count`.

    Candidates beyond the capacity are not written: the caller compares the last end with it.
    """
    i_token, i_tile = tl.program_id(0), tl.program_id(1)
    o_words = i_tile * BW + tl.arange(0, BW)
    b_bits = union_bits(p_mask, i_token, n_tokens, stride, o_words, n_words, RUNS)
    b_of_word = tl.sum(b_bits, axis=1)
    b_before = tl.cumsum(b_of_word, axis=0) - b_of_word  # candidates in the words before
    b_place = b_before[:, None] + tl.cumsum(b_bits, axis=1) - b_bits
    end = tl.load(p_ends + at_row(i_token, tl.num_programs(1)) + i_tile)
    b_place = b_place + (end - tl.sum(b_of_word, axis=0))
    b_feature = o_words[:, None] * WORD + tl.arange(0, WORD)[None, :]
    m_place = (b_bits == 1) & (b_place < capacity)
    tl.store(p_token + b_place, tl.zeros_like(b_feature) + i_token, mask=m_place)
    tl.store(p_feature + b_place, b_feature, mask=m_place)


@triton.jit
def row_dots(p_x, p_w, d, m_pair, BP: tl.constexpr, BD: tl.constexpr, DTYPE: tl.constexpr):
    """[BP] dot products of the rows at p_x and p_w [BP], in DTYPE, in an order that only BD decides."""
    o_d = tl.arange(0, BD)
    b_sum = tl.zeros([BP, BD], dtype=DTYPE)
    for start in range(0, d, BD):
        m_tile = m_pair[:, None] & (start + o_d < d)[None, :]
        b_x = tl.load(p_x[:, None] + start + o_d[None, :], mask=m_tile, other=0.0).to(DTYPE)
        b_w = tl.load(p_w[:, None] + start + o_d[None, :], mask=m_tile, other=0.0).to(DTYPE)
        b_sum = tl.fma(b_x, b_w, b_sum)
    return tl.sum(b_sum, axis=1)


@triton.jit
def activated(b_linear, p_first, p_second, p_third, o_feature, m_pair, ACTIVATION: tl.constexpr, DTYPE: tl.constexpr):
    """Activations [BP] of linear = x' . w + b_enc, 0 where inactive; formulas in weights.SaeWeights.

    first, second, third: what h must exceed (threshold kinds), or b_gate, exp(r_mag), b_mag (gated).
    """
    b_first = tl.load(p_first + o_feature, mask=m_pair, other=0.0).to(DTYPE)
    if ACTIVATION == "gated":
        b_scale = tl.load(p_second + o_feature, mask=m_pair, other=0.0).to(DTYPE)
        b_acts = b_linear * b_scale + tl.load(p_third + o_feature, mask=m_pair, other=0.0).to(DTYPE)
        b_active = (b_linear + b_first > 0) & (b_acts > 0)
    else:
        b_acts = b_linear
        b_active = b_linear > b_first
    return tl.where(b_active, b_acts, 0.0)


@triton.jit
def refine(
    p_token, p_feature, p_total,
    p_clean, p_baseline, p_W_enc, p_b_enc, p_first, p_second, p_third, p_clean_scale, p_baseline_scale,
    p_gradient, p_W_dec,
    p_clean_acts, p_baseline_acts, p_delta, p_attribution,
    d_in, d_out, n_gradients, capacity,
    stride_clean, stride_baseline, stride_W_enc, stride_gradient_k, stride_gradient, stride_W_dec,
    ACTIVATION: tl.constexpr, RUNS: tl.constexpr, SCALED: tl.constexpr, DTYPE: tl.constexpr,
    BP: tl.constexpr, BD_IN: tl.constexpr, BD_OUT: tl.constexpr,
):  # fmt: skip
    """Exact activations of BP candidates and, in the same pass, their attributions; 0 beyond the total.

    clean_acts, baseline_acts [capacity]; attribution [K, capacity] = delta * (gradient . W_dec). Where both runs are
    active delta comes from (x_clean - x_baseline) . w: the difference of two nearly equal activations would keep only
    their rounding errors. ACTIVATION "topk" needs all candidates of a token: acts are then h, delta [capacity] is
    h_clean - h_baseline, and attribution is the bare dot product.
    """
    i_block = tl.program_id(0)
    o_pair = i_block.to(tl.int64) * BP + tl.arange(0, BP)
    total = tl.minimum(tl.load(p_total), capacity)
    m_write = o_pair < capacity
    if i_block.to(tl.int64) * BP >= total:
        tl.store(p_clean_acts + o_pair, tl.zeros([BP], dtype=DTYPE), mask=m_write)
        tl.store(p_baseline_acts + o_pair, tl.zeros([BP], dtype=DTYPE), mask=m_write)
        return
    m_pair = o_pair < total
    o_token = tl.load(p_token + o_pair, mask=m_pair, other=0)
    o_feature = tl.load(p_feature + o_pair, mask=m_pair, other=0)

    o_d = tl.arange(0, BD_IN)
    p_x = p_clean + at_row(o_token, stride_clean)
    p_y = p_baseline + at_row(o_token, stride_baseline)
    p_w = p_W_enc + at_row(o_feature, stride_W_enc)
    b_clean = tl.zeros([BP, BD_IN], dtype=DTYPE)
    b_baseline = tl.zeros([BP, BD_IN], dtype=DTYPE)
    b_change = tl.zeros([BP, BD_IN], dtype=DTYPE)
    for start in range(0, d_in, BD_IN):
        m_tile = m_pair[:, None] & (start + o_d < d_in)[None, :]
        b_w = tl.load(p_w[:, None] + start + o_d[None, :], mask=m_tile, other=0.0).to(DTYPE)
        b_x = tl.load(p_x[:, None] + start + o_d[None, :], mask=m_tile, other=0.0)
        b_clean = tl.fma(b_x, b_w, b_clean)
        if RUNS == 2:
            b_y = tl.load(p_y[:, None] + start + o_d[None, :], mask=m_tile, other=0.0)
            b_baseline = tl.fma(b_y, b_w, b_baseline)
            b_change = tl.fma(b_x - b_y, b_w, b_change)

    b_bias = tl.load(p_b_enc + o_feature, mask=m_pair, other=0.0).to(DTYPE)
    b_clean_acts = tl.sum(b_clean, axis=1) + b_bias
    b_baseline_acts = tl.zeros([BP], dtype=DTYPE)
    b_delta = tl.sum(b_change, axis=1)
    if RUNS == 2:
        b_baseline_acts = tl.sum(b_baseline, axis=1) + b_bias
    if ACTIVATION == "topk" or ACTIVATION == "identity":
        if RUNS == 1:
            b_delta = b_clean_acts
    else:
        b_clean_acts = activated(b_clean_acts, p_first, p_second, p_third, o_feature, m_pair, ACTIVATION, DTYPE)
        if RUNS == 2:
            b_baseline_acts = activated(
                b_baseline_acts, p_first, p_second, p_third, o_feature, m_pair, ACTIVATION, DTYPE
            )
        if ACTIVATION == "gated":
            b_delta *= tl.load(p_second + o_feature, mask=m_pair, other=0.0).to(DTYPE)
        m_both = (b_clean_acts != 0) & (b_baseline_acts != 0)
        b_delta = tl.where(m_both, b_delta, b_clean_acts - b_baseline_acts)
    if SCALED and ACTIVATION != "topk":  # there the ranks come first
        b_clean_acts *= tl.load(p_clean_scale + o_token, mask=m_pair, other=0.0)
        if RUNS == 2:
            b_baseline_acts *= tl.load(p_baseline_scale + o_token, mask=m_pair, other=0.0)
        b_delta = b_clean_acts - b_baseline_acts
    b_clean_acts = tl.where(m_pair, b_clean_acts, 0.0)
    b_baseline_acts = tl.where(m_pair, b_baseline_acts, 0.0)
    tl.store(p_clean_acts + o_pair, b_clean_acts, mask=m_write)
    tl.store(p_baseline_acts + o_pair, b_baseline_acts, mask=m_write)
    if ACTIVATION == "topk":
        tl.store(p_delta + o_pair, b_delta, mask=m_write)

    p_w = p_W_dec + at_row(o_feature, stride_W_dec)
    p_g = p_gradient + at_row(o_token, stride_gradient)
    p_out = p_attribution + o_pair
    for _ in range(0, n_gradients):
        b_dot = row_dots(p_g, p_w, d_out, m_pair, BP, BD_OUT, DTYPE)
        if ACTIVATION != "topk":
            b_dot *= b_delta
        tl.store(p_out, b_dot, mask=m_write)
        p_g += stride_gradient_k
        p_out += capacity
