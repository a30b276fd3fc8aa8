"""Stochastic rounding: from fp32 to a coarser type without bias."""

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
