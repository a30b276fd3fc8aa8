"""Pass 6: what the sums of a tensor decide, and its small state."""

from __future__ import annotations

import triton
import triton.language as tl

from .columns import (
    A_R,
    A_S,
    A_SPACE,
    B_C,
    B_S,
    B_SPACE,
    CHUNK_SUMS,
    H_CAUTIOUS,
    H_FINAL,
    H_MASK,
    H_OWED,
    HYPER,
    NUMBERS,
    T_AVG,
    T_BATCH,
    T_C,
    T_C_SCALE,
    T_CHUNK,
    T_CHUNKS,
    T_COL_AT,
    T_COLS,
    T_GROUP,
    T_INDEX,
    T_KEY,
    T_MASK,
    T_MASK_SUM,
    T_MATRIX,
    T_MEANS,
    T_NUMEL,
    T_OWED,
    T_R,
    T_R_SCALE,
    T_ROW_AT,
    T_ROWS,
    T_SALT_C,
    T_SALT_R,
    T_SALT_SC,
    T_SALT_SPACE,
    T_SALT_SR,
    T_SC,
    T_SC_SCALE,
    T_SIDE,
    T_SPACE,
    T_SPACE_SCALE,
    T_SR,
    T_SR_SCALE,
    T_STEP,
    T_TILE,
    T_TILES,
    TILE_SUMS,
    WIDTH,
    X_AGREE,
    X_DEV,
    X_MU,
    X_OUT,
    X_RATE,
    X_SPACE,
    Y_OUT,
    Y_SPACE,
    Z_ABS,
    Z_CAUTION,
    Z_FINAL,
    Z_GP,
    Z_OK,
    Z_SLOPE,
    Z_VOTE,
)
from .device import scalar, store_log
from .element import boost, rate_of, row_counter, times
from .first import total_of


