"""One step, from "which parameters have a gradient" to "counted": whole, or parameter by parameter.

Numbers over the whole model (mean of the mask, level, controller) are those that the last step left, so no
update waits for another: a step whose gradients come one by one ends bit for bit like one that has them all.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .executors.work import Folded, Outcome, Work, work_of
from .state import fits, kinds, limit, memory, tensors
from .state.chunks import Chunk
from .state.groups import check_options, heed_schedulers
from .state.model import Group, Members, Model

if TYPE_CHECKING:
    from .executors.native.plan import Plans

logger = logging.getLogger("automagic_cameamp")
LOG_EVERY = 100
Place = tuple[Group, Chunk, int]  # group, whole stack, position in it


class Step:
    """A step that has begun: some parameters may be updated, the step has not been counted.

    Args:
        model: what is optimized; it is read, not changed, until the first update.
        every: also parameters without a gradient may get one before the step ends.
        owners: the program's parameters, where the model's stand for them; in the same order.
    """

    def __init__(self, model: Model, every: bool = False, owners: Sequence[Tensor] | None = None) -> None:
        self.model = model
        heed_schedulers(model)
        plan = list(model.chunks())
        fits.check(model, plan, every=every)
        owners = model.params() if owners is None else owners
        limit.note(model.groups, model.chunks, owners, not any(model.state.values()))
        self.places: dict[int, Place] = {
            id(owners[k]): (group, chunk, i) for group, chunk in plan for i, k in enumerate(chunk.indices)
        }
        # The numbers are live tensors of the states: all groups read them before any update.
        lagged = model.lagged()
        self.shared = [
            None if (p := _example(group)) is None else model.share(number, lagged, p)
            for number, group in enumerate(model.groups)
        ]
        self.seen: dict[int, tuple[int, int]] = {}  # parameter that is updated -> mark of its gradient
        self._outcomes: dict[tuple[int, tuple[int, int]], list[Outcome]] = {}  # by executor and stack
        self._folded: list[Folded] = []  # what the kernels told the controller

    def works(self, params: Iterable[Tensor]) -> list[Work]:
        """The updates of these parameters, stack by stack, their states made where there are none."""
        found: dict[tuple[int, int], Members] = {}
        for p in params:
            group, chunk, i = self.places[id(p)]
            found.setdefault(chunk.key, (group, chunk, []))[2].append(i)
        members = [(group, chunk, sorted(places)) for _, (group, chunk, places) in sorted(found.items())]
        self.model.create_states(members)
        return [
            work_of(self.model, group, chunk, places, shared)
            for group, chunk, places in members
            if (shared := self.shared[chunk.key[0]]) is not None  # it has members, so it has parameters
        ]

    def waiting(self, model: Model) -> list[Tensor]:
        """The program's parameters that have a gradient and are not updated yet."""
        return [
            p
            for p in model.params()
            if p.grad is not None and id(p) in self.places and not self._done(model, p)
        ]

    def note(self, outcomes: Iterable[tuple[int, Outcome]]) -> None:
        """Keep what is told of updates until the step ends."""
        for rank, (work, ok, signals) in outcomes:
            if isinstance(signals, Folded):
                self._folded.append(signals)
                signals = None
            self._outcomes.setdefault((rank, work.chunk.key), []).append((work, ok, signals))

    def tell(self, model: Model) -> None:
        """Tell the controller and the health report, stack by stack: in whatever order they were updated."""
        if model.controller is not None and self._folded:
            total = Folded.of(self._folded)
            model.controller.join(total.sketch, total.square, total.bad)
        tell(model, [_as_one(model, self._outcomes[key]) for key in sorted(self._outcomes)])

    def _done(self, model: Model, p: Tensor) -> bool:
        if id(p) not in self.seen:
            return False
        if self.seen[id(p)] != tensors.mark(p.grad):
            raise RuntimeError(
                f"parameter {model.name(p)} was updated in this step and has another gradient since: call "
                "step() between two backward passes, or release_gradients(..., accumulation=N) for N of them."
            )
        return True


