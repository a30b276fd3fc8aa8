"""Updates of sharded parameters: what the processes tell each other, and when.

Every update yields the sums that it needs over whole tensors; those of all updates go through one buffer, so
the number of reductions is that of the recipe's exchanges, however many parameters there are. Updates that
wait for their sums hold their temporaries: very large models are taken in batches of ``AT_ONCE`` elements.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from itertools import groupby
from typing import Any, NamedTuple, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from ..recipes import Sum, together
from ..state.chunks import Chunk
from ..state.shards import Shard, local_parameter, local_state, place_of
from .update import Update
from .work import Outcome, Work

AT_ONCE = 1 << 26  # elements of whole tensors whose updates wait together, per process of the mesh


class Rider(Protocol):
    """A number of the whole model that has to be summed too: the controller's losses."""

    def share(self, device: torch.device) -> Tensor | None: ...
    def take(self, total: Tensor) -> None: ...


class _Part(NamedTuple):
    """A work on the part of its parameters that is here, and its update under way."""

    work: Work
    update: Update


class Sharded:
    """Parameters of which a process holds a part.

    Args:
        rider: a number that travels with the first sums, or None.
    """

    name = "sharded"

    def __init__(self, rider: Rider | None = None) -> None:
        self.rider = rider

    def why_not(self, work: Work) -> list[str | None]:
        """Only these."""
        return [None if work.chunk.shard is not None else "whole parameters"] * len(work.chunk.params)

    def words(self, p: Tensor) -> str:
        """How a parameter is stepped."""
        return "the recipe on the part that is here, sums over all processes"

    def run(self, works: list[Work]) -> Iterator[Outcome]:
        """Update parameters and their states in place; one outcome per work."""
        for _, members in groupby(sorted(works, key=_mesh_key), key=_mesh_key):
            for batch in _batches(list(members)):
                parts = [_part(work) for work in batch]
                rider, self.rider = self.rider, None
                for part, result in zip(parts, _exchanges(parts, rider), strict=True):
                    ok, signals = part.update.finish(result, part.work.keys)
                    yield part.work, ok, signals


def _batches(works: list[Work]) -> Iterator[list[Work]]:
    """Works whose updates wait together; the same on every process, for it goes by whole tensors."""
    batch: list[Work] = []
    held = 0
    for work in works:
        size = len(work.chunk.params) * work.chunk.layout.numel // _shard(work.chunk).mesh.size()
        if batch and held + size > AT_ONCE:
            yield batch
            batch, held = [], 0
        batch.append(work)
        held += size
    if batch:
        yield batch


def _exchanges(parts: list[_Part], rider: Rider | None) -> list[Any]:
    """Drive the updates to their ends, adding what they ask for over all processes; their results."""
    steps = together(*(_placed(part) for part in parts))
    try:
        asked: list[Any] = next(steps)
        while True:
            answers = _added(asked, rider)
            rider = None
            asked = steps.send(answers)
    except StopIteration as end:
        return end.value


def _placed(part: _Part) -> Generator[list[Any], list[Tensor], Any]:
    """The steps of an update, with its shard beside every sum that they ask for."""
    steps, shard = part.update.steps, _shard(part.work.chunk)
    try:
        asked = next(steps)
        while True:
            asked = steps.send((yield [(s, shard) for s in asked]))
    except StopIteration as end:
        return end.value


def _added(asked: list[tuple[Sum, Shard]], rider: Rider | None) -> list[Tensor]:
    """Sums over all processes: one reduction, none where nothing of it is anywhere else."""
    pieces = [s.part for s, shard in asked if _crosses(s, shard)]
    totals: Iterator[Tensor] = iter(())
    if pieces:
        device = pieces[0].device
        share = rider.share(device) if rider is not None else None
        wide = any(piece.dtype == torch.float64 for piece in pieces)
        dtype = torch.float64 if wide else torch.float32
        flat = [piece.to(device, dtype).flatten() for piece in pieces]
        buffer = torch.cat(flat if share is None else [*flat, share.to(dtype)])
        dist.all_reduce(buffer, group=asked[0][1].mesh.get_group())
        sizes = [piece.numel() for piece in pieces]
        found = list(buffer.split([*sizes, buffer.numel() - sum(sizes)]))
        if share is not None and rider is not None:
            rider.take(found[-1])
        totals = (x.view(p.shape).to(p.device, p.dtype) for x, p in zip(found, pieces, strict=False))
    answers = []
    for s, shard in asked:
        place = place_of(shard)
        whole = tuple(place.size if d == place.split else n for d, n in zip(s.over, s.counted, strict=False))
        answers.append(s.complete(next(totals) if _crosses(s, shard) else s.part, whole))
    return answers


def _crosses(s: Sum, shard: Shard) -> bool:
    """Whether other processes hold a part of a sum."""
    return place_of(shard).split in s.over


def _mesh_key(work: Work) -> tuple[int, ...]:
    """Works on one mesh stand together, in the same order on every process."""
    shard = _shard(work.chunk)
    return tuple(shard.mesh.mesh.flatten().tolist())


def _shard(chunk: Chunk) -> Shard:
    assert chunk.shard is not None
    return chunk.shard


def _part(work: Work) -> _Part:
    chunk = work.chunk._replace(
        params=[local_parameter(p) for p in work.chunk.params], layout=_shard(work.chunk).layout
    )
    states = [local_state(state) for state in work.states]
    return _Part(work, Update(work, chunk, states))
