"""The last passes, over flat tiles of whole quantisation blocks: the step itself.

``lengths`` and ``pull`` run only for Selective Projection Decay, which needs the length that the
weights would have after the step before it can say how far to pull them back.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .codes import load_mean, store_mean, store_moment, store_nibbles
from .columns import (
    H_MASK,
    H_SPD,
    HYPER,
    NUMBERS,
    SOFTSIGN4,
    T_BLOCK,
    T_CODED,
    T_EDGE,
    T_FACTORED,
    T_FLAT,
    T_FLATS,
    T_GROUP,
    T_KEY,
    T_M,
    T_M_ERROR,
    T_M_SCALE,
    T_M_ZERO,
    T_MASK,
    T_NUMEL,
    T_P,
    T_P_KIND,
    T_REST,
    T_S,
    T_S_SCALE,
    T_SALT_EDGE,
    T_SALT_M,
    T_SCALE_AT,
    T_SHARE,
    T_SIGNS,
    T_V,
    T_V_SCALE,
    WIDTH,
    Z_GP,
    Z_OK,
    Z_PP,
    Z_PULL,
)
from .device import lerp, random_bits, round_to_grid
from .element import COUNTER_OFFSET, times
from .first import total_of
from .master import store_weights
from .weights import new_weights


@triton.jit
def lengths(
    TAB, HYP, DYN, FLAT, MAP, TABLE, ROWS, COLS, Z, MEANS, MEAN, FACTOR, LR, 
    SCALE, SCALES, WEIGHTS, RANKS, NEW,
    P_KIND: tl.constexpr, G_KIND: tl.constexpr, CODE: tl.constexpr, ERROR: tl.constexpr,
    LOG: tl.constexpr, SCALED: tl.constexpr, PICTURE: tl.constexpr, ROW_MASK: tl.constexpr,
    IMPROVED: tl.constexpr, MULTIPLIED: tl.constexpr, NS: tl.constexpr, RANKED: tl.constexpr,
    REST: tl.constexpr,
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
            REST,
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
def write(
    TAB, HYP, DYN, FLAT, MAP, BASE, BOUND, TABLE, ROWS, COLS, Z, MEANS, MEAN, FACTOR, LR, SCALE,
    SCALES, WEIGHTS, RANKS,
    P_KIND: tl.constexpr, G_KIND: tl.constexpr, CODE: tl.constexpr, ERROR: tl.constexpr,
    LOG: tl.constexpr, SCALED: tl.constexpr, PICTURE: tl.constexpr, ROW_MASK: tl.constexpr,
    IMPROVED: tl.constexpr, MULTIPLIED: tl.constexpr, NS: tl.constexpr, RANKED: tl.constexpr,
    REST: tl.constexpr,
    RANDOM: tl.constexpr,
    NB: tl.constexpr, QB: tl.constexpr, DOUBLINGS: tl.constexpr,
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
        share = tl.load(tab + T_SHARE).to(tl.int32)
        whole = (places * QB < numel) & (places % share == 0)
        w, result, u, own, v, s, counter, last, history = new_weights(
            tab, hyp, z, t, group, now, early, warm, weight, decay, tl.load(DYN + t), at, mask,
            MAP, TABLE, ROWS, COLS, MEANS, MEAN, FACTOR, LR, SCALE, SCALES, WEIGHTS, RANKS,
            P_KIND, G_KIND, CODE, ERROR, LOG, SCALED, PICTURE, ROW_MASK, IMPROVED, MULTIPLIED, NS, RANKED,
            REST,
        )  # fmt: skip
        if IMPROVED:
            result = result * (1.0 - tl.load(z + Z_PULL))
        key = tl.load(tab + T_KEY).to(tl.int32)
        coded, block = tl.load(tab + T_CODED), tl.load(tab + T_BLOCK).to(tl.int32)
        if NS > 0:
            more = SCALES + tl.load(tab + T_SCALE_AT)
            for i in tl.static_range(NS):
                p, q = tl.load(more + 3 * i), tl.load(more + 3 * i + 1)
                mean = load_mean(p, q, 0, 0, at, block, coded, mask, MAP, CODE, 0)
                mean = lerp(mean, u, tl.load(WEIGHTS + group * 2 * NS + 2 * i))
                tl.debug_barrier()  # all scales of the block have been read
                bits = at
                if CODE == SOFTSIGN4:
                    bits = random_bits(key, tl.load(more + 3 * i + 2).to(tl.int32), now, at)
                store_mean(
                    p, q, q, q, mean, at, places, share, coded, mask, whole, bits,
                    MAP, BASE, BOUND, CODE, 0, NB, QB, DOUBLINGS,
                )  # fmt: skip
        scales, zeros = tl.load(tab + T_M_SCALE), tl.load(tab + T_M_ZERO)
        errors = tl.load(tab + T_M_ERROR)
        tl.debug_barrier()  # all scales, bits and neighbours of the tile have been read
        bits = at
        if CODE == SOFTSIGN4:
            bits = random_bits(key, tl.load(tab + T_SALT_M).to(tl.int32), now, at)
        store_mean(
            tl.load(tab + T_M), scales, zeros, errors, own, at, places, share, coded, mask, whole, bits,
            MAP, BASE, BOUND, CODE, ERROR, NB, QB, DOUBLINGS,
        )  # fmt: skip
        if tl.load(tab + T_FACTORED) == 0:
            p, q = tl.load(tab + T_V), tl.load(tab + T_V_SCALE)
            store_moment(p, q, v, at, places, share, mask, whole, LOG, NB, DOUBLINGS)
            if tl.load(tab + T_S) != 0:
                p, q = tl.load(tab + T_S), tl.load(tab + T_S_SCALE)
                store_moment(p, q, s, at, places, share, mask, whole, LOG, NB, DOUBLINGS)
        if warm:
            mode = tl.load(hyp + H_MASK)
            if mode == 1:
                word = 2 * (counter + COUNTER_OFFSET) + tl.where(last < 0, 1, 0)
                tl.store(
                    tl.load(tab + T_MASK).to(tl.pointer_type(tl.uint8)) + at, word.to(tl.uint8), mask=mask
                )
            if ROW_MASK:
                if mode >= 2:
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
        store_weights(
            tl.load(tab + T_P), tl.load(tab + T_REST), tl.load(tab + T_P_KIND), result, bits, at, mask,
            P_KIND, RANDOM, REST,
        )  # fmt: skip
