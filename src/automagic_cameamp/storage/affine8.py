"""The documents' affine block code, with the one change that makes it safe: 0 is exact."""

from __future__ import annotations

import torch
from torch import Tensor

from ..types import Layout
from .blocks import block_count, from_blocks, to_blocks
from .codec import Plane, _divisor


class Affine8:
    r"""Unsigned eight-bit code between the smallest and the largest element of a block.

    .. math:: q = \mathrm{round}(x / s) + z, \qquad s = (\max - \min) / 255, \;
              z = \mathrm{round}(-\min / s)

    The zero point is an integer and the range includes 0, so a state that is 0 stays 0. Never
    used for a denominator: everything below s/2 would become 0 or the block's minimum.

    Args:
        block_size: elements per scale and zero point.

    Source: uniform affine quantisation as in Jacob et al. 2018, arXiv 1712.05877, section 2.1.
    """

    name = "affine"
    random = False

    def __init__(self, block_size: int) -> None:
        self.block_size = block_size

    def planes(self, layout: Layout) -> tuple[Plane, ...]:
        blocks = (block_count(layout, self.block_size),)
        return (
            Plane("_q", layout.view, layout.shape, torch.uint8),
            Plane("_q_scale", blocks, blocks, torch.float32),
            Plane("_q_zero", blocks, blocks, torch.uint8),
        )

    def encode(self, x: Tensor, bits: Tensor | None = None) -> tuple[Tensor, ...]:
        blocks = to_blocks(x.float(), min(self.block_size, max(1, x[0].numel())))
        low, high = blocks.amin(-1).clamp(max=0.0), blocks.amax(-1).clamp(min=0.0)
        scale = (high - low) / 255
        zero = (-low / _divisor(scale).squeeze(-1)).round_()
        q = (blocks / _divisor(scale)).round_().add_(zero.unsqueeze(-1)).clamp_(0, 255)
        # fp32 -> int8 is a vector instruction on CPU, fp32 -> uint8 is not.
        codes = q.sub_(128).to(torch.int8).view(torch.uint8) ^ 128
        return from_blocks(codes, tuple(x.shape[1:])), scale, zero.to(torch.uint8)

    def decode(self, planes: tuple[Tensor, ...]) -> Tensor:
        codes, scale, zero = planes
        blocks = to_blocks(codes, min(self.block_size, max(1, codes[0].numel())))
        x = blocks.float().sub_(zero.float().unsqueeze(-1)).mul_(scale.unsqueeze(-1))
        return from_blocks(x, tuple(codes.shape[1:]))

    def half_step(self, planes: tuple[Tensor, ...]) -> Tensor:
        """Largest rounding error of each element: [B,K,m,n]."""
        codes, scale, _ = planes
        block = min(self.block_size, max(1, codes[0].numel()))
        wide = (scale / 2).unsqueeze(-1).expand(*scale.shape, block)
        return from_blocks(wide, tuple(codes.shape[1:]))
