"""A run of a few small tensors through every phase; what two runs differ in."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from automagic_cameamp import OPTIMIZERS
from automagic_cameamp.state import shards
from matrix.rows import SHAPES, Row
from native import lockstep

STEPS, WARMUP = 8, 6  # steps 0 and 1 are early, 2 to 4 in the middle, the rest late
RATE = 1e-3


def gradients(params: list[Any], step: int) -> list[Tensor]:
    """Rows of very different size, and a few exact zeros."""
    found = lockstep.gradients(params, step)
    for g in found:
        if g.dim() > 1:
            g[::4] *= 0.01
    return found


def make(name: str, row: Row, options: dict[str, Any], whole: bool = True) -> tuple[Any, list[Any]]:
    """An optimizer over a LoRA whose second tensor is an embedding's, too."""
    draw = torch.Generator().manual_seed(0)
    values = [(torch.randn(s, generator=draw) * 0.05).to(row.dtype) for s in SHAPES]
    params = [torch.nn.Parameter(value if whole else _cut(value)) for value in values]
    for p in params:
        p._is_lora_layer = True  # type: ignore[attr-defined]
    params[1]._is_embedding = True  # type: ignore[attr-defined]
    given = {"lr": RATE, "warmup_steps": WARMUP, "verbose": False, **row.beside, **options}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # lr and its bounds
        return OPTIMIZERS[name](params, **given), params


def take(optimizer: Any, params: list[Any], step: int, row: Row) -> None:
    if step == 1 and row.scheduled is not None:
        optimizer.param_groups[0]["lr"] = row.scheduled
    for p, g in zip(params, gradients(params, step), strict=True):
        p.grad = _cut(g) if hasattr(p, "to_local") else g
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of slow ways
        optimizer.step(loss=1.0 + 0.3 * (step % 3))


def numbers(optimizer: Any, params: list[Any]) -> Iterator[tuple[str, Tensor]]:
    """Weights and state by name."""
    for i, p in enumerate(params):
        yield f"weight {i}", p.detach()
        yield from ((f"{key} {i}", value) for key, value in optimizer.state[p].items())


def apart(name: str) -> dict[str, Any]:
    """What sharded parameters are left without, as options of the reference."""
    config: Any = OPTIMIZERS[name].config_class
    return {option: off for option, (off, _) in shards.NEIGHBOURS.items() if hasattr(config, option)}


def _cut(x: Tensor) -> Tensor:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    return distribute_tensor(x, init_device_mesh("cpu", (1,)), [Shard(0)]) if x.dim() else x


def run(name: str, row: Row, options: dict[str, Any], whole: bool = True) -> dict[str, Tensor]:
    """The reference's numbers after a run through all phases, over whole parameters or sharded ones."""
    optimizer, params = make(name, row, {"engine": "reference", **options}, whole)
    for step in range(STEPS):
        take(optimizer, params, step, row)
    return {key: getattr(value, "to_local", lambda v=value: v)() for key, value in numbers(optimizer, params)}


def differ(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Whether another number, or another way to hold one, is in one of them."""
    if a.keys() != b.keys():
        return True
    return any(x.dtype != b[k].dtype or not torch.equal(x, b[k]) for k, x in a.items())
