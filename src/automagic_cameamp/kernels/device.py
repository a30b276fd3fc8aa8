"""What the kernels do per element: typed loads, codes, random bits, rounding. Mirrors ``storage``."""

from __future__ import annotations

import triton
import triton.language as tl

from .columns import AFFINE, BF16, DYNAMIC, F16, F32, SOFTSIGN


@triton.jit
def rint(x):
    """Nearest integer, ties to even; for numbers below 2^22."""
    return (x + 12582912.0) - 12582912.0


@triton.jit
def from_bf16(p, at, mask):
    """Bits as fp32: also where the hardware knows no bf16."""
    raw = tl.load(p.to(tl.pointer_type(tl.int16)) + at, mask=mask, other=0)
    return (raw.to(tl.int32) << 16).to(tl.float32, bitcast=True)


@triton.jit
def load_number(p, at, mask, kind, KIND: tl.constexpr):
    """Elements of a weight or gradient as fp32; ``KIND`` ANY: ``kind`` says the type."""
    if KIND == F32:
        x = tl.load(p.to(tl.pointer_type(tl.float32)) + at, mask=mask, other=0.0)
    elif KIND == BF16:
        x = from_bf16(p, at, mask)
    elif KIND == F16:
        x = tl.load(p.to(tl.pointer_type(tl.float16)) + at, mask=mask, other=0.0).to(tl.float32)
    else:
        if kind == F32:
            x = tl.load(p.to(tl.pointer_type(tl.float32)) + at, mask=mask, other=0.0)
        elif kind == BF16:
            x = from_bf16(p, at, mask)
        else:
            x = tl.load(p.to(tl.pointer_type(tl.float16)) + at, mask=mask, other=0.0).to(tl.float32)
    return x


@triton.jit
def load_f32(p, at, mask):
    """Fp32 elements behind an address."""
    return tl.load(p.to(tl.pointer_type(tl.float32)) + at, mask=mask, other=0.0)


@triton.jit
def scalar(p):
    """One fp32 behind an address."""
    return tl.load(p.to(tl.pointer_type(tl.float32)))


@triton.jit
def only(mask, flag):
    """A block of flags where a single flag holds."""
    return tl.where(flag, mask.to(tl.int32), 0) != 0


@triton.jit
def lerp(old, new, weight):
    """``torch.lerp``: exact at both ends."""
    step = new - old
    return tl.where(weight < 0.5, old + weight * step, new - step * (1.0 - weight))


# ---------------------------------------------------------------- random bits (engine/rounding.py)


@triton.jit
def _mix(x):
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = (x ^ (x >> 15)) * 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def random_bits(key, salt, step, index):
    """Int32 bits of elements ``index``, as ``random_bits`` of the reference."""
    golden = tl.full([1], 0x9E3779B1, tl.uint32)
    base = _mix((key ^ salt).to(tl.uint32) + step.to(tl.int32).to(tl.uint32) * golden)
    return _mix(base ^ (index.to(tl.uint32) * golden)).to(tl.int32, bitcast=True)


@triton.jit
def round_to_grid(x, bits):
    """``storage.rounding.round_to_grid``."""
    return tl.floor((bits & 0x1FFF).to(tl.float32) * 0.0001220703125 + x)


@triton.jit
def bf16_bits(x, bits, RANDOM: tl.constexpr):
    """Fp32 -> bits of bf16 as int16; stochastic (``storage.rounding``) or to nearest even."""
    raw = x.to(tl.int32, bitcast=True)
    if RANDOM:
        size = raw & 0x7FFFFFFF
        limit = tl.maximum(size, 0x7F7F0000) | 0xFFFF
        size = tl.minimum(size + (bits & 0xFFFF), limit)
        word = (size >> 16) | ((raw >> 16) & -0x8000)
    else:
        near = (raw + 0x7FFF + ((raw >> 16) & 1)) >> 16
        word = tl.where((raw & 0x7FFFFFFF) > 0x7F800000, (raw >> 16) | 0x40, near)
    return word.to(tl.int16)


