"""Inputs for the property tests: stacks of many shapes, scales and kinds, from a seed."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import Tensor

from automagic_cameamp.types import Layout

# 0-size, one element, vectors, odd and prime matrices, one row, one column, 3-D, convolutions.
SHAPES: list[tuple[int, ...]] = [
    (),
    (1,),
    (7,),
    (64,),
    (1, 1),
    (1, 13),
    (13, 1),
    (2, 2),
    (5, 7),
    (16, 31),
    (2, 3, 5),
    (3, 1, 4),
    (4, 2, 3, 3),
    (5, 3, 1, 1),
    (2, 2, 1, 2, 3),
]
EMPTY: list[tuple[int, ...]] = [(0,), (0, 4), (4, 0), (2, 0, 3)]

shapes = st.sampled_from(SHAPES)
matrix_shapes = st.sampled_from([s for s in SHAPES if len(s) > 1])
seeds = st.integers(0, 2**31 - 1)
scales = st.sampled_from([1e-12, 1e-4, 1.0, 37.0, 1e6])
batches = st.integers(1, 4)


def normal(
    shape: tuple[int, ...], seed: int, scale: float = 1.0, dtype: torch.dtype = torch.float64
) -> Tensor:
    """A normal tensor of this shape."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator, dtype=torch.float64) * scale).to(dtype)


def stack(
    shape: tuple[int, ...], seed: int, batch: int = 2, scale: float = 1.0, dtype: torch.dtype = torch.float64
) -> Tensor:
    """[B,K,m,n] of normal numbers."""
    return normal((batch, *Layout.of(shape).view), seed, scale, dtype)


def heavy(
    shape: tuple[int, ...], seed: int, batch: int = 2, dtype: torch.dtype = torch.float64, dead: float = 0.1
) -> Tensor:
    """[B,K,m,n] with lognormal scales over many decades; some elements are exactly 0."""
    generator = torch.Generator().manual_seed(seed)
    full = (batch, *Layout.of(shape).view)
    size = torch.exp(3 * torch.randn(full, generator=generator, dtype=torch.float64))
    size[torch.rand(full, generator=generator) < dead] = 0.0
    return (size * torch.randn(full, generator=generator, dtype=torch.float64)).to(dtype)


def lists(x: Tensor) -> list[list[float]]:
    """Each tensor of a stack as a list of numbers, for the plain Python references."""
    return [row.flatten().tolist() for row in x]


def close(actual: Tensor, expected: list[list[float]], tolerance: float = 1e-12) -> None:
    """Compare a stack with lists of numbers, relative to the largest of each."""
    for row, wanted in zip(lists(actual), expected, strict=True):
        size = max([abs(x) for x in wanted], default=0.0) or 1.0
        worst = max((abs(x - y) for x, y in zip(row, wanted, strict=True)), default=0.0)
        assert worst <= tolerance * size, f"{worst:.3g} is more than {tolerance:g} of {size:.3g}"


def relative(a: Tensor, b: Tensor) -> float:
    """||a - b|| / ||b||."""
    size = float(b.double().norm())
    difference = float((a.double() - b.double()).norm())
    return difference / size if size else difference


def finite(x: Tensor) -> bool:
    return bool(torch.isfinite(x).all())
