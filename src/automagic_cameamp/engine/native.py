"""The CPU kernels as a backend, and the plan that lets a step call them once for all parameters.

A plan keeps the addresses of parameters and state. It never trusts them: before every step it looks
at every parameter, gradient and state tensor again, and at every option, and is made anew where
anything is another object, lies elsewhere or says something else.
"""

from __future__ import annotations

import ctypes
import warnings
import weakref
from collections.abc import Iterator
from itertools import chain
from operator import attrgetter, is_
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..kernels import layout as abi
from ..kernels import native
from ..validate import callers_depth
from . import directions
from . import native_table as table
from .backends import Folded
from .native_table import TYPES, Member, unsupported

WITHOUT = (
    "the CPU kernels of automagic_cameamp cannot be used ({}). Steps on CPU run in plain torch and "
    "take 10 to 30 times as long. Install the package where a C++ compiler is, or pass "
    "engine='reference' to silence this."
)
_SAID: set[str] = set()
_DTYPE, _SHAPE, _GRAD, _IS_CPU = (attrgetter(name) for name in ("dtype", "shape", "grad", "is_cpu"))
_ALIVE = weakref.ReferenceType.__call__
FLAGS = ("_is_lora_layer", "_is_embedding")
# Looked at anew at every step, or of no consequence for the arithmetic.
LOOSE = ("params", "lr", "clock", "initial_lr", "param_names")


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


def say(text: str) -> None:
    """Warn once per process."""
    if text not in _SAID:
        _SAID.add(text)
        warnings.warn(text, stacklevel=callers_depth())


class Table:
    """Works in the kernels' form, and the call."""

    def __init__(self, members: list[Member], signals: bool) -> None:
        self.members = members
        self.tasks: Any = np.zeros(sum(len(m.states) for m in members), dtype=table.TASK)
        self.states: list[dict[str, Any]] = []
        self.slices: list[slice] = []
        self.options: Any = np.zeros(len(members), dtype=table.OPTIONS)
        self.signals, self.sketch = signals, None  # the sketch lives during a step only
        start = 0
        for number, member in enumerate(members):
            self.options[number] = table.options(member.hp, member.recipe, signals)
            part = slice(start, start + len(member.states))
            self.slices.append(part)
            for _ in table.fill(self.tasks[part], member, number):
                pass
            group, position = member.chunk.key
            width = min(member.chunk.layout.numel, abi.SKETCH)
            self.tasks["sketch_place"][part] = [i * width for i in member.active]
            self.tasks["sketch_offset"][part] = 40_503 * group + 24_593 * position
            self.states += member.states
            start = part.stop
        self.step = abi.Step(
            tasks=self.tasks.ctypes.data,
            options=self.options.ctypes.data,
            count=len(self.tasks),
            sketch=None,
            mask_mean=1.0,
            flavour=native.limit(),
        )
        self.held: Any = None

    def call(self, grads: list[Tensor]) -> None:
        """Run all works with these gradients.

        Raises:
            MemoryError: a tensor was not updated, because there was no memory for it.
        """
        self.step.threads = torch.get_num_threads()
        if self.signals:
            self.sketch = torch.zeros(abi.SKETCH, dtype=torch.float64)
            self.step.sketch = self.sketch.data_ptr()
        native.library().automagic_step(ctypes.byref(self.step))
        if self.step.bad and (self.tasks["ok"] < 0).any():
            raise MemoryError("no memory for the scratch of a step: some tensors were not updated.")

    def outcomes(self) -> Iterator[tuple[Member, Tensor, Any]]:
        """Per work: which gradients were usable; the signals of all come with the first."""
        folded: Any = None
        if self.sketch is not None:
            folded = Folded(self.sketch, self.step.square, self.step.bad)
            self.sketch = None
        for member, part in zip(self.members, self.slices, strict=True):
            yield member, torch.from_numpy(self.tasks["ok"][part] == 1), folded
            folded = None


def contiguous(grads: list[Tensor]) -> list[Tensor]:
    """The gradients as the kernels read them, copied where they are not."""
    return [g if g.is_contiguous() and not (g.is_conj() or g.is_neg()) else g.contiguous() for g in grads]


