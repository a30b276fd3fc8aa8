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


def handles(tensors: Sequence[Tensor]) -> NDArray[np.uint64]:
    """What names tensors to torch's C interface. Valid as long as they live and are not swapped."""
    return np.fromiter(map(_IMPLEMENTATION, tensors), dtype=np.uint64, count=len(tensors))


def look(tensors: Sequence[Tensor], known: NDArray[np.uint64], rows: Numbers) -> bool:
    """Describe tensors.

    Args:
        tensors: n of them.
        known: their handles.
        rows: [n, width] to be filled: address, kind (type, number of dimensions, kind of device), number of
            elements, and where there is room, sizes and strides.

    Returns:
        Whether all of them are dense, with an address and as many dimensions as there is room for; else
        the rows say nothing.
    """
    asked = _interface()
    if asked is None:
        return all(map(_describe, tensors, rows))
    count, length = rows.shape
    done = asked.look(asked.torch, known.ctypes.data, count, rows.ctypes.data, length)
    return done == count


def kind(dtype: torch.dtype, dims: int) -> int:
    """The number for a type and a number of dimensions, on the CPU."""
    return _code(dtype) + DIMS * dims


@cache
def _code(dtype: torch.dtype) -> int:
    row = np.zeros((1, BRIEF), dtype=np.int64)
    x = torch.zeros(1, dtype=dtype)
    look([x], handles([x]), row)
    return int(row[0, KIND]) - DIMS


def hold(dictionaries: NDArray[np.uint64], objects: NDArray[np.uint64], ends: Numbers) -> bool:
    """Whether dictionaries have these objects as values, in this order.

    Args:
        dictionaries: ``id`` of each; they are alive.
        objects: ``id`` of each value, one dictionary after another.
        ends: number of values up to the end of each dictionary.
    """
    hold_ = native.holding_the_lock().automagic_hold
    count = len(dictionaries)
    return bool(hold_(_next_item(), dictionaries.ctypes.data, count, objects.ctypes.data, ends.ctypes.data))


@lru_cache(maxsize=1)
def _next_item() -> ctypes.c_void_p:
    return ctypes.cast(ctypes.pythonapi.PyDict_Next, ctypes.c_void_p)


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
    base = torch.zeros(6, 4)
    some = [base, base.t(), base[2:], torch.zeros((), dtype=torch.bfloat16), torch.nn.Parameter(base)]
    here, there = (np.zeros((len(some), width(2)), dtype=np.int64) for _ in range(2))
    known = handles(some)
    asked = found.look(found.torch, known.ctypes.data, len(some), there.ctypes.data, width(2))
    same = all(map(_describe, some, here)) and asked == len(some)
    here[:, KIND], there[:, KIND] = here[:, KIND] // DIMS, there[:, KIND] // DIMS  # types have other numbers
    if not same or not np.array_equal(here, there):
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
