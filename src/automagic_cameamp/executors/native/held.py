"""The state whose addresses a plan has: whether it still is what it was, and lies where it lay."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from itertools import chain
from operator import is_
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...kernels import native
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
        self._plain = looks.Entries(plain)
        self._others = self._of_marked()
        self._values = [*self._others, *chain.from_iterable(map(dict.values, plain))]
        self._tensors = [value for value in self._values if isinstance(value, Tensor)]
        # torch exchanges what is behind two tensors (swap_tensors) only where nobody has such a reference.
        self._unswapped = list(map(weakref.ref, self._tensors))
        self._look = looks.Look(len(self._tensors))
        self._look.name(self._tensors)
        self.usable = self._look.take(self._tensors)
        self._known = self._look.rows.tobytes()

    def same(self, state: State) -> bool:
        """Whether nothing was put in, taken out, moved, resized or given another type since."""
        entries = self._of_parameters(state)
        if len(entries) != len(self.entries) or not all(map(is_, entries, self.entries)):
            return False
        if self._marked:
            others = self._of_marked()
            if len(others) != len(self._others) or not all(map(is_, others, self._others)):
                return False
        if not self._plain.same() or not self._look.take(self._tensors):
            return False
        return self._look.rows.tobytes() == self._known

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


class Rows:
    """Vectors of one length, gathered as the rows of a matrix.

    Args:
        tensors: they keep their places, as ``Held`` sees to.
    """

    def __init__(self, tensors: list[Tensor]) -> None:
        self.tensors = tensors
        sizes = {x.numel() for x in tensors}
        self._plain = len(sizes) == 1 and all(
            x.is_cpu and x.dtype == torch.float32 and x.is_contiguous() for x in tensors
        )
        if self._plain:
            count, width = len(tensors), sizes.pop()
            self._rows = np.empty((count, width), dtype=np.float32)
            self._places = np.array([x.data_ptr() for x in tensors], dtype=np.uint64)
            self._arguments = self._places.ctypes.data, count, width, self._rows.ctypes.data

    def gathered(self) -> NDArray[np.float32]:
        """[N,n], valid until the next call."""
        if not self._plain:
            return torch.stack([x.flatten().float() for x in self.tensors]).numpy()
        native.holding_the_lock().automagic_gather(*self._arguments)
        return self._rows