def _member(work: Any) -> Member:
    return Member(
        work.chunk, work.active, work.states, work.recipe, work.fields, work.hp, work.keys, work.rounds
    )


class Native:
    """Chunks of a step that also needs other backends."""

    name = "native"

    def __init__(self, engine: str) -> None:
        self.engine = engine

    def takes(self, work: Any) -> bool:
        """Whether the kernels can do all of this work; ``engine='native'`` warns once where not."""
        reason = unsupported(work)
        if reason is not None and self.engine == "native":
            say(f"engine='native' cannot do {reason}: such parameters are updated in plain torch.")
        return reason is None

    def run(self, works: list[Any]) -> Iterator[tuple[Any, Tensor, Any]]:
        """One call for all works."""
        signals = getattr(works[0].recipe, "Signals", None) is not None
        held = Table([_member(work) for work in works], signals)
        for number, work in enumerate(works):
            hp, shared = work.hp, work.shared
            multiplier = 1.0 if shared.multiplier is None else float(shared.multiplier)
            table.renew(held.options[number], float(hp.lr), hp.min_lr, hp.hard_min_lr, multiplier)
            held.step.mask_mean = float(shared.mask_mean)
        grads = contiguous([p.grad for work in works for p in work.chunk.params])
        held.tasks["g"] = [g.data_ptr() for g in grads]
        held.tasks["g_type"] = [TYPES[g.dtype] for g in grads]
        searches = [
            directions.Search(member, member.chunk.params, held.tasks[part], work.shared.refresh)
            for work, member, part in zip(works, held.members, held.slices, strict=True)
            if work.shared.refresh
        ]
        held.call(grads)
        for search in searches:
            search.finish()
        for work, (_, ok, folded) in zip(works, held.outcomes(), strict=True):
            yield work, ok, folded


