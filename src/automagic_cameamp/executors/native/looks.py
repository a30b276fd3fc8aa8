"""Many tensors looked at in one call: where they lie, of what type, how large, in which order.

A plan compares all parameters, gradients and state with what they were, before every step. One by one
through Python that took 6 to 11 ms for the 722 layers of an SDXL LoRA, a tenth of the step and more.
torch's stable C interface (AOTInductor's ``aoti_torch_get_*``) answers in a small part of that.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache, lru_cache
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...kernels import native
from ..said import say

ASKED = ("device_type", "layout", "dtype", "dim", "numel", "data_ptr", "sizes", "strides")
LIBRARIES = ("libtorch_cpu.so", "libtorch_cpu.dylib", "torch_cpu.dll")
PLACE, KIND, NUMEL, BRIEF = 0, 1, 2, 3
DIMS = 256  # a kind is the type's number, so many times the dimensions, and that squared times the device's
Numbers = NDArray[np.int64]
_IMPLEMENTATION = attrgetter("_cdata")
WITHOUT = (
    "torch's C interface (aoti_torch_get_*) was not found: the CPU kernels look at parameters and state one "
    "by one before every step, some milliseconds per thousand tensors. The results are the same."
)


def width(dims: int = 0) -> int:
    """Length of a row that has room for sizes and strides of so many dimensions; without, for neither."""
    return BRIEF + 2 * dims


def names(tensors: Sequence[Tensor]) -> list[int]:
    """Which tensors these are: numbers that hold as long as they live and are not swapped."""
    return list(map(_IMPLEMENTATION, tensors))


class Look:
    """Descriptions of a number of tensors, one row for each.

    Args:
        count: n, how many tensors.
        dims: the most dimensions that one of them has, where sizes and strides are wanted.

    Attributes:
        rows: [n, width] address, kind (type, number of dimensions, kind of device), number of elements, and
            where there is room, sizes and strides.
    """

    def __init__(self, count: int, dims: int = 0) -> None:
        self.rows: Numbers = np.zeros((count, width(dims)), dtype=np.int64)
        self._names = np.zeros(count, dtype=np.uint64)
        # numpy takes a microsecond to say where an array lies.
        self._places = self._names.ctypes.data, count, self.rows.ctypes.data, width(dims)

    def name(self, tensors: Sequence[Tensor]) -> None:
        """Say which tensors are meant; they have to live, and not to be swapped, as long as that counts."""
        self._names[:] = names(tensors)

    def take(self, tensors: Sequence[Tensor]) -> bool:
        """Describe the named tensors, which are these.

        Returns:
            Whether all of them are dense, with an address and as many dimensions as there is room for; else
            the rows say nothing.
        """
        asked = _interface()
        if asked is None:
            return all(map(_describe, tensors, self.rows))
        return bool(asked.look(asked.torch, *self._places) == len(self._names))


def kind(dtype: torch.dtype, dims: int) -> int:
    """The number for a type and a number of dimensions, on the CPU."""
    return _code(dtype) + DIMS * dims


@cache
def _code(dtype: torch.dtype) -> int:
    x = torch.zeros(1, dtype=dtype, device="cpu")
    look = Look(1)
    look.name([x])
    look.take([x])
    return int(look.rows[0, KIND]) - DIMS


class Entries:
    """Dictionaries, and the objects that they had as values, in their order, when this was made.

    Args:
        entries: the dictionaries; whoever asks keeps them and their values alive.
    """

    def __init__(self, entries: Sequence[dict[str, Any]]) -> None:
        self._own = np.array(list(map(id, entries)), dtype=np.uint64)
        self._values = np.array([id(v) for entry in entries for v in entry.values()], dtype=np.uint64)
        self._ends = np.cumsum(list(map(len, entries)), dtype=np.int64)
        places = self._own.ctypes.data, len(entries), self._values.ctypes.data, self._ends.ctypes.data
        self._arguments = ctypes.cast(ctypes.pythonapi.PyDict_Next, ctypes.c_void_p), *places

    def same(self) -> bool:
        """Whether they have them still, and nothing else."""
        return bool(native.holding_the_lock().automagic_hold(*self._arguments))


class _Interface:
    """torch's functions, and ours that calls them."""

    def __init__(self, functions: list[Any]) -> None:
        self.functions = functions
        places = [ctypes.cast(f, ctypes.c_void_p).value for f in functions]
        self._table = (ctypes.c_void_p * len(places))(*places)
        self.torch = ctypes.addressof(self._table)
        self.look = native.holding_the_lock().automagic_look


@lru_cache(maxsize=1)
def _interface() -> _Interface | None:
    """The C interface of torch, once it has described some tensors as Python does; None without it."""
    found = _found()
    if found is None:
        say(WITHOUT)
        return None
    base = torch.zeros(6, 4, device="cpu")
    some = [
        base,
        base.t(),
        base[2:],
        torch.zeros((), dtype=torch.bfloat16, device="cpu"),
        torch.nn.Parameter(base),
    ]
    ours, theirs = Look(len(some), 2), Look(len(some), 2)
    theirs.name(some)
    done = found.look(found.torch, *theirs._places)
    if not all(map(_describe, some, ours.rows)) or done != len(some):
        say(WITHOUT)
        return None
    for look in (ours, theirs):
        look.rows[:, KIND] //= DIMS  # types have other numbers
    if not np.array_equal(ours.rows, theirs.rows):
        say(WITHOUT)
        return None
    return found


def _found() -> _Interface | None:
    folder = Path(torch.__file__).parent / "lib"
    for name in LIBRARIES:
        try:
            library = ctypes.CDLL(str(folder / name))
            return _Interface([getattr(library, f"aoti_torch_get_{what}") for what in ASKED])
        except (OSError, AttributeError):
            continue
    return None


_TYPES: dict[torch.dtype, int] = {}
_DEVICES: dict[str, int] = {"cpu": 0}


def _describe(t: Tensor, row: Numbers) -> bool:
    """The same from Python, where torch has no such interface."""
    room = (len(row) - BRIEF) // 2
    if t.layout is not torch.strided or (room and t.dim() > room):
        return False
    device = _DEVICES.setdefault(t.device.type, len(_DEVICES))
    kind_ = _TYPES.setdefault(t.dtype, len(_TYPES)) + DIMS * t.dim() + DIMS * DIMS * device
    row[:] = 0
    row[:BRIEF] = t.data_ptr(), kind_, t.numel()
    if room:
        row[BRIEF : BRIEF + t.dim()] = t.shape
        row[BRIEF + room : BRIEF + room + t.dim()] = t.stride()
    return True
