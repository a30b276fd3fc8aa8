"""Updates of sharded parameters: what the processes tell each other, and when.

Every update yields the sums that it needs over whole tensors; those of all updates go through one buffer, so
the number of reductions is that of the recipe's exchanges, however many parameters there are. Updates that
wait for their sums hold their temporaries: very large models are taken in batches of ``AT_ONCE`` elements.
"""

from __future__ import annotations

import warnings
from collections.abc import Generator, Iterator
from itertools import groupby
from typing import Any, NamedTuple, Protocol
from weakref import WeakSet

import torch
import torch.distributed as dist
from torch import Tensor

from ..checkpoints import rows as landing
from ..recipes import Sum, has_mask, together
from ..state.chunks import Chunk
from ..state.shards import (
    Shard,
    cut,
    is_cut,
    is_distributed,
    local_of,
    local_parameter,
    local_state,
    place_of,
    wrap,
)
from ..validate import callers_depth, fail
from . import update as execute
from . import work as backends

_SAID: WeakSet[Any] = WeakSet()
AT_ONCE = 1 << 26  # elements of whole tensors whose updates wait together, per process of the mesh

# They look at neighbours in both directions or at the whole matrix, of which a process has rows.
NEIGHBOURS: dict[str, tuple[Any, str]] = {
    "frequency_penalty": (0.0, "damping of high frequencies"),
    "edge_suppression": (False, "damping of edges"),
    "lora_rank_penalty": (False, "low-rank penalty and emphasis"),
}
NEEDED: dict[str, tuple[Any, str]] = {
    "lr_mask_granularity": ("element", "signs of other granularities are packed across rows"),
    "lr_level": ("fixed", "the sample of the weights that it compares is of the whole tensor"),
}


class Rider(Protocol):
    """A number of the whole model that has to be summed too: the controller's losses."""

    def share(self, device: torch.device) -> Tensor | None: ...
    def take(self, total: Tensor) -> None: ...


class _Part(NamedTuple):
    """A work on the part of its parameters that is here, and its update under way."""

    work: backends.Work
    update: execute.Update


def options(optimizer: Any, hp: Any) -> Any:
    """Options as they hold for sharded parameters.

    Raises:
        ValueError: an option cannot be used with them.
    """
    for name, (allowed, why) in NEEDED.items():
        value = getattr(hp, name, allowed)
        if value != allowed and (name != "lr_mask_granularity" or has_mask(hp)):
            raise fail(name, value, f"only {allowed!r} with sharded parameters", f"Reason: {why}.")
    on = {name: off for name, (off, _) in NEIGHBOURS.items() if getattr(hp, name, off) != off}
    if on and optimizer not in _SAID:
        _SAID.add(optimizer)
        skipped = ", ".join(NEIGHBOURS[name][1] for name in on)
        text = (
            f"{type(optimizer).__name__}: parameters are sharded, and {skipped} would need rows "
            "of other processes: left out for them."
        )
        warnings.warn(text, stacklevel=callers_depth())
    return hp._replace(**on)


def run(works: list[backends.Work], rider: Rider | None = None) -> Iterator[backends.Outcome]:
    """Update sharded parameters and their states in place; one outcome per work."""
    for _, members in groupby(sorted(works, key=_mesh_key), key=_mesh_key):
        for batch in _batches(list(members)):
            parts = [_part(work) for work in batch]
            results = _exchanges(parts, rider)
            rider = None
            for part, result in zip(parts, results, strict=True):
                ok, signals = part.update.finish(result, part.work.keys)
                yield part.work, ok, signals


def _batches(works: list[backends.Work]) -> Iterator[list[backends.Work]]:
    """Works whose updates wait together; the same on every process, for it goes by whole tensors."""
    batch: list[backends.Work] = []
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


def load_rows(
    saved: list[dict[str, Any]], params: list[Tensor], fields: list[execute.Field], chunk: Chunk
) -> list[dict[str, Any]]:
    """Saved states of a chunk, sharded or whole, as rows of one tensor per plane and as DTensors."""
    shard, compute = _shard(chunk), execute.compute_dtype(params[0])
    parts: list[dict[str, Any]] = [{} for _ in saved]
    for field in fields:
        for plane in field.planes(chunk.layout, compute):
            key = field.spec.name + plane.suffix
            for part, state in zip(parts, saved, strict=True):
                value = local_of(state[key])
                whole = is_cut(field.spec, shard) and not is_distributed(state[key])
                part[key] = cut(value, shard) if whole else value
    rows = landing.new_rows(len(params), local_of(params[0]), fields, shard.layout)
    for state, part in zip(rows, parts, strict=True):
        landing.fill(state, part)
        wrap(state, fields, chunk.layout, compute, shard)
    return rows


def _mesh_key(work: backends.Work) -> tuple[int, ...]:
    """Works on one mesh stand together, in the same order on every process."""
    shard = _shard(work.chunk)
    return tuple(shard.mesh.mesh.flatten().tolist())


def _shard(chunk: Chunk) -> Shard:
    assert chunk.shard is not None
    return chunk.shard


def _part(work: backends.Work) -> _Part:
    chunk = work.chunk._replace(
        params=[local_parameter(p) for p in work.chunk.params], layout=_shard(work.chunk).layout
    )
    states = [local_state(state) for state in work.states]
    return _Part(work, backends.begun(work, chunk, states))