class Stepper:
    """Takes the steps of an optimizer. It holds what goes over from one step to the next."""

    def __init__(self) -> None:
        self.open: Step | None = None  # begun by released gradients
        self.handle: object | None = None  # of gradients that are released: its hooks do not keep it alive
        self.drops = 0  # times that gradients were set to None
        self.abandoned = 0  # steps that were begun and never ended
        self._plans: Plans | None = None

    @property
    def released(self) -> bool:
        """Whether hooks release gradients."""
        return self.handle is not None

    @property
    def plans(self) -> Plans:
        """Plans of the CPU kernels; made at their first use, so that an import of the package stays light."""
        if self._plans is None:
            from .executors.native.plan import Plans

            self._plans = Plans()
        return self._plans

    def step(self, model: Model, loss: Any) -> None:
        """A whole step, or the rest of one that released gradients have begun."""
        if self.open is not None:
            kinds.before_step(model)
            self._end(model, self.open, loss, rest=True)
            return
        memory.adopt(model)
        plan = self.plans.fitting(model)
        if plan is None:
            self._without_plan(model, loss)
            return
        _begin(model, loss)
        tell(model, plan.run(model))
        count(model)

    def _without_plan(self, model: Model, loss: Any) -> None:
        from .executors import choose

        kinds.before_step(model)
        check_options(model)
        _begin(model, loss)
        step = Step(model)
        parts = choose.shares(model.config.engine, step.works(step.waiting(model)), model.controller)
        choose.tell(parts)
        share = choose.for_a_plan(parts)
        plan = None if share is None else self.plans.make(model, share.works, share.left)
        if plan is None:
            step.note(choose.run(parts))
            step.tell(model)
        else:
            tell(model, plan.run(model))
        count(model)

    def parameter(self, model: Model, p: Tensor) -> bool:
        """Update one parameter from its gradient; begins a step where none is open.

        Returns:
            Whether it is in a stack; where it is not, nothing was changed.
        """
        kinds.before_step(model, p)
        if self.open is not None and id(p) in self.open.seen:
            self._end(model, self.open, None, rest=False)
        step = self._begun(model) if self.open is None else self.open
        if id(p) not in step.places:
            return False
        self.open = step
        self._update(step, p)
        step.seen[id(p)] = tensors.mark(p.grad)
        return True

    def _begun(self, model: Model) -> Step:
        """A step whose gradients come one by one."""
        from .executors import choose

        kinds.check_groups(model)
        check_options(model)
        memory.adopt(model)
        step = self._new_step(model)
        if model.kept.steps == 0:
            choose.tell_ahead(step.model)
        return step

    def _new_step(self, model: Model) -> Step:
        return Step(model, every=True)

    def _update(self, step: Step, p: Tensor) -> None:
        from .executors import choose

        self.plans.rest()
        step.note(choose.run(choose.shares(step.model.config.engine, step.works([p]))))

    def hold(self, model: Model, p: Tensor) -> bool:
        """Add a gradient to those of earlier passes, elsewhere than in ``p.grad``.

        Returns:
            Whether it was; False: it stays in ``p.grad``.
        """
        return False

    def wait(self) -> None:
        """Until nothing is on its way between a device and the host."""

    def drop(self) -> None:
        """Gradients are set to None: so are those that ``hold`` has added up."""
        self.drops += 1

    def loading(self, model: Model) -> AbstractContextManager[None]:
        """While state is loaded: the parameters are where it belongs."""
        return nullcontext()

    def abandon(self) -> None:
        """What an open step has changed was replaced: it never ends."""
        self.abandoned += self.open is not None
        self.open = None

    def settle(self, model: Model, doing: str) -> None:
        """End an open step before something that needs whole steps."""
        if self.open is None:
            return
        if self.released or self.open.waiting(model):
            raise RuntimeError(
                f"{doing} in the middle of a step: some parameters are updated already. "
                "Call step() after backward() first."
            )
        self._end(model, self.open, None, rest=False)

    def forget(self) -> None:
        """State was put in place: plans know another."""
        if self._plans is not None:
            self._plans.clear()

    def _end(self, model: Model, step: Step, loss: Any, rest: bool) -> None:
        """Count an open step, after updating what is left where ``rest`` is set."""
        from .executors import choose

        if rest and (left := step.waiting(model)):
            step.note(choose.run(choose.shares(model.config.engine, step.works(left))))
        _begin(model, loss)
        step.tell(model)
        self.open = None
        count(model)


def _begin(model: Model, loss: Any) -> None:
    if model.controller is not None:
        model.controller.begin(loss)


def tell(model: Model, outcomes: list[Outcome]) -> None:
    """What the controller and the health report want to know of updates."""
    kept = model.kept
    for work, ok, signals in outcomes if model.controller is not None else ():
        assert model.controller is not None
        if isinstance(signals, Folded):
            model.controller.join(signals.sketch, signals.square, signals.bad)
        elif signals is not None:
            whole = len(work.active) == work.members
            rows = None if whole else kept.lists(work.active, torch.int64, ok.device)
            model.controller.collect(signals, work.chunk.key, rows, work.members)
    if outcomes:
        total = sum(len(group["params"]) for group in model.groups)
        kept.count_skipped(((work.chunk.indices, ok) for work, ok, _ in outcomes), total)


def count(model: Model) -> None:
    """Count a step whose updates are all done."""
    for group in model.groups:
        group["clock"] += 1
    if model.controller is not None:
        model.controller.finish(model.groups)
        memory.keep(model.state, model.params(), model.controller.memory)
    kept, config = model.kept, model.config
    if kept.steps == 0:
        found = model.lora_report()
        if config.verbose or found.by_shape:
            logger.info("%s: %s", model.called, found)
    kept.steps += 1
    if config.verbose and kept.steps % LOG_EVERY == 1:
        rates = ", ".join(f"{float(g['lr']):.3g}" for g in model.groups)
        logger.info("%s: step %d, scheduler lr %s", model.called, kept.steps, rates)


def _example(group: Group) -> Tensor | None:
    """A parameter of a group for type and device: one that is updated, if any is."""
    params = group["params"]
    found = next((p for p in params if p.grad is not None), None)
    if found is None:
        found = next((p for p in params if p.requires_grad), params[0] if params else None)
    return found


def _as_one(model: Model, outcomes: list[Outcome]) -> Outcome:
    """Outcomes of members of one stack, as if it had been updated at once."""
    if len(outcomes) == 1:
        return outcomes[0]
    work, ok, signals = outcomes[0]
    active = [i for w, _, _ in outcomes for i in w.active]
    params = [p for w, _, _ in outcomes for p in w.chunk.params]
    indices = [i for w, _, _ in outcomes for i in w.chunk.indices]
    order = sorted(range(len(active)), key=active.__getitem__)
    rows = model.kept.lists(order, torch.int64, ok.device)
    ok = torch.cat([o for _, o, _ in outcomes])[rows]
    if signals is not None:
        fields = zip(*(s for _, _, s in outcomes), strict=True)
        signals = type(signals)(*(torch.cat(column)[rows] for column in fields))
    chunk = work.chunk._replace(params=[params[i] for i in order], indices=[indices[i] for i in order])
    return work._replace(chunk=chunk, active=[active[i] for i in order]), ok, signals
