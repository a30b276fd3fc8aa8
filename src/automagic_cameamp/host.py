"""Steps in host memory, for parameters on a device: all at once on copies, or one by one through a ring.

``step()`` after a plain backward steps copies of all parameters (``training.offload``). Gradients that are
released, or steps that are taken inside ``backward()``, go through the ring (``training.ring``) instead: a
parameter has a stand-in, a host tensor that has memory only while its load is in the ring. Stand-ins are
updated in the thread of the ring as one by one on the host; whoever needs the result waits: the end of
``backward()``, ``step()``, a checkpoint. So between two passes every weight is on its device, and new.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .executors import choose
from .executors.native.again import Again
from .executors.native.asked import Asked
from .executors.native.executor import Native
from .executors.work import Work, part
from .state import tensors
from .state.counts import read
from .state.crossing import crossing
from .state.model import Group, Model
from .state.owned import Owned
from .step import Step, Stepper
from .training import offload, ring
from .training.ring import Load

LARGE = 1 << 16  # elements of a parameter whose call of the kernels is worth one of its own


class States(dict[Tensor, dict[str, Any]]):
    """The state of parameters under the names of their stand-ins; new ones are the optimizer's too."""

    def __init__(self, model: Model, owners: dict[Tensor, Tensor]) -> None:
        held = {twin: model.state.get(p) for twin, p in owners.items()}
        super().__init__({twin: state for twin, state in held.items() if state is not None})
        self.model, self.owners = model, owners

    def __missing__(self, twin: Tensor) -> dict[str, Any]:
        self[twin] = state = self.model.state[self.owners[twin]]
        return state

    def pop(self, twin: Tensor, *default: Any) -> Any:  # type: ignore[override]
        self.model.state.pop(self.owners[twin], None)
        return super().pop(twin, *default)


class HostGroup(dict[str, Any]):
    """A group with stand-ins in the place of its parameters; what is set in it is set in the group too."""

    def __init__(self, group: Group, twins: list[Tensor]) -> None:
        super().__init__({**group, "params": twins})
        self.group = group

    def __setitem__(self, name: str, value: Any) -> None:
        super().__setitem__(name, value)
        self.group[name] = value


class HostModel(Model):
    """A model with stand-ins in the place of its parameters, for one step."""

    def __init__(self, model: Model, twins: list[Tensor]) -> None:
        super().__init__(model.owner)
        self._state = States(model, dict(zip(twins, model.params(), strict=True)))
        rest = iter(twins)
        self._groups: list[Group] = [HostGroup(g, list(islice(rest, len(g["params"])))) for g in model.groups]

    @property
    def groups(self) -> list[Group]:
        return self._groups

    @property
    def state(self) -> Any:
        return self._state


class StandIn(NamedTuple):
    """A host tensor of a parameter's shape and type.

    Args:
        weight: it; its memory has been freed.
        bare: the same, to give the memory of the ring back.
    """

    weight: Tensor
    bare: Tensor

    @classmethod
    def of(cls, p: Tensor) -> StandIn:
        bare = torch.empty(p.shape, dtype=p.dtype, device="cpu")
        bare.untyped_storage().resize_(0)
        return cls(bare.detach(), bare)

    def lend(self, weight: Tensor, grad: Tensor | None) -> None:
        self.weight.data, self.weight.grad = weight, grad

    def free(self) -> None:
        self.weight.data, self.weight.grad = self.bare, None


class Sums:
    """Gradients that add up on the host, one tensor for each parameter that has some."""

    def __init__(self) -> None:
        self.held: Owned[Tensor] = Owned()  # sums, kept for the next step
        self._begun: dict[int, Tensor] = {}  # parameters whose sum counts

    def add(self, p: Tensor, grad: Tensor) -> None:
        held = self.held.get(p)
        if held is None or held.shape != grad.shape or held.dtype != grad.dtype:
            held = self.held[p] = torch.empty_like(grad)
        if id(p) in self._begun:
            held.add_(grad)
        else:
            held.copy_(grad)
            self._begun[id(p)] = p

    def take(self, p: Tensor) -> Tensor | None:
        """The sum, which does not count any more."""
        return self.held.get(p) if self._begun.pop(id(p), None) is not None else None

    def waiting(self) -> list[Tensor]:
        """Parameters that have one."""
        return list(self._begun.values())

    def clear(self) -> None:
        self._begun.clear()


