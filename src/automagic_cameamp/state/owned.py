"""What is kept for parameters beside their state."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Generic, TypeVar

from torch import Tensor

T = TypeVar("T")


class Owned(Generic[T]):
    """A value for each of some tensors, until ``keep`` leaves them out.

    Tensors are held, not referred to weakly: ``torch.utils.swap_tensors``, and with it ``load_state_dict``
    and ``Module.to`` of some programs, refuses a tensor that something refers to weakly. One that was
    swapped since is another tensor.
    """

    def __init__(self) -> None:
        self._all: dict[int, tuple[Tensor, int, T]] = {}

    def get(self, p: Tensor) -> T | None:
        """The value of a tensor, if it has one."""
        held = self._all.get(id(p))
        return held[2] if held is not None and held[1] == p._cdata else None

    def __setitem__(self, p: Tensor, value: T) -> None:
        self._all[id(p)] = p, p._cdata, value

    def keep(self, params: Iterable[Tensor]) -> None:
        """Forget all other tensors."""
        left = set(map(id, params))
        if not self._all.keys() <= left:
            self._all = {key: held for key, held in self._all.items() if key in left}

    def clear(self) -> None:
        """Forget all."""
        self._all = {}
