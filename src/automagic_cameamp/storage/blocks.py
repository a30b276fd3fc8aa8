"""Cutting a stack into blocks that share a scale."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..types import Layout


def block_of(layout: Layout, block_size: int) -> int:
    """Length of a block: a tensor smaller than a block is one block."""
    return max(1, min(block_size, layout.numel))


def block_count(layout: Layout, block_size: int) -> int:
    """Blocks of one tensor; the last may be shorter."""
    return math.ceil(layout.numel / block_of(layout, block_size))


def to_blocks(x: Tensor, block: int) -> Tensor:
    """[B, *shape] -> [B, blocks, block], the last block filled with zeros."""
    flat = x.reshape(x.shape[0], -1)
    rest = -flat.shape[1] % block
    if rest:
        flat = torch.nn.functional.pad(flat, (0, rest))
    return flat.unflatten(1, (-1, block))


def from_blocks(blocks: Tensor, shape: tuple[int, ...]) -> Tensor:
    """[B, blocks, block] -> [B, *shape]."""
    return blocks.flatten(1)[:, : math.prod(shape)].reshape(blocks.shape[0], *shape)
