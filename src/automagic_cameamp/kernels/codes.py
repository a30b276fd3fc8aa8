"""Codes of full-size states, block by block: momentum and second moments. Mirrors ``storage``."""

from __future__ import annotations

import triton
import triton.language as tl

from .columns import AFFINE, DYNAMIC, SOFTSIGN, SOFTSIGN4
from .device import from_bf16, load_f32, rint


@triton.jit
def plain_code(q, scale, zero, at, mask, MAP, CODE: tl.constexpr):
    """Codes -> values without error correction, of any shape that broadcasts."""
    if CODE == DYNAMIC:
        x = tl.load(MAP + q, mask=mask, other=0.0) * scale
    elif CODE == SOFTSIGN:
        y = tl.div_rn(q.to(tl.float32), 127.0)
        x = tl.div_rn(1.0, 2.0 - tl.abs(y)) * y * scale
    elif CODE == SOFTSIGN4:
        k = q.to(tl.float32) - 8.0
        x = tl.div_rn(1.0, 14.0 - tl.abs(k)) * k * scale
    else:
        x = (q.to(tl.float32) - zero) * scale
    return x


@triton.jit
def half_step(q, scale, CODE: tl.constexpr):
    """``half_step`` of the codes that can be corrected."""
    if CODE == SOFTSIGN:
        y = tl.minimum(tl.div_rn(tl.abs(q.to(tl.float32)) + 0.5, 127.0), 1.0)
        width = tl.div_rn(1.0, (2.0 - y) * (2.0 - y)) * tl.div_rn(scale, 127.0)
    else:
        width = scale * 0.5
    return width


