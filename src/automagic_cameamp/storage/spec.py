"""What a recipe keeps per parameter: names, extents, whether a codec may touch them."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch

from ..types import Layout

Extent = Literal["full", "row", "col", "tensor", "bits", "sample", "basis", "left"]


class StateSpec(NamedTuple):
    """One field of a recipe's state.

    Args:
        name: key in ``optimizer.state[p]``.
        extent: 'full' one value per element; 'row' (K, m, 1); 'col' (K, 1, n); 'tensor' one
            number; 'bits' one bit per element; 'sample' ``count`` numbers; 'basis' a matrix
            (K, min(m, n), count); 'left' the first ``count`` columns of a matrix, all of a vector.
        domain: what a codec may assume: 'signed' (a running mean), 'positive' (a denominator: codes
            must never reach 0), 'unit' (a running mean in [0, 1]), 'vector' (row or column
            statistics), 'plain' (kept as it is).
        dtype: type of a plain field; None means the type of the arithmetic (fp32 or fp64).
        initial: value of a fresh field.
        count: length of a 'sample' or 'bits' field, columns of a 'basis' or 'left' one.
    """

    name: str
    extent: Extent = "full"
    domain: Literal["signed", "positive", "unit", "vector", "plain"] = "plain"
    dtype: torch.dtype | None = None
    initial: float = 0.0
    count: int = 0

    def stack_shape(self, layout: Layout) -> tuple[int, ...]:
        """Shape of one tensor's field inside a stack (without the leading B)."""
        k, m, n = layout.view
        # Asked for every field of every stack at every step: one comparison or two, and no table.
        match self.extent:
            case "full":
                return k, m, n
            case "row":
                return k, m, 1
            case "col":
                return k, 1, n
            case "tensor":
                return 1, 1, 1
            case "bits" | "sample":
                return (self.count,)
            case "basis":
                return k, min(m, n), self.count
            case "left":
                return k, m, self.count if layout.matrix else n

    def own_shape(self, layout: Layout) -> tuple[int, ...]:
        """Shape of the field as the user sees it in ``optimizer.state[p]``."""
        k, m, n = layout.view
        lead = (k,) if len(layout.shape) == 3 else ()
        match self.extent:
            case "full":
                return layout.shape
            case "row":
                return *lead, m
            case "col":
                return *lead, n
            case "tensor":
                return ()
            case "bits" | "sample":
                return (self.count,)
            case "basis":
                return *lead, min(m, n), self.count
            case "left":
                return (*lead, m, self.count) if layout.matrix else layout.shape


# What 24-bit weights have beyond those in bf16 or fp16 (``rounding.split``); the engine's, not a recipe's.
CORRECTION = StateSpec("weight_correction", "full", dtype=torch.int8)
