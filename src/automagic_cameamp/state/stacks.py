"""Rows of one tensor as the state of many parameters.

A fresh chunk gets one tensor per field, and ``optimizer.state[p]`` holds rows of it: no rounding
of the allocator per parameter, and no copy to form the stack. Nothing depends on it: whenever the
rows are not where they are expected (after a load, a move, a missing gradient), they are stacked.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def rows_of(stack: Tensor, own_shape: tuple[int, ...]) -> list[Tensor]:
    """The rows of a stack, each in its own shape."""
    return [row.view(own_shape) for row in stack.unbind(0)]


def stacked(rows: list[Tensor], shape: tuple[int, ...]) -> tuple[Tensor, bool]:
    """Rows as [B, *shape], and whether writing into the result writes into the rows."""
    first = rows[0]
    size, width = first.numel(), first.element_size()
    start = first.data_ptr()
    in_place = first.is_contiguous() and all(
        row.data_ptr() == start + i * size * width and row.is_contiguous() for i, row in enumerate(rows)
    )
    if in_place and len(rows) > 1:
        storage = first.untyped_storage()
        in_place = start + len(rows) * size * width <= storage.data_ptr() + storage.nbytes()
    if in_place:
        strides = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
        return first.as_strided((len(rows), *shape), (size, *strides)), True
    return torch.stack(rows).view(len(rows), *shape), False


def write(rows: list[Tensor], new: Tensor) -> None:
    """Put new values into rows that ``stacked`` had to copy."""
    torch._foreach_copy_(rows, [part.view(row.shape) for part, row in zip(new.unbind(0), rows, strict=True)])
