"""Weights and full-size state after the step, of any elements of a tensor."""

from __future__ import annotations

import triton
import triton.language as tl

from .codes import load_mean, load_moment, nibbles
from .columns import (
    A_GAIN,
    A_R,
    A_S,
    A_SPACE,
    B_C,
    B_S,
    B_SPACE,
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
    H_W2,
    H_W3,
    T_BATCH,
    T_BLOCK,
    T_CODED,
    T_COL_AT,
    T_COLS,
    T_EDGE,
    T_FACTORED,
    T_G_KIND,
    T_HEIGHT,
    T_M,
    T_M_ERROR,
    T_M_SCALE,
    T_M_ZERO,
    T_MASK,
    T_MATRIX,
    T_MEANS,
    T_P,
    T_P_KIND,
    T_REST,
    T_ROW_AT,
    T_ROWS,
    T_S,
    T_S_SCALE,
    T_SCALE_AT,
    T_SIDE,
    T_SIGNS,
    T_V,
    T_V_SCALE,
    T_WIDTH,
    Z_ABS,
    Z_CAUTION,
    Z_CLIP,
    Z_DAMP,
    Z_EDGE,
    Z_FINAL,
    Z_GP,
    Z_SLOPE,
)
from .device import lerp, load_f32
from .element import (
    boost,
    clamped,
    element_mask,
    leaning,
    look,
    mixture,
    moved,
    multiplier,
    rate_of,
    turned,
)
from .master import load_weights
from .second import update_of


@triton.jit
def edge_history(p, edge, scale, threshold, at, coded, mask):
    """``edge_hits`` and its running mean, fp32 or ``Unit4``."""
    e = tl.div_rn(edge, edge + scale + 1e-38)
    hit = tl.where(e > threshold, e, 0.0)
    if coded != 0:
        old = tl.div_rn(nibbles(p, at, mask).to(tl.float32), 15.0)
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
    REST: tl.constexpr,
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
    w = load_weights(
        tl.load(tab + T_P), tl.load(tab + T_REST), at, mask, tl.load(tab + T_P_KIND), P_KIND, REST
    )
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
    if MULTIPLIED:
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
        if mode >= 2:
            where = tl.where((tl.load(tab + T_MATRIX) != 0) & (mode == 2), line, 0)
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
