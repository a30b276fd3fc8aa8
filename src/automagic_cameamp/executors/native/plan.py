"""The CPU kernels as a backend, and the plan that lets a step call them once for all parameters.

A plan keeps the addresses of parameters and state. It never trusts them: before every step it looks
at every parameter, gradient and state tensor again, and at every option, and is made anew where
anything is another object, lies elsewhere or says something else.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from operator import attrgetter, is_, itemgetter
from typing import Any

import torch
from torch import Tensor

from ... import configs
from ...checkpoints.saved import is_ours
from ...kernels import native
from ...state.tensors import any_wrapper
from ...validate import callers_depth
from .. import report as who
from .. import searches as directions
from ..work import REFERENCE, Left, Outcome, Work
from . import table
from .call import Table
from .rest import Rest, divide
from .table import TYPES, Member

WITHOUT = (
    "the CPU kernels of automagic_cameamp cannot be used ({}). Steps on CPU run in plain torch and "
    "take 10 to 30 times as long. Install the package where a C++ compiler is, or pass "
    "engine='reference' to silence this."
)
PLANS = 4  # kept for programs that train some parameters at one step and others at the next
_SAID: set[str] = set()
_DTYPE, _SHAPE, _GRAD, _IS_CPU = (attrgetter(name) for name in ("dtype", "shape", "grad", "is_cpu"))
_MARKS = attrgetter("__dict__")
_ALIVE = weakref.ReferenceType.__call__
FLAGS = ("_is_lora_layer", "_is_embedding")  # another library's change the number of attributes
_renewed = itemgetter(*table.RENEWED)


def ready(engine: str) -> bool:
    """Whether this setting may use the kernels; warns once, or raises, where they are missing."""
    if engine not in ("auto", "native"):
        return False
    reason = native.why_not()
    if reason is None:
        return True
    if engine == "native":
        raise RuntimeError(f"engine='native': {WITHOUT.format(reason)}")
    if not native.switched_off():
        say(WITHOUT.format(reason))
    return False


def say(text: str, key: str | None = None) -> None:
    """Warn once per process; of texts with the same key, the first one."""
    if not was_said(key or text):
        _SAID.add(key or text)
        warnings.warn(text, stacklevel=callers_depth())


def was_said(key: str) -> bool:
    """Whether this was warned of."""
    return key in _SAID


def _member(work: Any) -> Member:
    return Member(
        work.chunk, work.active, work.states, work.recipe, work.fields, work.hp, work.keys, work.rounds
    )


class Native:
    """Chunks of a step that also needs other backends."""

    name = "native"

    def __init__(self, engine: str) -> None:
        self.engine = engine

    def divide(self, work: Work) -> tuple[Work | None, list[Left]]:
        """What of a work the kernels take, and the rest; ``engine='native'`` warns once of each reason."""
        taken, left = divide(work)
        if self.engine == "native":
            for _, reason in left:
                say(f"engine='native' cannot do {reason}: such parameters are updated in plain torch.")
        return taken, left

    def run(self, works: list[Work]) -> Iterator[Outcome]:
        """One call for all works."""
        signals = getattr(works[0].recipe, "Signals", None) is not None
        held = Table([_member(work) for work in works], signals)
        for number, work in enumerate(works):
            hp, shared = work.hp, work.shared
            multiplier = 1.0 if shared.multiplier is None else float(shared.multiplier)
            table.renew(held.options, number, hp._replace(lr=float(hp.lr)), work.recipe, multiplier)
            # Rounded as the kernels and the reference do it, also beside weights of fp64.
            held.step.mask_mean = float(shared.mask_mean.float())
        params = [p for work in works for p in work.chunk.params]
        grads: list[Any] = [p.grad for p in params]
        held.tasks["g_type"] = [TYPES[g.dtype] for g in grads]
        searches = [
            directions.Search(member, member.chunk.params, held.tasks[part], work.shared.refresh)
            for work, member, part in zip(works, held.members, held.slices, strict=True)
            if work.shared.refresh
        ]
        held.call(grads, params)
        for search in searches:
            search.finish()
        for work, (_, ok, folded) in zip(works, held.outcomes(), strict=True):
            yield work, ok, folded


class Plan:
    """Everything about a step that stays from one to the next, where works are native.

    Args:
        optimizer: whose step it is.
        works: what the kernels do, at least one.
        left: what the reference does in the same step.
    """

    def __init__(self, optimizer: Any, works: list[Work], left: list[Left]) -> None:
        groups = optimizer.param_groups
        params: list[Tensor] = list(chain.from_iterable(group["params"] for group in groups))
        # Weak: a parameter that the program drops must not live on here.
        self.params = [weakref.ref(p) for p in params]
        self.lengths = [len(group["params"]) for group in groups]
        self.config = dict(vars(optimizer.config))
        # What is not here is looked at anew at every step, or is of no consequence for the arithmetic.
        options = configs.in_group(vars(optimizer.config)).keys() & groups[0].keys()
        fixed = (options | {"base_beta1"}) - set(table.RENEWED)
        self.options_of = itemgetter(*sorted(fixed))
        self.options = list(map(self.options_of, groups))
        self.flags = _flags(params)
        self.table = Table([_member(work) for work in works], optimizer.controller is not None)
        self.table.members = [m._replace(chunk=m.chunk._replace(params=[])) for m in self.table.members]
        place = {id(p): i for i, p in enumerate(params)}
        self.take = _taker([place[id(p)] for work in works for p in work.chunk.params])
        self.present = [p.grad is not None for p in params]
        self.pointers = [p.data_ptr() for p in params]
        self.dtypes, self.shapes = list(map(_DTYPE, params)), list(map(_SHAPE, params))
        self.wanted = list(self.take(self.shapes))
        self.strides = [p.stride() for p in params]
        # Entries that the program keeps there itself may change as they like.
        self.strange = not all(isinstance(key, Tensor) for key in optimizer.state)
        self.entries = self._entries(optimizer.state)
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
                for p, s in optimizer.state.items()
                if isinstance(p, Tensor) and "lr_mask_sum" in s
            ]
        )
        self.rest = Rest(optimizer, left)
        self.grads: Sequence[Tensor] = ()
        self.live: Sequence[Tensor] = ()  # all parameters, between ``fits`` and ``run``
        self.types: list[torch.dtype] = []
        # Of the step that it is made in: what the works share then is without parameters that have had no
        # update yet.
        self.first: tuple[Tensor, list[Work]] | None = works[0].shared.mask_mean, [work for work, _ in left]
        self.due = directions.Schedule(works, self.table.slices, self.table.states, groups)
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

    def fits(self, optimizer: Any) -> bool:
        """Whether everything is as it was; takes the gradients of this step."""
        try:
            return self._fits(optimizer)
        except (RuntimeError, KeyError, AttributeError, TypeError):  # a kind of tensor never seen here
            return False

    def _fits(self, optimizer: Any) -> bool:
        groups = optimizer.param_groups
        if [len(group["params"]) for group in groups] != self.lengths:
            return False
        if vars(optimizer.config) != self.config or list(map(self.options_of, groups)) != self.options:
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
        return self.holds(optimizer) and self._take_gradients(params, every)

    def holds(self, optimizer: Any) -> bool:
        """Whether the state is the one that the plan knows."""
        try:
            return self._state_fits(optimizer)
        except (RuntimeError, AttributeError, TypeError):
            return False

    def _state_fits(self, optimizer: Any) -> bool:
        entries = self._entries(optimizer.state)
        if len(entries) != len(self.entries) or not all(map(is_, entries, self.entries)):
            return False
        values = list(self._values())
        if len(values) != len(self.held) or not all(map(is_, values, self.held)):
            return False
        return list(map(Tensor.data_ptr, self.tensors)) == self.places

    def _take_gradients(self, params: list[Tensor], every: list[Tensor | None]) -> bool:
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

    def _searches(self, params: Sequence[Tensor]) -> Iterator[directions.Search]:
        for number, places in self.due.now():
            member, part = self.table.members[number], self.table.slices[number]
            yield directions.Search(member, params[part], self.table.tasks[part], places)

    def run(self, optimizer: Any) -> None:
        """One step of all parameters, after ``fits``; and what the rest of the engine wants to know of it."""
        multiplier = 1.0
        if optimizer.controller is not None:
            multiplier = float(optimizer.controller.multiplier(torch.zeros((), dtype=torch.float32)))
        for number, rows, hp in self.rates:
            now = dict(zip(table.RENEWED, _renewed(optimizer.param_groups[number]), strict=True))
            now["lr"] = float(now["lr"])
            table.renew(self.table.options, rows, hp._replace(**now), optimizer.recipe, multiplier)
        params, grads = self.take(self.live), self.grads
        step = self.table.step
        masks = step.mask_count
        if self.first is not None:
            mean, left = self.first
            step.mask_mean, step.mask_count = float(mean.float()), 0
        else:
            left = self.rest.now(optimizer, self.live) if self.rest.works else []
        self.grads, self.live, self.first = (), (), None
        searches = list(self._searches(params))
        try:
            bad = self.table.call(grads, params)
        finally:
            self.due.count(self.table.tasks["ok"])
            step.mask_count = masks
        for search in searches:
            search.finish()
        if optimizer.controller is not None or bad:
            for work, ok, signals in self.table.outcomes():
                optimizer._note(work, ok, signals)
        for work, ok, signals in REFERENCE.run(left):
            optimizer._note(work, ok, signals)


def _flags(params: list[Tensor]) -> list[Any]:
    marks = list(map(_MARKS, params))
    return [list(map(len, marks)), [own.get(name) for own in marks if own for name in FLAGS]]


def _taker(order: list[int]) -> Callable[[Sequence[Any]], Sequence[Any]]:
    """What stands at these places of a list, without a loop in Python."""
    if len(order) == 1:  # itemgetter gives no tuple then
        return lambda values: [values[order[0]]]
    return itemgetter(*order)


def _tensors(optimizer: Any) -> Iterator[Tensor]:
    """State of ours, without what the program keeps there."""
    entries = (entry for key, entry in optimizer.state.items() if isinstance(key, Tensor))
    values = (value for entry in entries for name, value in entry.items() if is_ours(name))
    return (value for value in values if isinstance(value, Tensor))


def planned(optimizer: Any, works: list[Work]) -> Plan | None:
    """A plan for these works, or None where the kernels take none of them or other devices take part.

    Warns once where much of them goes the slow way.
    """
    here = [work for work in works if work.chunk.params[0].device.type == "cpu"]
    if not here or not ready(optimizer.config.engine):
        return None
    divided = list(map(Native(optimizer.config.engine).divide, here))
    taken = [work for work, _ in divided if work is not None]
    left = [some for _, rest in divided for some in rest]
    who.tell(taken, left)
    if not taken or len(here) < len(works) or any(work.chunk.shard is not None for work in works):
        return None
    if any(t.layout is not torch.strided for t in _tensors(optimizer)):  # which have no single address
        return None
    plan = Plan(optimizer, taken, left)
    params = list(chain.from_iterable(group["params"] for group in optimizer.param_groups))
    if not plan._take_gradients(params, list(map(_GRAD, params))):
        return None
    # A plan of a state that is gone would keep it alive.
    plans = {key: old for key, old in optimizer._plans.items() if old.holds(optimizer)}
    optimizer._plans = {**dict(list(plans.items())[1 - PLANS :]), bytes(plan.present): plan}
    return plan


def known(optimizer: Any) -> Plan | None:
    """The plan of an earlier step in which the same parameters had a gradient, where it still fits."""
    if not optimizer._plans:
        return None
    params = chain.from_iterable(group["params"] for group in optimizer.param_groups)
    plan: Plan | None = optimizer._plans.pop(bytes(p.grad is not None for p in params), None)
    if plan is None or not plan.fits(optimizer):
        return None
    optimizer._plans[bytes(plan.present)] = plan  # the latest stands last
    plan.due.renew()  # others have counted since
    return plan