class Plan:
    """Everything about a step that stays from one to the next, where all works are native."""

    def __init__(self, optimizer: Any, works: list[Any]) -> None:
        groups = optimizer.param_groups
        params: list[Tensor] = list(chain.from_iterable(group["params"] for group in groups))
        # Weak: a parameter that the program drops must not live on here.
        self.params = [weakref.ref(p) for p in params]
        self.lengths = [len(group["params"]) for group in groups]
        self.config = dict(vars(optimizer.config))
        self.options = [_options_of(group) for group in groups]
        self.flags = _flags(params)
        self.table = Table([_member(work) for work in works], optimizer.controller is not None)
        self.table.members = [m._replace(chunk=m.chunk._replace(params=[])) for m in self.table.members]
        place = {id(p): i for i, p in enumerate(params)}
        self.order = [place[id(p)] for work in works for p in work.chunk.params]
        self.present = [p.grad is not None for p in params]
        self.pointers = [p.data_ptr() for p in params]
        self.dtypes, self.shapes = list(map(_DTYPE, params)), list(map(_SHAPE, params))
        self.strides = [p.stride() for p in params]
        self.entries = list(optimizer.state.values())
        self.held = list(self._values())
        self.tensors = [t for t in self.held if isinstance(t, Tensor)]
        self.places = list(map(Tensor.data_ptr, self.tensors))
        self.rates = [(w.chunk.key[0], w.hp.min_lr, w.hp.hard_min_lr) for w in works]
        sums = [
            (entry["lr_mask_sum"].data_ptr(), p.numel())
            for p, entry in optimizer.state.items()
            if "lr_mask_sum" in entry
        ]
        self.mask_sums = np.array([address for address, _ in sums], dtype=np.uint64)
        step = self.table.step
        step.mask_sums, step.mask_count = self.mask_sums.ctypes.data, len(sums)
        step.masked = float(sum(n for _, n in sums))
        self.grads: list[Tensor] = []
        self.due = directions.Schedule(works, self.table.slices, self.table.states, groups)

    def _values(self) -> Iterator[Any]:
        """All state but the controller's memory, a new tensor at every step that the kernels never see."""
        if not any("c_optim" in entry for entry in self.entries):
            return chain.from_iterable(map(dict.values, self.entries))
        return (value for entry in self.entries for name, value in entry.items() if name != "c_optim")

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
        if vars(optimizer.config) != self.config or list(map(_options_of, groups)) != self.options:
            return False
        params = list(chain.from_iterable(group["params"] for group in groups))
        if not all(map(is_, params, map(_ALIVE, self.params))):
            return False
        if list(map(Tensor.data_ptr, params)) != self.pointers or list(map(_DTYPE, params)) != self.dtypes:
            return False
        if list(map(_SHAPE, params)) != self.shapes or list(map(Tensor.stride, params)) != self.strides:
            return False
        if _flags(params) != self.flags:
            return False
        return self._state_fits(optimizer) and self._take_gradients(params)

    def _state_fits(self, optimizer: Any) -> bool:
        state = optimizer.state
        if len(state) != len(self.entries) or not all(map(is_, state.values(), self.entries)):
            return False
        if sum(map(len, self.entries)) != len(self.held) + sum("c_optim" in entry for entry in self.entries):
            return False
        if not all(map(is_, self._values(), self.held)):
            return False
        return list(map(Tensor.data_ptr, self.tensors)) == self.places

    def _take_gradients(self, params: list[Tensor]) -> bool:
        every = list(map(_GRAD, params))
        if [g is not None for g in every] != self.present:
            return False
        grads: list[Any] = [every[i] for i in self.order]
        if not all(map(_IS_CPU, grads)):
            return False
        if list(map(_SHAPE, grads)) != [self.shapes[i] for i in self.order]:
            return False
        if not all(map(Tensor.is_contiguous, grads)) or any(map(Tensor.is_neg, grads)):
            grads = contiguous(grads)
        tasks = self.table.tasks
        tasks["g_type"] = [TYPES[g.dtype] for g in grads]
        tasks["g"] = list(map(Tensor.data_ptr, grads))
        self.grads = grads
        return True

    def _searches(self) -> Iterator[directions.Search]:
        for number, places in self.due.now():
            member, part = self.table.members[number], self.table.slices[number]
            params = [p for p in (self.params[i]() for i in self.order[part]) if p is not None]
            yield directions.Search(member, params, self.table.tasks[part], places)

    def run(self, optimizer: Any, works: list[Any]) -> None:
        """One step of all parameters, after ``fits``; and what the rest of the engine wants to know of it.

        Args:
            optimizer: the plan's.
            works: those that the plan was just made from, if it was: what they share is without parameters
                that have had no update yet.
        """
        multiplier = 1.0
        if optimizer.controller is not None:
            multiplier = float(optimizer.controller.multiplier(torch.zeros((), dtype=torch.float32)))
        for number, (group, low, hard) in enumerate(self.rates):
            lr = float(optimizer.param_groups[group]["lr"])
            table.renew(self.table.options[number], lr, low, hard, multiplier)
        searches = list(self._searches())
        step = self.table.step
        masks = step.mask_count
        if works:
            step.mask_mean, step.mask_count = float(works[0].shared.mask_mean), 0
        try:
            self.table.call(self.grads)
        finally:
            self.due.count(self.table.tasks["ok"])
            step.mask_count = masks
        self.grads = []
        for search in searches:
            search.finish()
        if optimizer.controller is not None or self.table.step.bad:
            for work, ok, signals in self.table.outcomes():
                optimizer._note(work, ok, signals)


def _options_of(group: dict[str, Any]) -> list[Any]:
    return [value for name, value in group.items() if name not in LOOSE]


def _flags(params: list[Tensor]) -> list[Any]:
    return [p.__dict__.get(name) for p in params for name in FLAGS]


def planned(optimizer: Any, works: list[Any]) -> Plan | None:
    """A plan for these works, or None where another backend has to do some of them."""
    if not works or any(work.chunk.params[0].device.type != "cpu" for work in works):
        return None
    if not ready(optimizer.config.engine) or any(map(unsupported, works)):
        return None
    if not all(isinstance(p, Tensor) for p in optimizer.state):  # entries of the program's own
        return None
    plan = Plan(optimizer, works)
    params = list(chain.from_iterable(group["params"] for group in optimizer.param_groups))
    return plan if plan._take_gradients(params) else None
