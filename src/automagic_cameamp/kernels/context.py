"""What the contextual controller sees of a step, and its move: two launches, whatever the model.

``sketch`` restates ``techniques.sketch`` and ``fold``: a slab is up to 4096 elements of a tensor, of
which each belongs to one bucket; slices of slabs are summed one after the other, never atomically.
``observe`` restates ``control.signals.advance``.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .codes import load_moment
from .columns import (
    A_R,
    B_C,
    BUCKETS,
    H_EPS0,
    H_W2,
    HYPER,
    NUMBERS,
    PERIOD,
    T_BATCH,
    T_BLOCK,
    T_COL_AT,
    T_COLS,
    T_FACTORED,
    T_G_KIND,
    T_GROUP,
    T_MEANS,
    T_NUMEL,
    T_ROW_AT,
    T_ROWS,
    T_V,
    T_V_SCALE,
    WIDTH,
    Z_CLIP,
    Z_OK,
    Z_SQUARE,
)
from .device import lerp, only
from .element import rate_of, scaled_gradient
from .second import update_of


@triton.jit(do_not_specialize=["slabs", "per_slice"])
def sketch(
    TAB,
    HYP,
    DYN,
    SLABS,
    SIGNS,
    ROWS,
    COLS,
    Z,
    MEANS,
    SCALE,
    SKETCHES,
    slabs,
    per_slice,
    G_KIND: tl.constexpr,
    SCALED: tl.constexpr,
    LOG: tl.constexpr,
    N: tl.constexpr,
):
    """A program per slice of slabs and piece of the buckets: sums of signed updates."""
    piece, part = tl.program_id(0) % (BUCKETS // N), tl.program_id(0) // (BUCKETS // N)
    bucket = piece * N + tl.arange(0, N)
    total = tl.zeros([N], tl.float32)
    for j in range(part * per_slice, tl.minimum((part + 1) * per_slice, slabs)):
        t, start = tl.load(SLABS + 4 * j), tl.load(SLABS + 4 * j + 1).to(tl.int32)
        shift, turn = tl.load(SLABS + 4 * j + 2).to(tl.int32), tl.load(SLABS + 4 * j + 3).to(tl.int32)
        tab = TAB + t * WIDTH
        z = Z + t * NUMBERS
        if tl.load(z + Z_OK) != 0:
            hyp = HYP + tl.load(tab + T_GROUP) * HYPER
            place = (bucket + BUCKETS - shift) % BUCKETS
            at = start + place
            mask = at < tl.load(tab + T_NUMEL).to(tl.int32)
            x = scaled_gradient(tl.load(DYN + t), at, mask, tl.load(tab + T_G_KIND), SCALE, G_KIND, SCALED)
            clip = tl.load(z + Z_CLIP)
            m, n = tl.load(tab + T_ROWS).to(tl.int32), tl.load(tab + T_COLS).to(tl.int32)
            if tl.load(tab + T_FACTORED) != 0:
                line = at // n
                k = line // m
                batch = tl.load(tab + T_BATCH).to(tl.int32)
                rows = ROWS + tl.load(tab + T_ROW_AT) + A_R * batch * m
                cols = COLS + tl.load(tab + T_COL_AT) + B_C * batch * n
                mean = tl.load(MEANS + 4 * (tl.load(tab + T_MEANS) + k), mask=mask, other=1.0)
                row = tl.load(rows + line, mask=mask, other=1.0)
                col = tl.load(cols + k * n + at - line * n, mask=mask, other=1.0)
                u = update_of(x, tl.rsqrt(tl.div_rn(row, mean)), tl.rsqrt(col), clip)
            else:
                block = tl.load(tab + T_BLOCK).to(tl.int32)
                v = load_moment(tl.load(tab + T_V), tl.load(tab + T_V_SCALE), at, block, mask, LOG)
                v = lerp(v, x * x + tl.load(hyp + H_EPS0), tl.load(hyp + H_W2))
                u = update_of(x, tl.rsqrt(v), 1.0, clip)
            inner, outer = tl.load(SIGNS + at % PERIOD), tl.load(SIGNS + (turn + place) % PERIOD)
            total += tl.where(mask, u * inner * outer, 0.0)
    tl.store(SKETCHES + part * BUCKETS + bucket, total)


@triton.jit
def mean_of(old, new, rate, count, have):
    """``_mean``: a running mean that starts as a plain one."""
    weight = tl.maximum(1.0 / tl.maximum(count, 1.0), rate)
    return tl.where(have, lerp(old, new, weight), old)


@triton.jit(do_not_specialize=["slices", "tensors", "group", "window"])
def observe(
    MEMORY,
    SKETCHES,
    slices,
    Z,
    tensors,
    LR,
    group,
    LOSS,
    window,
    slow,
    fast,
    rate,
    slack,
    swell,
    start,
    edge_limit,
    consistent,
    trend_weight,
    trend_scale,
    low,
    high,
    HAS_LOSS: tl.constexpr,
    W: tl.constexpr,
    N: tl.constexpr,
):
    """One program: the sketch of the step, and the controller's memory moved on by ``advance``."""
    bucket = tl.arange(0, BUCKETS)
    q = tl.zeros([BUCKETS], tl.float32)
    for j in range(0, slices):
        q += tl.load(SKETCHES + j * BUCKETS + bucket)
    lane = tl.arange(0, N)
    squares, usable = tl.zeros([N], tl.float32), tl.zeros([N], tl.float32)
    for j in range(0, tensors, N):
        at = j + lane
        ok = tl.load(Z + at * NUMBERS + Z_OK, mask=at < tensors, other=0.0)
        squares += tl.where(ok != 0, tl.load(Z + at * NUMBERS + Z_SQUARE, mask=at < tensors, other=0.0), 0.0)
        usable += ok
    square = tl.sum(squares, 0)
    wrong = tl.sum(usable, 0) < tensors
    histories = MEMORY + 14
    sketches = histories + 3 * window
    last = tl.load(sketches + BUCKETS + bucket)
    size, before = tl.sum(q * q, 0), tl.sum(last * last, 0)
    infinite = float("inf")
    moved = (size > 0) & (size < infinite) & (square > 0) & (square < infinite) & (wrong == 0)
    paired = moved & (before > 0)
    scale = tl.where(paired, tl.rsqrt(tl.maximum(size, 1e-30)) * tl.rsqrt(tl.maximum(before, 1e-30)), 0.0)
    cosine = tl.where(paired, tl.minimum(tl.maximum(tl.sum(q * last, 0) * scale, -1.0), 1.0), 0.0)
    norm = tl.where(moved, 0.5 * tl.log(tl.maximum(square, 1e-38)), 0.0)
    loss, finite = 0.0, slow > 0
    told = slow < 0
    if HAS_LOSS:
        voices = tl.load(LOSS + 1)
        given = tl.div_rn(tl.load(LOSS), tl.maximum(voices, 1.0))
        finite = (tl.abs(given) < infinite) | (voices == 0)
        told = finite & (voices > 0)
        loss = tl.where(told, given, 0.0)
    bad = tl.where(wrong | (finite == 0), 1.0, 0.0)

    steps, had_losses = tl.load(MEMORY) + 1.0, tl.load(MEMORY + 1)
    losses = had_losses + tl.where(told, 1.0, 0.0)
    cosines = tl.load(MEMORY + 2) + tl.where(paired, 1.0, 0.0)
    norms = tl.load(MEMORY + 3) + tl.where(moved, 1.0, 0.0)
    slow_loss = tl.load(MEMORY + 11)
    distance = tl.where(had_losses > 0, tl.abs(loss - slow_loss), 0.0)
    kappa = mean_of(tl.load(MEMORY + 7), cosine, rate, cosines, paired)
    norm_fast = mean_of(tl.load(MEMORY + 8), norm, fast, norms, moved)
    norm_slow = mean_of(tl.load(MEMORY + 9), norm, slow, norms, moved)
    loss_fast = mean_of(tl.load(MEMORY + 10), loss, fast, losses, told)
    loss_slow = mean_of(slow_loss, loss, slow, losses, told)
    deviation = mean_of(tl.load(MEMORY + 12), distance, slow, losses, told)
    trend = tl.div_rn(loss_fast - loss_slow, tl.maximum(tl.maximum(tl.abs(loss_slow), deviation), 1e-30))
    sign = (kappa < -slack) | (trend > slack) | (norm_fast - norm_slow > swell) | (bad > 0)
    edge = sign & (steps >= start)
    turn = 1.0 - 2.0 / (tl.exp(tl.minimum(2.0 * tl.div_rn(trend, trend_scale), 80.0)) + 1.0)
    target = consistent * kappa - trend_weight * turn
    target = tl.where(edge, tl.minimum(target, edge_limit), target)
    target = tl.minimum(tl.maximum(target, low), high)
    log_m = tl.load(MEMORY + 6)
    edges = tl.load(MEMORY + 4) + tl.where(edge, 1.0, 0.0)
    stable = tl.where(edge, 0.0, tl.load(MEMORY + 5) + 1.0)

    lane = tl.arange(0, W)
    inside, newest = lane < window, lane == window - 1
    old_losses = tl.load(histories + lane, mask=inside, other=0.0)
    next_losses = tl.load(histories + lane + 1, mask=inside, other=0.0)
    next_rates = tl.load(histories + window + lane + 1, mask=inside, other=0.0)
    next_trends = tl.load(histories + 2 * window + lane + 1, mask=inside, other=0.0)
    lr = rate_of(LR, group)
    tl.debug_barrier()  # everything has been read
    tl.store(histories + lane, tl.where(told, tl.where(newest, loss, next_losses), old_losses), mask=inside)
    tl.store(histories + window + lane, tl.where(newest, lr, next_rates), mask=inside)
    tl.store(histories + 2 * window + lane, tl.where(newest, -trend, next_trends), mask=inside)
    tl.store(sketches + bucket, last, mask=only(bucket >= 0, moved))
    tl.store(sketches + BUCKETS + bucket, q, mask=only(bucket >= 0, moved))
    tl.store(MEMORY, steps)
    tl.store(MEMORY + 1, losses)
    tl.store(MEMORY + 2, cosines)
    tl.store(MEMORY + 3, norms)
    tl.store(MEMORY + 4, edges)
    tl.store(MEMORY + 5, stable)
    tl.store(MEMORY + 6, log_m + rate * (target - log_m))
    tl.store(MEMORY + 7, kappa)
    tl.store(MEMORY + 8, norm_fast)
    tl.store(MEMORY + 9, norm_slow)
    tl.store(MEMORY + 10, loss_fast)
    tl.store(MEMORY + 11, loss_slow)
    tl.store(MEMORY + 12, deviation)
    tl.store(MEMORY + 13, bad)