@triton.jit
def to_f16(x, bits, RANDOM: tl.constexpr):
    """Fp32 -> fp16, stochastic (``storage.rounding``) or to nearest even."""
    if RANDOM:
        exponent = x.to(tl.int32, bitcast=True) & 0x7F800000
        unit = tl.maximum(exponent.to(tl.float32, bitcast=True) * 0.0009765625, 5.9604644775390625e-08)
        power = unit.to(tl.int32, bitcast=True)  # a power of two: its reciprocal is exact
        inverse = (0x7F000000 - power).to(tl.float32, bitcast=True)
        rounded = round_to_grid(x * inverse, bits) * unit
        sign = x.to(tl.int32, bitcast=True) & -0x80000000
        size = tl.abs(rounded).to(tl.int32, bitcast=True)
        rounded = (size | sign).to(tl.float32, bitcast=True)
        clamped = tl.minimum(tl.maximum(rounded, -65504.0), 65504.0)
        rounded = tl.where(tl.abs(x) < 65520.0, clamped, rounded)
        y = tl.where(tl.abs(x) < float("inf"), rounded, x)
    else:
        y = x
    return y.to(tl.float16)


# ---------------------------------------------------------------- the momentum's codes


@triton.jit
def plain_code(q, scale, zero, at, mask, MAP, CODE: tl.constexpr):
    """Codes -> values without error correction, of any shape that broadcasts."""
    if CODE == DYNAMIC:
        x = tl.load(MAP + q, mask=mask, other=0.0) * scale
    elif CODE == SOFTSIGN:
        y = tl.div_rn(q.to(tl.float32), 127.0)
        x = tl.div_rn(1.0, 2.0 - tl.abs(y)) * y * scale
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
def load_codes(p, at, mask, CODE: tl.constexpr):
    """Integer codes as int32."""
    if CODE == SOFTSIGN:
        q = tl.load(p.to(tl.pointer_type(tl.int8)) + at, mask=mask, other=0).to(tl.int32)
    else:
        q = tl.load(p.to(tl.pointer_type(tl.uint8)) + at, mask=mask, other=0).to(tl.int32)
    return q


