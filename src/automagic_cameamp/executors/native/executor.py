"""The CPU kernels as an executor of single works."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from ...kernels import native
from ..said import say
from ..work import Outcome, Work
from . import table
from .call import Table
from .given import Gradients
from .searches import Search

WITHOUT = (
    "the CPU kernels of automagic_cameamp cannot be used ({}). Steps on CPU run in plain torch and "
    "take 10 to 30 times as long. Install the package where a C++ compiler is, or pass "
    "engine='reference' to silence this."
)


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


class Native:
    """What lies in host memory.

    Args:
        hosted: the parameters will be stepped on the host, wherever they lie.
    """

    name = "native"

    def __init__(self, hosted: bool = False) -> None:
        self.hosted = hosted

    def why_not(self, work: Work) -> list[str | None]:
        """Why the kernels cannot step each member, in words; None where they can."""
        return table.reasons(work, self.hosted)

    def words(self, p: Tensor) -> str:
        """How a parameter is stepped."""
        if self.hosted:
            return "CPU kernels, on the host's copies"
        strided = not p.is_contiguous() or (p.grad is not None and not p.grad.is_contiguous())
        return "CPU kernels, through contiguous copies" if strided else "CPU kernels"

    def run(self, works: list[Work]) -> Iterator[Outcome]:
        """One call for all works."""
        signals = getattr(works[0].recipe, "Signals", None) is not None
        held = Table(works, signals)
        for number, work in enumerate(works):
            hp, shared = work.hp, work.scalars
            multiplier = 1.0 if shared.multiplier is None else float(shared.multiplier)
            if shared.steering is not None:
                multiplier *= float(shared.level)
                held.steer(shared.steering)
            table.renew(held.options, number, hp._replace(lr=float(hp.lr)), work.recipe, multiplier)
            # Rounded as the kernels and the reference do it, also beside weights of fp64.
            held.step.mask_mean = float(shared.mask_mean.float())
        params = [p for work in works for p in work.chunk.params]
        grads = Gradients(params)
        if not grads.take([p.grad for p in params]):
            raise RuntimeError("a gradient lost its memory while its step began: nothing was updated.")
        searches = [
            Search(work, work.chunk.params, held.tasks[part], work.scalars.refresh)
            for work, part in zip(works, held.slices, strict=True)
            if work.scalars.refresh
        ]
        held.call(grads, params)
        for search in searches:
            search.finish()
        yield from held.outcomes()
