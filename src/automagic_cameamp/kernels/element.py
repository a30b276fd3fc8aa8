"""What several passes compute alike: gradient, schedule, mask, momentum. Each names its technique."""

from __future__ import annotations

import triton
import triton.language as tl

from .codes import load_mean
from .columns import (
    H_BETA1,
    H_BOOST,
    H_CAUTIOUS,
    H_EMPHASIS,
    H_FLOOR,
    H_GRAMS,
    H_HARD,
    H_HIGH,
    H_LOG_DECAY,
    H_LOW,
    H_W1,
    H_WARMUP,
    T_BASIS,
    T_RANK,
    T_RANK_AT,
    T_STEP,
    T_TAIL,
    T_WIDE,
    Z_LEAN,
)
from .device import from_bf16, lerp, load_number, only, scalar

COUNTER_LOW = tl.constexpr(-84)  # techniques.GEOMETRIC; a test compares
COUNTER_HIGH = tl.constexpr(42)
COUNTER_OFFSET = tl.constexpr(84)


@triton.jit
def scaled_gradient(g, at, mask, kind, scale, KIND: tl.constexpr, SCALED: tl.constexpr):
    """Raw gradient, a gradient scaler's factor taken out."""
    x = load_number(g, at, mask, kind, KIND)
    if SCALED:
        x = tl.div_rn(x, tl.load(scale))
    return x


@triton.jit
def look(
    g,
    at,
    mask,
    kind,
    scale,
    height,
    width,
    penalty,
    KIND: tl.constexpr,
    SCALED: tl.constexpr,
    PICTURE: tl.constexpr,
):
    """Raw gradient, filtered gradient (``frequency_filter``), absolute ``laplacian``."""
    raw = scaled_gradient(g, at, mask, kind, scale, KIND, SCALED)
    out = raw
    edge = raw * 0.0
    if PICTURE:
        if height > 0:
            inside = at % (height * width)
            y, x = inside // width, inside % width
            up, down = tl.where(y > 0, -width, 0), tl.where(y < height - 1, width, 0)
            left, right = tl.where(x > 0, -1, 0), tl.where(x < width - 1, 1, 0)
            a = scaled_gradient(g, at + left, mask, kind, scale, KIND, SCALED)
            b = scaled_gradient(g, at + right, mask, kind, scale, KIND, SCALED)
            c = scaled_gradient(g, at + up, mask, kind, scale, KIND, SCALED)
            d = scaled_gradient(g, at + down, mask, kind, scale, KIND, SCALED)
            across = (b - raw) - (raw - a)
            edge = tl.abs(across + ((d - raw) - (raw - c)))
            if (penalty > 0) & (tl.maximum(height, width) >= 3):
                ca = scaled_gradient(g, at + up + left, mask, kind, scale, KIND, SCALED)
                cb = scaled_gradient(g, at + up + right, mask, kind, scale, KIND, SCALED)
                da = scaled_gradient(g, at + down + left, mask, kind, scale, KIND, SCALED)
                db = scaled_gradient(g, at + down + right, mask, kind, scale, KIND, SCALED)
                middle = raw + 0.25 * across
                above = c + 0.25 * ((cb - c) - (c - ca))
                below = d + 0.25 * ((db - d) - (d - da))
                smooth = middle + 0.25 * ((below - middle) - (middle - above))
                out = lerp(raw, smooth, penalty)
    return raw, out, edge


@triton.jit
def times(tab, hyp, counted):
    """``schedule.scalars``: number of this update, early, warm, weight of the update, Grams mix.

    ``counted``: 1 once the step counter has been moved on.
    """
    t = scalar(tl.load(tab + T_STEP)) + (1.0 - counted)
    warmup = tl.load(hyp + H_WARMUP)
    early, warm = t < warmup / 2, t < warmup
    decay = tl.exp(t * tl.load(hyp + H_LOG_DECAY))
    later = tl.maximum(decay * tl.load(hyp + H_BETA1), tl.load(hyp + H_FLOOR))
    weight = tl.where(early, tl.load(hyp + H_W1), 1.0 - later)
    return t, early, warm, weight, decay


@triton.jit
def rate_of(LR, group):
    """Learning rate of a group: the table holds an address and whether fp64 stands there."""
    p = tl.load(LR + 2 * group)
    if tl.load(LR + 2 * group + 1) != 0:
        lr = tl.load(p.to(tl.pointer_type(tl.float64))).to(tl.float32)
    else:
        lr = tl.load(p.to(tl.pointer_type(tl.float32)))
    return lr


@triton.jit
def sign(x):
    """-1, 0 or 1."""
    return tl.where(x > 0, 1, 0) - tl.where(x < 0, 1, 0)


@triton.jit
def moved(counter, last, raw, live, factor):
    """``agreement`` and ``count``: the counter after this gradient, and the last sign."""
    s = sign(raw)
    bump = tl.where(live, s * last * factor, 0)
    counter = tl.minimum(tl.maximum(counter + bump, COUNTER_LOW), COUNTER_HIGH)
    return counter, tl.where(s != 0, s, last)


@triton.jit
def boost(hyp, gp, early):
    """``_boost``: bumps d_coef times as large in the early phase where descent makes weights grow."""
    return tl.where((gp < 0) & early, tl.load(hyp + H_BOOST), 1.0).to(tl.int32)


