"""Passes 1 to 3: second moments of the gradient, their use, and what follows for the whole tensor.

The size of the update u = g r_i c_j needs no pass of its own: with w_j = sum_i g_ij^2 / R_i, summed
while R_i is at hand, sum u^2 = mean(R) sum_j w_j / C_j; likewise <u, m>.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .codes import load_mean, load_moment
from .columns import (
    A_GAIN,
    A_R,
    A_RATE,
    B_C,
    CHUNK_SUMS,
    H_ALLORA,
    H_CLIP,
    H_EPS0,
    H_EPS2,
    H_ETA2,
    H_FREQUENCY,
    H_MASK,
    H_TAM,
    H_W2,
    HYPER,
    NUMBERS,
    PARTIALS,
    T_BATCH,
    T_BLOCK,
    T_C,
    T_C_SCALE,
    T_CHUNK,
    T_CHUNKS,
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
    T_MATRIX,
    T_NUMEL,
    T_P,
    T_P_KIND,
    T_PART_AT,
    T_R,
    T_R_SCALE,
    T_RANK,
    T_REST,
    T_ROW_AT,
    T_ROWS,
    T_SIGNS,
    T_TILE,
    T_TILES,
    T_TORQUE,
    T_V,
    T_V_SCALE,
    T_WIDTH,
    TILE_SUMS,
    WIDTH,
    X_ABS,
    X_GP,
    X_LL,
    X_MM,
    X_PP,
    X_R,
    X_SQUARE,
    X_UM,
    X_UU,
    X_VOTE,
    Y_C,
    Y_UM,
    Y_UU,
    Z_ABS,
    Z_CLIP,
    Z_DAMP,
    Z_EDGE,
    Z_GP,
    Z_MM,
    Z_OK,
    Z_PP,
    Z_SQUARE,
    Z_VOTE,
)
from .device import lerp, load_vector, scalar
from .element import look, moved, times
from .master import load_weights


@triton.jit
def moments(
    TAB,
    HYP,
    DYN,
    TILES,
    MAP,
    ROWS,
    PART,
    X,
    SCALE,
    P_KIND: tl.constexpr,
    REST: tl.constexpr,
    G_KIND: tl.constexpr,
    CODE: tl.constexpr,
    ERROR: tl.constexpr,
    LOG: tl.constexpr,
    SCALED: tl.constexpr,
    PICTURE: tl.constexpr,
    ROW_MASK: tl.constexpr,
    BR: tl.constexpr,
    BC: tl.constexpr,
):
    """Pass 1, a program per band of rows: R, row gains, partial column sums, sums of the tensor."""
    tile = tl.program_id(0)
    t, k = tl.load(TILES + 4 * tile), tl.load(TILES + 4 * tile + 1).to(tl.int32)
    first, last = tl.load(TILES + 4 * tile + 2).to(tl.int32), tl.load(TILES + 4 * tile + 3).to(tl.int32)
    tab = TAB + t * WIDTH
    hyp = HYP + tl.load(tab + T_GROUP) * HYPER
    p, g, mean = tl.load(tab + T_P), tl.load(DYN + t), tl.load(tab + T_M)
    p_kind, g_kind = tl.load(tab + T_P_KIND), tl.load(tab + T_G_KIND)
    rest = tl.load(tab + T_REST)
    m, n = tl.load(tab + T_ROWS).to(tl.int32), tl.load(tab + T_COLS).to(tl.int32)
    numel = tl.load(tab + T_NUMEL).to(tl.int32)
    block, coded = tl.load(tab + T_BLOCK).to(tl.int32), tl.load(tab + T_CODED)
    scales, zeros = tl.load(tab + T_M_SCALE), tl.load(tab + T_M_ZERO)
    errors = tl.load(tab + T_M_ERROR)
    height, width = tl.load(tab + T_HEIGHT).to(tl.int32), tl.load(tab + T_WIDTH).to(tl.int32)
    penalty = tl.load(hyp + H_FREQUENCY)
    eps, w2 = tl.load(hyp + H_EPS0), tl.load(hyp + H_W2)
    factored = tl.load(tab + T_FACTORED) != 0
    row_at = tl.load(tab + T_ROW_AT)
    lines = tl.load(tab + T_BATCH).to(tl.int32) * m
    part = PART + tl.load(tab + T_PART_AT) + (tile - tl.load(tab + T_TILE)) * PARTIALS * n
    now, early, warm, weight, decay = times(tab, hyp, 0)
    live = warm & (now > 1.0)
    votes = (tl.load(hyp + H_MASK) >= 2) & live
    signs = tl.load(tab + T_SIGNS)
    allora = (tl.load(hyp + H_ALLORA) != 0) & (tl.load(tab + T_MATRIX) != 0)

    total_r, total_abs, total_mm, total_gp = 0.0, 0.0, 0.0, 0.0
    total_uu, total_um, total_ll, total_pp, total_vote, total_gg = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    lane, place = tl.arange(0, BR), tl.arange(0, BC)
    for r in range(first, last, BR):
        row = r + lane
        inside = row < last
        base = (k * m + row) * n
        square = tl.zeros([BR], tl.float32)
        norm = tl.zeros([BR], tl.float32)
        vote = tl.zeros([BR], tl.float32)
        for c in range(0, n, BC):
            col = c + place
            at = base[:, None] + col[None, :]
            mask = inside[:, None] & (col < n)[None, :] & (at < numel)
            raw, x, edge = look(g, at, mask, g_kind, SCALE, height, width, penalty, G_KIND, SCALED, PICTURE)
            w = load_weights(p, rest, at, mask, p_kind, P_KIND, REST)
            square += tl.sum(x * x, 1)
            norm += tl.sum(w * w, 1)
            total_abs += tl.sum(tl.sum(tl.abs(raw), 1), 0)
            total_gg += tl.sum(tl.sum(raw * raw, 1), 0)
            total_gp += tl.sum(tl.sum(raw * w, 1), 0)
            total_ll += tl.sum(tl.sum(tl.where(mask, edge * edge, 0.0), 1), 0)
            old = load_mean(mean, scales, zeros, errors, at, block, coded, mask, MAP, CODE, ERROR)
            total_mm += tl.sum(tl.sum(old * old, 1), 0)
            if ROW_MASK:
                if votes:
                    byte = tl.load(signs.to(tl.pointer_type(tl.uint8)) + at // 8, mask=mask, other=0)
                    was = 1 - 2 * ((byte.to(tl.int32) >> (at % 8)) & 1)
                    bump, _ = moved(was * 0, was, raw, live, 1)
                    vote += tl.sum(tl.where(mask, bump, 0).to(tl.float32), 1)
            if not factored:
                v = load_moment(tl.load(tab + T_V), tl.load(tab + T_V_SCALE), at, block, mask, LOG)
                v = lerp(v, x * x + eps, w2)
                u = tl.where(mask, x * tl.rsqrt(v), 0.0)
                total_r += tl.sum(tl.sum(tl.where(mask, v, 0.0), 1), 0)
                total_uu += tl.sum(tl.sum(u * u, 1), 0)
                total_um += tl.sum(tl.sum(u * old, 1), 0)
        gain = tl.where(allora, tl.rsqrt(tl.sqrt(norm) + tl.load(hyp + H_ETA2)), 1.0)
        at_row = row_at + k * m + row
        tl.store(ROWS + at_row + A_GAIN * lines, gain, mask=inside)
        total_pp += tl.sum(tl.where(inside, norm, 0.0), 0)
        total_vote += tl.sum(tl.where(inside, vote, 0.0), 0)
        if ROW_MASK:
            tl.store(ROWS + at_row + A_RATE * lines, vote, mask=inside)
        if factored:
            past = load_vector(tl.load(tab + T_R), tl.load(tab + T_R_SCALE), k * m + row, inside)
            moment = lerp(past, square / n + eps, w2)
            tl.store(ROWS + at_row + A_R * lines, moment, mask=inside)
            total_r += tl.sum(tl.where(inside, moment, 0.0), 0)
            inverse = tl.where(inside, tl.rsqrt(moment), 0.0)[:, None]
            for c in range(0, n, BC):
                col = c + place
                at = base[:, None] + col[None, :]
                mask = inside[:, None] & (col < n)[None, :]
                raw, x, edge = look(
                    g, at, mask, g_kind, SCALE, height, width, penalty, G_KIND, SCALED, PICTURE
                )
                old = load_mean(mean, scales, zeros, errors, at, block, coded, mask, MAP, CODE, ERROR)
                y = x * inverse
                at_col, here = part + col, col < n
                a, b, d = tl.sum(tl.where(mask, x * x, 0.0), 0), tl.sum(y * y, 0), tl.sum(y * old, 0)
                if r > first:
                    a += tl.load(at_col, mask=here, other=0.0)
                    b += tl.load(at_col + n, mask=here, other=0.0)
                    d += tl.load(at_col + 2 * n, mask=here, other=0.0)
                    tl.debug_barrier()  # all threads have read before one writes
                tl.store(at_col, a, mask=here)
                tl.store(at_col + n, b, mask=here)
                tl.store(at_col + 2 * n, d, mask=here)
            tl.debug_barrier()  # what one thread wrote another reads in the next round
    x_at = X + tile * TILE_SUMS
    tl.store(x_at + X_R, total_r)
    tl.store(x_at + X_ABS, total_abs)
    tl.store(x_at + X_MM, total_mm)
    tl.store(x_at + X_GP, total_gp)
    tl.store(x_at + X_UU, total_uu)
    tl.store(x_at + X_UM, total_um)
    tl.store(x_at + X_LL, total_ll)
    tl.store(x_at + X_PP, total_pp)
    tl.store(x_at + X_VOTE, total_vote)
    tl.store(x_at + X_SQUARE, total_gg)


@triton.jit
def columns(TAB, HYP, CHUNKS, PART, COLS, X, Y, MEANS, N: tl.constexpr):
    """Pass 2, a program per piece of a column vector: C, mean of R, partial sums of u^2 and u m."""
    chunk = tl.program_id(0)
    t, k = tl.load(CHUNKS + 4 * chunk), tl.load(CHUNKS + 4 * chunk + 1).to(tl.int32)
    first, matrix = tl.load(CHUNKS + 4 * chunk + 2).to(tl.int32), tl.load(CHUNKS + 4 * chunk + 3)
    tab = TAB + t * WIDTH
    hyp = HYP + tl.load(tab + T_GROUP) * HYPER
    m, n = tl.load(tab + T_ROWS).to(tl.int32), tl.load(tab + T_COLS).to(tl.int32)
    tiles = tl.load(tab + T_TILES).to(tl.int32)
    col = first + tl.arange(0, N)
    here = col < n
    squares, w, v = tl.zeros([N], tl.float32), tl.zeros([N], tl.float32), tl.zeros([N], tl.float32)
    total = 0.0
    for j in range(0, tiles):
        part = PART + tl.load(tab + T_PART_AT) + (k * tiles + j) * PARTIALS * n + col
        squares += tl.load(part, mask=here, other=0.0)
        w += tl.load(part + n, mask=here, other=0.0)
        v += tl.load(part + 2 * n, mask=here, other=0.0)
        total += tl.load(X + (tl.load(tab + T_TILE) + k * tiles + j) * TILE_SUMS + X_R)
    mean = total / m
    past = load_vector(tl.load(tab + T_C), tl.load(tab + T_C_SCALE), k * n + col, here)
    moment = lerp(past, squares / m + tl.load(hyp + H_EPS0), tl.load(hyp + H_W2))
    at = COLS + tl.load(tab + T_COL_AT) + k * n + col
    lines = tl.load(tab + T_BATCH).to(tl.int32) * n
    tl.store(at + B_C * lines, moment, mask=here)
    ratio = mean / tl.where(here, moment, 1.0)
    y = Y + chunk * CHUNK_SUMS
    tl.store(y + Y_C, tl.sum(tl.where(here, moment, 0.0), 0))
    tl.store(y + Y_UU, tl.sum(tl.where(here, w * ratio, 0.0), 0))
    tl.store(y + Y_UM, tl.sum(tl.where(here, v * tl.sqrt(ratio), 0.0), 0))
    if first == 0:
        tl.store(MEANS + 4 * matrix, mean)


@triton.jit
def total_of(X, first, count, column, STRIDE: tl.constexpr, N: tl.constexpr):
    """Sum of a column of partial sums, in an order that depends on their number only."""
    lane = tl.arange(0, N)
    acc = tl.zeros([N], tl.float32)
    for j in range(0, count, N):
        at = j + lane
        acc += tl.load(X + (first + at) * STRIDE + column, mask=at < count, other=0.0)
    return tl.sum(acc, 0)


@triton.jit
def mask_mean(KEPT, kept, elements, MEAN, N: tl.constexpr):
    """Mean of the mask over all parameters, from the sums that they keep."""
    lane = tl.arange(0, N)
    acc = tl.zeros([N], tl.float32)
    for j in range(0, kept, N):
        at = j + lane
        address = tl.load(KEPT + at, mask=at < kept, other=0)
        acc += tl.load(address.to(tl.pointer_type(tl.float32)), mask=at < kept, other=0.0)
    tl.store(MEAN, tl.where(elements > 0, tl.sum(acc, 0) / tl.maximum(elements, 1.0), 1.0))


@triton.jit
def torque(tab, hyp, mm, uu, um, good, early):
    """``torque`` and its damping, from squared lengths and product of momentum and update."""
    damp = 1.0
    if tl.load(hyp + H_TAM) != 0:
        kept = tl.load(tab + T_TORQUE)
        norms = tl.sqrt(mm) * tl.sqrt(uu)
        cosine = tl.where(norms > 0, um / tl.where(norms > 0, norms, 1.0), 0.0)
        s = lerp(scalar(kept), tl.minimum(tl.maximum(cosine, -1.0), 1.0), 0.1)
        damp = tl.where(early, (1.0 + s) / 2 + tl.load(hyp + H_EPS2), 1.0)
        tl.store(kept.to(tl.pointer_type(tl.float32)), s, mask=good & early)
    return damp


@triton.jit(do_not_specialize=["kept", "tensors"])
def torque_and_clip(
    TAB, HYP, X, Y, Z, KEPT, kept, elements, MEAN, FOUND, tensors, HAS_FOUND: tl.constexpr, N: tl.constexpr
):
    """Pass 3, a program per tensor: whether the gradient is usable, clip, torque; one more: mask mean."""
    t = tl.program_id(0)
    if t == tensors:
        mask_mean(KEPT, kept, elements, MEAN, N)
    else:
        tab = TAB + t * WIDTH
        hyp = HYP + tl.load(tab + T_GROUP) * HYPER
        tile, chunk = tl.load(tab + T_TILE), tl.load(tab + T_CHUNK)
        batch = tl.load(tab + T_BATCH).to(tl.int32)
        tiles = tl.load(tab + T_TILES).to(tl.int32) * batch
        chunks = tl.load(tab + T_CHUNKS).to(tl.int32) * batch
        numel = tl.load(tab + T_NUMEL).to(tl.float32)
        moment = total_of(X, tile, tiles, X_R, TILE_SUMS, N)
        uu = total_of(X, tile, tiles, X_UU, TILE_SUMS, N) + total_of(Y, chunk, chunks, Y_UU, CHUNK_SUMS, N)
        um = total_of(X, tile, tiles, X_UM, TILE_SUMS, N) + total_of(Y, chunk, chunks, Y_UM, CHUNK_SUMS, N)
        mm = total_of(X, tile, tiles, X_MM, TILE_SUMS, N)
        moment += total_of(Y, chunk, chunks, Y_C, CHUNK_SUMS, N)
        good = tl.abs(moment) < float("inf")
        if HAS_FOUND:
            good = good & (tl.load(FOUND) == 0.0)
        now, early, warm, weight, decay = times(tab, hyp, 0)
        size = tl.sqrt(uu / numel)
        clip = 1.0 / tl.maximum(size / tl.load(hyp + H_CLIP), 1.0)
        damp = 1.0
        if tl.load(tab + T_RANK) == 0:  # otherwise the update is not known yet
            damp = torque(tab, hyp, mm, uu, um, good, early)
        z = Z + t * NUMBERS
        tl.store(z + Z_OK, tl.where(good, 1.0, 0.0))
        tl.store(z + Z_CLIP, clip)
        tl.store(z + Z_DAMP, damp)
        tl.store(z + Z_ABS, total_of(X, tile, tiles, X_ABS, TILE_SUMS, N) / numel)
        tl.store(z + Z_GP, total_of(X, tile, tiles, X_GP, TILE_SUMS, N))
        tl.store(z + Z_EDGE, tl.sqrt(total_of(X, tile, tiles, X_LL, TILE_SUMS, N) / numel))
        tl.store(z + Z_PP, total_of(X, tile, tiles, X_PP, TILE_SUMS, N))
        tl.store(z + Z_VOTE, total_of(X, tile, tiles, X_VOTE, TILE_SUMS, N))
        tl.store(z + Z_MM, mm)
        tl.store(z + Z_SQUARE, total_of(X, tile, tiles, X_SQUARE, TILE_SUMS, N))
