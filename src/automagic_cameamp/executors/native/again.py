"""One parameter's update in the kernels' form, kept while its weight lies elsewhere at every step.

A plan wants all parameters of a step, where they lay. Through the ring they come one by one, in memory that
others had before. What stays is state, options and shape; to find all that out anew took 3 ms a parameter,
beside kernels that take 20 for four million numbers.
"""

from __future__ import annotations

from torch import Tensor

from ...recipes import Shared
from ...state.chunks import Chunk
from ...state.counts import directions_of
from ...state.model import Group
from ...types import Layout
from ..work import Outcome, Work
from . import table
from .call import Table
from .executor import signals, tell
from .given import Gradients
from .held import Held

Known = tuple[tuple[int, int], Layout, bool, int, int, int, int]


class Again:
    """The update of one parameter, to be made again.

    Args:
        work: of one parameter, which the kernels take whole.
    """

    def __init__(self, work: Work) -> None:
        (p,), (place,), (index,) = work.chunk.params, work.active, work.chunk.indices
        self._known = _known(work.chunk, place, work.members, index)
        self._dtype = p.dtype
        self._work = work._replace(chunk=work.chunk._replace(params=[]), shared=None)
        self._table = Table([work], signals(work))
        self._table.works = [self._work]
        self._gradient = Gradients([p])
        self._held = Held({p: work.states[0]})

    @classmethod
    def of(cls, work: Work) -> Again | None:
        """A work to keep; None for one that searches for directions, or whose state has no address."""
        if len(work.states) != 1 or directions_of(work.fields):
            return None
        found = cls(work)
        return found if found._held.usable else None

    def fits(self, chunk: Chunk, place: int, p: Tensor, state: dict[str, object]) -> bool:
        """Whether this is the same update; takes the gradient.

        Args:
            chunk: the parameter's, whole.
            place: its place there.
            p: the parameter.
            state: its state.
        """
        try:
            same = self._known == _known(chunk, place, len(chunk.params), chunk.indices[place])
            return same and self._fits(p, state)
        except (RuntimeError, AttributeError, TypeError):  # a kind of tensor never seen here
            return False

    def _fits(self, p: Tensor, state: dict[str, object]) -> bool:
        return p.dtype == self._dtype and self._held.same({p: state}) and self._gradient.take([p.grad])

    def run(self, group: Group, shared: Shared, p: Tensor) -> Outcome:
        """The update, after ``fits``."""
        held, work = self._table, self._work
        tell(held, 0, work.recipe, table.renewed(work.hp, table.heard(group)), shared)
        held.tasks["p"] = p.data_ptr()
        try:
            held.call(self._gradient, [p])
        finally:
            self._gradient.drop()
        (outcome,) = held.outcomes()
        return (work._replace(chunk=work.chunk._replace(params=[p])), *outcome[1:])


def _known(chunk: Chunk, place: int, members: int, index: int) -> Known:
    """What of a whole stack, and of a place in it, the form depends on."""
    return chunk.key, chunk.layout, chunk.lora, chunk.table, place, members, index
