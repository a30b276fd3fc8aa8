"""Codes of a tensor whose elements are all alike, without making that tensor."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..types import Layout
from .codec import Codec
from .rows import RowBlocks


def fill(held: Sequence[Tensor], codec: Codec, value: float, layout: Layout) -> None:
    """Write the codes of ``value`` everywhere; what coding a tensor of it would give, but for its memory.

    Two elements show all codes that there are, three where their number is odd and two may share a byte.
    Rows of their own blocks are all like one of them.

    Args:
        held: planes of the codec, each [B, *plane.shape].
        codec: of a field with one element per weight.
        value: of every element.
        layout: view of the parameter.
    """
    if not layout.numel:
        return
    device = held[0].device
    if isinstance(codec, RowBlocks):
        coded = codec.encode(torch.full((1, 1, 1, layout.cols), value, device=device))
        for plane, row in zip(held, coded, strict=True):
            plane.copy_(row)
        return
    few = min(layout.numel, 2 + layout.numel % 2)
    coded = codec.encode(torch.full((1, 1, 1, few), value, device=device))
    for plane, part in zip(held, coded, strict=True):
        if plane.dim() == 4:  # one code per element
            plane, part = plane.flatten(1), part.flatten(1)
        plane.copy_(part[:, :1])
        plane[:, -1:] = part[:, -1:]  # a byte that is shared with nobody
