"""Where stacks stand in the warm-up, as far as the host can know without waiting at every step."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch.utils.weak import WeakIdKeyDictionary

from .. import schedule
from ..executors.searches import read, waits
from ..types import Phase

OVER = float("inf")


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
