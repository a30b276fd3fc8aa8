"""The table of ``engine_report()``, and the warning of a slow way."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from .said import say, was_said
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

    @classmethod
    def of(cls, found: Mapping[tuple[str, str], list[tuple[str, int]]]) -> EngineReport:
        """From the (name, elements) of the parameters by (engine, reason)."""
        rows = [
            EngineRow(*key, len(members), sum(n for _, n in members), tuple(name for name, _ in members))
            for key, members in found.items()
        ]
        return cls(tuple(sorted(rows, key=lambda row: -row.elements)))

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


def tell_of(taken: Iterable[Work], left: Iterable[Left]) -> None:
    """Warn once per process, where more than a tenth of the elements go the slow way."""
    slow: dict[str, int] = {}
    for work, reason in left:
        slow[reason] = slow.get(reason, 0) + _elements(work)
    held = sum(slow.values())
    total = held + sum(map(_elements, taken))
    if held > SLOW_SHARE * total and not was_told():
        largest = sorted(slow, key=lambda reason: -slow[reason])
        say(SLOW.format(held / total, held, total, "; ".join(largest)), SLOW)


def was_told() -> bool:
    """Whether a slow way was warned of in this process."""
    return was_said(SLOW)


def _elements(work: Work) -> int:
    return work.chunk.layout.numel * len(work.chunk.params)