@triton.jit
def nibbles(p, at, mask):
    """Four-bit numbers at places ``at``, two to a byte."""
    byte = tl.load(p.to(tl.pointer_type(tl.uint8)) + at // 2, mask=mask, other=0).to(tl.int32)
    return (byte >> ((at % 2) * 4)) & 15


@triton.jit
def load_codes(p, at, mask, CODE: tl.constexpr):
    """Integer codes as int32."""
    if CODE == SOFTSIGN:
        q = tl.load(p.to(tl.pointer_type(tl.int8)) + at, mask=mask, other=0).to(tl.int32)
    elif CODE == SOFTSIGN4:
        q = nibbles(p, at, mask)
    else:
        q = tl.load(p.to(tl.pointer_type(tl.uint8)) + at, mask=mask, other=0).to(tl.int32)
    return q


@triton.jit
def decode(p, scales, zeros, errors, at, block, mask, MAP, CODE: tl.constexpr, ERROR: tl.constexpr):
    """Value of a coded running mean at flat places ``at``."""
    q = load_codes(p, at, mask, CODE)
    place = at // block
    if CODE == SOFTSIGN4:
        scale = from_bf16(scales, place, mask)
    else:
        scale = load_f32(scales, place, mask)
    zero = 0.0
    if CODE == AFFINE:
        zero = tl.load(zeros.to(tl.pointer_type(tl.uint8)) + place, mask=mask, other=0).to(tl.float32)
    x = plain_code(q, scale, zero, at, mask, MAP, CODE)
    if ERROR == 4:
        r = nibbles(errors, at, mask).to(tl.float32)
        x += tl.div_rn(r - 7.0, 7.0) * half_step(q, scale, CODE)
    elif ERROR == 8:
        byte = tl.load(errors.to(tl.pointer_type(tl.uint8)) + at, mask=mask, other=0).to(tl.float32)
        x += tl.div_rn(byte - 127.0, 127.0) * half_step(q, scale, CODE)
    return x


@triton.jit
def load_mean(p, scales, zeros, errors, at, block, coded, mask, MAP, CODE: tl.constexpr, ERROR: tl.constexpr):
    """A running mean of full size, coded or fp32."""
    if CODE == 0:
        x = load_f32(p, at, mask)
    else:
        if coded != 0:
            x = decode(p, scales, zeros, errors, at, block, mask, MAP, CODE, ERROR)
        else:
            x = load_f32(p, at, mask)
    return x


@triton.jit
def load_moment(p, scale, at, block, mask, LOG: tl.constexpr):
    """A full second moment: fp32, or ``Log8`` where it has scales."""
    if LOG:
        if scale != 0:
            q = tl.load(p.to(tl.pointer_type(tl.uint8)) + at, mask=mask, other=0).to(tl.float32)
            place = 2 * (at // block)
            low, step = load_f32(scale, place, mask), load_f32(scale, place + 1, mask)
            x = tl.exp(q * step + low)
        else:
            x = load_f32(p, at, mask)
    else:
        x = load_f32(p, at, mask)
    return x


@triton.jit
def largest(x, share, NB: tl.constexpr, DOUBLINGS: tl.constexpr):
    """Largest of each ``share`` neighbours (1, 2, 4 .. 2^DOUBLINGS) of [NB], in the place of each of them."""
    for j in tl.static_range(DOUBLINGS):
        pairs = tl.max(tl.reshape(x, [NB // (2 << j), 2, 1 << j]), 1)
        both = tl.broadcast_to(tl.expand_dims(pairs, 1), [NB // (2 << j), 2, 1 << j])
        x = tl.where(share > (1 << j), tl.reshape(both, [NB]), x)
    return x


@triton.jit
def store_moment(
    p, scales, x, at, places, share, mask, first, LOG: tl.constexpr, NB: tl.constexpr, DOUBLINGS: tl.constexpr
):
    """``Log8.encode`` of a tile of whole blocks (as ``store_mean`` has it), or fp32."""
    if LOG:
        if scales != 0:
            y = tl.log(tl.maximum(x, 1.1754943508222875e-38))
            high = largest(tl.max(tl.where(mask, y, float("-inf")), 1), share, NB, DOUBLINGS)
            low = -largest(tl.max(tl.where(mask, -y, float("-inf")), 1), share, NB, DOUBLINGS)
            low = tl.maximum(low, high - 19.408121055678468)
            step = tl.div_rn(high - low, 255.0)
            q = rint(tl.div_rn(y - low[:, None], tl.where(step > 0, step, 1.0)[:, None]))
            q = tl.minimum(tl.maximum(q, 0.0), 255.0).to(tl.int32)
            tl.store(p.to(tl.pointer_type(tl.uint8)) + at, q.to(tl.uint8), mask=mask)
            scale = scales.to(tl.pointer_type(tl.float32)) + 2 * (places // share)
            tl.store(scale, low, mask=first)
            tl.store(scale + 1, step, mask=first)
        else:
            tl.store(p.to(tl.pointer_type(tl.float32)) + at, x, mask=mask)
    else:
        tl.store(p.to(tl.pointer_type(tl.float32)) + at, x, mask=mask)


@triton.jit
def softsign4(v, noise):
    """``Softsign4.encode`` of [-1, 1] with random bits: 1 to 15."""
    size = tl.abs(v)
    k = tl.minimum(tl.floor(tl.div_rn(size * 14.0, size + 1.0)), 6.0)
    part = tl.div_rn(((14.0 - k) * size - k) * (13.0 - k), 14.0)
    up = part > (noise & 0x1FFF).to(tl.float32) * 0.0001220703125
    k = k + tl.where(up, 1.0, 0.0)
    return tl.where(v > 0, k, tl.where(v < 0, -k, 0.0)).to(tl.int32) + 8


@triton.jit
def store_mean(
    p,
    scales,
    zeros,
    errors,
    x,
    at,
    places,
    share,
    coded,
    mask,
    first,
    noise,
    MAP,
    BASE,
    BOUND,
    CODE: tl.constexpr,
    ERROR: tl.constexpr,
    NB: tl.constexpr,
    QB: tl.constexpr,
    DOUBLINGS: tl.constexpr,
):
    """Write a tile [NB, QB] of whole blocks of a running mean.

    ``places``: rows of the tile, as the tensor counts them; ``share`` of them have one scale, which
    ``first`` masks; up to 2^DOUBLINGS. ``noise``: random bits, for the code that is rounded by them.
    """
    if CODE == 0:
        tl.store(p.to(tl.pointer_type(tl.float32)) + at, x, mask=mask)
    else:
        if coded != 0:
            x = tl.where(mask, x, 0.0)
            if CODE == AFFINE:
                low = -largest(tl.maximum(tl.max(-x, 1), 0.0), share, NB, DOUBLINGS)
                high = largest(tl.maximum(tl.max(x, 1), 0.0), share, NB, DOUBLINGS)
                scale = tl.div_rn(high - low, 255.0)
                by = tl.where(scale > 0, scale, 1.0)
                zero = rint(tl.div_rn(-low, by))
                code = rint(tl.div_rn(x, by[:, None])) + zero[:, None]
                q = tl.minimum(tl.maximum(code, 0.0), 255.0).to(tl.int32)
                tl.store(
                    zeros.to(tl.pointer_type(tl.uint8)) + places // share,
                    zero.to(tl.int32).to(tl.uint8),
                    mask=first,
                )
                back = (q.to(tl.float32) - zero[:, None]) * scale[:, None]
            else:
                scale = largest(tl.max(tl.abs(x), 1), share, NB, DOUBLINGS)
                if CODE == SOFTSIGN4:  # up to the next bf16
                    raw = (scale.to(tl.int32, bitcast=True) + 0xFFFF) & -65536
                    scale = raw.to(tl.float32, bitcast=True)
                by = tl.where(scale > 0, scale, 1.0)
                if CODE == DYNAMIC:
                    v = x * tl.div_rn(1.0, by)[:, None]
                    key = (v.to(tl.int32, bitcast=True) >> 17) & 0x7FFF
                    above = v > tl.load(BOUND + key)
                    q = tl.load(BASE + key).to(tl.int32) + above.to(tl.int32)
                    back = x
                elif CODE == SOFTSIGN4:
                    q = softsign4(tl.div_rn(x, by[:, None]), noise)
                    back = x
                else:
                    v = tl.div_rn(x, by[:, None])
                    q = rint(tl.div_rn(1.0, tl.abs(v) + 1.0) * v * 254.0).to(tl.int32)
                    back = plain_code(q, scale[:, None], 0.0, at, mask, MAP, CODE)
            if CODE == SOFTSIGN4:
                upper = (scale.to(tl.int32, bitcast=True) >> 16).to(tl.int16)
                tl.store(scales.to(tl.pointer_type(tl.int16)) + places // share, upper, mask=first)
            else:
                tl.store(scales.to(tl.pointer_type(tl.float32)) + places // share, scale, mask=first)
            if CODE == SOFTSIGN4:
                store_nibbles(p, tl.where(mask, q, 0), at, mask, NB, QB)
            elif CODE == SOFTSIGN:
                tl.store(p.to(tl.pointer_type(tl.int8)) + at, q.to(tl.int8), mask=mask)
            else:
                tl.store(p.to(tl.pointer_type(tl.uint8)) + at, q.to(tl.uint8), mask=mask)
            if ERROR != 0:
                LEVELS: tl.constexpr = 7 if ERROR == 4 else 127
                width = half_step(q, scale[:, None], CODE)
                unit = tl.where(width > 0, tl.div_rn(x * 0 + LEVELS, tl.where(width > 0, width, 1.0)), 0.0)
                r = tl.minimum(tl.maximum(rint((x - back) * unit), -LEVELS), LEVELS).to(tl.int32) + LEVELS
                r = tl.where(mask, r, 0)
                if ERROR == 4:
                    store_nibbles(errors, r, at, mask, NB, QB)
                else:
                    tl.store(errors.to(tl.pointer_type(tl.uint8)) + at, r.to(tl.uint8), mask=mask)
        else:
            tl.store(p.to(tl.pointer_type(tl.float32)) + at, x, mask=mask)


@triton.jit
def store_nibbles(p, r, at, mask, NB: tl.constexpr, QB: tl.constexpr):
    """Pairs of four-bit numbers into bytes, the first of a pair in the low half."""
    pair = tl.sum(tl.reshape(r << ((at % 2) * 4), [NB, QB // 2, 2]), 2)
    place = tl.min(tl.reshape(at, [NB, QB // 2, 2]), 2) // 2
    inside = tl.max(tl.reshape(mask.to(tl.int32), [NB, QB // 2, 2]), 2) > 0
    tl.store(p.to(tl.pointer_type(tl.uint8)) + place, pair.to(tl.uint8), mask=inside)