class HostStepper(Stepper):
    """Takes the steps of an optimizer with ``offload='cpu'``."""

    def __init__(self) -> None:
        super().__init__()
        self._copies = offload.Offload()
        self._ring = ring.shared()
        self._twins: Owned[StandIn] = Owned()
        self._asked: Asked | None = None  # as of the last step
        self._again: Owned[tuple[int, Again]] = Owned()  # with the rank of the executor
        self._sums = Sums()
        self._holding = False  # whether gradients add up, or are on their way to
        self._failures: list[tuple[Tensor, BaseException]] = []
        self._swapped = False  # whether the program moves weights to and fro
        self._pass = -1  # the backward whose end waits for the ring

    # ---------------------------------------------------------------- asked by the optimizer

    def step(self, model: Model, loss: Any) -> None:
        """All parameters with a gradient; inside ``backward()`` too, where a group has its own optimizer."""
        if not (_running() >= 0 or self.released or self._holding or self.open is not None):
            with offload.on_host(self._copies, model):
                super().step(model, loss)
            return
        offload.check(model)
        self._ring.drain()  # what was sent is known then, whatever interrupted the sender
        step = self.open = self._begun(model) if self.open is None else self.open
        for p in step.waiting(model):
            self._load(p)
            step.seen[id(p)] = tensors.mark(p.grad)
        for p in self._sums.waiting():
            self._ring.load(p, None, self)
        self._end(model, step, loss, rest=False)

    def hold(self, model: Model, p: Tensor) -> bool:
        """Add a gradient to those of earlier passes, on the host."""
        offload.check(model, p)
        if not p.numel():
            return True  # it is in no stack: there is nothing to add up
        if not self._holding:
            self._holding = True
            self._reserve(model, summing=True)
        self._ring.load(p, p.grad, self, weight=False)
        return True

    def wait(self) -> None:
        """Until all weights are back. Whoever waits for the end of a pass does not where it raises."""
        self._ring.drain()

    def drop(self) -> None:
        """Forget the sums on the host."""
        super().drop()
        self.wait()
        if self._holding:
            self._sums.clear()
            self._holding = False

    def abandon(self) -> None:
        """What an open step has changed was replaced: it never ends, and tells of no failure."""
        super().abandon()
        self._failures = []

    def forget(self) -> None:
        """State was put in place."""
        super().forget()
        self._again.clear()

    def settle(self, model: Model, doing: str) -> None:
        """End an open step before something that needs whole steps."""
        self._ring.drain()
        super().settle(model, doing)

    @contextmanager
    def loading(self, model: Model) -> Iterator[None]:
        """The parameters are on the host while their state is loaded."""
        self._ring.drain()
        copies = offload.Offload()  # for the while: not every program steps on copies
        try:
            with offload.on_host(copies, model, stepping=False):
                yield
        finally:
            copies.clear()

    # ---------------------------------------------------------------- of one step

    def _new_step(self, model: Model) -> Step:
        self._copies.clear()  # of steps before gradients were released
        offload.check_places(model)
        self._reserve(model)
        params = model.params()
        for kept in (self._twins, self._again, self._sums.held):
            kept.keep(params)
        self._swapped = _are_swapped(params)
        twins = [self._twin(p).weight for p in params]
        for twin, p in zip(twins, params, strict=True):
            offload.liken(twin, p)
            twin.requires_grad_(p.requires_grad)
        pairs = list(zip(params, twins, strict=True))
        offload.rename_types(model, {id(p): twin for p, twin in pairs})
        host = HostModel(model, twins)
        if self._asked is None or not self._asked.same(host) or not self._asked.marked(twins):
            self._again.clear()
            self._asked = Asked(host, twins)
        try:
            return Step(host, every=True, owners=params)
        finally:
            offload.rename_types(model, {id(twin): p for p, twin in pairs})

    def _reserve(self, model: Model, summing: bool = False) -> None:
        params = [p for p in model.params() if p.requires_grad]
        needed = crossing(params)
        sums, words = (needed.gradients, " and the accumulated gradients") if summing else (0, "")
        offload.announce(model, needed.ring + sums, f"what crosses{words}")
        if params:
            self._ring.reserve(needed, params[0])

    def _twin(self, p: Tensor) -> StandIn:
        found = self._twins.get(p)
        if found is None or found.bare.shape != p.shape or found.bare.dtype != p.dtype:
            found = self._twins[p] = StandIn.of(p)
        return found

    def _update(self, step: Step, p: Tensor) -> None:
        self._load(p)
        current = _running()
        if current < 0:
            self._ring.drain()
        elif current != self._pass:
            engine: Any = torch.autograd.Variable._execution_engine  # type: ignore[attr-defined]
            engine.queue_callback(self._ring.drain)
            self._pass = current

    def _load(self, p: Tensor) -> None:
        self._ring.load(p, p.grad, self)
        if self._swapped:  # as soon as the hook is over the weight may leave the device
            self._ring.drain()

    def _end(self, model: Model, step: Step, loss: Any, rest: bool) -> None:
        """Wait for the updates, count the step, and say what could not be updated."""
        self._ring.drain()
        self._holding = bool(self._sums.waiting())
        super()._end(model, step, loss, rest=False)
        failures, self._failures = self._failures, []
        if failures:
            p, error = failures[0]
            more = f" and {len(failures) - 1} more" if len(failures) > 1 else ""
            raise RuntimeError(
                f"parameter {model.name(p)}{more} could not be updated on the host "
                f"({type(error).__name__}: {error}): weight and state are what they were before this step, "
                "and the gradient is gone. All others are updated, and the step is counted."
            ) from error

    # ---------------------------------------------------------------- called by the ring's thread

    def add(self, load: Load) -> None:
        """A gradient that is added to others."""
        assert load.grad is not None
        self._sums.add(load.p, load.grad)

    def update(self, loads: list[Load]) -> None:
        """Weights with their gradients, together."""
        step = self.open
        assert step is not None
        for load in loads:
            step.seen[id(load.p)] = load.mark
            total = self._sums.take(load.p)
            if total is not None and load.grad is not None:
                total.add_(load.grad)
            assert load.weight is not None
            self._twin(load.p).lend(load.weight, load.grad if total is None else total)
            if load.moved:
                self.failed(
                    load, RuntimeError("the program moved the weight after its gradient was complete")
                )
        try:
            self._try(step, [load for load in loads if not load.moved])
        finally:
            for load in loads:
                self._twin(load.p).free()

    def _try(self, step: Step, loads: list[Load]) -> None:
        """Together, or one by one where that fails; who has got the update is seen from its count."""
        if not loads:
            return
        before = _counts(step, loads)
        try:
            self._run(step, [load.p for load in loads])
            done = loads
        except BaseException as error:
            after = _counts(step, loads)
            done = [load for load, a, b in zip(loads, before, after, strict=True) if a != b]
            for load in loads:
                if load in done:
                    continue
                if len(loads) > 1:
                    self._try(step, [load])
                else:
                    self.failed(load, error)
        for load in done:
            load.send()

    def _run(self, step: Step, params: list[Tensor]) -> None:
        """Update these, or leave each as it was."""
        rest: dict[int, Tensor] = {}  # by the number of its stand-in
        for p in params:
            group, chunk, i = step.places[id(p)]
            twin, shared = chunk.params[i], step.shared[chunk.key[0]]
            rank, again = self._again.get(p) or (0, None)
            if again is None or shared is None or not again.fits(chunk, i, twin, step.model.state[twin]):
                rest[id(twin)] = p
            else:
                step.note([(rank, again.run(group, shared, twin))])
        parts = choose.shares(step.model.config.engine, step.works(rest.values()) if rest else [])
        for rank, (executor, works, _) in enumerate(parts):
            if not works:
                continue
            # A call of the kernels changes all of a tensor or nothing; what Python does may stop half-way.
            torn = [work for work in works if work.scalars.refresh or not isinstance(executor, Native)]
            old = [(x, x.detach().clone()) for work in torn for x in _written(work)]
            try:
                outcomes = list(executor.run(works))
            except BaseException:
                for x, was in old:
                    x.detach().copy_(was)
                raise
            step.note((rank, outcome) for outcome in outcomes)
            if isinstance(executor, Native):
                self._keep(rank, works, rest)

    def _keep(self, rank: int, works: list[Work], owners: dict[int, Tensor]) -> None:
        """What the kernels have updated and will again; many small ones are faster together."""
        for work in works:
            for i, twin in enumerate(work.chunk.params if work.chunk.layout.numel >= LARGE else ()):
                again = Again.of(part(work, [i]))
                if again is not None:
                    self._again[owners[id(twin)]] = rank, again

    def failed(self, load: Load, error: BaseException) -> None:
        """Kept for ``step()``."""
        self._failures.append((load.p, error))


def _running() -> int:
    """Number of the backward that is running in this thread; -1: none is."""
    return torch._C._current_graph_task_id()  # type: ignore[attr-defined]


def _are_swapped(params: list[Tensor]) -> bool:
    """Whether some weights wait on the host while others are on a device, as with blocks that are swapped."""
    kinds = {p.device.type for p in params if p.requires_grad}
    return "cpu" in kinds and len(kinds) > 1


def _counts(step: Step, loads: list[Load]) -> list[int]:
    """Updates so far of each."""
    states = [step.model.owner.state.get(load.p) for load in loads]
    found = iter(read([state["step"] for state in states if state]) if any(states) else [])
    return [next(found) if state else 0 for state in states]


def _written(work: Work) -> Iterator[Tensor]:
    """All that an update writes."""
    yield from work.chunk.params
    yield from (x for state in work.states for x in state.values() if isinstance(x, Tensor))
