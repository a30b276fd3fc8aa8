"""Passes 4 to 6: momentum, its surprise, the size of the final update, and the small state.

The final update is m / sqrt(S) with signs turned or dropped by a factor f per element, so its size
follows like that of u: z_j = sum_i (m_ij f_ij)^2 / S_i is summed while S_i is at hand.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .codes import load_mean, load_moment
from .columns import (
    A_GAIN,
    A_R,
    A_RATE,
    A_S,
    A_SPACE,
    B_C,
    B_S,
    B_SPACE,
    CHUNK_SUMS,
    H_EPS0,
    H_EPS1,
    H_FREQUENCY,
    H_MASK,
    H_NOW,
    H_OWN,
    H_W2,
    H_W3,
    HYPER,
    NUMBERS,
    PARTIALS,
    T_BATCH,
    T_BLOCK,
    T_C,
    T_C_SCALE,
    T_CODED,
    T_COL_AT,
    T_COLS,
    T_FACTORED,
    T_G_KIND,
    T_GROUP,
    T_HEIGHT,
    T_M,
    T_M_ERROR,
    T_M_SCALE,
    T_M_ZERO,
    T_MASK,
    T_MATRIX,
    T_MEANS,
    T_NUMEL,
    T_PART_AT,
    T_R,
    T_R_SCALE,
    T_ROW_AT,
    T_ROWS,
    T_S,
    T_S_SCALE,
    T_SC,
    T_SC_SCALE,
    T_SCALE_AT,
    T_SIDE,
    T_SPACE,
    T_SPACE_SCALE,
    T_SR,
    T_SR_SCALE,
    T_TILE,
    T_TILES,
    T_V,
    T_V_SCALE,
    T_WIDTH,
    TILE_SUMS,
    WIDTH,
    X_AGREE,
    X_DEV,
    X_MU,
    X_OUT,
    X_RATE,
    X_S,
    X_SPACE,
    Y_OUT,
    Y_SPACE,
    Z_ABS,
    Z_CLIP,
    Z_DAMP,
    Z_GP,
    Z_OK,
    Z_VOTE,
)
from .device import lerp, load_vector, only
from .element import (
    boost,
    clamped,
    element_mask,
    leaning,
    look,
    mixture,
    multiplier,
    rate_of,
    row_counter,
    times,
    turned,
)


@triton.jit
def update_of(x, row_factor, col_factor, clip):
    """Update of unit size, clipped (``factored_rsqrt``, ``rms_clip``)."""
    return ((x * row_factor) * col_factor) * clip


@triton.jit
def surprise(
    TAB,
    HYP,
    DYN,
    TILES,
    MAP,
    TABLE,
    ROWS,
    COLS,
    PART,
    X,
    Z,
    MEANS,
    MEAN,
    FACTOR,
    LR,
    SCALE,
    SCALES,
    WEIGHTS,
    RANKS,
    G_KIND: tl.constexpr,
    CODE: tl.constexpr,
    ERROR: tl.constexpr,
    LOG: tl.constexpr,
    SCALED: tl.constexpr,
    PICTURE: tl.constexpr,
    ROW_MASK: tl.constexpr,
    IMPROVED: tl.constexpr,
    MULTIPLIED: tl.constexpr,
    NS: tl.constexpr,
    RANKED: tl.constexpr,
    BR: tl.constexpr,
    BC: tl.constexpr,
):
    """Pass 4, a program per band of rows: rows of S, mask, rates, partial column sums of the surprise."""
    tile = tl.program_id(0)
    t, k = tl.load(TILES + 4 * tile), tl.load(TILES + 4 * tile + 1).to(tl.int32)
    first, last = tl.load(TILES + 4 * tile + 2).to(tl.int32), tl.load(TILES + 4 * tile + 3).to(tl.int32)
    tab = TAB + t * WIDTH
    group = tl.load(tab + T_GROUP)
    hyp = HYP + group * HYPER
    z = Z + t * NUMBERS
    good = tl.load(z + Z_OK) != 0
    g, mean = tl.load(DYN + t), tl.load(tab + T_M)
    g_kind = tl.load(tab + T_G_KIND)
    m, n = tl.load(tab + T_ROWS).to(tl.int32), tl.load(tab + T_COLS).to(tl.int32)
    numel = tl.load(tab + T_NUMEL).to(tl.int32)
    block, coded = tl.load(tab + T_BLOCK).to(tl.int32), tl.load(tab + T_CODED)
    scales, zeros = tl.load(tab + T_M_SCALE), tl.load(tab + T_M_ZERO)
    errors = tl.load(tab + T_M_ERROR)
    height, width = tl.load(tab + T_HEIGHT).to(tl.int32), tl.load(tab + T_WIDTH).to(tl.int32)
    penalty = tl.load(hyp + H_FREQUENCY)
    factored, matrix = tl.load(tab + T_FACTORED) != 0, tl.load(tab + T_MATRIX) != 0
    batch = tl.load(tab + T_BATCH).to(tl.int32)
    lines, wide = batch * m, batch * n
    means = MEANS + 4 * (tl.load(tab + T_MEANS) + k)
    row_at, col_at = tl.load(tab + T_ROW_AT), tl.load(tab + T_COL_AT) + k * n
    part = PART + tl.load(tab + T_PART_AT) + (tile - tl.load(tab + T_TILE)) * PARTIALS * n
    now, early, warm, weight, decay = times(tab, hyp, 0)
    live = warm & (now > 1.0)
    clip, damp = tl.load(z + Z_CLIP), tl.load(z + Z_DAMP)
    middle = tl.load(z + Z_ABS)
    lr = rate_of(LR, group)
    factor = boost(hyp, tl.load(z + Z_GP), early)
    mode = tl.load(hyp + H_MASK)
    words = tl.load(tab + T_MASK)
    side = tl.load(tab + T_SIDE)
    eps1, w2, w3 = tl.load(hyp + H_EPS1), tl.load(hyp + H_W2), tl.load(hyp + H_W3)
    more = SCALES + tl.load(tab + T_SCALE_AT)
    weights = WEIGHTS + group * 2 * NS
    own, fresh = tl.load(hyp + H_OWN), tl.load(hyp + H_NOW)

    total_s, total_dev, total_mu, total_rate = 0.0, 0.0, 0.0, 0.0
    total_agree, total_out, total_space = 0.0, 0.0, 0.0
    lane, place = tl.arange(0, BR), tl.arange(0, BC)
    for r in range(first, last, BR):
        row = r + lane
        inside = row < last
        line = k * m + row
        base = line * n
        gain = tl.load(ROWS + row_at + A_GAIN * lines + line, mask=inside, other=1.0)
        if MULTIPLIED:
            gain = gain * tl.load(FACTOR)
        row_factor = tl.full([BR], 1.0, tl.float32)
        if factored:
            moment = tl.load(ROWS + row_at + A_R * lines + line, mask=inside, other=1.0)
            row_factor = tl.rsqrt(tl.div_rn(moment, tl.load(means)))
            half = tl.load(tab + T_R_SCALE)
            if half == 0:
                tl.store(
                    tl.load(tab + T_R).to(tl.pointer_type(tl.float32)) + line, moment, mask=only(inside, good)
                )
        mu_row = tl.full([BR], 1.0, tl.float32)
        if ROW_MASK:
            if mode >= 2:
                by_row = matrix & (mode == 2)
                place_of = tl.where(by_row, line, 0)
                vote = tl.load(ROWS + row_at + A_RATE * lines + line, mask=inside, other=0.0)
                vote = tl.where(by_row, vote, tl.load(z + Z_VOTE))
                counter = row_counter(words, place_of, inside, vote, live, factor)
                mu_row = multiplier(TABLE, counter, MEAN)
                tl.debug_barrier()  # several threads hold a row: all have read before one writes
                tl.store(
                    words.to(tl.pointer_type(tl.int8)) + place_of,
                    counter.to(tl.int8),
                    mask=only(inside, good & warm & by_row),
                )
        residual = tl.zeros([BR], tl.float32)
        u_sum, uu_sum = tl.zeros([BR], tl.float32), tl.zeros([BR], tl.float32)
        for c in range(0, n, BC):
            col = c + place
            here = col < n
            at = base[:, None] + col[None, :]
            mask = inside[:, None] & here[None, :] & (at < numel)
            raw, x, edge = look(g, at, mask, g_kind, SCALE, height, width, penalty, G_KIND, SCALED, PICTURE)
            old = load_mean(mean, scales, zeros, errors, at, block, coded, mask, MAP, CODE, ERROR)
            if factored:
                c_moment = tl.load(COLS + col_at + B_C * wide + col, mask=here, other=1.0)
                u = update_of(x, row_factor[:, None], tl.rsqrt(c_moment)[None, :], clip)
                if RANKED:
                    u = leaning(u, tab, hyp, z, RANKS, k, row[:, None], col[None, :], m, n, mask)
            else:
                v = load_moment(tl.load(tab + T_V), tl.load(tab + T_V_SCALE), at, block, mask, LOG)
                v = lerp(v, x * x + tl.load(hyp + H_EPS0), w2)
                u = update_of(x, tl.rsqrt(v), 1.0, clip)
            u = tl.where(mask, u, 0.0)
            new = lerp(old, u * damp, weight)
            if MULTIPLIED:
                new = mixture(new, u, more, weights, own, fresh, at, block, coded, mask, MAP, CODE, NS)
            new = tl.where(mask, new, 0.0)
            rest = (u - new) * (u - new)
            residual += tl.sum(rest, 1)
            u_sum += tl.sum(u, 1)
            uu_sum += tl.sum(u * u, 1)
            offset = tl.where(mask, tl.abs(raw) - middle, 0.0)
            total_dev += tl.sum(tl.sum(offset * offset, 1), 0)
            mu = tl.where(mask, mu_row[:, None], 0.0)
            if mode == 1:
                counter, _ = element_mask(words, at, mask, raw, live, factor)
                mu = tl.where(mask, multiplier(TABLE, counter, MEAN), 0.0)
            total_mu += tl.sum(tl.sum(mu, 1), 0)
            rate = tl.where(mask, clamped(mu * gain[:, None], hyp, lr), 0.0)
            total_rate += tl.sum(tl.sum(rate, 1), 0)
            if not factored:
                out = new
                if tl.load(tab + T_S) != 0:
                    s = load_moment(tl.load(tab + T_S), tl.load(tab + T_S_SCALE), at, block, mask, LOG)
                    out = new * tl.rsqrt(lerp(s, rest + eps1, w3))
                f = turned(out, raw, hyp, early, decay, IMPROVED)
                out = tl.where(mask, out * f, 0.0)
                total_out += tl.sum(tl.sum(out * out, 1), 0)
                total_agree += tl.sum(tl.sum(tl.where(mask, tl.abs(f), 0.0), 1), 0)
        if side == 1:
            mean_u = u_sum / n
            variance = tl.maximum(uu_sum / n - mean_u * mean_u, 0.0)
            space, half = tl.load(tab + T_SPACE), tl.load(tab + T_SPACE_SCALE)
            variance = lerp(load_vector(space, half, line, inside), variance, 0.1)
            tl.store(ROWS + row_at + A_SPACE * lines + line, variance, mask=inside)
            total_space += tl.sum(tl.where(inside, variance, 0.0), 0)
            tl.debug_barrier()
            if half == 0:
                tl.store(space.to(tl.pointer_type(tl.float32)) + line, variance, mask=only(inside, good))
        if factored:
            past = load_vector(tl.load(tab + T_SR), tl.load(tab + T_SR_SCALE), line, inside)
            s = lerp(past, residual / n + eps1, w3)
            tl.store(ROWS + row_at + A_S * lines + line, s, mask=inside)
            total_s += tl.sum(tl.where(inside, s, 0.0), 0)
            tl.debug_barrier()
            if tl.load(tab + T_SR_SCALE) == 0:
                tl.store(
                    tl.load(tab + T_SR).to(tl.pointer_type(tl.float32)) + line, s, mask=only(inside, good)
                )
            inverse = tl.where(inside, tl.rsqrt(s), 0.0)[:, None]
            for c in range(0, n, BC):
                col = c + place
                here = col < n
                at = base[:, None] + col[None, :]
                mask = inside[:, None] & here[None, :]
                raw, x, edge = look(
                    g, at, mask, g_kind, SCALE, height, width, penalty, G_KIND, SCALED, PICTURE
                )
                old = load_mean(mean, scales, zeros, errors, at, block, coded, mask, MAP, CODE, ERROR)
                c_moment = tl.load(COLS + col_at + B_C * wide + col, mask=here, other=1.0)
                u = update_of(x, row_factor[:, None], tl.rsqrt(c_moment)[None, :], clip)
                if RANKED:
                    u = leaning(u, tab, hyp, z, RANKS, k, row[:, None], col[None, :], m, n, mask)
                u = tl.where(mask, u, 0.0)
                new = lerp(old, u * damp, weight)
                if MULTIPLIED:
                    new = mixture(new, u, more, weights, own, fresh, at, block, coded, mask, MAP, CODE, NS)
                new = tl.where(mask, new, 0.0)
                f = turned(new, raw, hyp, early, decay, IMPROVED)
                y = new * f * inverse
                total_agree += tl.sum(tl.sum(tl.where(mask, tl.abs(f), 0.0), 1), 0)
                at_col = part + col
                a, b = tl.sum((u - new) * (u - new), 0), tl.sum(y * y, 0)
                if r > first:
                    a += tl.load(at_col, mask=here, other=0.0)
                    b += tl.load(at_col + n, mask=here, other=0.0)
                d, e = a * 0.0, a * 0.0
                if side == 2:
                    d, e = tl.sum(u, 0), tl.sum(u * u, 0)
                    if r > first:
                        d += tl.load(at_col + 2 * n, mask=here, other=0.0)
                        e += tl.load(at_col + 3 * n, mask=here, other=0.0)
                tl.debug_barrier()
                tl.store(at_col, a, mask=here)
                tl.store(at_col + n, b, mask=here)
                if side == 2:
                    tl.store(at_col + 2 * n, d, mask=here)
                    tl.store(at_col + 3 * n, e, mask=here)
            tl.debug_barrier()  # what one thread wrote another reads in the next round
    x_at = X + tile * TILE_SUMS
    tl.store(x_at + X_S, total_s)
    tl.store(x_at + X_DEV, total_dev)
    tl.store(x_at + X_MU, total_mu)
    tl.store(x_at + X_RATE, total_rate)
    tl.store(x_at + X_AGREE, total_agree)
    tl.store(x_at + X_OUT, total_out)
    tl.store(x_at + X_SPACE, total_space)


@triton.jit
def confidence_columns(TAB, HYP, CHUNKS, PART, COLS, X, Y, Z, MEANS, N: tl.constexpr):
    """Pass 5, a program per piece of a column vector: columns of S, their use, commit of C and S."""
    chunk = tl.program_id(0)
    t, k = tl.load(CHUNKS + 4 * chunk), tl.load(CHUNKS + 4 * chunk + 1).to(tl.int32)
    first, matrix = tl.load(CHUNKS + 4 * chunk + 2).to(tl.int32), tl.load(CHUNKS + 4 * chunk + 3)
    tab = TAB + t * WIDTH
    hyp = HYP + tl.load(tab + T_GROUP) * HYPER
    good = tl.load(Z + t * NUMBERS + Z_OK) != 0
    m, n = tl.load(tab + T_ROWS).to(tl.int32), tl.load(tab + T_COLS).to(tl.int32)
    tiles = tl.load(tab + T_TILES).to(tl.int32)
    side = tl.load(tab + T_SIDE)
    col = first + tl.arange(0, N)
    here = col < n
    rest, z = tl.zeros([N], tl.float32), tl.zeros([N], tl.float32)
    u, uu = tl.zeros([N], tl.float32), tl.zeros([N], tl.float32)
    total = 0.0
    for j in range(0, tiles):
        part = PART + tl.load(tab + T_PART_AT) + (k * tiles + j) * PARTIALS * n + col
        rest += tl.load(part, mask=here, other=0.0)
        z += tl.load(part + n, mask=here, other=0.0)
        if side == 2:
            u += tl.load(part + 2 * n, mask=here, other=0.0)
            uu += tl.load(part + 3 * n, mask=here, other=0.0)
        total += tl.load(X + (tl.load(tab + T_TILE) + k * tiles + j) * TILE_SUMS + X_S)
    mean = total / m
    lines = tl.load(tab + T_BATCH).to(tl.int32) * n
    at = k * n + col
    scratch = COLS + tl.load(tab + T_COL_AT) + at
    past = load_vector(tl.load(tab + T_SC), tl.load(tab + T_SC_SCALE), at, here)
    s = lerp(past, rest / m + tl.load(hyp + H_EPS1), tl.load(hyp + H_W3))
    tl.store(scratch + B_S * lines, s, mask=here)
    tl.debug_barrier()  # all have read before one writes
    if tl.load(tab + T_SC_SCALE) == 0:
        tl.store(tl.load(tab + T_SC).to(tl.pointer_type(tl.float32)) + at, s, mask=only(here, good))
    if tl.load(tab + T_C_SCALE) == 0:
        moment = tl.load(scratch + B_C * lines, mask=here, other=0.0)
        tl.store(tl.load(tab + T_C).to(tl.pointer_type(tl.float32)) + at, moment, mask=only(here, good))
    y = Y + chunk * CHUNK_SUMS
    tl.store(y + Y_OUT, tl.sum(tl.where(here, z * (mean / tl.where(here, s, 1.0)), 0.0), 0))
    if side == 2:
        variance = tl.maximum(uu / m - (u / m) * (u / m), 0.0)
        space, half = tl.load(tab + T_SPACE), tl.load(tab + T_SPACE_SCALE)
        variance = lerp(load_vector(space, half, at, here), variance, 0.1)
        tl.store(scratch + B_SPACE * lines, variance, mask=here)
        tl.store(y + Y_SPACE, tl.sum(tl.where(here, variance, 0.0), 0))
        tl.debug_barrier()
        if half == 0:
            tl.store(space.to(tl.pointer_type(tl.float32)) + at, variance, mask=only(here, good))
    if first == 0:
        tl.store(MEANS + 4 * matrix + 1, mean)
