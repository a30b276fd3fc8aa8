"""What executors are given and give back: the update of a stack, and what became of it.

The recipe and its techniques define the arithmetic; ``update`` runs them in plain torch and is the reference.
Other executors may be faster, never different: tests hold them in lock-step with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ..recipes import Hyper, Shared
from ..state import tensors
from ..state.chunks import Chunk
from ..state.counts import directions_of
from ..state.fields import LOW_PRECISION, Field
from ..state.model import Group, Model
from ..types import Phase


class Work(NamedTuple):
    """The update of one chunk.

    Args:
        chunk: the members that have a gradient.
        active: their positions in the whole chunk.
        members: how many the whole chunk has.
        states: ``optimizer.state[p]`` of each, complete, on the device of the parameter.
        recipe: module with ``update``.
        fields: storage of each state field.
        shared: the recipe's scalars over all parameters; None in a work that is only looked at.
        hp: the recipe's options.
        keys: [B] int32 random keys, or None where nothing is rounded stochastically.
        rounds: whether the weights are rounded stochastically.
        phase: where the members stand in the warm-up; MIXED where they differ or the host cannot know.
    """

    chunk: Chunk
    active: list[int]
    members: int
    states: list[dict[str, Any]]
    recipe: ModuleType
    fields: list[Field]
    shared: Shared | None
    hp: Hyper
    keys: Tensor | None
    rounds: bool
    phase: Phase = Phase.MIXED

    @property
    def scalars(self) -> Shared:
        """``shared`` of a work that is run."""
        assert self.shared is not None
        return self.shared


class Left(NamedTuple):
    """A work, or part of one, that an executor does not take; and why, in words."""

    work: Work
    reason: str


def part(work: Work, places: Sequence[int]) -> Work:
    """The update of some members of a work."""
    if len(places) == len(work.states):
        return work
    chunk, shared = work.chunk, work.shared
    if shared is not None:
        due = set(shared.refresh)
        shared = shared._replace(refresh=tuple(new for new, old in enumerate(places) if old in due))
    return work._replace(
        shared=shared,
        chunk=chunk._replace(
            params=[chunk.params[i] for i in places], indices=[chunk.indices[i] for i in places]
        ),
        active=[work.active[i] for i in places],
        states=[work.states[i] for i in places],
        keys=None if work.keys is None else work.keys[list(places)],
    )


def work_of(model: Model, group: Group, chunk: Chunk, active: list[int], shared: Shared) -> Work:
    """The update of the active members of a stack, whose states are there.

    Args:
        model: theirs.
        group: of the stack.
        chunk: the whole stack.
        active: positions of the members.
        shared: the recipe's scalars over all parameters.
    """
    members = chunk._replace(
        params=[chunk.params[i] for i in active], indices=[chunk.indices[i] for i in active]
    )
    hp, fields = model.options(group, chunk), model.fields(group, chunk)
    held = model.held(members.params, fields, chunk)
    if directions_of(fields):
        shared = shared._replace(refresh=model.kept.searches.due(held, group["sync_frequency"]))
    first = members.params[0]
    apart = chunk.shard is None and tensors.is_wrapper(first)  # rounds by itself
    rounds = first.dtype in LOW_PRECISION and not apart and model.config.stochastic_rounding is not False
    coded = any(f.codec is not None and f.codec.random for f in fields)
    keys = model.keys(members) if rounds or coded else None
    phase = model.kept.phases.of(held, hp.warmup_steps)
    return Work(
        members, active, len(chunk.params), held, model.recipe, fields, shared, hp, keys, rounds, phase
    )


def glance(model: Model, group: Group, chunk: Chunk) -> Work:
    """The update of all members of a stack, to be looked at, not run: state may not be there yet."""
    states = [model.state.get(p) or {} for p in chunk.params]
    every = list(range(len(states)))
    hp, fields = model.options(group, chunk), model.fields(group, chunk)
    return Work(chunk, every, len(every), states, model.recipe, fields, None, hp, None, False)


Outcome = tuple[Work, Tensor, Any]  # the work, [B] bool usable gradient, the recipe's signals


class Folded:
    """What a controller learns from many parameters at once: their sketch, folded already.

    Args:
        sketch: [4096] of the model's part, fp64: no order of summation shows once it is rounded.
        square: sum of squares of the raw gradients.
        bad: number of unusable gradients.
    """

    def __init__(self, sketch: Tensor, square: float, bad: int) -> None:
        self.sketch, self.square, self.bad = sketch, square, bad

    @classmethod
    def of(cls, parts: list[Folded]) -> Folded:
        """All of them as one."""
        sketch = torch.stack([part.sketch for part in parts]).sum(0)
        return cls(sketch, sum(part.square for part in parts), sum(part.bad for part in parts))


class Executor(Protocol):
    """Something that executes updates."""

    name: str

    def why_not(self, work: Work) -> list[str | None]:
        """For each member, why it cannot be executed here as the reference would, in words; None: it can."""
        ...

    def words(self, p: Tensor) -> str:
        """How a parameter is stepped here, in words."""
        ...

    def run(self, works: list[Work]) -> Iterator[Outcome]:
        """Update parameters and states in place; one outcome per work, in any order."""
        ...


def divide(executor: Executor, work: Work) -> tuple[Work | None, list[Left]]:
    """What of a work an executor takes, and the rest by reason."""
    places: dict[str | None, list[int]] = {}
    for i, reason in enumerate(executor.why_not(work)):
        places.setdefault(reason, []).append(i)
    taken = part(work, places[None]) if None in places else None
    return taken, [Left(part(work, rows), reason) for reason, rows in places.items() if reason is not None]
