"""How fast weights may move at most where the rate is found; groups keep it from the first step on."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..recipes import speed_limit
from .chunks import Chunk
from .shards import local_of

Group = dict[str, Any]
LIMIT = "level_limit"
PIECE = 2**22  # elements
FROM_NOTHING = 0.4  # of a LoRA's or LoKr's elements; adaLN-zero has a third of a DiT's blocks


def level_limit(groups: Sequence[Group]) -> float | Tensor:
    """The limit that the groups were given, infinite where none was."""
    found = [g[LIMIT] for g in groups if g["lr_level"] == "auto" and LIMIT in g]
    return next((x for x in found if isinstance(x, Tensor)), min(found, default=math.inf))


def note(
    groups: Sequence[Group],
    chunks: Callable[[], Iterable[tuple[Group, Chunk]]],
    owners: Sequence[Tensor],
    fresh: bool,
) -> None:
    """Before the first step: remember the limit in every group whose rate is found.

    There is none where a LoRA is trained, nor where matrices that are all 0 have ``FROM_NOTHING`` of all
    elements or more: they belong to another adapter. The final layer of a model is less, and does not count.
    Where weights are sharded their processes sum once.

    Args:
        groups: the optimizer's.
        chunks: all of its stacks, asked for where they are needed.
        owners: the program's parameters, in order: what stands for them in stacks may be without memory.
        fresh: whether no parameter has a state.
    """
    groups = [g for g in groups if g["lr_level"] == "auto"]
    if not fresh or not groups or any(g["clock"] or LIMIT not in g or g[LIMIT] != math.inf for g in groups):
        return
    found: dict[Any, tuple[list[Tensor], list[int]]] = {}  # by who holds parts: sums of squares, elements
    for group, chunk in chunks():
        trained = [p for p in map(owners.__getitem__, chunk.indices) if p.requires_grad and p.numel()]
        if group["lr_level"] != "auto" or not trained:
            continue
        if chunk.lora:
            return
        if chunk.layout.matrix and not chunk.table:
            sums, counts = found.setdefault(None if chunk.shard is None else chunk.shard.mesh, ([], []))
            sums += [_squares(local_of(p)) for p in trained]
            counts += [p.numel() for p in trained]
    if not found:
        return
    device = next(iter(found.values()))[0][0].device
    squares = torch.cat([_summed(mesh, sums).to(device) for mesh, (sums, _) in found.items()])
    sizes = squares.new_tensor([n for _, counts in found.values() for n in counts])
    begun = (sizes * (squares > 0)).sum()
    mean = torch.where(begun > (1 - FROM_NOTHING) * sizes.sum(), squares.sum() / begun, 0.0)
    limit = speed_limit(mean if device.type != "cpu" else float(mean))
    for group in groups:
        group[LIMIT] = limit


def _squares(p: Tensor) -> Tensor:
    """Sum of squares, in doubles: however many threads add, the float that comes of it is the same.

    A piece at a time: on a small card a copy of a large layer in doubles could be the one thing too much.
    """
    dtype = torch.float32 if p.device.type == "mps" else torch.float64
    pieces = [torch.linalg.vector_norm(x, dtype=dtype) for x in p.detach().reshape(-1).split(PIECE)]
    return torch.stack(pieces).square().sum()


def _summed(mesh: Any, sums: list[Tensor]) -> Tensor:
    """[N] over all processes of a mesh."""
    here = torch.stack([x.to(sums[0].device) for x in sums])
    if mesh is not None:
        torch.distributed.all_reduce(here, group=mesh.get_group())
    return here
