"""Counter-based random bits for stochastic rounding.

The bits are a hash of (seed, parameter, step, element): the same on every device and every rank,
independent of how parameters are stacked, and no global random state is read or written.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..storage.rounding import stochastic_round

__all__ = ["parameter_key", "random_bits", "stochastic_round"]

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


def random_bits(keys: Tensor, step: Tensor, numel: int, first: int = 0) -> Tensor:
    """[B, numel] int32 random bits.

    Args:
        keys: [B] int32, ``parameter_key`` of each tensor.
        step: [B] number of this update (any float type, exact integers).
        numel: elements per tensor.
        first: index of the first of them, where a part of a tensor is here.
    """
    base = _mix(keys + step.to(torch.int32) * _C).unsqueeze(1)
    index = torch.arange(first, first + numel, dtype=torch.int32, device=keys.device)
    return _mix(base ^ index.mul_(_C))
