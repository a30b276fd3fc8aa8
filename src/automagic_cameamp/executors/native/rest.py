"""What the kernels cannot take of a work is stepped by the reference, beside the others in the same step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ...state.model import Model
from ...state.tensors import in_memory
from ..work import Left, Work, work_of


class Rest:
    """The part of a plan that the reference steps. It holds no parameter, only where they stand.

    Args:
        model: whose step it is.
        left: the works, with their parameters.
    """

    def __init__(self, model: Model, left: list[Left]) -> None:
        self.works = [work._replace(chunk=work.chunk._replace(params=[])) for work, _ in left]
        self.places = [i for work in self.works for i in work.chunk.indices]
        self.kinds = [kind(p.grad) for work, _ in left for p in work.chunk.params]
        # The plan looks whether these are still the tensors of the state.
        self.lagged = model.lagged() if left else []

    def fits(self, grads: Sequence[Any]) -> bool:
        """Whether these gradients are of the kind that decided who takes their parameters."""
        # Others than in memory are looked at by the checks of a step without a plan.
        found = [grads[i] for i in self.places]
        return list(map(kind, found)) == self.kinds and all(map(in_memory, found))

    def now(self, model: Model, params: Sequence[Tensor]) -> list[Work]:
        """The works of the step that comes, from numbers of the model as the last step left it.

        Args:
            model: whose step it is.
            params: all of its parameters.
        """
        shared: dict[int, Any] = {}
        found = []
        for work in self.works:
            number = work.chunk.key[0]
            chunk = work.chunk._replace(params=[params[i] for i in work.chunk.indices])
            if number not in shared:
                shared[number] = model.share(number, self.lagged, chunk.params[0])
            every = list(range(len(chunk.params)))
            new = work_of(model, model.groups[number], chunk, every, shared[number])
            found.append(new._replace(active=work.active, members=work.members))
        return found


def kind(g: Any) -> Any:
    """What of a gradient decides who takes its parameter."""
    return None if g is None else (g.dtype, g.device, g.layout, g.shape)
