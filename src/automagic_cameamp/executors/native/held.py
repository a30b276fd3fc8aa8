"""The state whose addresses a plan has: whether it still is what it was, and lies where it lay."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from itertools import chain
from operator import is_
from typing import Any

import numpy as np
from torch import Tensor

from ...state.names import is_ours
from . import looks

State = Mapping[Any, dict[str, Any]]


class Held:
    """The entries of an optimizer's state, as they are now.

    Args:
        state: the optimizer's.
    """

    def __init__(self, state: State) -> None:
        self._strange = not all(isinstance(key, Tensor) for key in state)
        self.entries = self._of_parameters(state)
        names = {"c_optim", *chain.from_iterable(self.entries)}  # the controller's is new at every step
        # Entries that the program keeps there itself may change as they like.
        self._aside = {name for name in names if not is_ours(name)}
        self._marked = [entry for entry in self.entries if not self._is_plain(entry)]
        plain = [entry for entry in self.entries if self._is_plain(entry)]
        self._plain = np.array(list(map(id, plain)), dtype=np.uint64)
        self._ends = np.cumsum(list(map(len, plain)), dtype=np.int64)
        self._values = [*self._of_marked(), *chain.from_iterable(map(dict.values, plain))]
        some = len(self._of_marked())
        self._others = self._values[:some]
        self._objects = np.array(list(map(id, self._values[some:])), dtype=np.uint64)
        self._tensors = [value for value in self._values if isinstance(value, Tensor)]
        # torch exchanges what is behind two tensors (swap_tensors) only where nobody has such a reference.
        self._unswapped = list(map(weakref.ref, self._tensors))
        self._handles = looks.handles(self._tensors)
        shape = (len(self._tensors), looks.width())
        self._now, self._rows = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
        self.usable = looks.look(self._tensors, self._handles, self._rows)

    def same(self, state: State) -> bool:
        """Whether nothing was put in, taken out, moved, resized or given another type since."""
        entries = self._of_parameters(state)
        if len(entries) != len(self.entries) or not all(map(is_, entries, self.entries)):
            return False
        if self._marked:
            others = self._of_marked()
            if len(others) != len(self._others) or not all(map(is_, others, self._others)):
                return False
        if not looks.hold(self._plain, self._objects, self._ends):
            return False
        found = looks.look(self._tensors, self._handles, self._now)
        return found and bool((self._now == self._rows).all())

    def _of_parameters(self, state: State) -> list[dict[str, Any]]:
        if self._strange:
            return [value for key, value in state.items() if isinstance(key, Tensor)]
        return list(state.values())

    def _is_plain(self, entry: dict[str, Any]) -> bool:
        return type(entry) is dict and self._aside.isdisjoint(entry)

    def _of_marked(self) -> list[Any]:
        return [value for entry in self._marked for value in self._ours(entry)]

    def _ours(self, entry: dict[str, Any]) -> Iterator[Any]:
        return (value for name, value in entry.items() if name not in self._aside)
