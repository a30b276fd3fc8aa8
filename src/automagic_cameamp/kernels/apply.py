"""The last passes, over flat tiles of whole quantisation blocks: the step itself.

``lengths`` and ``pull`` run only for Selective Projection Decay, which needs the length that the
weights would have after the step before it can say how far to pull them back.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .columns import (
    A_GAIN,
    A_R,
    A_S,
    A_SPACE,
    B_C,
    B_S,
    B_SPACE,
    BF16,
    F16,
    F32,
    H_BACKGROUND,
    H_DECAY,
    H_DECAY_ALWAYS,
    H_DETAIL,
    H_EDGE,
    H_EDGE_AT,
    H_EPS0,
    H_EPS1,
    H_FREQUENCY,
    H_MASK,
    H_NOW,
    H_OWN,
    H_SPD,
    H_W2,
    H_W3,
    HYPER,
    NUMBERS,
    T_BATCH,
    T_BLOCK,
    T_CODED,
    T_COL_AT,
    T_COLS,
    T_EDGE,
    T_FACTORED,
    T_FLAT,
    T_FLATS,
    T_G_KIND,
    T_GROUP,
    T_HEIGHT,
    T_KEY,
    T_M,
    T_M_ERROR,
    T_M_SCALE,
    T_M_ZERO,
    T_MASK,
    T_MATRIX,
    T_MEANS,
    T_NUMEL,
    T_P,
    T_P_KIND,
    T_ROW_AT,
    T_ROWS,
    T_S,
    T_S_SCALE,
    T_SALT_EDGE,
    T_SCALE_AT,
    T_SIDE,
    T_SIGNS,
    T_V,
    T_V_SCALE,
    T_WIDTH,
    WIDTH,
    Z_ABS,
    Z_CAUTION,
    Z_CLIP,
    Z_DAMP,
    Z_EDGE,
    Z_FINAL,
    Z_GP,
    Z_OK,
    Z_PP,
    Z_PULL,
    Z_SLOPE,
)
from .device import (
    bf16_bits,
    lerp,
    load_f32,
    load_mean,
    load_moment,
    load_number,
    random_bits,
    round_to_grid,
    store_mean,
    store_moment,
    store_nibbles,
    to_f16,
)
from .element import (
    COUNTER_OFFSET,
    boost,
    clamped,
    element_mask,
    leaning,
    look,
    mixture,
    moved,
    multiplier,
    rate_of,
    times,
)
from .first import total_of
from .second import update_of, turned


@triton.jit
def edge_history(p, edge, scale, threshold, at, coded, mask):
    """``edge_hits`` and its running mean, fp32 or ``Unit4``."""
    e = tl.div_rn(edge, edge + scale + 1e-38)
    hit = tl.where(e > threshold, e, 0.0)
    if coded != 0:
        byte = tl.load(p.to(tl.pointer_type(tl.uint8)) + at // 2, mask=mask, other=0).to(tl.int32)
        old = tl.div_rn(((byte >> ((at % 2) * 4)) & 15).to(tl.float32), 15.0)
    else:
        old = load_f32(p, at, mask)
    return lerp(old, hit, 0.1)


@triton.jit
def new_weights(
    tab, hyp, z, t, group, now, early, warm, weight, decay, g, at, mask,
    MAP, TABLE, ROWS, COLS, MEANS, MEAN, FACTOR, LR, SCALE, SCALES, WEIGHTS, RANKS,
    P_KIND: tl.constexpr, G_KIND: tl.constexpr, CODE: tl.constexpr, ERROR: tl.constexpr,
    LOG: tl.constexpr, SCALED: tl.constexpr, PICTURE: tl.constexpr, ROW_MASK: tl.constexpr,
    IMPROVED: tl.constexpr, MULTIPLIED: tl.constexpr, NS: tl.constexpr, RANKED: tl.constexpr,
):  # fmt: skip
    """Weights after the step, before any projection; and all that is stored with them."""
    mean = tl.load(tab + T_M)
    m, n = tl.load(tab + T_ROWS).to(tl.int32), tl.load(tab + T_COLS).to(tl.int32)
    block, coded = tl.load(tab + T_BLOCK).to(tl.int32), tl.load(tab + T_CODED)
    factored = tl.load(tab + T_FACTORED) != 0
    batch = tl.load(tab + T_BATCH).to(tl.int32)
    rows, cols = ROWS + tl.load(tab + T_ROW_AT), COLS + tl.load(tab + T_COL_AT)
    lines, wide = batch * m, batch * n
    line = at // n
    k = line // m
    column = k * n + at - line * n
    clip, damp = tl.load(z + Z_CLIP), tl.load(z + Z_DAMP)
    lr = rate_of(LR, group)
    height, width = tl.load(tab + T_HEIGHT).to(tl.int32), tl.load(tab + T_WIDTH).to(tl.int32)
    raw, x, edge = look(
        g, at, mask, tl.load(tab + T_G_KIND), SCALE, height, width, tl.load(hyp + H_FREQUENCY),
        G_KIND, SCALED, PICTURE,
    )  # fmt: skip
    old = load_mean(
        mean, tl.load(tab + T_M_SCALE), tl.load(tab + T_M_ZERO), tl.load(tab + T_M_ERROR),
        at, block, coded, mask, MAP, CODE, ERROR,
    )  # fmt: skip
    w = load_number(tl.load(tab + T_P), at, mask, tl.load(tab + T_P_KIND), P_KIND)
    gain = tl.load(rows + A_GAIN * lines + line, mask=mask, other=1.0)
    if MULTIPLIED:
        gain = gain * tl.load(FACTOR)
    means = MEANS + 4 * (tl.load(tab + T_MEANS) + k)
    v, s = x * 0.0, x * 0.0
    if factored:
        moment = tl.load(rows + A_R * lines + line, mask=mask, other=1.0)
        mean_r = tl.load(means, mask=mask, other=1.0)
        row_factor = tl.rsqrt(tl.div_rn(moment, mean_r))
        c_moment = tl.load(cols + B_C * wide + column, mask=mask, other=1.0)
        u = update_of(x, row_factor, tl.rsqrt(c_moment), clip)
        if RANKED:
            u = leaning(u, tab, hyp, z, RANKS, k, line - k * m, column - k * n, m, n, mask)
    else:
        v = load_moment(tl.load(tab + T_V), tl.load(tab + T_V_SCALE), at, block, mask, LOG)
        v = lerp(v, x * x + tl.load(hyp + H_EPS0), tl.load(hyp + H_W2))
        u = update_of(x, tl.rsqrt(v), 1.0, clip)
    own = lerp(old, u * damp, weight)
    new = own
    if NS > 0:
        more = SCALES + tl.load(tab + T_SCALE_AT)
        new = mixture(
            own, u, more, WEIGHTS + group * 2 * NS, tl.load(hyp + H_OWN), tl.load(hyp + H_NOW),
            at, block, coded, mask, MAP, CODE, NS,
        )  # fmt: skip
    out = new
    if factored:
        surprise = tl.load(rows + A_S * lines + line, mask=mask, other=1.0)
        mean_s = tl.load(means + 1, mask=mask, other=1.0)
        s_col = tl.load(cols + B_S * wide + column, mask=mask, other=1.0)
        out = (new * tl.rsqrt(tl.div_rn(surprise, mean_s))) * tl.rsqrt(s_col)
    else:
        if tl.load(tab + T_S) != 0:
            s = load_moment(tl.load(tab + T_S), tl.load(tab + T_S_SCALE), at, block, mask, LOG)
            s = lerp(s, (u - new) * (u - new) + tl.load(hyp + H_EPS1), tl.load(hyp + H_W3))
            out = new * tl.rsqrt(s)
    out = out * turned(new, raw, hyp, early, decay, IMPROVED)
    if IMPROVED:
        out = out * tl.load(z + Z_CAUTION)

    live = warm & (now > 1.0)
    factor = boost(hyp, tl.load(z + Z_GP), early)
    mode = tl.load(hyp + H_MASK)
    words = tl.load(tab + T_MASK)
    counter, last = at * 0, at * 0 + 1
    mu = x * 0.0 + 1.0
    if mode == 1:
        counter, last = element_mask(words, at, mask, raw, live, factor)
        mu = multiplier(TABLE, counter, MEAN)
    if ROW_MASK:
        if mode == 2:
            where = tl.where(tl.load(tab + T_MATRIX) != 0, line, 0)
            held = tl.load(words.to(tl.pointer_type(tl.int8)) + where, mask=mask, other=0).to(tl.int32)
            mu = multiplier(TABLE, held, MEAN)
            signs = tl.load(tab + T_SIGNS)
            byte = tl.load(signs.to(tl.pointer_type(tl.uint8)) + at // 8, mask=mask, other=0)
            _, last = moved(counter, 1 - 2 * ((byte.to(tl.int32) >> (at % 8)) & 1), raw, live, 1)
    rate = clamped(mu * gain, hyp, lr)
    d = out * rate * (tl.load(z + Z_FINAL) * lr)
    history = x * 0.0
    if IMPROVED:
        if (tl.load(hyp + H_BACKGROUND) != 0) & factored:
            moment = tl.load(rows + A_R * lines + line, mask=mask, other=1.0)
            share = tl.div_rn(moment + 1e-38, tl.load(means, mask=mask, other=1.0) + 1e-38)
            d = d * tl.minimum(tl.maximum(tl.sqrt(share / 0.1), 0.5), 1.0)
        side = tl.load(tab + T_SIDE)
        if side != 0:
            mean_v = tl.load(means + 2, mask=mask, other=1.0)
            if side == 1:
                variance = tl.load(rows + A_SPACE * lines + line, mask=mask, other=1.0)
            else:
                variance = tl.load(cols + B_SPACE * wide + column, mask=mask, other=1.0)
            ratio = tl.div_rn(variance + 1e-38, mean_v + 1e-38)
            d = d * tl.minimum(tl.maximum(1.0 + tl.load(hyp + H_DETAIL) * (ratio - 1.0), 0.5), 1.5)
        kept = tl.load(tab + T_EDGE)
        if PICTURE:
            if kept != 0:
                history = edge_history(
                    kept, edge, tl.load(z + Z_EDGE), tl.load(hyp + H_EDGE_AT), at, coded, mask
                )
                d = d * (1.0 - tl.load(hyp + H_EDGE) * history)
        result = w - d
    else:
        strength = tl.load(hyp + H_DECAY)
        result = w
        if strength > 0:
            theta = tl.div_rn(2.0, tl.exp((tl.abs(raw) - tl.load(z + Z_ABS)) * tl.load(z + Z_SLOPE)) + 1.0)
            active = early | (tl.load(hyp + H_DECAY_ALWAYS) != 0)
            result = w - tl.where(active, theta * rate * (lr * strength) * w, 0.0)
        result = result - d
    return w, result, u, own, v, s, counter, last, history


@triton.jit
def lengths(
    TAB, HYP, DYN, FLAT, MAP, TABLE, ROWS, COLS, Z, MEANS, MEAN, FACTOR, LR, SCALE, SCALES, WEIGHTS, RANKS, NEW,
    P_KIND: tl.constexpr, G_KIND: tl.constexpr, CODE: tl.constexpr, ERROR: tl.constexpr,
    LOG: tl.constexpr, SCALED: tl.constexpr, PICTURE: tl.constexpr, ROW_MASK: tl.constexpr,
    IMPROVED: tl.constexpr, MULTIPLIED: tl.constexpr, NS: tl.constexpr, RANKED: tl.constexpr,
    NB: tl.constexpr, QB: tl.constexpr,
):  # fmt: skip
    """Sum of the squared weights after the step, per flat tile."""
    tile = tl.program_id(0)
    t = tl.load(FLAT + 2 * tile)
    tab = TAB + t * WIDTH
    group = tl.load(tab + T_GROUP)
    hyp = HYP + group * HYPER
    z = Z + t * NUMBERS
    now, early, warm, weight, decay = times(tab, hyp, 1)
    total = 0.0
    if (tl.load(hyp + H_SPD) > 0) & warm & (tl.load(z + Z_OK) != 0):
        places = tl.load(FLAT + 2 * tile + 1).to(tl.int32) + tl.arange(0, NB)
        at = places[:, None] * QB + tl.arange(0, QB)[None, :]
        mask = at < tl.load(tab + T_NUMEL).to(tl.int32)
        w, result, u, own, v, s, counter, last, history = new_weights(
            tab, hyp, z, t, group, now, early, warm, weight, decay, tl.load(DYN + t), at, mask,
            MAP, TABLE, ROWS, COLS, MEANS, MEAN, FACTOR, LR, SCALE, SCALES, WEIGHTS, RANKS,
            P_KIND, G_KIND, CODE, ERROR, LOG, SCALED, PICTURE, ROW_MASK, IMPROVED, MULTIPLIED, NS, RANKED,
        )  # fmt: skip
        total = tl.sum(tl.sum(tl.where(mask, result * result, 0.0), 1), 0)
    tl.store(NEW + tile, total)


@triton.jit
def pull(TAB, HYP, NEW, Z, N: tl.constexpr):
    """A program per tensor: how far ``spd`` pulls the weights back."""
    t = tl.program_id(0)
    tab = TAB + t * WIDTH
    hyp = HYP + tl.load(tab + T_GROUP) * HYPER
    z = Z + t * NUMBERS
    now, early, warm, weight, decay = times(tab, hyp, 1)
    after = tl.sqrt(total_of(NEW, tl.load(tab + T_FLAT), tl.load(tab + T_FLATS).to(tl.int32), 0, 1, N))
    before = tl.sqrt(tl.load(z + Z_PP))
    ratio = tl.where(after > 0, 1.0 - before / tl.where(after > 0, after, 1.0), 0.0)
    ratio = tl.minimum(tl.maximum(ratio, 0.0), 1.0)
    strength = tl.load(hyp + H_SPD)
    active = warm & (tl.load(z + Z_GP) > 0) & (strength > 0)
    tl.store(z + Z_PULL, tl.where(active, tl.minimum(strength * ratio, 1.0), 0.0))


@triton.jit
def store_weights(p, kind, x, bits, at, mask, P_KIND: tl.constexpr, RANDOM: tl.constexpr):
    """Weights in their own type, rounded stochastically where that is asked for."""
    if (P_KIND == F32) or (P_KIND == BF16) or (P_KIND == F16):
        if P_KIND == F32:
            tl.store(p.to(tl.pointer_type(tl.float32)) + at, x, mask=mask)
        elif P_KIND == BF16:
            tl.store(p.to(tl.pointer_type(tl.int16)) + at, bf16_bits(x, bits, RANDOM), mask=mask)
        else:
            tl.store(p.to(tl.pointer_type(tl.float16)) + at, to_f16(x, bits, RANDOM), mask=mask)
    else:
        if kind == F32:
            tl.store(p.to(tl.pointer_type(tl.float32)) + at, x, mask=mask)
        elif kind == BF16:
            tl.store(p.to(tl.pointer_type(tl.int16)) + at, bf16_bits(x, bits, RANDOM), mask=mask)
        else:
            tl.store(p.to(tl.pointer_type(tl.float16)) + at, to_f16(x, bits, RANDOM), mask=mask)


@triton.jit
def write(
    TAB, HYP, DYN, FLAT, MAP, BASE, BOUND, TABLE, ROWS, COLS, Z, MEANS, MEAN, FACTOR, LR, SCALE, SCALES, WEIGHTS, RANKS,
    P_KIND: tl.constexpr, G_KIND: tl.constexpr, CODE: tl.constexpr, ERROR: tl.constexpr,
    LOG: tl.constexpr, SCALED: tl.constexpr, PICTURE: tl.constexpr, ROW_MASK: tl.constexpr,
    IMPROVED: tl.constexpr, MULTIPLIED: tl.constexpr, NS: tl.constexpr, RANKED: tl.constexpr, RANDOM: tl.constexpr,
    NB: tl.constexpr, QB: tl.constexpr,
):  # fmt: skip
    """Weights and full-size state; nothing where the gradient was not usable."""
    tile = tl.program_id(0)
    t = tl.load(FLAT + 2 * tile)
    tab = TAB + t * WIDTH
    group = tl.load(tab + T_GROUP)
    hyp = HYP + group * HYPER
    z = Z + t * NUMBERS
    if tl.load(z + Z_OK) != 0:
        now, early, warm, weight, decay = times(tab, hyp, 1)
        first = tl.load(FLAT + 2 * tile + 1).to(tl.int32)
        places = first + tl.arange(0, NB)
        at = places[:, None] * QB + tl.arange(0, QB)[None, :]
        numel = tl.load(tab + T_NUMEL).to(tl.int32)
        mask = at < numel
        whole = places * QB < numel
        w, result, u, own, v, s, counter, last, history = new_weights(
            tab, hyp, z, t, group, now, early, warm, weight, decay, tl.load(DYN + t), at, mask,
            MAP, TABLE, ROWS, COLS, MEANS, MEAN, FACTOR, LR, SCALE, SCALES, WEIGHTS, RANKS,
            P_KIND, G_KIND, CODE, ERROR, LOG, SCALED, PICTURE, ROW_MASK, IMPROVED, MULTIPLIED, NS, RANKED,
        )  # fmt: skip
        if IMPROVED:
            result = result * (1.0 - tl.load(z + Z_PULL))
        key = tl.load(tab + T_KEY).to(tl.int32)
        coded, block = tl.load(tab + T_CODED), tl.load(tab + T_BLOCK).to(tl.int32)
        if NS > 0:
            more = SCALES + tl.load(tab + T_SCALE_AT)
            for i in tl.static_range(NS):
                p, q = tl.load(more + 2 * i), tl.load(more + 2 * i + 1)
                mean = load_mean(p, q, 0, 0, at, block, coded, mask, MAP, CODE, 0)
                mean = lerp(mean, u, tl.load(WEIGHTS + group * 2 * NS + 2 * i))
                tl.debug_barrier()  # all scales of the block have been read
                store_mean(p, q, q, q, mean, at, places, coded, mask, whole, MAP, BASE, BOUND, CODE, 0, NB, QB)
        scales, zeros = tl.load(tab + T_M_SCALE), tl.load(tab + T_M_ZERO)
        errors = tl.load(tab + T_M_ERROR)
        tl.debug_barrier()  # all scales, bits and neighbours of the tile have been read
        store_mean(
            tl.load(tab + T_M), scales, zeros, errors, own, at, places, coded, mask, whole,
            MAP, BASE, BOUND, CODE, ERROR, NB, QB,
        )  # fmt: skip
        if tl.load(tab + T_FACTORED) == 0:
            store_moment(tl.load(tab + T_V), tl.load(tab + T_V_SCALE), v, at, places, mask, whole, LOG)
            if tl.load(tab + T_S) != 0:
                store_moment(tl.load(tab + T_S), tl.load(tab + T_S_SCALE), s, at, places, mask, whole, LOG)
        if warm:
            mode = tl.load(hyp + H_MASK)
            if mode == 1:
                word = 2 * (counter + COUNTER_OFFSET) + tl.where(last < 0, 1, 0)
                tl.store(
                    tl.load(tab + T_MASK).to(tl.pointer_type(tl.uint8)) + at, word.to(tl.uint8), mask=mask
                )
            if ROW_MASK:
                if mode == 2:
                    bit = tl.where(mask & (last < 0), 1, 0) << (at % 8)
                    byte = tl.sum(tl.reshape(bit, [NB, QB // 8, 8]), 2)
                    spot = places[:, None] * (QB // 8) + tl.arange(0, QB // 8)[None, :]
                    tl.store(
                        tl.load(tab + T_SIGNS).to(tl.pointer_type(tl.uint8)) + spot,
                        byte.to(tl.uint8),
                        mask=spot * 8 < numel,
                    )
        if PICTURE:
            kept = tl.load(tab + T_EDGE)
            if kept != 0:
                if coded != 0:
                    bits = random_bits(key, tl.load(tab + T_SALT_EDGE).to(tl.int32), now, at)
                    level = tl.minimum(tl.maximum(round_to_grid(history * 15.0, bits), 0.0), 15.0)
                    store_nibbles(kept, tl.where(mask, level.to(tl.int32), 0), at, mask, NB, QB)
                else:
                    tl.store(kept.to(tl.pointer_type(tl.float32)) + at, history, mask=mask)
        bits = at
        if RANDOM:
            bits = random_bits(key, 0, now, at)
        store_weights(tl.load(tab + T_P), tl.load(tab + T_P_KIND), result, bits, at, mask, P_KIND, RANDOM)
