"""What a program gives to a step, weights and gradients, compared with what the tables were made for."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...state.tensors import any_wrapper
from . import copies, looks
from .table import TYPES


class Weights:
    """Where parameters lie and what they are. It keeps none of them alive, as long as its state is there.

    Weak references would be as good, but for ``torch.utils.swap_tensors``: nobody may have one to what is
    swapped, and modules swap their parameters where a program wants that.

    Args:
        params: those of all groups.
    """

    def __init__(self, params: Sequence[Tensor]) -> None:
        self._look = looks.Look(len(params), _dims(params))
        self._names = looks.names(params)
        self._look.name(params)
        self._known = self._look.rows.tobytes() if self._look.take(params) else None

    def same(self, params: Sequence[Tensor]) -> bool:
        """Whether the same parameters still lie there, in the same type, shape and order."""
        # What is behind another name may be gone: first the names.
        if self._known is None or looks.names(params) != self._names:
            return False
        if not self._look.take(params) or self._look.rows.tobytes() != self._known:
            return False
        return not any(map(Tensor.is_neg, params))


class Gradients:
    """The gradients of a step, as the kernels want to know them.

    Args:
        params: whose they are.
    """

    def __init__(self, params: Sequence[Tensor]) -> None:
        self.tensors: Sequence[Tensor] = ()
        self._last = b""  # what else than places was found right the last time
        self._odd: list[int] = []
        room = _dims(params)
        self._look = looks.Look(len(params), room)
        self._rows = self._look.rows
        self._wanted = np.zeros_like(self._rows)
        for row, p in zip(self._wanted, params, strict=True):
            row[looks.KIND : looks.BRIEF] = p.dim(), p.numel()
            row[looks.BRIEF : looks.BRIEF + p.dim()] = p.shape
            row[looks.BRIEF + room : looks.BRIEF + room + p.dim()] = _strides(p.shape)
        self._shapes = slice(looks.NUMEL, looks.BRIEF + room)
        self._strides = slice(looks.BRIEF + room, None)

    def __len__(self) -> int:
        return len(self._rows)

    def take(self, grads: Sequence[Any]) -> bool:
        """Note these gradients until ``drop``; False where the kernels cannot read one of them."""
        if any_wrapper(grads):
            return False
        self._look.name(grads)
        if not self._look.take(grads) or not self.places.all():  # zeros may be without memory
            return False
        now = self._rows[:, looks.KIND :].tobytes()
        if now != self._last:
            if not self._fit():
                return False
            self._last = now
        self.tensors = grads
        return True

    def _fit(self) -> bool:
        """Whether types and shapes are those that the kernels read."""
        rows, wanted, strides = self._rows, self._wanted, self._strides
        kinds = rows[:, looks.KIND]
        types = _types()[kinds % looks.DIMS]
        if not (kinds // looks.DIMS == wanted[:, looks.KIND]).all() or (types < 0).any():
            return False
        if not (rows[:, self._shapes] == wanted[:, self._shapes]).all():
            return False
        self.types = types
        self._odd = np.flatnonzero((rows[:, strides] != wanted[:, strides]).any(axis=1)).tolist()
        return True

    def drop(self) -> None:
        """The program may do with them what it likes."""
        self.tensors = ()

    @property
    def places(self) -> NDArray[np.int64]:
        """Where they lie."""
        return self._rows[:, looks.PLACE]

    def odd(self) -> list[int]:
        """Those that do not lie in the order of their indices, or are to be read with the other sign."""
        if not self._odd and not any(map(Tensor.is_neg, self.tensors)):
            return []
        return [i for i, g in enumerate(self.tensors) if not copies.plain(g)]


def _dims(tensors: Sequence[Tensor]) -> int:
    """The most dimensions that one of them has."""
    return max((t.dim() for t in tensors), default=0)


def _strides(shape: Sequence[int]) -> tuple[int, ...]:
    """Those of a tensor of this shape that lies in the order of its indices."""
    return torch.empty(shape, device="meta").stride()


@lru_cache(maxsize=1)
def _types() -> NDArray[np.int32]:
    """The kernels' number of each of torch's types, -1 where they do not know it."""
    found = np.full(looks.DIMS, -1, dtype=np.int32)
    for dtype, number in TYPES.items():
        found[looks.kind(dtype, 0)] = number
    return found
