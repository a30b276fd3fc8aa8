"""Who steps which parameters, and why: the table of ``engine_report()``, and the warning of a slow way."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..kernels import native as kernels
from ..state.chunks import Chunk
from .compiled import COMPILED, DEVICES
from .native.rest import divide
from .native.table import reasons
from .work import Left, Work

NAMED = 3  # names shown of a row
SLOW_SHARE = 0.1
SLOW = (
    "{:.0%} of the elements that are stepped on the CPU ({:,} of {:,}) go the slow way: plain torch takes "
    "10 to 30 times as long as the CPU kernels, and these cannot do {}. optimizer.engine_report() lists who "
    "steps what; engine='reference' says that this is wanted."
)


@dataclass(frozen=True)
class EngineRow:
    """Parameters that are stepped by the same engine for the same reason.

    Args:
        engine: 'native' (the CPU kernels), 'compiled' (torch.compile), 'reference' (plain torch) or 'none'.
        reason: why, in words.
        parameters: how many they are.
        elements: how many elements they have; of a sharded parameter, in all processes.
        names: of all of them, as in ``health()``.
    """

    engine: str
    reason: str
    parameters: int
    elements: int
    names: tuple[str, ...]


@dataclass(frozen=True)
class EngineReport:
    """What ``engine_report`` found: ``rows``, the largest first; ``str`` is a table."""

    rows: tuple[EngineRow, ...]

    def elements(self, engine: str) -> int:
        """Elements that this engine steps."""
        return sum(row.elements for row in self.rows if row.engine == engine)

    def __str__(self) -> str:
        lines = [f"{'engine':<10} {'parameters':>10} {'elements':>15} {'share':>6}  why"]
        total = max(1, sum(row.elements for row in self.rows))
        for row in self.rows:
            names = ", ".join(row.names[:NAMED]) + (", ..." if len(row.names) > NAMED else "")
            lines.append(
                f"{row.engine:<10} {row.parameters:>10,} {row.elements:>15,} {row.elements / total:>6.1%}"
                f"  {row.reason} ({names})"
            )
        return "\n".join(lines)


def report(optimizer: Any) -> EngineReport:
    """Who steps, or will step, every parameter of an optimizer of the family.

    Where there is no gradient or no state yet, they count as what they will be.
    """
    found: dict[tuple[str, str], list[tuple[str, int]]] = {}
    names = [optimizer._name(g, i) for g in optimizer.param_groups for i in range(len(g["params"]))]
    every = [p for group in optimizer.param_groups for p in group["params"]]
    seen: dict[int, tuple[str, str]] = {}
    for group, chunk in optimizer._chunks():
        for i, answer in zip(chunk.indices, _of_chunk(optimizer, group, chunk), strict=True):
            seen[i] = answer
    for i, p in enumerate(every):
        answer = seen.get(i, ("none", "it has no elements"))
        if not p.requires_grad and p.grad is None:
            answer = "none", "it takes no gradient"
        found.setdefault(answer, []).append((names[i], p.numel()))
    rows = [
        EngineRow(
            engine, reason, len(members), sum(n for _, n in members), tuple(name for name, _ in members)
        )
        for (engine, reason), members in found.items()
    ]
    return EngineReport(tuple(sorted(rows, key=lambda row: -row.elements)))


def _of_chunk(optimizer: Any, group: dict[str, Any], chunk: Chunk) -> Iterable[tuple[str, str]]:
    """Engine and reason for each member of a chunk."""
    params: Sequence[Tensor] = chunk.params
    engine = optimizer.config.engine
    hosted = optimizer.config.offload == "cpu"
    device = params[0].device.type
    if engine == "reference":
        return [("reference", "engine='reference' was asked for")] * len(params)
    if engine == "compiled" or (engine == "auto" and device in DEVICES and not hosted):
        reason = COMPILED.why_not(_whole(optimizer, group, chunk))
        if reason is None:
            return [("compiled", "torch.compile of the recipe")] * len(params)
        return [("reference", f"plain torch: {reason}")] * len(params)
    if device != "cpu" and not hosted:
        return [("reference", f"plain torch on {device!r}: the kernels are for CPUs")] * len(params)
    missing = kernels.why_not()
    if missing is not None:
        return [("reference", f"the kernels cannot be used: {missing}")] * len(params)
    found = reasons(_whole(optimizer, group, chunk), hosted)
    return [_answer(p, reason, hosted) for p, reason in zip(params, found, strict=True)]


def _whole(optimizer: Any, group: dict[str, Any], chunk: Chunk) -> Work:
    """The update of all members of a chunk, to be looked at, not run: state may not be there yet."""
    states = [optimizer.state.get(p) or {} for p in chunk.params]
    hp, fields = optimizer._options(group, chunk), optimizer._fields(group, chunk)
    every = list(range(len(states)))
    return Work(chunk, every, len(every), states, optimizer.recipe, fields, None, hp, None, False)


def _answer(p: Tensor, reason: str | None, hosted: bool) -> tuple[str, str]:
    if reason is not None:
        return "reference", f"the kernels do not take {reason}"
    if hosted:
        return "native", "CPU kernels, on the host's copies"
    strided = not p.is_contiguous() or (p.grad is not None and not p.grad.is_contiguous())
    return "native", "CPU kernels, through contiguous copies" if strided else "CPU kernels"


def tell(taken: Iterable[Work], left: Iterable[Left]) -> None:
    """Warn once per process, where more than a tenth of the elements go the slow way."""
    from .native import plan as native  # it uses this module

    slow: dict[str, int] = {}
    for work, reason in left:
        slow[reason] = slow.get(reason, 0) + elements(work)
    held = sum(slow.values())
    total = held + sum(map(elements, taken))
    if held > SLOW_SHARE * total and not native.was_said(SLOW):
        largest = sorted(slow, key=lambda reason: -slow[reason])
        native.say(SLOW.format(held / total, held, total, "; ".join(largest)), SLOW)


def tell_ahead(optimizer: Any) -> None:
    """The same before a step whose parameters come one by one."""
    from .native import plan as native

    if optimizer.config.engine == "reference" or native.was_said(SLOW) or kernels.why_not() is not None:
        return
    works = [_whole(optimizer, group, chunk) for group, chunk in optimizer._chunks()]
    divided = [divide(work) for work in works if work.chunk.params[0].device.type == "cpu"]
    tell([work for work, _ in divided if work is not None], [some for _, rest in divided for some in rest])


def elements(work: Work) -> int:
    """Elements of the parameters of a work."""
    return work.chunk.layout.numel * len(work.chunk.params)
