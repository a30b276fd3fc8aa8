"""Stochastic rounding to bf16 and fp16 with counter-based random bits.

The bits are a hash of (seed, parameter, step, element): the same on every device and every rank,
independent of how parameters are stacked, and no global random state is read or written.
"""

from __future__ import annotations

import torch
from torch import Tensor

_MASK32 = 0xFFFFFFFF
_A, _B, _C = 0x7FEB352D, 0x846CA68B - (1 << 32), 0x9E3779B1 - (1 << 32)


def _mix_int(x: int) -> int:
    """Finaliser of a 32-bit hash (Wellons' lowbias32, public domain), on a Python integer."""
    x ^= x >> 16
    x = (x * _A) & _MASK32
    x ^= x >> 15
    x = (x * (_B & _MASK32)) & _MASK32
    return x ^ (x >> 16)


def parameter_key(seed: int, index: int) -> int:
    """Signed 32-bit key of a parameter."""
    key = _mix_int((_mix_int(seed & _MASK32) + (index + 1) * (_C & _MASK32)) & _MASK32)
    return key - (1 << 32) if key >= 1 << 31 else key


def _mix(x: Tensor) -> Tensor:
    """The same finaliser on int32 tensors (in place); shifts are made logical by masks."""
    x = x.bitwise_xor_((x >> 16).bitwise_and_(0xFFFF)).mul_(_A)
    x = x.bitwise_xor_((x >> 15).bitwise_and_(0x1FFFF)).mul_(_B)
    return x.bitwise_xor_((x >> 16).bitwise_and_(0xFFFF))


def random_bits(keys: Tensor, step: Tensor, numel: int) -> Tensor:
    """[B, numel] int32 random bits.

    Args:
        keys: [B] int32, ``parameter_key`` of each tensor.
        step: [B] number of this update (any float type, exact integers).
        numel: elements per tensor.
    """
    base = _mix(keys + step.to(torch.int32) * _C).unsqueeze(1)
    index = torch.arange(numel, dtype=torch.int32, device=keys.device)
    return _mix(base ^ index.mul_(_C))


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
        # Adding below the kept mantissa carries into it with the right probability. Infinities
        # and NaN (all exponent bits set) must not be touched.
        special = (raw & 0x7F800000) == 0x7F800000
        noise = (bits & 0xFFFF).masked_fill_(special, 0)
        return (raw + noise).bitwise_and_(-65536).view(torch.float32).to(torch.bfloat16)
    if dtype != torch.float16:
        raise TypeError(f"stochastic rounding supports bfloat16 and float16, not {dtype}")
    # fp16 has subnormals in fp32's normal range, so work in units of its last place instead.
    exponent = (x.contiguous().view(torch.int32) & 0x7F800000).view(torch.float32)
    unit = (exponent * 2.0**-10).clamp_(min=2.0**-24)
    noise = (bits & 0x1FFF).float().mul_(2.0**-13)
    rounded = (x / unit + noise).floor_().mul_(unit)
    return torch.where(torch.isfinite(x), rounded, x).to(torch.float16)