@triton.jit
def small_state(
    TAB,
    HYP,
    ROWS,
    COLS,
    X,
    Y,
    Z,
    MEANS,
    MEAN,
    LR,
    SKIPPED,
    IMPROVED: tl.constexpr,
    HALF: tl.constexpr,
    ROW_MASK: tl.constexpr,
    N: tl.constexpr,
):
    """A program per tensor: final clip, slope of the decay, mean rate, mask sum, counter, coded vectors."""
    t = tl.program_id(0)
    tab = TAB + t * WIDTH
    group = tl.load(tab + T_GROUP)
    hyp = HYP + group * HYPER
    z = Z + t * NUMBERS
    good = tl.load(z + Z_OK) != 0
    tile, chunk = tl.load(tab + T_TILE), tl.load(tab + T_CHUNK)
    batch = tl.load(tab + T_BATCH).to(tl.int32)
    per_tile, per_chunk = tl.load(tab + T_TILES).to(tl.int32), tl.load(tab + T_CHUNKS).to(tl.int32)
    tiles, chunks = per_tile * batch, per_chunk * batch
    numel = tl.load(tab + T_NUMEL).to(tl.float32)
    now, early, warm, weight, decay = times(tab, hyp, 0)

    caution = 1.0
    if IMPROVED:
        agree = total_of(X, tile, tiles, X_AGREE, TILE_SUMS, N) / numel
        caution = 1.0 / tl.maximum(agree, 0.001)
        caution = tl.where(early | (tl.load(hyp + H_CAUTIOUS) == 0), 1.0, caution)
    square = total_of(X, tile, tiles, X_OUT, TILE_SUMS, N) + total_of(Y, chunk, chunks, Y_OUT, CHUNK_SUMS, N)
    size = tl.sqrt(square / numel) * caution
    tl.store(z + Z_CAUTION, caution)
    tl.store(z + Z_FINAL, 1.0 / tl.maximum(size / tl.load(hyp + H_FINAL), 1.0))
    mean = tl.load(z + Z_ABS)
    deviation = tl.sqrt(total_of(X, tile, tiles, X_DEV, TILE_SUMS, N) / numel)
    slope = -4.0 / (deviation + 0.0001 * mean + 1e-30)
    tl.store(z + Z_SLOPE, tl.where(numel < 2, 0.0, slope))

    lr = rate_of(LR, group)
    rate = total_of(X, tile, tiles, X_RATE, TILE_SUMS, N) / numel * lr
    tl.store(tl.load(tab + T_AVG).to(tl.pointer_type(tl.float32)), rate, mask=good)
    owed = tl.load(tab + T_OWED)
    if owed != 0:
        tl.store(owed.to(tl.pointer_type(tl.float32)), scalar(owed) + rate * tl.load(hyp + H_OWED), mask=good)
    sums = tl.load(tab + T_MASK_SUM)
    if sums != 0:
        total = total_of(X, tile, tiles, X_MU, TILE_SUMS, N) * tl.load(MEAN)
        tl.store(sums.to(tl.pointer_type(tl.float32)), total, mask=good & warm)
    if ROW_MASK:
        mode = tl.load(hyp + H_MASK)
        if (mode == 3) | ((mode == 2) & (tl.load(tab + T_MATRIX) == 0)):
            words = tl.load(tab + T_MASK)
            live = warm & (now > 1.0)
            factor = boost(hyp, tl.load(z + Z_GP), early)
            counter = row_counter(words, 0, True, tl.load(z + Z_VOTE), live, factor)
            tl.store(words.to(tl.pointer_type(tl.int8)), counter.to(tl.int8), mask=good & warm)
    matrix = tl.load(tab + T_MEANS)
    side = tl.load(tab + T_SIDE)
    if side != 0:
        for k in range(0, batch):
            space = total_of(X, tile + k * per_tile, per_tile, X_SPACE, TILE_SUMS, N)
            count = tl.load(tab + T_ROWS)
            if side == 2:
                space = total_of(Y, chunk + k * per_chunk, per_chunk, Y_SPACE, CHUNK_SUMS, N)
                count = tl.load(tab + T_COLS)
            tl.store(MEANS + 4 * (matrix + k) + 2, space / count.to(tl.float32))
    if HALF:
        key = tl.load(tab + T_KEY).to(tl.int32)
        lines, wide = batch * tl.load(tab + T_ROWS).to(tl.int32), batch * tl.load(tab + T_COLS).to(tl.int32)
        rows, cols = ROWS + tl.load(tab + T_ROW_AT), COLS + tl.load(tab + T_COL_AT)
        p, q = tl.load(tab + T_R), tl.load(tab + T_R_SCALE)
        if q != 0:
            store_log(
                p, q, rows + A_R * lines, lines, key, tl.load(tab + T_SALT_R).to(tl.int32), now, good, N
            )
        p, q = tl.load(tab + T_SR), tl.load(tab + T_SR_SCALE)
        if q != 0:
            store_log(
                p, q, rows + A_S * lines, lines, key, tl.load(tab + T_SALT_SR).to(tl.int32), now, good, N
            )
        p, q = tl.load(tab + T_C), tl.load(tab + T_C_SCALE)
        if q != 0:
            store_log(p, q, cols + B_C * wide, wide, key, tl.load(tab + T_SALT_C).to(tl.int32), now, good, N)
        p, q = tl.load(tab + T_SC), tl.load(tab + T_SC_SCALE)
        if q != 0:
            store_log(p, q, cols + B_S * wide, wide, key, tl.load(tab + T_SALT_SC).to(tl.int32), now, good, N)
        p, q = tl.load(tab + T_SPACE), tl.load(tab + T_SPACE_SCALE)
        if q != 0:
            salt = tl.load(tab + T_SALT_SPACE).to(tl.int32)
            if side == 1:
                store_log(p, q, rows + A_SPACE * lines, lines, key, salt, now, good, N)
            else:
                store_log(p, q, cols + B_SPACE * wide, wide, key, salt, now, good, N)
    tl.store(tl.load(tab + T_STEP).to(tl.pointer_type(tl.float32)), now, mask=good)
    place = SKIPPED + tl.load(tab + T_INDEX)
    tl.store(place, tl.load(place) + tl.where(good, 0, 1))
