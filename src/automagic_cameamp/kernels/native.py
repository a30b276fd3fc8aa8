"""The CPU kernels' library: found, checked and opened when a step first needs it.

``AUTOMAGIC_CAMEAMP_NATIVE=0`` keeps it closed; any other value is the path of a library to open
instead of the one beside this file. ``AUTOMAGIC_CAMEAMP_ISA`` names an instruction set that is not to
be exceeded: two machines that share it take the same steps bit for bit.
"""

from __future__ import annotations

import ctypes
import os
from functools import lru_cache
from typing import Any

from . import layout
from .build import LIBRARY

SWITCH = "AUTOMAGIC_CAMEAMP_NATIVE"
LIMIT = "AUTOMAGIC_CAMEAMP_ISA"
FLAVOURS = ("base", "avx2", "avx512")


class Unavailable(RuntimeError):
    """There is no usable library; the message says why."""


def fields_of(library: Any) -> dict[str, layout.Field]:
    """The fields of the structures that a library was built with."""
    found: dict[str, layout.Field] = {}
    place, kind = (ctypes.c_int32 * 2)(), ctypes.c_char_p()
    while (name := library.automagic_field(len(found), place, ctypes.byref(kind))) is not None:
        found[name.decode()] = layout.Field(place[0], place[1], (kind.value or b"").decode())
    return found


def difference(ours: dict[str, layout.Field], theirs: dict[str, layout.Field]) -> str | None:
    """The first field in which Python's structures and a library's differ, in words, or None."""
    for name in [*ours, *theirs]:
        here, there = ours.get(name, "missing"), theirs.get(name, "missing")
        if here != there:
            return f"{name} is {there} in the library, {here} in Python"
    return None


@lru_cache(maxsize=1)
def _opened() -> Any:
    """The library, or the reason why there is none."""
    wanted = os.environ.get(SWITCH, "")
    if wanted == "0":
        return f"{SWITCH}=0 is set"
    path = wanted or str(LIBRARY)
    if not os.path.exists(path):
        return f"{path} does not exist: no C++ compiler was found when the package was installed"
    try:
        library = ctypes.CDLL(path)
        library.automagic_abi.restype, library.automagic_abi.argtypes = ctypes.c_int32, [ctypes.c_int32]
        version = library.automagic_abi(0)
        if version != layout.ABI_VERSION:
            wanted = layout.ABI_VERSION
            return f"{path} is of another version ({version}, expected {wanted}): install the package again"
        library.automagic_best.restype, library.automagic_best.argtypes = ctypes.c_int32, []
        library.automagic_field.restype = ctypes.c_char_p
        library.automagic_step.restype = None
        library.automagic_step.argtypes = [ctypes.c_void_p]
    except (OSError, AttributeError) as error:
        return f"{path} could not be opened: {error}"
    different = difference(layout.fields(), fields_of(library))
    if different is not None:
        return f"{path} was built from another abi.h: {different}; install the package again"
    return library


def library() -> Any:
    """The open library.

    Raises:
        Unavailable: there is none.
    """
    found = _opened()
    if isinstance(found, str):
        raise Unavailable(found)
    return found


@lru_cache(maxsize=1)
def holding_the_lock() -> Any:
    """The open library, for its short functions: a call does not give Python's lock away.

    Raises:
        Unavailable: there is none.
    """
    found = ctypes.PyDLL(library()._name)
    address, number = ctypes.c_void_p, ctypes.c_int64
    found.automagic_look.restype = number
    found.automagic_look.argtypes = [address, address, number, address, number]
    found.automagic_hold.restype = ctypes.c_int32
    found.automagic_hold.argtypes = [address, address, number, address, address]
    found.automagic_gather.restype = None
    found.automagic_gather.argtypes = [address, number, number, address]
    return found


def why_not() -> str | None:
    """None where the library can be used, else the reason."""
    found = _opened()
    return found if isinstance(found, str) else None


def limit() -> int:
    """Number of the instruction set that the user allows at most; -1 where nothing is said.

    Raises:
        ValueError: the environment names another one.
    """
    wanted = os.environ.get(LIMIT, "")
    if wanted and wanted not in FLAVOURS:
        raise ValueError(f"{LIMIT}={wanted!r} is not one of {', '.join(FLAVOURS)}: name one, or unset it.")
    return FLAVOURS.index(wanted) if wanted else -1


def flavour() -> str:
    """Instruction set of the steps: 'base', 'avx2' or 'avx512'."""
    best, most = library().automagic_best(), limit()
    return FLAVOURS[best if most < 0 else min(best, most)]


def switched_off() -> bool:
    """Whether the user keeps the library closed."""
    return os.environ.get(SWITCH, "") == "0"
