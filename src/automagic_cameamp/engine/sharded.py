"""Updates of sharded parameters: what the processes tell each other, and when.

All sums of all parameters go through one buffer, so a step makes two reductions per mesh, however
many parameters there are. ``recipes/_sharded.py`` says what is in it.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from itertools import groupby
from typing import Any, NamedTuple, Protocol
from weakref import WeakSet

import torch
import torch.distributed as dist
from torch import Tensor

from ..recipes import _sharded
from ..validate import callers_depth, fail
from . import backends, execute, landing
from .buckets import Chunk
from .shards import Shard, cut, is_cut, is_distributed, local_of, local_parameter, local_state, wrap

_SAID: WeakSet[Any] = WeakSet()


class Rider(Protocol):
    """A number of the whole model that has to be summed too: the controller's losses."""

    def share(self, device: torch.device) -> Tensor | None: ...
    def take(self, total: Tensor) -> None: ...


class _Part(NamedTuple):
    """A work on the part of its parameters that is here, and the sums known so far."""

    work: backends.Work
    chunk: Chunk
    states: list[dict[str, Any]]
    known: dict[str, Tensor]


def options(optimizer: Any, hp: Any) -> Any:
    """Options as they hold for sharded parameters.

    Raises:
        ValueError: an option cannot be used with them.
    """
    wrong = _sharded.refused(hp)
    if wrong is not None:
        name, value, allowed, why = wrong
        raise fail(name, value, f"only {allowed!r} with sharded parameters", f"Reason: {why}.")
    hp, skipped = _sharded.adapt(hp)
    if skipped and optimizer not in _SAID:
        _SAID.add(optimizer)
        text = (
            f"{type(optimizer).__name__}: parameters are sharded, and {', '.join(skipped)} would need rows "
            "of other processes: left out for them."
        )
        warnings.warn(text, stacklevel=callers_depth())
    return hp


def run(works: list[backends.Work], rider: Rider | None = None) -> Iterator[backends.Outcome]:
    """Update sharded parameters and their states in place; one outcome per work."""
    for _, members in groupby(sorted(works, key=_mesh_key), key=_mesh_key):
        parts = [_part(work) for work in members]
        for stage in _sharded.ROUNDS:
            noted = [_evaluate(part, stage) for part in parts]
            last = stage == _sharded.ROUNDS[-1]
            _exchange(parts, noted, rider if last else None)
        rider = None
        for part in parts:
            work = part.work
            totals = _totals(part, stage=3)
            with _sharded.answering(totals):
                ok, signals = execute.run(
                    part.chunk,
                    part.states,
                    work.recipe,
                    work.fields,
                    work.shared,
                    work.hp,
                    work.keys,
                    work.rounds,
                )
            yield work, ok, signals


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
    return _Part(work, chunk, [local_state(state) for state in work.states], {})


def _totals(part: _Part, stage: int) -> _sharded.Totals:
    return _sharded.Totals(_shard(part.chunk).place, part.known, stage)


def _evaluate(part: _Part, stage: int) -> dict[str, Tensor]:
    """What this process adds to the sums of one round."""
    totals, work = _totals(part, stage), part.work
    with _sharded.answering(totals):
        execute.evaluate(part.chunk, part.states, work.recipe, work.fields, work.shared, work.hp)
    return totals.parts


def _exchange(parts: list[_Part], noted: list[dict[str, Tensor]], rider: Rider | None) -> None:
    """Add the noted numbers over all processes: one reduction."""
    pieces = [piece for sums in noted for piece in sums.values()]
    if not pieces:  # nothing is needed at this place of the warm-up
        return
    device = pieces[0].device
    share = rider.share(device) if rider is not None else None
    wide = any(piece.dtype == torch.float64 for piece in pieces)
    dtype = torch.float64 if wide else torch.float32
    flat = [piece.to(device, dtype).flatten() for piece in pieces]
    buffer = torch.cat(flat if share is None else [*flat, share.to(dtype)])
    dist.all_reduce(buffer, group=_shard(parts[0].chunk).mesh.get_group())
    sizes = [piece.numel() for piece in pieces]
    sums = iter(buffer.split([*sizes, buffer.numel() - sum(sizes)]))
    for part, names in zip(parts, noted, strict=True):
        for name, piece in names.items():
            part.known[name] = next(sums).view(piece.shape).to(piece.device, piece.dtype)
    if share is not None and rider is not None:
        rider.take(next(sums))
