"""Plain torch, stack by stack: the definition that all other executors are held to."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from ..recipes import alone
from .update import Update
from .work import Outcome, Work


class Reference:
    """Takes everything, on any device."""

    name = "reference"

    def why_not(self, work: Work) -> list[str | None]:
        """Nothing is refused."""
        return [None] * len(work.chunk.params)

    def words(self, p: Tensor) -> str:
        """How a parameter is stepped."""
        return "plain torch"

    def run(self, works: list[Work]) -> Iterator[Outcome]:
        """One stack after the other."""
        for work in works:
            update = Update(work)
            ok, signals = update.finish(alone(update.steps), work.keys)
            yield work, ok, signals


REFERENCE = Reference()
