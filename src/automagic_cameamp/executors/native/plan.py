"""The plan that lets a step call the kernels once for all parameters.

A plan keeps the addresses of parameters and state. It never trusts them: before every step it looks
at every parameter, gradient and state tensor again, and at every option, and is made anew where
anything is another object, lies elsewhere or says something else.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from operator import attrgetter, is_, itemgetter
from typing import Any

import torch
from torch import Tensor

from ... import configs
from ...recipes import level_under, steered
from ...state.model import Model
from ...state.names import is_ours
from ...state.tensors import any_wrapper
from ..reference import REFERENCE
from ..work import Left, Outcome, Work
from . import table
from .call import Table
from .rest import Rest
from .searches import Schedule, Search
from .table import TYPES

PLANS = 4  # kept for programs that train some parameters at one step and others at the next
_DTYPE, _SHAPE, _GRAD, _IS_CPU = (attrgetter(name) for name in ("dtype", "shape", "grad", "is_cpu"))
_MARKS = attrgetter("__dict__")
_ALIVE = weakref.ReferenceType.__call__
FLAGS = ("_is_lora_layer", "_is_embedding")  # another library's change the number of attributes
_renewed = itemgetter(*table.RENEWED)


class Plan:
    """Everything about a step that stays from one to the next, where works are native.

    Args:
        model: whose step it is.
        works: what the kernels do, at least one.
        left: what the reference does in the same step.
    """

    def __init__(self, model: Model, works: list[Work], left: list[Left]) -> None:
        groups = model.groups
        params: list[Tensor] = list(chain.from_iterable(group["params"] for group in groups))
        # Weak: a parameter that the program drops must not live on here.
        self.params = [weakref.ref(p) for p in params]
        self.lengths = [len(group["params"]) for group in groups]
        self.config = dict(vars(model.config))
        # What is not here is looked at anew at every step, or is of no consequence for the arithmetic.
        options = configs.in_group(vars(model.config)).keys() & groups[0].keys()
        fixed = (options | {"base_beta1"}) - set(table.RENEWED)
        self.options_of = itemgetter(*sorted(fixed))
        self.options = list(map(self.options_of, groups))
        self.flags = _flags(params)
        self.table = Table(works, model.controller is not None)
        self.table.works = [w._replace(chunk=w.chunk._replace(params=[]), shared=None) for w in works]
        place = {id(p): i for i, p in enumerate(params)}
        self.take = _taker([place[id(p)] for work in works for p in work.chunk.params])
        self.present = [p.grad is not None for p in params]
        self.pointers = [p.data_ptr() for p in params]
        self.dtypes, self.shapes = list(map(_DTYPE, params)), list(map(_SHAPE, params))
        self.wanted = list(self.take(self.shapes))
        self.strides = [p.stride() for p in params]
        # Entries that the program keeps there itself may change as they like.
        self.strange = not all(isinstance(key, Tensor) for key in model.state)
        self.entries = self._entries(model.state)
        names = {"c_optim", *chain.from_iterable(self.entries)}  # the controller's is new at every step
        self.aside = {name for name in names if not is_ours(name)}
        self.marked = [entry for entry in self.entries if not self.aside.isdisjoint(entry)]
        self.plain = [entry for entry in self.entries if self.aside.isdisjoint(entry)]
        self.held = list(self._values())
        self.tensors = [t for t in self.held if isinstance(t, Tensor)]
        self.places = list(map(Tensor.data_ptr, self.tensors))
        numbers: dict[int, list[int]] = {}
        for number, work in enumerate(works):
            numbers.setdefault(work.chunk.key[0], []).append(number)
        # group, its rows of options, any options of it
        self.rates = [(g, rows, works[rows[0]].hp) for g, rows in numbers.items()]
        self.table.watch(
            [
                (s["lr_mask_sum"], p.numel())
                for p, s in model.state.items()
                if isinstance(p, Tensor) and "lr_mask_sum" in s
            ]
        )
        self.rest = Rest(model, left)
        self.grads: Sequence[Tensor] = ()
        self.live: Sequence[Tensor] = ()  # all parameters, between ``fits`` and ``run``
        self.types: list[torch.dtype] = []
        # Of the step that it is made in: what the works share then is without parameters that have had no
        # update yet.
        self.first: tuple[dict[int, Any], list[Work]] | None = (
            {work.chunk.key[0]: work.shared for work in works},
            [work for work, _ in left],
        )
        self.levels = [
            s["auto_level"] for p, s in model.state.items() if isinstance(p, Tensor) and "auto_level" in s
        ]
        self.due = Schedule(works, self.table.slices, self.table.states, groups)
        self.due.renew()

    def _entries(self, state: Mapping[Any, Any]) -> list[dict[str, Any]]:
        """What is kept for parameters."""
        return (
            [v for k, v in state.items() if isinstance(k, Tensor)] if self.strange else list(state.values())
        )

    def _values(self) -> Iterator[Any]:
        """All state that the kernels see."""
        some = (value for entry in self.marked for name, value in entry.items() if name not in self.aside)
        return chain(some, chain.from_iterable(map(dict.values, self.plain)))

    def fits(self, model: Model) -> bool:
        """Whether everything is as it was; takes the gradients of this step."""
        try:
            return self._fits(model)
        except (RuntimeError, KeyError, AttributeError, TypeError):  # a kind of tensor never seen here
            return False

    def _fits(self, model: Model) -> bool:
        groups = model.groups
        if [len(group["params"]) for group in groups] != self.lengths:
            return False
        if vars(model.config) != self.config or list(map(self.options_of, groups)) != self.options:
            return False
        params = list(chain.from_iterable(group["params"] for group in groups))
        every = list(map(_GRAD, params))
        if [g is not None for g in every] != self.present:
            return False
        if not all(map(is_, params, map(_ALIVE, self.params))):
            return False
        if list(map(Tensor.data_ptr, params)) != self.pointers or list(map(_DTYPE, params)) != self.dtypes:
            return False
        if list(map(_SHAPE, params)) != self.shapes or list(map(Tensor.stride, params)) != self.strides:
            return False
        if _flags(params) != self.flags or any(map(Tensor.is_neg, params)):
            return False
        return self.holds(model) and self.take_gradients(params, every)

    def holds(self, model: Model) -> bool:
        """Whether the state is the one that the plan knows."""
        try:
            return self._state_fits(model)
        except (RuntimeError, AttributeError, TypeError):
            return False

    def _state_fits(self, model: Model) -> bool:
        entries = self._entries(model.state)
        if len(entries) != len(self.entries) or not all(map(is_, entries, self.entries)):
            return False
        values = list(self._values())
        if len(values) != len(self.held) or not all(map(is_, values, self.held)):
            return False
        return list(map(Tensor.data_ptr, self.tensors)) == self.places

    def take_gradients(self, params: list[Tensor], every: list[Tensor | None]) -> bool:
        """Note the gradients of all parameters, in order; False where the plan is not for them."""
        if not self.rest.fits(every):
            return False
        grads: Sequence[Any] = self.take(every)
        if any_wrapper(grads) or not all(map(_IS_CPU, grads)) or list(map(_SHAPE, grads)) != self.wanted:
            return False
        if 0 in map(Tensor.data_ptr, grads):  # zeros without memory
            return False
        types = list(map(_DTYPE, grads))
        if types != self.types:
            self.table.tasks["g_type"] = [TYPES[t] for t in types]
            self.types = types
        self.grads, self.live = grads, params
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
                self.table.steer(shared.steering)
            return {number: float(shared.level) for number, shared in found.items()}
        if not self.levels:
            return {}
        levels: dict[int, float] = {}
        steering, rows = None, torch.stack(self.levels)
        for number, group in enumerate(model.groups):
            if group["lr_level"] == "auto":
                start, schedule = model.course(group)
                steering = steered(rows, start, schedule, rows.device) if steering is None else steering
                group["d"] = level_under(steering, start, group["lr"], group["base_lr"])
                levels[number] = float(group["d"])
        self.table.steer(steering)
        return levels

    def run(self, model: Model) -> list[Outcome]:
        """One step of all parameters, after ``fits``; its outcomes, where anybody wants to know them."""
        multiplier = 1.0
        if model.controller is not None:
            multiplier = float(model.controller.multiplier(torch.zeros((), dtype=torch.float32)))
        levels = self._steer(model)
        for number, rows, hp in self.rates:
            now = dict(zip(table.RENEWED, _renewed(model.groups[number]), strict=True))
            now["lr"] = float(now["lr"])
            factor = multiplier * levels.get(number, 1.0)
            table.renew(self.table.options, rows, hp._replace(**now), model.recipe, factor)
        params, grads = self.take(self.live), self.grads
        step = self.table.step
        masks = step.mask_count
        if self.first is not None:
            shared, left = self.first
            step.mask_mean, step.mask_count = float(next(iter(shared.values())).mask_mean.float()), 0
        else:
            left = self.rest.now(model, self.live) if self.rest.works else []
        self.grads, self.live, self.first = (), (), None
        searches = list(self._searches(params))
        try:
            bad = self.table.call(grads, params)
        finally:
            self.due.count(self.table.tasks["ok"])
            step.mask_count = masks
        for search in searches:
            search.finish()
        outcomes = list(self.table.outcomes()) if model.controller is not None or bad else []
        return outcomes + list(REFERENCE.run(left))


def _flags(params: list[Tensor]) -> list[Any]:
    marks = list(map(_MARKS, params))
    return [list(map(len, marks)), [own.get(name) for own in marks if own for name in FLAGS]]


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
        if any(t.layout is not torch.strided for t in _tensors(model)):
            return None
        plan = Plan(model, works, left)
        params = model.params()
        if not plan.take_gradients(params, list(map(_GRAD, params))):
            return None
        # A plan of a state that is gone would keep it alive.
        known = {key: old for key, old in self._known.items() if old.holds(model)}
        self._known = {**dict(list(known.items())[1 - PLANS :]), bytes(plan.present): plan}
        self.current = plan
        return plan


def _tensors(model: Model) -> Iterator[Tensor]:
    """State of ours, without what the program keeps there."""
    entries = (entry for key, entry in model.state.items() if isinstance(key, Tensor))
    values = (value for entry in entries for name, value in entry.items() if is_ours(name))
    return (value for value in values if isinstance(value, Tensor))
