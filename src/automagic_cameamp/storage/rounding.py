"""Stochastic rounding: from fp32 to a coarser type without bias, and a second plane for what it loses."""

from __future__ import annotations

import torch
from torch import Tensor


def stochastic_round(x: Tensor, bits: Tensor, dtype: torch.dtype) -> Tensor:
    """Round fp32 to one of its two neighbours in bf16 or fp16, up with the right probability.

    Args:
        x: fp32.
        bits: int32 random bits, same shape.
        dtype: torch.bfloat16 or torch.float16.

    Returns:
        Tensor of ``dtype`` whose mean over ``bits`` is x; a value that the type holds is exact.
    """
    if dtype == torch.bfloat16:
        raw = x.contiguous().view(torch.int32)
        size = raw & 0x7FFFFFFF
        # Adding below the kept mantissa carries into it with the right probability; the limit
        # keeps the largest finite numbers finite, and infinities and NaN what they are.
        limit = size.clamp(min=0x7F7F0000).bitwise_or_(0xFFFF)
        size = torch.minimum(size + (bits & 0xFFFF), limit).bitwise_and_(-65536)
        return size.bitwise_or_(raw & -0x80000000).view(torch.float32).to(torch.bfloat16)
    if dtype != torch.float16:
        raise TypeError(f"stochastic rounding supports bfloat16 and float16, not {dtype}")
    # fp16 has subnormals in fp32's normal range, so work in units of its last place instead.
    exponent = (x.contiguous().view(torch.int32) & 0x7F800000).view(torch.float32)
    unit = (exponent * 2.0**-10).clamp_(min=2.0**-24)
    rounded = round_to_grid(x / unit, bits).mul_(unit)
    rounded = torch.copysign(rounded, x)  # -0.0 plus noise would lose its sign
    largest = torch.finfo(torch.float16).max
    rounded = torch.where(x.abs() < largest + 16, rounded.clamp(-largest, largest), rounded)
    return torch.where(torch.isfinite(x), rounded, x).to(torch.float16)


def round_to_grid(x: Tensor, bits: Tensor) -> Tensor:
    """Round to an integer below or above, up with probability of the fraction (13 bits of it)."""
    noise = (bits & 0x1FFF).float().mul_(2.0**-13)
    return noise.add_(x).floor_()


def split(x: Tensor, bits: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    r"""The nearest weight of ``dtype``, and the rest in 256ths of its last place.

    .. math:: x \approx w + \frac{c}{256}\,\mathrm{ulp}(w), \qquad c \in \{-128, \dots, 127\}

    Args:
        x: fp32 weights.
        bits: int32 random bits, same shape, to round c without bias; None: to nearest.
        dtype: torch.bfloat16 or torch.float16.

    Returns:
        Weights of ``dtype``, and c as int8. What ``join`` gives is split into the same two again.

    Source: ours; that a second plane carries what 16-bit weights lose is the idea of Kahan summation
        in Zamirai et al. 2020, "Revisiting BFloat16 Training".
    Deviations: eight bits, of the weight itself instead of a running compensation.
    """
    if dtype == torch.bfloat16:
        raw = x.contiguous().view(torch.int32)
        size = raw & 0x7FFFFFFF
        # Neighbouring floats are neighbouring integers, so 24 bits are the upper 24 of fp32.
        noise = 0x80 if bits is None else bits & 0xFF
        word = ((size + noise) >> 8).clamp_(max=0x7F7F7F)
        word = torch.where(size < 0x7F800000, word, size >> 8)
        high = (word + 0x80) >> 8
        high = torch.where(size < 0x7F800000, high, (size >> 16) | ((size > 0x7F800000).int() << 6))
        rest = torch.where(size < 0x7F800000, word - (high << 8), 0)
        # The sign is that of fp32; int32 of a bf16 pattern is a float that bf16 holds exactly.
        weight = ((high << 16) | (raw & -0x80000000)).view(torch.float32).to(dtype)
        return weight, rest.to(torch.int8)
    largest = torch.finfo(torch.float16).max
    weight = torch.where(x.abs() < largest + 16, x.clamp(-largest, largest), x).to(dtype)
    part = (x - weight.float()) / _unit(weight)
    # 127 at most: a half is a tie, which would be split into other two.
    rest = (part.round() if bits is None else round_to_grid(part, bits)).clamp_(-127, 127)
    return weight, torch.where(torch.isfinite(weight), rest, 0.0).to(torch.int8)


def join(weight: Tensor, rest: Tensor) -> Tensor:
    """Fp32 weights of the two parts that ``split`` gives."""
    if weight.dtype == torch.bfloat16:
        raw = weight.float().view(torch.int32)
        size = raw & 0x7FFFFFFF
        whole = (size + (rest.to(torch.int32) << 8)).clamp_(min=0)
        whole = torch.where(size < 0x7F800000, whole, size)
        return (whole | (raw & -0x80000000)).view(torch.float32)
    x = weight.float()
    # Nothing is added to -0, which would lose its sign.
    return torch.where(torch.isfinite(x) & (rest != 0), x + rest.float() * _unit(weight), x)


def _unit(weight: Tensor) -> Tensor:
    """A 256th of the last place of fp16 weights."""
    exponent = (weight.float().view(torch.int32) & 0x7F800000).view(torch.float32)
    return (exponent * 2.0**-10).clamp_(min=2.0**-24) * 2.0**-8
