"""Error correction: a second plane that holds what the first one rounded away."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from ..types import Layout
from .codec import Plane


class Steps(Protocol):
    """A block code that knows the size of its own rounding error."""

    name: str
    random: bool

    def planes(self, layout: Layout) -> tuple[Plane, ...]: ...
    def encode(self, x: Tensor, bits: Tensor | None = None) -> tuple[Tensor, ...]: ...
    def decode(self, planes: tuple[Tensor, ...]) -> Tensor: ...
    def half_step(self, planes: tuple[Tensor, ...]) -> Tensor: ...


class ErrorCorrected:
    r"""A block code plus ``bits`` bits of its rounding error, on the range it is known to have.

    .. math:: x = \mathrm{deq}(q) + r, \qquad |r| \le \delta/2 \text{ held to } \delta / (4 (2^{b-1} - 1))

    The error is added back before the running mean is updated, so it never accumulates. The
    first plane alone stays a valid eight-bit state; the second needs no scale of its own.

    Args:
        code: the block code.
        bits: 4 or 8.

    Source: ours; error feedback after Seide et al. 2014. Deviations from the documents: their
    fp32 accumulator costs more than the state it corrects; fed with its own output it diverges.
    """

    random = False

    def __init__(self, code: Steps, bits: int) -> None:
        self.code, self.bits = code, bits
        self.name = f"{code.name}+{bits}"
        self.levels = (1 << (bits - 1)) - 1

    def planes(self, layout: Layout) -> tuple[Plane, ...]:
        size = layout.numel
        shape = ((size + 1) // 2,) if self.bits == 4 else (size,)
        return (*self.code.planes(layout), Plane("_q_residual", shape, shape, torch.uint8))

    def encode(self, x: Tensor, bits: Tensor | None = None) -> tuple[Tensor, ...]:
        stored = self.code.encode(x)
        width = self.code.half_step(stored)
        error = x.float() - self.code.decode(stored)
        unit = torch.where(width > 0, self.levels / width, 0.0)
        r = (error * unit).round_().clamp_(-self.levels, self.levels).flatten(1).add_(self.levels)
        r = r.to(torch.int16).to(torch.uint8)
        return (*stored, pack_nibbles(r) if self.bits == 4 else r)

    def error(self, planes: tuple[Tensor, ...]) -> Tensor:
        """What the first planes rounded away: [B,K,m,n]."""
        *stored, packed = planes
        codes = stored[0]
        r = unpack_nibbles(packed, codes[0].numel()) if self.bits == 4 else packed
        r = r.to(torch.float32).sub_(self.levels).div_(self.levels).view(codes.shape)
        return r * self.code.half_step(tuple(stored))

    def decode(self, planes: tuple[Tensor, ...]) -> Tensor:
        return self.code.decode(planes[:-1]) + self.error(planes)


def pack_nibbles(x: Tensor) -> Tensor:
    """[B, n] uint8 values below 16 -> [B, ceil(n/2)], first of a pair in the low half."""
    if x.shape[1] % 2:
        x = torch.nn.functional.pad(x, (0, 1))
    pairs = x.unflatten(1, (-1, 2))
    return pairs[..., 0] | (pairs[..., 1] << 4)


def unpack_nibbles(packed: Tensor, count: int) -> Tensor:
    """[B, ceil(n/2)] -> [B, n]."""
    return torch.stack([packed & 15, packed >> 4], -1).flatten(1)[:, :count]
