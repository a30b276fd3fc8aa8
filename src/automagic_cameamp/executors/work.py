"""Who executes the updates of a step: a backend per device and set of options.

The recipe and its techniques define the arithmetic; ``execute`` runs them in plain torch and is the
reference. Other backends may be faster, never different: tests hold them in lock-step with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ..recipes import alone
from ..state.chunks import Chunk
from ..types import Phase
from . import update as execute


class Work(NamedTuple):
    """The update of one chunk.

    Args:
        chunk: the members that have a gradient.
        active: their positions in the whole chunk.
        members: how many the whole chunk has.
        states: ``optimizer.state[p]`` of each, complete, on the device of the parameter.
        recipe: module with ``update``.
        fields: storage of each state field.
        shared: the recipe's scalars over all parameters.
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
    fields: list[execute.Field]
    shared: Any
    hp: Any
    keys: Tensor | None
    rounds: bool
    phase: Phase = Phase.MIXED


class Left(NamedTuple):
    """A work, or part of one, that a backend does not take; and why, in words."""

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


def begun(
    work: Work, chunk: Chunk | None = None, states: list[dict[str, Any]] | None = None
) -> execute.Update:
    """The update of a work, eagerly; of other tensors in the place of its own where these are given."""
    return execute.Update(
        work.chunk if chunk is None else chunk,
        work.states if states is None else states,
        work.recipe,
        work.fields,
        work.shared,
        work.hp,
        work.rounds,
        work.phase,
    )


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


class Backend(Protocol):
    """Something that executes updates."""

    name: str

    def divide(self, work: Work) -> tuple[Work | None, list[Left]]:
        """The part that this backend can execute as the reference would, and what is left."""
        ...

    def run(self, works: list[Work]) -> Iterator[Outcome]:
        """Update parameters and states in place; one outcome per work, in any order."""
        ...


class Reference:
    """Plain torch, chunk by chunk."""

    name = "reference"

    def divide(self, work: Work) -> tuple[Work | None, list[Left]]:
        """Everything."""
        return work, []

    def run(self, works: list[Work]) -> Iterator[Outcome]:
        """One chunk after the other."""
        for w in works:
            update = begun(w)
            ok, signals = update.finish(alone(update.steps), w.keys)
            yield w, ok, signals


REFERENCE = Reference()


def available(engine: str, works: list[Work]) -> tuple[Backend, ...]:
    """Backends for this setting, the preferred one first; the reference takes what is left."""
    on_cpu = any(work.chunk.params[0].device.type == "cpu" for work in works)
    from .native import plan as native  # only where it is needed: an import of the package stays light

    kernels: tuple[Backend, ...] = (native.Native(engine),) if on_cpu and native.ready(engine) else ()
    devices = {work.chunk.params[0].device.type for work in works}
    if engine == "compiled" or (engine == "auto" and devices - {"cpu"}):
        from . import compiled

        kernels = (*kernels, compiled.COMPILED)
    return (*kernels, REFERENCE)


def run(engine: str, works: list[Work]) -> Iterator[Outcome]:
    """Give what each backend takes of every work to it, and run them."""
    for _, outcome in ranked(engine, works):
        yield outcome


def ranked(engine: str, works: list[Work]) -> Iterator[tuple[int, Outcome]]:
    """The same, with the place of the backend among those available."""
    for rank, backend in enumerate(available(engine, works)):
        taken: list[Work] = []
        waiting: list[Work] = []
        for work in works:
            mine, left = backend.divide(work)
            taken += [] if mine is None else [mine]
            waiting += [rest for rest, _ in left]
        works = waiting
        for outcome in backend.run(taken) if taken else ():
            yield rank, outcome
