"""Between passes 3 and 4, for tensors with a basis: the update's share of the directions of the basis."""

from __future__ import annotations

import triton
import triton.language as tl

from .codes import load_mean
from .columns import (
    A_R,
    B_C,
    H_EMPHASIS,
    H_FREQUENCY,
    HYPER,
    NUMBERS,
    PIECE_SUMS,
    T_BASIS,
    T_BATCH,
    T_BLOCK,
    T_CODED,
    T_COL_AT,
    T_COLS,
    T_G_KIND,
    T_GROUP,
    T_HEIGHT,
    T_M,
    T_M_ERROR,
    T_M_SCALE,
    T_M_ZERO,
    T_MEANS,
    T_PIECE,
    T_PIECES,
    T_RANK,
    T_RANK_AT,
    T_ROW_AT,
    T_ROWS,
    T_TAIL,
    T_WIDE,
    T_WIDTH,
    W_TM,
    W_TT,
    W_UU,
    WIDTH,
    Z_CLIP,
    Z_DAMP,
    Z_LEAN,
    Z_MM,
    Z_OK,
)
from .element import direction, emphasised, look, times
from .first import torque, total_of
from .second import update_of


@triton.jit
def project(
    TAB,
    HYP,
    DYN,
    PIECES,
    MAP,
    ROWS,
    COLS,
    Z,
    MEANS,
    SCALE,
    RANKS,
    W,
    G_KIND: tl.constexpr,
    CODE: tl.constexpr,
    ERROR: tl.constexpr,
    SCALED: tl.constexpr,
    PICTURE: tl.constexpr,
    SHORT: tl.constexpr,
    LONG: tl.constexpr,
):
    """A program per piece of the long side: B^T u, and what its use does to the update's length."""
    piece = tl.program_id(0)
    t, k = tl.load(PIECES + 4 * piece), tl.load(PIECES + 4 * piece + 1).to(tl.int32)
    first = tl.load(PIECES + 4 * piece + 2).to(tl.int32)
    tab = TAB + t * WIDTH
    hyp = HYP + tl.load(tab + T_GROUP) * HYPER
    z = Z + t * NUMBERS
    m, n = tl.load(tab + T_ROWS).to(tl.int32), tl.load(tab + T_COLS).to(tl.int32)
    wide = tl.load(tab + T_WIDE) != 0
    rank = tl.load(tab + T_RANK).to(tl.int32)
    batch = tl.load(tab + T_BATCH).to(tl.int32)
    count, size = tl.where(wide, n, m), tl.where(wide, m, n)
    short, long = tl.arange(0, SHORT), first + tl.arange(0, LONG)
    row = tl.where(wide, short[:, None], long[None, :])
    col = tl.where(wide, long[None, :], short[:, None])
    mask = (short < size)[:, None] & (long < count)[None, :]
    at = (k * m + row) * n + col
    height, width = tl.load(tab + T_HEIGHT).to(tl.int32), tl.load(tab + T_WIDTH).to(tl.int32)
    raw, x, edge = look(
        tl.load(DYN + t), at, mask, tl.load(tab + T_G_KIND), SCALE, height, width,
        tl.load(hyp + H_FREQUENCY), G_KIND, SCALED, PICTURE,
    )  # fmt: skip
    old = load_mean(
        tl.load(tab + T_M), tl.load(tab + T_M_SCALE), tl.load(tab + T_M_ZERO), tl.load(tab + T_M_ERROR),
        at, tl.load(tab + T_BLOCK).to(tl.int32), tl.load(tab + T_CODED), mask, MAP, CODE, ERROR,
    )  # fmt: skip
    moment = tl.load(ROWS + tl.load(tab + T_ROW_AT) + A_R * batch * m + k * m + row, mask=mask, other=1.0)
    mean = tl.load(MEANS + 4 * (tl.load(tab + T_MEANS) + k))
    c_moment = tl.load(COLS + tl.load(tab + T_COL_AT) + B_C * batch * n + k * n + col, mask=mask, other=1.0)
    u = update_of(x, tl.rsqrt(tl.div_rn(moment, mean)), tl.rsqrt(c_moment), tl.load(z + Z_CLIP))
    u = tl.where(mask, u, 0.0)
    basis, tail = tl.load(tab + T_BASIS), tl.load(tab + T_TAIL)
    part = RANKS + tl.load(tab + T_RANK_AT) + k * rank * count
    share = u * 0.0
    for a in range(0, rank):
        b = direction(basis, (k * size + short) * rank + a, short < size, tail)[:, None]
        along = tl.sum(b * u, 0)
        tl.store(part + a * count + long, along, mask=long < count)
        share += b * along[None, :]
    turned = emphasised(u, share, tail, tl.load(hyp + H_EMPHASIS))
    w = W + piece * PIECE_SUMS
    tl.store(w + W_UU, tl.sum(tl.sum(u * u, 1), 0))
    tl.store(w + W_TT, tl.sum(tl.sum(turned * turned, 1), 0))
    tl.store(w + W_TM, tl.sum(tl.sum(turned * old, 1), 0))


@triton.jit
def emphasis(TAB, HYP, W, Z, N: tl.constexpr):
    """A program per tensor: the factor that keeps the length, and the torque of the new direction."""
    t = tl.program_id(0)
    tab = TAB + t * WIDTH
    if tl.load(tab + T_RANK) != 0:
        hyp = HYP + tl.load(tab + T_GROUP) * HYPER
        z = Z + t * NUMBERS
        pieces = tl.load(tab + T_PIECES).to(tl.int32) * tl.load(tab + T_BATCH).to(tl.int32)
        first = tl.load(tab + T_PIECE)
        uu = total_of(W, first, pieces, W_UU, PIECE_SUMS, N)
        tt = total_of(W, first, pieces, W_TT, PIECE_SUMS, N)
        tm = total_of(W, first, pieces, W_TM, PIECE_SUMS, N)
        keep = tl.where(tt > 0, tl.sqrt(uu / tl.where(tt > 0, tt, 1.0)), 1.0)
        now, early, warm, weight, decay = times(tab, hyp, 0)
        good = tl.load(z + Z_OK) != 0
        tl.store(z + Z_LEAN, keep)
        tl.store(z + Z_DAMP, torque(tab, hyp, tl.load(z + Z_MM), uu, tm * keep, good, early))
