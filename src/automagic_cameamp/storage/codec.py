"""How a full-size state is held: fp32, or eight bits and a scale per block.

A codec is pure: ``decode(encode(x))`` gives an fp32 approximation of x, in the same blocks
whatever the stack. It decides no arithmetic; recipes never see it.
"""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ..types import Layout
from .blocks import block_count, block_of, from_blocks, to_blocks


class Plane(NamedTuple):
    """One stored tensor of a coded state.

    Args:
        suffix: added to the state's name, '' for the state itself.
        shape: shape inside a stack, without the leading B.
        own_shape: shape as the user sees it.
        dtype: stored type.
    """

    suffix: str
    shape: tuple[int, ...]
    own_shape: tuple[int, ...]
    dtype: torch.dtype


class Codec(Protocol):
    """Storage of one full-size state."""

    name: str
    random: bool  # whether encode wants random bits

    def planes(self, layout: Layout) -> tuple[Plane, ...]:
        """Stored tensors of one parameter."""
        ...

    def encode(self, x: Tensor, bits: Tensor | None = None) -> tuple[Tensor, ...]:
        """[B,K,m,n] fp32 and int32 random bits of that shape -> planes, each [B, *plane.shape]."""
        ...

    def decode(self, planes: tuple[Tensor, ...]) -> Tensor:
        """Planes -> [B,K,m,n] fp32."""
        ...


def _coded_planes(layout: Layout, block_size: int, codes: torch.dtype, scales: int) -> tuple[Plane, ...]:
    blocks = block_count(layout, block_size)
    shape = (blocks,) if scales == 1 else (blocks, scales)
    return (
        Plane("_q", layout.view, layout.shape, codes),
        Plane("_q_scale", shape, shape, torch.float32),
    )


def _absmax(blocks: Tensor) -> Tensor:
    """[B, blocks, block] -> [B, blocks]."""
    return blocks.abs().amax(-1)


def _divisor(scale: Tensor) -> Tensor:
    """Scale to divide by: 1 where the whole block is 0 (its codes are then those of 0)."""
    return torch.where(scale > 0, scale, torch.ones_like(scale)).unsqueeze(-1)


class Softsign8:
    r"""Signed eight-bit code with finer steps near 0.

    .. math:: q = \mathrm{round}\left(127\, \frac{2v}{1+|v|}\right), \quad v = x / \max_{block}|x|,
              \qquad v = \frac{y}{2-|y|}, \; y = q/127

    0 and the largest element of a block are exact, and encoding a decoded state changes nothing.

    Args:
        block_size: elements per scale.

    Source: Ortiz et al. 2026 (FlashOptim), arXiv 2602.23349; the compander as in its Apache-2.0
    code. Deviations: fp32 scales, blocks of 256 instead of 32.
    """

    name = "softsign"
    random = False

    def __init__(self, block_size: int) -> None:
        self.block_size = block_size

    def planes(self, layout: Layout) -> tuple[Plane, ...]:
        return _coded_planes(layout, self.block_size, torch.int8, 1)

    def encode(self, x: Tensor, bits: Tensor | None = None) -> tuple[Tensor, ...]:
        blocks = to_blocks(x.float(), min(self.block_size, max(1, x[0].numel())))
        scale = _absmax(blocks)
        v = blocks / _divisor(scale)
        q = (v.abs().add_(1).reciprocal_().mul_(v)).mul_(254).round_().to(torch.int8)
        return from_blocks(q, tuple(x.shape[1:])), scale

    def decode(self, planes: tuple[Tensor, ...]) -> Tensor:
        codes, scale = planes
        blocks = to_blocks(codes, min(self.block_size, max(1, codes[0].numel())))
        y = blocks.float().div_(127)
        v = (2 - y.abs()).reciprocal_().mul_(y).mul_(scale.unsqueeze(-1))
        return from_blocks(v, tuple(codes.shape[1:]))

    def half_step(self, planes: tuple[Tensor, ...]) -> Tensor:
        """Largest rounding error of each element: half a code, in the value's own units."""
        codes, scale = planes
        blocks = to_blocks(codes, min(self.block_size, max(1, codes[0].numel())))
        y = blocks.float().abs_().add_(0.5).div_(127).clamp_(max=1.0)  # outer edge: the wider half
        width = (2 - y).square_().reciprocal_().mul_(scale.unsqueeze(-1) / 127)
        return from_blocks(width, tuple(codes.shape[1:]))


class Log8:
    r"""Eight-bit logarithmic code for denominators: relative error bounded, never 0.

    .. math:: q = \mathrm{round}\left(255\, \frac{\ln x - a}{b - a}\right), \quad
              b = \max_{block} \ln x, \; a = \max(\min_{block} \ln x, b - 28 \ln 2)

    An element more than 28 octaves below its block is raised to that floor, which can only make
    its update smaller. An affine code would multiply such an update by thousands.

    Args:
        block_size: elements per pair of scales (a, (b - a) / 255).

    Source: ours; the measurements behind it are in docs/evidence/log.md.
    """

    name = "log"
    random = False
    octaves = 28.0
    least = 2.0**-126

    def __init__(self, block_size: int) -> None:
        self.block_size = block_size

    def planes(self, layout: Layout) -> tuple[Plane, ...]:
        return _coded_planes(layout, self.block_size, torch.uint8, 2)

    def encode(self, x: Tensor, bits: Tensor | None = None) -> tuple[Tensor, ...]:
        shape, block = tuple(x.shape[1:]), min(self.block_size, max(1, x[0].numel()))
        flat = x.float().reshape(x.shape[0], -1).clamp(min=self.least).log_()
        rest = -flat.shape[1] % block
        if rest:  # repeat the last element: a filling of zeros would stretch the range of its block
            flat = torch.cat([flat, flat[:, -1:].expand(-1, rest)], 1)
        blocks = flat.unflatten(1, (-1, block))
        high = blocks.amax(-1)
        low = torch.maximum(blocks.amin(-1), high - self.octaves * math.log(2))
        step = (high - low) / 255
        q = (blocks - low.unsqueeze(-1)) / _divisor(step)
        q = q.round_().clamp_(0, 255).to(torch.uint8)
        return from_blocks(q, shape), torch.stack([low, step], -1)

    def decode(self, planes: tuple[Tensor, ...]) -> Tensor:
        codes, scale = planes
        blocks = to_blocks(codes, min(self.block_size, max(1, codes[0].numel())))
        low, step = scale[..., 0:1], scale[..., 1:2]
        return from_blocks((blocks.float() * step + low).exp_(), tuple(codes.shape[1:]))


__all__ = ["Codec", "Log8", "Plane", "Softsign8", "block_of"]
