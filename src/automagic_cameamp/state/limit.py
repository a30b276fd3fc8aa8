"""How fast weights may move at most where the rate is found; groups keep it from the first step on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..techniques import speed_limit
from .shards import local_of

if TYPE_CHECKING:
    from .model import Model

LIMIT = "level_limit"


def level_limit(groups: Sequence[dict[str, Any]]) -> float | Tensor:
    """The limit that the groups were given, infinite where none was."""
    found = [g[LIMIT] for g in groups if g["lr_level"] == "auto" and LIMIT in g]
    return next((x for x in found if isinstance(x, Tensor)), min(found, default=math.inf))


def note(model: Model) -> None:
    """Before the first step: remember the limit in every group whose rate is found.

    There is none where a matrix is all 0: that belongs to an adapter, or to what else grows from nothing.
    Where weights are sharded their processes sum once.
    """
    groups = [g for g in model.groups if g["lr_level"] == "auto"]
    if not groups or any(g["clock"] or LIMIT not in g or g[LIMIT] != math.inf for g in groups):
        return
    if any(model.state.values()):
        return
    found: dict[Any, list[Tensor]] = {}  # by who holds parts of them: sums of squares
    count = 0
    for group, chunk in model.chunks():
        if group["lr_level"] != "auto" or chunk.lora or chunk.table or not chunk.layout.matrix:
            continue
        count += sum(p.numel() for p in chunk.params)
        sums = found.setdefault(None if chunk.shard is None else chunk.shard.mesh, [])
        sums += [local_of(p).detach().float().square().sum() for p in chunk.params]
    if not count:
        return
    device = next(iter(found.values()))[0].device
    squares = torch.cat([_summed(mesh, sums).to(device) for mesh, sums in found.items()])
    mean = torch.where((squares > 0).all(), squares.sum() / count, 0.0)
    limit = speed_limit(mean if device.type != "cpu" else float(mean))
    for group in groups:
        group[LIMIT] = limit


def _summed(mesh: Any, sums: list[Tensor]) -> Tensor:
    """[N] over all processes of a mesh."""
    here = torch.stack([x.to(sums[0].device) for x in sums])
    if mesh is not None:
        torch.distributed.all_reduce(here, group=mesh.get_group())
    return here
