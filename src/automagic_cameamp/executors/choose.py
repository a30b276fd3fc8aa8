"""Which executors there are for an optimizer's setting and devices, in the order in which they are asked."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from ..kernels import native as kernels
from ..state.chunks import Chunk
from ..state.model import Group, Model
from . import compiled
from .native.executor import Native, ready
from .reference import REFERENCE
from .report import EngineReport, tell_of, was_told
from .said import say
from .sharded import Rider, Sharded
from .work import Executor, Left, Outcome, Work, divide, glance


def available(
    engine: str, devices: Iterable[str], rider: Rider | None = None, hosted: bool = False
) -> tuple[Executor, ...]:
    """The executors, the preferred one first; the reference takes what is left.

    Args:
        engine: the optimizer's setting.
        devices: types of the devices on which there are parameters.
        rider: a number that travels with the sums of sharded updates.
        hosted: the parameters are stepped on the host, wherever they lie.
    """
    devices = set(devices)
    found: list[Executor] = [Sharded(rider)]
    if (hosted or "cpu" in devices) and ready(engine):
        found.append(Native(hosted))
    if engine == "compiled" or (engine == "auto" and not hosted and devices.intersection(compiled.DEVICES)):
        found.append(compiled.COMPILED)
    return (*found, REFERENCE)


class Share(NamedTuple):
    """What an executor takes of a step, and what it leaves to those that are asked after it."""

    executor: Executor
    works: list[Work]
    left: list[Left]


def shares(engine: str, works: list[Work], rider: Rider | None = None) -> list[Share]:
    """Give every executor what it takes; with ``engine='native'``, warn once of each reason for a rest."""
    found = []
    for executor in available(engine, (work.chunk.params[0].device.type for work in works), rider):
        divided = [divide(executor, work) for work in works]
        taken = [work for work, _ in divided if work is not None]
        left = [some for _, rest in divided for some in rest]
        found.append(Share(executor, taken, left))
        works = [some.work for some in left]
        if isinstance(executor, Native):
            for _, reason in left if engine == "native" else ():
                say(f"engine='native' cannot do {reason}: such parameters are updated in plain torch.")
    return found


def tell(parts: list[Share]) -> None:
    """Warn once per process, where much of what is in host memory goes the slow way."""
    for executor, works, left in parts:
        if isinstance(executor, Native):
            tell_of(works, [some for some in left if some.work.chunk.params[0].device.type == "cpu"])


def run(parts: list[Share]) -> Iterator[tuple[int, Outcome]]:
    """Run them; the outcomes, with the place of their executor."""
    for rank, (executor, works, _) in enumerate(parts):
        for outcome in executor.run(works) if works else ():
            yield rank, outcome


def for_a_plan(parts: list[Share]) -> Share | None:
    """The share of the CPU kernels, where they and plain torch on the same parameters are all of a step."""
    busy = [part for part in parts if part.works]
    native = next((part for part in busy if isinstance(part.executor, Native)), None)
    if native is None or any(part.executor not in (native.executor, REFERENCE) for part in busy):
        return None
    devices = {some.work.chunk.params[0].device.type for some in native.left}
    return native if devices <= {"cpu"} else None


def tell_ahead(model: Model) -> None:
    """Warn of a slow way before a step whose parameters come one by one."""
    if model.config.engine != "reference" and not was_told() and kernels.why_not() is None:
        on_host = (pair for pair in model.chunks() if pair[1].params[0].device.type == "cpu")
        divided = [divide(Native(), glance(model, group, chunk)) for group, chunk in on_host]
        tell_of(
            [work for work, _ in divided if work is not None], [some for _, rest in divided for some in rest]
        )


def report(model: Model) -> EngineReport:
    """Who steps, or will step, every parameter; where there is no state yet, as what they will be."""
    names = [name for name, _ in model.named()]
    seen: dict[int, tuple[str, str]] = {}
    for group, chunk in model.chunks():
        seen.update(zip(chunk.indices, _answers(model, group, chunk), strict=True))
    found: dict[tuple[str, str], list[tuple[str, int]]] = {}
    for i, p in enumerate(model.params()):
        answer = seen.get(i, ("none", "it has no elements"))
        if not p.requires_grad and p.grad is None:
            answer = "none", "it takes no gradient"
        found.setdefault(answer, []).append((names[i], p.numel()))
    return EngineReport.of(found)


def _answers(model: Model, group: Group, chunk: Chunk) -> list[tuple[str, str]]:
    """Executor and reason for each member of a stack."""
    engine, hosted = model.config.engine, model.config.offload == "cpu"
    device = chunk.params[0].device.type
    work = glance(model, group, chunk)
    answers: list[tuple[str, str] | None] = [None] * len(chunk.params)
    refused: list[str | None] = [_without(engine, device, hosted)] * len(chunk.params)
    for executor in available(engine, [device], hosted=hosted):
        for i, reason in enumerate(executor.why_not(work)):
            if answers[i] is not None:
                continue
            if reason is not None:
                if not isinstance(executor, Sharded):
                    kernels_say = (
                        "the kernels do not take" if isinstance(executor, Native) else "plain torch:"
                    )
                    refused[i] = f"{kernels_say} {reason}"
                continue
            words = executor.words(chunk.params[i])
            answers[i] = executor.name, (refused[i] or words) if executor is REFERENCE else words
    return [answer for answer in answers if answer is not None]


def _without(engine: str, device: str, hosted: bool) -> str | None:
    """Why nobody but plain torch is asked."""
    if engine == "reference":
        return "engine='reference' was asked for"
    if device != "cpu" and not hosted:
        return f"plain torch on {device!r}: the kernels are for CPUs"
    missing = kernels.why_not()
    return None if missing is None else f"the kernels cannot be used: {missing}"
