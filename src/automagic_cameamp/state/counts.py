"""Numbers of updates that the host has to know, without waiting for a device at every step.

Where a parameter stands is in its state. On CPU it is read; elsewhere the host counts gradients, which are
never fewer than updates, and reads the number only where it could have reached what matters.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from .. import schedule
from ..types import Phase
from .fields import Field

DIRECTIONS = ("lowrank_basis", "lowrank_tail")
OVER = float("inf")


def directions_of(fields: Sequence[Field]) -> str | None:
    """The state that holds the low-rank directions of a parameter, if it has any."""
    return next((spec.name for spec, _ in fields if spec.name in DIRECTIONS), None)


def waits(device: torch.device) -> bool:
    """Whether the host has to wait before it can read a number of this device."""
    return device.type != "cpu"


def read(steps: list[Tensor]) -> list[int]:
    """Numbers of updates, from the states."""
    return [int(count) for count in torch.stack(steps).flatten().tolist()]


class Searches:
    """Which parameters search: those whose own number of updates so far is a multiple of the interval.

    The number is in their state. Where reading it would wait for a device, the host counts gradients in its
    place. That is never less than the truth, for a gradient that is not finite is no update; so at a multiple
    the truth is read (a search waits for the device anyway), and the count is set right before it could pass
    a multiple that the parameter has yet to reach.
    """

    def __init__(self) -> None:
        # The tensor with the number -> the most that it can be, and the interval this holds for.
        self._most: Any = WeakIdKeyDictionary()

    def clear(self) -> None:
        """Forget all; the next step reads every number."""
        self._most = WeakIdKeyDictionary()

    def due(self, states: list[dict[str, Any]], every: int) -> tuple[int, ...]:
        """Places of the states that search at the update that comes; called once for each update.

        Args:
            states: those of a stack.
            every: updates from one search to the next.
        """
        steps = [state["step"] for state in states]
        if not waits(steps[0].device):
            return tuple(i for i, count in enumerate(read(steps)) if count % every == 0)
        most = []
        for step in steps:
            count, interval = self._most.get(step, (0, every))
            most.append(count if interval == every else 0)
        unsure = [i for i, count in enumerate(most) if count % every == 0]
        if unsure:
            for i, count in zip(unsure, read([steps[i] for i in unsure]), strict=True):
                most[i] = count
        due = tuple(i for i in unsure if most[i] % every == 0)
        for i, step in enumerate(steps):
            # Whether one that is due makes this update shows at its next.
            self._most[step] = (most[i] if i in due else most[i] + 1, every)
        return due


class Phases:
    """The common phase of the members of a stack.

    On CPU their numbers of updates are read. Elsewhere a step counts as MIXED, which computes every phase and
    lets the device choose, until the warm-up is known to be over: the host counts gradients, which are
    never fewer than updates, and reads the numbers when they could have reached the end.
    """

    def __init__(self) -> None:
        # The tensor with the number of updates -> the most that it can be, and the warm-up this holds for.
        self._most: Any = WeakIdKeyDictionary()

    def clear(self) -> None:
        """Forget all; the next step reads every number."""
        self._most = WeakIdKeyDictionary()

    def begin(self, states: Iterable[dict[str, Any]], warmup_steps: int) -> None:
        """States that were just made: they have had no update, which nobody has to read."""
        for state in states:
            if waits(state["step"].device):
                self._most[state["step"]] = (0, warmup_steps)

    def of(self, states: list[dict[str, Any]], warmup_steps: int) -> Phase:
        """Phase of the update that comes; called once for each update.

        Args:
            states: those of a stack.
            warmup_steps: length of the warm-up.
        """
        if warmup_steps == 0:
            return Phase.LATE
        steps = [state["step"] for state in states]
        if not waits(steps[0].device):
            counts = read(steps)
            return schedule.phase_between(min(counts) + 1, max(counts) + 1, warmup_steps)
        most: list[float] = []
        for step in steps:
            count, warmup = self._most.get(step, (warmup_steps, warmup_steps))
            most.append(count if warmup == warmup_steps else warmup_steps)
        unsure = [i for i, count in enumerate(most) if warmup_steps <= count + 1 < OVER]
        if unsure:
            for i, count in zip(unsure, read([steps[i] for i in unsure]), strict=True):
                most[i] = OVER if count + 1 >= warmup_steps else count
        for step, count in zip(steps, most, strict=True):
            self._most[step] = (count + 1, warmup_steps)
        return Phase.LATE if all(count == OVER for count in most) else Phase.MIXED
