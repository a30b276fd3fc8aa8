"""Stacks of same-shape parameters, cut so that the work of a stack stays in cache.

The chunks of a group depend only on the order and shapes of its parameters: not on which of them
have a gradient today, nor on when their state was created. So a resumed run forms the same stacks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..storage import Policy
from ..types import Layout
from .adapters import table_of
from .shards import Shard, shard_of
from .tensors import is_wrapper

# Elements of a stack. On CPU a stack and its temporaries should stay in cache; elsewhere launches
# cost more than memory traffic.
CPU_CHUNK_ELEMENTS = 524_288
DEVICE_CHUNK_ELEMENTS = 4_194_304


class Chunk(NamedTuple):
    """Parameters of one group that are updated together.

    Args:
        key: position that names the chunk: (group, chunk).
        params: same shape, dtype, device.
        indices: position of each parameter among all parameters of the optimizer.
        layout: their view.
        lora: whether they belong to a LoRA.
        policy: how their state is held.
        shard: which part of them this process holds, or None where they are whole.
        table: 1: embeddings, whose rows are no neighbours; 2: nor are their columns.
    """

    key: tuple[int, int]
    params: list[Tensor]
    indices: list[int]
    layout: Layout
    lora: bool
    policy: Policy
    shard: Shard | None = None
    table: int = 0


def chunk_limit(device: torch.device) -> int:
    """Elements per stack on this device."""
    return CPU_CHUNK_ELEMENTS if device.type == "cpu" else DEVICE_CHUNK_ELEMENTS


def chunks(
    param_groups: list[dict[str, Any]],
    policy_of: Callable[[dict[str, Any], int], Policy],
    lora: Sequence[Sequence[Any]],
) -> Iterator[tuple[dict[str, Any], Chunk]]:
    """All chunks of all groups, with their group.

    Args:
        param_groups: the optimizer's groups.
        policy_of: (group, position in it) -> storage of that parameter's state.
        lora: per group and parameter, something true where it belongs to a LoRA.
    """
    first = 0
    for number, group in enumerate(param_groups):
        buckets: dict[tuple[Any, ...], list[int]] = {}
        params = group["params"]
        for position, p in enumerate(params):
            if p.numel():
                kind = (bool(lora[number][position]), table_of(group, position))
                own = type(p) if is_wrapper(p) else None
                key = (p.shape, p.dtype, p.device, *kind, policy_of(group, position), shard_of(p), own)
                buckets.setdefault(key, []).append(position)
        count = 0
        for (shape, _, device, adapted, table, policy, shard, _), members in buckets.items():
            layout = Layout.of(tuple(shape))
            size = max(1, chunk_limit(device) // layout.numel)
            for start in range(0, len(members), size):
                part = members[start : start + size]
                yield (
                    group,
                    Chunk(
                        (number, count),
                        [params[i] for i in part],
                        [first + i for i in part],
                        layout,
                        adapted,
                        policy,
                        shard,
                        table,
                    ),
                )
                count += 1
        first += len(params)