@triton.jit
def decode(p, scales, zeros, errors, at, block, mask, MAP, CODE: tl.constexpr, ERROR: tl.constexpr):
    """Value of a coded running mean at flat places ``at``."""
    q = load_codes(p, at, mask, CODE)
    place = at // block
    scale = load_f32(scales, place, mask)
    zero = 0.0
    if CODE == AFFINE:
        zero = tl.load(zeros.to(tl.pointer_type(tl.uint8)) + place, mask=mask, other=0).to(tl.float32)
    x = plain_code(q, scale, zero, at, mask, MAP, CODE)
    if ERROR == 4:
        byte = tl.load(errors.to(tl.pointer_type(tl.uint8)) + at // 2, mask=mask, other=0).to(tl.int32)
        r = ((byte >> ((at % 2) * 4)) & 15).to(tl.float32)
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
def store_moment(p, scales, x, at, places, mask, first, LOG: tl.constexpr):
    """``Log8.encode`` of a tile [NB, QB] of whole blocks, or fp32."""
    if LOG:
        if scales != 0:
            y = tl.log(tl.maximum(x, 1.1754943508222875e-38))
            high = tl.max(tl.where(mask, y, float("-inf")), 1)
            low = tl.maximum(tl.min(tl.where(mask, y, float("inf")), 1), high - 19.408121055678468)
            step = tl.div_rn(high - low, 255.0)
            q = rint(tl.div_rn(y - low[:, None], tl.where(step > 0, step, 1.0)[:, None]))
            q = tl.minimum(tl.maximum(q, 0.0), 255.0).to(tl.int32)
            tl.store(p.to(tl.pointer_type(tl.uint8)) + at, q.to(tl.uint8), mask=mask)
            scale = scales.to(tl.pointer_type(tl.float32)) + 2 * places
            tl.store(scale, low, mask=first)
            tl.store(scale + 1, step, mask=first)
        else:
            tl.store(p.to(tl.pointer_type(tl.float32)) + at, x, mask=mask)
    else:
        tl.store(p.to(tl.pointer_type(tl.float32)) + at, x, mask=mask)


@triton.jit
def store_mean(
    p,
    scales,
    zeros,
    errors,
    x,
    at,
    places,
    coded,
    mask,
    first,
    MAP,
    BASE,
    BOUND,
    CODE: tl.constexpr,
    ERROR: tl.constexpr,
    NB: tl.constexpr,
    QB: tl.constexpr,
):
    """Write a tile [NB, QB] of whole blocks of a running mean; ``first`` masks [NB]."""
    if CODE == 0:
        tl.store(p.to(tl.pointer_type(tl.float32)) + at, x, mask=mask)
    else:
        if coded != 0:
            x = tl.where(mask, x, 0.0)
            if CODE == AFFINE:
                low, high = tl.minimum(tl.min(x, 1), 0.0), tl.maximum(tl.max(x, 1), 0.0)
                scale = tl.div_rn(high - low, 255.0)
                by = tl.where(scale > 0, scale, 1.0)
                zero = rint(tl.div_rn(-low, by))
                code = rint(tl.div_rn(x, by[:, None])) + zero[:, None]
                q = tl.minimum(tl.maximum(code, 0.0), 255.0).to(tl.int32)
                tl.store(
                    zeros.to(tl.pointer_type(tl.uint8)) + places, zero.to(tl.int32).to(tl.uint8), mask=first
                )
                back = (q.to(tl.float32) - zero[:, None]) * scale[:, None]
            else:
                scale = tl.max(tl.abs(x), 1)
                by = tl.where(scale > 0, scale, 1.0)
                if CODE == DYNAMIC:
                    v = x * tl.div_rn(1.0, by)[:, None]
                    key = (v.to(tl.int32, bitcast=True) >> 17) & 0x7FFF
                    above = v > tl.load(BOUND + key)
                    q = tl.load(BASE + key).to(tl.int32) + above.to(tl.int32)
                    back = x
                else:
                    v = tl.div_rn(x, by[:, None])
                    q = rint(tl.div_rn(1.0, tl.abs(v) + 1.0) * v * 254.0).to(tl.int32)
                    back = plain_code(q, scale[:, None], 0.0, at, mask, MAP, CODE)
            tl.store(scales.to(tl.pointer_type(tl.float32)) + places, scale, mask=first)
            if CODE == SOFTSIGN:
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


# ---------------------------------------------------------------- vectors: fp32, or Log16


@triton.jit
def load_vector(p, scale, at, mask):
    """``Log16`` where there is a scale, fp32 where there is none; 0 where masked."""
    if scale != 0:
        code = tl.load(p.to(tl.pointer_type(tl.int16)) + at, mask=mask, other=-32768).to(tl.int32)
        scales = scale.to(tl.pointer_type(tl.float16))
        low, step = tl.load(scales).to(tl.float32), tl.load(scales + 1).to(tl.float32)
        x = tl.where(code == -32768, 0.0, tl.exp((code + 32767).to(tl.float32) * step + low))
    else:
        x = load_f32(p, at, mask)
    return x


@triton.jit
def logarithm(source, at, mask):
    """Logarithm as ``Log16`` bounds it, and whether a number is large enough to have one."""
    x = tl.load(source + at, mask=mask, other=0.0)
    log = tl.log(tl.minimum(tl.maximum(x, 1.1754943508222875e-38), 1.7014118346046923e38))
    return log, x >= 1.1754943508222875e-38


@triton.jit
def store_log(p, scale, source, count, key, salt, step, good, N: tl.constexpr):
    """``Log16.encode`` of ``count`` fp32 numbers; one program, in pieces."""
    index = tl.arange(0, N)
    top = tl.full([N], -87.33654475055310, tl.float32)  # all of them dead: the least logarithm
    bottom = tl.full([N], float("inf"), tl.float32)
    for first in range(0, count, N):
        log, live = logarithm(source, first + index, first + index < count)
        top = tl.maximum(top, log)
        bottom = tl.minimum(bottom, tl.where(live, log, float("inf")))
    high = tl.max(top, 0)
    low = tl.floor(tl.minimum(tl.min(bottom, 0), high) * 16.0) * 0.0625
    wanted = tl.ceil((high - low) * 8.000244148075807)  # 2^19 / 65534
    unit = tl.maximum(wanted, 1.0) * 1.9073486328125e-06
    for first in range(0, count, N):
        at = first + index
        log, live = logarithm(source, at, at < count)
        t = tl.div_rn(log - low, unit)
        noise = (random_bits(key, salt, step, at) & 0x1FFF).to(tl.float32) * 0.0001220703125
        down = tl.floor(t)
        code = tl.minimum(tl.maximum(down + tl.where(t - down > noise, 1.0, 0.0), 0.0), 65534.0) - 32767.0
        code = tl.where(live, code, -32768.0).to(tl.int32)
        tl.store(p.to(tl.pointer_type(tl.int16)) + at, code.to(tl.int16), mask=only(at < count, good))
    scales = scale.to(tl.pointer_type(tl.float16))
    tl.store(scales, low.to(tl.float16), mask=good)
    tl.store(scales + 1, unit.to(tl.float16), mask=good)
