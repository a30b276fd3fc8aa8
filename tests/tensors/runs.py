"""Small runs that are disturbed between two steps, in every way that an optimizer steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from automagic_cameamp.optimizers import OPTIMIZERS

WAYS = ("auto", "reference", "release", "offload")
SHAPES = ((12, 8), (10,), (12, 8))


def build(name: str, params: Sequence[Tensor], way: str = "auto", **more: Any) -> Any:
    options: dict[str, Any] = {
        "lr": 1e-3,
        "warmup_steps": 4,
        "offload": "cpu" if way == "offload" else "none",
    }
    options["engine"] = "reference" if way == "reference" else "auto"
    named = [(f"layer.{i}", p) for i, p in enumerate(params)]
    return OPTIMIZERS[name](named, **{**options, **more})


def weights(
    shapes: Sequence[tuple[int, ...]] = SHAPES, dtype: torch.dtype = torch.float32
) -> list[nn.Parameter]:
    draw = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=draw).to(dtype)) for shape in shapes]


def step(optimizer: Any, params: Sequence[Tensor], t: int, way: str, absent: Sequence[int] = ()) -> None:
    draw = torch.Generator().manual_seed(100 + t)
    for i, p in enumerate(params):
        g = torch.randn(p.shape, generator=draw).to(p.dtype)
        p.grad = None if i in absent else g
    if way == "release":
        for p in params:
            optimizer.step_parameter(p)
            p.grad = None
    optimizer.step(loss=1.0 + t) if hasattr(optimizer, "c_optim") else optimizer.step()


def everything(optimizer: Any) -> list[tuple[str, Any]]:
    """Weights, state, clocks and the controller's memory, copied."""
    found: list[tuple[str, Any]] = []
    for group in optimizer.param_groups:
        found.append(("clock", group["clock"]))
        for i, p in enumerate(group["params"]):
            found.append((f"weight {i}", p.detach().clone()))
            state = optimizer.state.get(p, {})
            found += [
                (f"{i} {k}", v.clone() if isinstance(v, Tensor) else v) for k, v in sorted(state.items())
            ]
    memory = None if optimizer.controller is None else optimizer.controller.memory
    return [*found, ("memory", None if memory is None else memory.clone())]


def differences(a: list[tuple[str, Any]], b: list[tuple[str, Any]]) -> list[str]:
    if [name for name, _ in a] != [name for name, _ in b]:
        return [f"{[n for n, _ in a]} against {[n for n, _ in b]}"]
    return [name for (name, x), (_, y) in zip(a, b, strict=True) if not _alike(x, y)]


def _alike(x: Any, y: Any) -> bool:
    if not isinstance(x, Tensor) or not isinstance(y, Tensor):
        return type(x) is type(y) and x == y
    if x.device != y.device or x.is_meta:
        return x.device == y.device
    return x.dtype == y.dtype and torch.equal(x, y)
