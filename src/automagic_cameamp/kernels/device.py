"""What the kernels do per element: typed loads, codes, random bits, rounding. Mirrors ``storage``."""

from __future__ import annotations

import triton
import triton.language as tl

from .columns import BF16, F16, F32


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
