"""Weights, and the eight bits beside those of 16 bits, as ``storage.rounding`` splits and joins them."""

from __future__ import annotations

import triton
import triton.language as tl

from .columns import BF16, F16, F32
from .device import bf16_bits, load_number, rint, round_to_grid, to_f16


@triton.jit
def unit_of(w):
    """``_unit``: a 256th of the last place of fp16 weights, given as fp32."""
    exponent = (w.to(tl.int32, bitcast=True) & 0x7F800000).to(tl.float32, bitcast=True)
    return tl.maximum(exponent * 0.0009765625, 5.9604644775390625e-08) * 0.00390625


@triton.jit
def join_bf16(w, rest):
    """``join`` of a bf16 weight, given as fp32, and what it lost."""
    raw = w.to(tl.int32, bitcast=True)
    size = raw & 0x7FFFFFFF
    whole = tl.where(size < 0x7F800000, tl.maximum(size + rest * 256, 0), size)
    return (whole | (raw & -0x80000000)).to(tl.float32, bitcast=True)


@triton.jit
def join_f16(w, rest):
    """``join`` of an fp16 weight, given as fp32, and what it lost."""
    there = (tl.abs(w) < float("inf")) & (rest != 0)
    return tl.where(there, w + rest.to(tl.float32) * unit_of(w), w)


@triton.jit
def load_weights(p, rest, at, mask, kind, KIND: tl.constexpr, REST: tl.constexpr):
    """Weights as fp32, all 24 bits of them where ``rest`` is the address of the other eight."""
    w = load_number(p, at, mask, kind, KIND)
    if REST:
        if rest != 0:
            c = tl.load(rest.to(tl.pointer_type(tl.int8)) + at, mask=mask, other=0).to(tl.int32)
            if KIND == BF16:
                w = join_bf16(w, c)
            elif KIND == F16:
                w = join_f16(w, c)
            elif kind == BF16:
                w = join_bf16(w, c)
            else:
                w = join_f16(w, c)
    return w


@triton.jit
def split_bf16(x, bits, RANDOM: tl.constexpr):
    """``split``: bits of the nearest bf16, and the rest in 256ths of its last place."""
    raw = x.to(tl.int32, bitcast=True)
    size = raw & 0x7FFFFFFF
    finite = size < 0x7F800000
    if RANDOM:
        noise = bits & 0xFF
    else:
        noise = 0x80
    word = tl.minimum((tl.where(finite, size, 0) + noise) >> 8, 0x7F7F7F)
    high = (word + 0x80) >> 8
    special = (size >> 16) | tl.where(size > 0x7F800000, 64, 0)
    weight = tl.where(finite, high, special) | ((raw >> 16) & -0x8000)
    return weight.to(tl.int16), tl.where(finite, word - high * 256, 0).to(tl.int8)


@triton.jit
def split_f16(x, bits, RANDOM: tl.constexpr):
    """``split``: the nearest fp16, and the rest in 256ths of its last place."""
    finite = tl.abs(x) < 65520.0  # others become infinite and have no rest
    weight = tl.where(finite, tl.minimum(tl.maximum(x, -65504.0), 65504.0), x).to(tl.float16)
    near = tl.where(finite, weight.to(tl.float32), 0.0)
    part = tl.div_rn(tl.where(finite, x, 0.0) - near, unit_of(near))
    if RANDOM:
        rest = round_to_grid(part, bits)
    else:
        rest = rint(part)
    rest = tl.minimum(tl.maximum(rest, -127.0), 127.0)
    return weight, rest.to(tl.int8)


@triton.jit
def store_bf16(p, rest, x, bits, at, mask, RANDOM: tl.constexpr, REST: tl.constexpr):
    """Weights in bf16, and what they lose where ``rest`` is an address."""
    words = p.to(tl.pointer_type(tl.int16)) + at
    if REST:
        if rest != 0:
            weight, c = split_bf16(x, bits, RANDOM)
            tl.store(words, weight, mask=mask)
            tl.store(rest.to(tl.pointer_type(tl.int8)) + at, c, mask=mask)
        else:
            tl.store(words, bf16_bits(x, bits, RANDOM), mask=mask)
    else:
        tl.store(words, bf16_bits(x, bits, RANDOM), mask=mask)


@triton.jit
def store_f16(p, rest, x, bits, at, mask, RANDOM: tl.constexpr, REST: tl.constexpr):
    """Weights in fp16, and what they lose where ``rest`` is an address."""
    words = p.to(tl.pointer_type(tl.float16)) + at
    if REST:
        if rest != 0:
            weight, c = split_f16(x, bits, RANDOM)
            tl.store(words, weight, mask=mask)
            tl.store(rest.to(tl.pointer_type(tl.int8)) + at, c, mask=mask)
        else:
            tl.store(words, to_f16(x, bits, RANDOM), mask=mask)
    else:
        tl.store(words, to_f16(x, bits, RANDOM), mask=mask)


@triton.jit
def store_weights(
    p, rest, kind, x, bits, at, mask, KIND: tl.constexpr, RANDOM: tl.constexpr, REST: tl.constexpr
):
    """Weights in their own type, rounded stochastically where that is asked for."""
    if KIND == F32:
        tl.store(p.to(tl.pointer_type(tl.float32)) + at, x, mask=mask)
    elif KIND == BF16:
        store_bf16(p, rest, x, bits, at, mask, RANDOM, REST)
    elif KIND == F16:
        store_f16(p, rest, x, bits, at, mask, RANDOM, REST)
    else:
        if kind == F32:
            tl.store(p.to(tl.pointer_type(tl.float32)) + at, x, mask=mask)
        elif kind == BF16:
            store_bf16(p, rest, x, bits, at, mask, RANDOM, REST)
        else:
            store_f16(p, rest, x, bits, at, mask, RANDOM, REST)
