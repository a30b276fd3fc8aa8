"""The CPU kernels as an executor of single works."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

from torch import Tensor

from ...kernels import native
from ...recipes import Hyper, Level, Shared
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


def signals(work: Work) -> bool:
    """Whether the recipe tells a controller of its updates."""
    return getattr(work.recipe, "Signals", None) is not None


def tell(held: Table, number: int, recipe: ModuleType, hp: Hyper, shared: Shared) -> None:
    """Write what a work reads of the step that comes.

    Args:
        held: the table that it is in.
        number: of the work in it.
        recipe: the work's.
        hp: its options; ``lr`` is a number.
        shared: the recipe's scalars over all parameters.
    """
    multiplier = 1.0 if shared.multiplier is None else float(shared.multiplier)
    if shared.steering is not None:
        multiplier *= float(shared.level)
        held.steer(Level(*shared.steering.tolist()))
    table.renew(held.options, number, hp, recipe, multiplier)
    # Rounded as the kernels and the reference do it, also beside weights of fp64.
    held.step.mask_mean = float(shared.mask_mean.float())


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
        held = Table(works, signals(works[0]))
        for number, work in enumerate(works):
            tell(held, number, work.recipe, work.hp._replace(lr=float(work.hp.lr)), work.scalars)
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
