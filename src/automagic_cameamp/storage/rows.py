"""Codes whose blocks end with the row, so that a tensor can be cut between its rows."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..types import Layout
from .codec import Codec, Plane


class RowBlocks:
    """A block code applied row by row: the first dimensions of every plane are those of the tensor.

    Blocks that run on across rows would hold elements of two processes where a tensor is sharded,
    and no process count could be changed without coding anew.

    Args:
        code: the block code; its blocks are cut at the end of a row.
    """

    random = False

    def __init__(self, code: Codec) -> None:
        self.code = code
        self.name = f"{code.name} by rows"
        self.block_size = getattr(getattr(code, "code", code), "block_size", 0)

    def planes(self, layout: Layout) -> tuple[Plane, ...]:
        k, m, n = layout.view
        lead = layout.shape[:2] if len(layout.shape) == 3 else layout.shape[:1]
        return tuple(
            plane._replace(
                shape=(k, m, *plane.shape[2:]) if plane.suffix == "_q" else (k, m, *plane.shape),
                own_shape=layout.shape if plane.suffix == "_q" else (*lead, *plane.shape),
            )
            for plane in self.code.planes(Layout.of((n,)))
        )

    def _rows(self, x: Tensor, lead: tuple[int, ...]) -> Tensor:
        """[B,K,m,*rest] -> [B*K*m,*rest]."""
        return x.reshape(math.prod(lead), *x.shape[3:])

    def encode(self, x: Tensor, bits: Tensor | None = None) -> tuple[Tensor, ...]:
        lead, n = tuple(x.shape[:3]), x.shape[3]
        if not x.numel():
            return tuple(
                torch.zeros((*lead, *(plane.shape[2:] if plane.suffix == "_q" else plane.shape)),
                            dtype=plane.dtype, device=x.device)
                for plane in self.code.planes(Layout.of((n,)))
            )  # fmt: skip
        coded = self.code.encode(self._rows(x, lead).view(-1, 1, 1, n))
        return tuple(
            part.view(*lead, *(part.shape[3:] if i == 0 else part.shape[1:])) for i, part in enumerate(coded)
        )

    def decode(self, planes: tuple[Tensor, ...]) -> Tensor:
        lead, n = tuple(planes[0].shape[:3]), planes[0].shape[3]
        if not planes[0].numel():
            return torch.zeros_like(planes[0], dtype=torch.float32)
        flat = tuple(self._rows(plane, lead) for plane in planes)
        return self.code.decode((flat[0].view(-1, 1, 1, n), *flat[1:])).view(*lead, n)