@triton.jit
def clamped(value, hyp, lr):
    """``_clamp`` and ``_absolute_floor`` of a rate relative to lr."""
    value = tl.minimum(tl.maximum(value, tl.load(hyp + H_LOW)), tl.load(hyp + H_HIGH))
    hard = tl.load(hyp + H_HARD)
    floor = tl.where((hard > 0) & (lr > 0), tl.div_rn(hard, tl.where(lr > 0, lr, 1.0)), 0.0)
    return tl.maximum(value, floor)


@triton.jit
def direction(basis, at, mask, tail):
    """Elements of a basis: bf16 of the kept directions, 127ths of the others."""
    if tail != 0:
        x = tl.load(basis.to(tl.pointer_type(tl.int8)) + at, mask=mask, other=0).to(tl.float32)
        x = tl.div_rn(x, 127.0)
    else:
        x = from_bf16(basis, at, mask)
    return x


@triton.jit
def emphasised(u, share, tail, emphasis):
    """``emphasise`` before the length is restored; ``share`` lies in the directions of the basis."""
    return u + (emphasis - 1.0) * tl.where(tail != 0, u - share, share)


@triton.jit
def lean(u, basis, part, short, long, count, rank, tail, emphasis, keep, mask):
    """``emphasise``: part [rank, count] holds the update's share of each direction of the basis."""
    share = u * 0.0
    for a in range(0, rank):
        b = direction(basis, short * rank + a, mask, tail)
        share += b * tl.load(part + a * count + long, mask=mask, other=0.0)
    return emphasised(u, share, tail, emphasis) * keep


@triton.jit
def leaning(u, tab, hyp, z, RANKS, k, row, col, m, n, mask):
    """``lean`` with everything looked up; the update itself where the tensor has no basis."""
    rank = tl.load(tab + T_RANK).to(tl.int32)
    if rank > 0:
        wide = tl.load(tab + T_WIDE) != 0
        short, count = tl.where(wide, row, col), tl.where(wide, n, m)
        long, size = tl.where(wide, col, row), tl.where(wide, m, n)
        basis = tl.load(tab + T_BASIS)
        part = RANKS + tl.load(tab + T_RANK_AT)
        emphasis, keep = tl.load(hyp + H_EMPHASIS), tl.load(z + Z_LEAN)
        tail, at = tl.load(tab + T_TAIL), k * size + short
        part += k * rank * count
        u = lean(u, basis, part, at, long, count, rank, tail, emphasis, keep, mask)
    return u


@triton.jit
def mixture(
    own,
    u,
    scales,
    weights,
    own_weight,
    now,
    at,
    block,
    coded,
    mask,
    MAP,
    CODE: tl.constexpr,
    NS: tl.constexpr,
):
    """``multiscale``: the momentum over all lengths, its further means moved on first."""
    m = own * own_weight + u * now
    for i in tl.static_range(NS):
        p, q = tl.load(scales + 3 * i), tl.load(scales + 3 * i + 1)
        mean = load_mean(p, q, 0, 0, at, block, coded, mask, MAP, CODE, 0)
        m += lerp(mean, u, tl.load(weights + 2 * i)) * tl.load(weights + 2 * i + 1)
    return m


@triton.jit
def disagrees(out, g):
    """Whether an update and a gradient have opposite signs (neither is 0)."""
    return ((out > 0) & (g < 0)) | ((out < 0) & (g > 0))


@triton.jit
def agrees(out, g):
    """Whether an update and a gradient have the same sign (neither is 0)."""
    return ((out > 0) & (g > 0)) | ((out < 0) & (g < 0))


@triton.jit
def turned(out, raw, hyp, early, decay, IMPROVED: tl.constexpr):
    """Factor of Grams or Cautious, without Cautious' division by the mean of its mask."""
    grams = tl.load(hyp + H_GRAMS) != 0
    against = disagrees(out, raw)
    if IMPROVED:
        late = tl.where(tl.load(hyp + H_CAUTIOUS) != 0, tl.where(agrees(out, raw), 1.0, 0.0), 1.0)
        factor = tl.where(early, tl.where(only(against, grams), -1.0, 1.0), late)
    else:
        factor = tl.where(only(against, grams), 1.0 - 2.0 * decay, 1.0)
    return factor


@triton.jit
def element_mask(words, at, mask, raw, live, factor):
    """Counter and last sign of every element after this gradient (``split_word``, ``moved``)."""
    word = tl.load(words.to(tl.pointer_type(tl.uint8)) + at, mask=mask, other=168).to(tl.int32)
    return moved((word >> 1) - COUNTER_OFFSET, 1 - 2 * (word & 1), raw, live, factor)


@triton.jit
def row_counter(counters, at, mask, vote, live, factor):
    """Counter of a row after the ``majority`` of its elements."""
    counter = tl.load(counters.to(tl.pointer_type(tl.int8)) + at, mask=mask, other=0).to(tl.int32)
    bump = tl.where(live, sign(vote) * factor, 0)
    return tl.minimum(tl.maximum(counter + bump, COUNTER_LOW), COUNTER_HIGH)


@triton.jit
def multiplier(TABLE, counter, MEAN):
    """``geometric_mask``: the table holds 64^(k/127)."""
    return tl.div_rn(tl.load(TABLE + counter - COUNTER_LOW), tl.load(MEAN))
