"""The plan that lets a step call the kernels once for all parameters.

A plan keeps the addresses of parameters and state. It never trusts them: before every step it looks
at every parameter, gradient and state tensor again, and at every option, and is made anew where
anything is another object, lies elsewhere or says something else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from operator import attrgetter, itemgetter
from typing import Any

import torch
from torch import Tensor

from ...recipes import Level, level_under, seen, steered_here
from ...state.groups import heed_schedulers
from ...state.limit import level_limit
from ...state.model import Model
from ..reference import REFERENCE
from ..work import Left, Outcome, Work
from . import table
from .asked import Asked
from .call import Table
from .given import Gradients, Weights
from .held import Held, Rows
from .rest import Rest
from .searches import Schedule, Search

PLANS = 4  # kept for programs that train some parameters at one step and others at the next
_GRAD = attrgetter("grad")


class Plan:
    """Everything about a step that stays from one to the next, where works are native.

    Args:
        model: whose step it is.
        works: what the kernels do, at least one.
        left: what the reference does in the same step.
    """

    def __init__(self, model: Model, works: list[Work], left: list[Left]) -> None:
        params = model.params()
        self.asked = Asked(model, params)
        self.table = Table(works, model.controller is not None)
        self.table.works = [w._replace(chunk=w.chunk._replace(params=[]), shared=None) for w in works]
        place = {id(p): i for i, p in enumerate(params)}
        self.take = _taker([place[id(p)] for work in works for p in work.chunk.params])
        self.present = [p.grad is not None for p in params]
        self.weights = Weights(params)
        self.gradients = Gradients(list(self.take(params)))
        self.held = Held(model.state)
        numbers: dict[int, list[int]] = {}
        for number, work in enumerate(works):
            numbers.setdefault(work.chunk.key[0], []).append(number)
        # group, its rows of options, any options of it
        self.rates = [(g, rows, works[rows[0]].hp) for g, rows in numbers.items()]
        # Of each group, what the table was told last.
        self.told: dict[int, tuple[tuple[Any, ...], float]] = {}
        # Of the parameters that are in groups: what a program has taken out of them may still have a state.
        kept = [(p, s) for p in params if (s := model.state.get(p))]
        self.table.watch([(s["lr_mask_sum"], p.numel()) for p, s in kept if "lr_mask_sum" in s])
        self.rest = Rest(model, left)
        self.live: Sequence[Tensor] = ()  # all parameters, between ``fits`` and ``run``
        # Of the step that it is made in: what the works share then is without parameters that have had no
        # update yet.
        self.first: tuple[dict[int, Any], list[Work]] | None = (
            {work.chunk.key[0]: work.shared for work in works},
            [work for work, _ in left],
        )
        self.levels = Rows([s["auto_level"] for _, s in kept if "auto_level" in s])
        self.due = Schedule(works, self.table.slices, self.table.states, model.groups)
        self.due.renew()

    def fits(self, model: Model) -> bool:
        """Whether everything is as it was; takes the gradients of this step."""
        try:
            return self._fits(model)
        except (RuntimeError, KeyError, AttributeError, TypeError):  # a kind of tensor never seen here
            return False

    def _fits(self, model: Model) -> bool:
        if not self.asked.same(model):
            return False
        params = model.params()
        every = list(map(_GRAD, params))
        if [g is not None for g in every] != self.present:
            return False
        # State first: it is the most memory, and what is looked at last is in the caches when it is used.
        if not self.holds(model):
            return False
        if not self.weights.same(params) or not self.asked.marked(params):
            return False
        return self.take_gradients(params, every)

    def holds(self, model: Model) -> bool:
        """Whether the state is the one that the plan knows."""
        try:
            return self.held.same(model.state)
        except (RuntimeError, AttributeError, TypeError):
            return False

    def take_gradients(self, params: list[Tensor], every: list[Tensor | None]) -> bool:
        """Note the gradients of all parameters, in order; False where the plan is not for them."""
        if not self.rest.fits(every) or not self.gradients.take(self.take(every)):
            return False
        self.live = params
        return True

    def _searches(self, params: Sequence[Tensor]) -> Iterator[Search]:
        for number, places in self.due.now():
            work, part = self.table.works[number], self.table.slices[number]
            yield Search(work, params[part], self.table.tasks[part], places)

    def _steer(self, model: Model) -> dict[int, float]:
        """Automatic level of each group, by its number; the kernels learn what they need to know of it."""
        if self.first is not None:
            found = {
                number: shared for number, shared in self.first[0].items() if shared.steering is not None
            }
            for shared in found.values():
                self.table.steer(Level(*shared.steering.tolist()))
            return {number: float(shared.level) for number, shared in found.items()}
        if not self.levels.tensors:
            return {}
        heed_schedulers(model)
        levels: dict[int, float] = {}
        d: float | Tensor | None = None  # the same for all
        for number, group in enumerate(model.groups):
            if group["lr_level"] == "auto":
                if d is None:
                    start, schedule = model.course(group)
                    limit = float(level_limit(model.groups))
                    level = steered_here(seen(self.levels.gathered()), start, float(schedule), limit)
                    self.table.steer(level)
                    kept = Level(*self.table.step.level)  # in fp32
                    d = level_under(kept, start, float(schedule))
                group["d"] = torch.tensor(d, dtype=torch.float32, device="cpu")
                levels[number] = float(group["d"])
        return levels

    def _tell_rates(self, model: Model, multiplier: float, levels: dict[int, float]) -> None:
        """What schedulers, the controller and the level have changed since the last step."""
        for number, rows, hp in self.rates:
            now = table.heard(model.groups[number])
            factor = multiplier * levels.get(number, 1.0)
            if (now, factor) == self.told.get(number):
                continue
            table.renew(self.table.options, rows, table.renewed(hp, now), model.recipe, factor)
            self.told[number] = now, factor

    def run(self, model: Model) -> list[Outcome]:
        """One step of all parameters, after ``fits``; its outcomes, where anybody wants to know them."""
        multiplier = 1.0
        if model.controller is not None:
            multiplier = float(
                model.controller.multiplier(torch.zeros((), dtype=torch.float32, device="cpu"))
            )
        self._tell_rates(model, multiplier, self._steer(model))
        params = self.take(self.live)
        step = self.table.step
        masks = step.mask_count
        if self.first is not None:
            shared, left = self.first
            step.mask_mean, step.mask_count = float(next(iter(shared.values())).mask_mean.float()), 0
        else:
            left = self.rest.now(model, self.live) if self.rest.works else []
        self.live, self.first = (), None
        searches = list(self._searches(params))
        try:
            bad = self.table.call(self.gradients, params)
        finally:
            self.gradients.drop()
            self.due.count(self.table.tasks["ok"])
            step.mask_count = masks
        for search in searches:
            search.finish()
        outcomes = list(self.table.outcomes()) if model.controller is not None or bad else []
        return outcomes + list(REFERENCE.run(left))


def _taker(order: list[int]) -> Callable[[Sequence[Any]], Sequence[Any]]:
    """What stands at these places of a list, without a loop in Python."""
    if len(order) == 1:  # itemgetter gives no tuple then
        return lambda values: [values[order[0]]]
    return itemgetter(*order)


class Plans:
    """The plans of an optimizer, by who has a gradient."""

    def __init__(self) -> None:
        self.current: Plan | None = None
        self._known: dict[bytes, Plan] = {}

    def clear(self) -> None:
        """Forget all: the state that they know is not the one that is there."""
        self.current, self._known = None, {}

    def rest(self) -> None:
        """Others step next, whose updates the current plan would not know of."""
        self.current = None

    def fitting(self, model: Model) -> Plan | None:
        """The plan of the last step, or of an earlier one in which the same parameters had a gradient."""
        if self.current is None or not self.current.fits(model):
            self.current = self._remembered(model) if self._known else None
        return self.current

    def _remembered(self, model: Model) -> Plan | None:
        plan = self._known.pop(bytes(p.grad is not None for p in model.params()), None)
        if plan is None or not plan.fits(model):
            return None
        self._known[bytes(plan.present)] = plan  # the latest stands last
        plan.due.renew()  # others have counted since
        return plan

    def make(self, model: Model, works: list[Work], left: list[Left]) -> Plan | None:
        """A plan for these works and what is left of them, or None where state has no address."""
        plan = Plan(model, works, left)
        params = model.params()
        if not plan.held.usable or not plan.take_gradients(params, list(map(_GRAD, params))):
            return None
        # A plan of a state that is gone would keep it alive.
        known = {key: old for key, old in self._known.items() if old.holds(model)}
        self._known = {**dict(list(known.items())[1 - PLANS :]), bytes(plan.present): plan}
        self.current = plan
        return plan
