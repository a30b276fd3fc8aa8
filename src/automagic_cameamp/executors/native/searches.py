"""Who searches for new low-rank directions (``sync_frequency``), and how a step of the kernels ends with it.

The kernels do the whole step, with the directions they have; what remains is small, and done by the recipe.
The reference shrinks weights before it rounds them, so parameters of less than fp32 take such a step as fp32
copies.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...recipes import improved
from ...state.counts import directions_of, read
from ...state.fields import stack_params
from ...storage import CORRECTION
from ...storage.rounding import join, split
from ..update import Noise, write_params
from ..work import Work

STRAIGHT = torch.contiguous_format
SMALL = 1 << 20  # elements
OF_FEWER_BITS = ("p_type", "rounds", "rest")  # of a row of the table: 0 where the weight is fp32


@contextmanager
def _alone(numel: int) -> Iterator[None]:
    """Products of small matrices by one thread: two wait for each other thousands of times.

    Beside a busy process the other thread may not run at all for a time slice, at every product anew.
    """
    threads = torch.get_num_threads()
    if numel >= SMALL or threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class Schedule:
    """The same for a plan: numbers of updates that need no look at a thousand states before every step.

    Args:
        works: those of the plan.
        slices: their rows of its table.
        states: of all rows.
        groups: the optimizer's.
    """

    def __init__(
        self,
        works: Sequence[Work],
        slices: Sequence[slice],
        states: Sequence[dict[str, Any]],
        groups: Sequence[dict[str, Any]],
    ) -> None:
        self.states = states
        self.home: list[tuple[int, int]] = []
        places: list[int] = []
        every: list[int] = []
        for number, (work, part) in enumerate(zip(works, slices, strict=True)):
            if directions_of(work.fields):
                places += range(part.start, part.stop)
                every += len(work.states) * [groups[work.chunk.key[0]]["sync_frequency"]]
                self.home += [(number, i) for i in range(len(work.states))]
        self.places: Any = np.array(places, dtype=np.intp)
        self.every: Any = np.array(every, dtype=np.int64)
        self.counts: Any = np.zeros(len(places), dtype=np.int64)

    def renew(self) -> None:
        """Read all numbers, where not every update since the last was one of this plan's."""
        self.counts[:] = self._read(self.places.tolist())

    def _read(self, places: list[int]) -> list[int]:
        return read([self.states[i]["step"] for i in places]) if places else []

    def now(self) -> list[tuple[int, list[int]]]:
        """Works that search at the step that comes, with the places of their members that do."""
        if not len(self.counts):
            return []
        maybe = np.flatnonzero(self.counts % self.every == 0)
        if not len(maybe):
            return []
        # The state has the last word: a program may have written it.
        self.counts[maybe] = self._read(self.places[maybe].tolist())
        found: dict[int, list[int]] = {}
        for i in maybe[self.counts[maybe] % self.every[maybe] == 0].tolist():
            number, place = self.home[i]
            found.setdefault(number, []).append(place)
        return list(found.items())

    def count(self, ok: Any) -> None:
        """Note the updates of a step, which gradients that are not finite did not get."""
        if len(self.counts):
            self.counts += ok[self.places] == 1


class Search:
    """The search for some members of a chunk.

    Args:
        work: the chunk's.
        params: its parameters.
        rows: [B] of the kernels' table.
        due: places of those that search.
    """

    def __init__(self, work: Work, params: Sequence[Tensor], rows: Any, due: Sequence[int]) -> None:
        self.work, self.params, self.rows, self.due = work, params, rows, list(due)
        self.usual: Any = None
        self.weights = {i: params[i].detach() for i in self.due}
        if params[0].dtype != torch.float32:
            self.weights = {i: self._widened(i) for i in self.due}
            self.usual = rows[self.due]
            rows["p"][self.due] = [w.data_ptr() for w in self.weights.values()]
            for name in OF_FEWER_BITS:
                rows[name][self.due] = 0

    def _widened(self, i: int) -> Tensor:
        """A member's weight in fp32, with the bits beside it where it has some."""
        weight, rest = self.weights[i], self.work.states[i].get(CORRECTION.name)
        wide = weight if rest is None else join(weight, rest.view(weight.shape))
        return wide.to(torch.float32, memory_format=STRAIGHT)

    def finish(self) -> None:
        """Search, shrink and write, after the step: only where the gradient was usable."""
        m = self.work
        done = [i for i in self.due if self.rows["ok"][i] == 1]
        if self.usual is not None:
            for name in ("p", *OF_FEWER_BITS):
                self.rows[name][self.due] = self.usual[name]
        if not done:
            return
        states, params = [m.states[i] for i in done], [self.params[i] for i in done]
        name = directions_of(m.fields)
        assert name is not None
        weights = stack_params([self.weights[i] for i in done], m.chunk.layout, torch.float32)
        owed = torch.stack([state["lowrank_rate"] for state in states]).view(-1, 1, 1, 1)
        with _alone(m.chunk.layout.numel):
            new, basis = improved.renew_directions(weights, owed, m.hp, tail=name == "lowrank_tail")
        held = [state[name] for state in states]
        torch._foreach_copy_(held, [b.view_as(h) for b, h in zip(basis.unbind(0), held, strict=True)])
        torch._foreach_zero_([state["lowrank_rate"] for state in states])
        noise = None
        if m.rounds and m.keys is not None:
            step = torch.stack([state["step"] for state in states]).flatten()
            noise = Noise(m.keys[done], step)
        if CORRECTION.name in states[0]:
            new, rest = split(new, None if noise is None else noise.bits(new.shape, 0), params[0].dtype)
            beside = [state[CORRECTION.name] for state in states]
            torch._foreach_copy_(beside, [r.view_as(h) for r, h in zip(rest.unbind(0), beside, strict=True)])
            noise = None
        write_params(params, new, noise)
