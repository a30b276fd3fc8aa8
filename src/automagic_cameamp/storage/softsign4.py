"""Four bits per element of a running mean, rounded without bias."""

from __future__ import annotations

import torch
from torch import Tensor

from ..types import Layout
from .blocks import block_count, block_of, from_blocks, to_blocks
from .codec import Plane, _absmax, _divisor
from .residual import pack_nibbles, unpack_nibbles


class Softsign4:
    r"""Signed four-bit code, finer near 0, rounded to either neighbour with the right probability.

    .. math:: v = x / c, \qquad v_k = \frac{k}{14 - |k|}, \; k \in \{-7, \dots, 7\}, \qquad
              P(k + 1) = \frac{v - v_k}{v_{k+1} - v_k}, \; v_k \le v < v_{k+1}

    c is the largest size in the block, rounded up to bf16 so that it costs two bytes. The mean over the
    random bits is x exactly; nearest rounding would freeze whatever moves by less than half a step,
    which at four bits is almost everything. 0 stays 0.

    Args:
        layout: view of the parameter.
        block_size: elements per scale.

    Source: ours; the compander is that of ``Softsign8`` with 7 in place of 127.
    """

    name = "softsign4"
    random = True

    def __init__(self, layout: Layout, block_size: int) -> None:
        self.layout, self.block_size = layout, block_size

    def planes(self, layout: Layout) -> tuple[Plane, ...]:
        codes, blocks = ((layout.numel + 1) // 2,), (block_count(layout, self.block_size),)
        return (
            Plane("_q", codes, codes, torch.uint8),
            Plane("_q_scale", blocks, blocks, torch.bfloat16),
        )

    def encode(self, x: Tensor, bits: Tensor | None = None) -> tuple[Tensor, ...]:
        block = block_of(self.layout, self.block_size)
        shape = tuple(x.shape[1:])
        blocks = to_blocks(x.float(), block)
        scale = _absmax(blocks).view(torch.int32).add_(0xFFFF).bitwise_and_(-65536).view(torch.float32)
        v = blocks / _divisor(scale)
        size = v.abs()
        k = (size * 14).div_(size + 1).floor_().clamp_(max=6)
        # (|v| - v_k) / (v_{k+1} - v_k), with both values written out.
        part = (14 - k).mul_(size).sub_(k).mul_(13 - k).div_(14)
        noise = 0.5 if bits is None else to_blocks((bits & 0x1FFF).float().mul_(2.0**-13), block)
        # Steps up are counted by arithmetic: a choice at random places costs twenty times as much.
        q = k.add_(part.sub_(noise).sign_().clamp_(min=0.0)).mul_(v.sign_()).add_(8)
        nibbles = from_blocks(q.to(torch.int8).view(torch.uint8), shape).flatten(1)
        return pack_nibbles(nibbles), scale.to(torch.bfloat16)

    def decode(self, planes: tuple[Tensor, ...]) -> Tensor:
        packed, scale = planes
        block = block_of(self.layout, self.block_size)
        k = to_blocks(unpack_nibbles(packed, self.layout.numel).to(torch.float32).sub_(8), block)
        v = (14 - k.abs()).reciprocal_().mul_(k).mul_(scale.float().unsqueeze(-1))
        return from_blocks(v, self.layout.view)
