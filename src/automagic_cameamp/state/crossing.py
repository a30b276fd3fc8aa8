"""How much crosses to the host at a time, where gradients are released and stepped there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

SLOTS = 3  # largest weights with their gradients: one arrives, one is stepped, one leaves
SHARE = 1 / 32  # of all weights and gradients: room for what comes faster than it is stepped
AHEAD = 0.01  # of all gradients: what may still be on its way when the next is complete
ALIGNED = 64


class Crossing(NamedTuple):
    """Bytes.

    Args:
        ring: of host memory, for weights and gradients that arrive, wait, are stepped and leave.
        ahead: of gradients whose copy has begun and not ended, on the device; or one, where it is larger.
        gradients: of all parameters, for where they add up on the host.
    """

    ring: int
    ahead: int
    gradients: int


def crossing(params: Sequence[Tensor]) -> Crossing:
    """What crosses of parameters that are trained; they may be on the device 'meta'."""
    grads = [aligned(p, gradient_type(p)) for p in params]
    pairs = [aligned(p) + g for p, g in zip(params, grads, strict=True)]
    ring = max(sum(sorted(pairs)[-SLOTS:]), aligned_up(int(SHARE * sum(pairs))))
    return Crossing(ring, int(AHEAD * sum(grads)), sum(grads))


def gradient_type(p: Tensor) -> torch.dtype:
    """Type of the gradients that a parameter will get."""
    return getattr(p, "grad_dtype", None) or p.dtype


def aligned(x: Tensor, dtype: torch.dtype | None = None) -> int:
    """Bytes of a tensor in the ring, where it may be of another type."""
    return aligned_up(x.numel() * (dtype or x.dtype).itemsize)


def aligned_up(size: int) -> int:
    """The next place in the ring at which a tensor may begin."""
    return -(-size // ALIGNED) * ALIGNED
