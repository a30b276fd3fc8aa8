"""Small optimizers whose steps are recorded."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

import automagic_cameamp as A
from automagic_cameamp.kernels import native as kernels

ENGINES = [
    "reference",
    pytest.param("native", marks=pytest.mark.skipif(kernels.why_not() is not None, reason="not built")),
]
SHAPES = [(40, 32), (8,), (40, 32), (3, 5, 7), ()]


def draw(seed: int, shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def build(
    engine: str, cls: type = A.Automagic_CameAMP8bit, shapes: list[tuple[int, ...]] = SHAPES, **options: Any
) -> tuple[Any, list[Any]]:
    params = [torch.nn.Parameter(draw(i, s)) for i, s in enumerate(shapes)]
    named = [(f"layer{i}", p) for i, p in enumerate(params)]
    return cls(named, lr=1e-3, warmup_steps=8, engine=engine, **options), params


def give(params: list[Any], step: int, gain: float = 1.0) -> None:
    for i, p in enumerate(params):
        p.grad = gain * draw(1000 * step + i, tuple(p.shape)).to(p.dtype)


def held(optimizer: Any, params: list[Any]) -> list[Any]:
    """Copies of the weights and of everything that belongs to a run."""
    return copy.deepcopy([[p.detach() for p in params], optimizer.state_dict()])


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b
