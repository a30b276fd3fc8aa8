"""The structures that Python and the kernels share: ``cpu/abi.h`` for ctypes, field by field.

``native.py`` compares them with what the library says of its own when it is opened.
"""

from __future__ import annotations

import ctypes as c
from typing import Any, NamedTuple

ABI_VERSION = 10
MAX_SCALES = 6
CODES = {"dynamic": 1, "softsign": 2, "affine": 3, "unit4": 4, "log16": 6, "log": 7, "softsign4": 8}
SKETCH = 4096


class Coded(c.Structure):
    """One state field of one tensor: addresses of its planes, and how to read them."""

    _fields_ = [
        *((name, c.c_uint64) for name in ("q", "scale", "zero", "residual")),
        *((name, c.c_int32) for name in ("code", "block", "bits", "salt")),
    ]


class Options(c.Structure):
    """Options of a chunk, as numbers."""

    _fields_ = [
        *((name, c.c_double) for name in ("lr", "low", "high", "floor", "multiplier")),
        ("eps", c.c_double * 3),
        *((name, c.c_double) for name in ("clip", "final_clip")),
        ("beta", c.c_double * 3),
        *((name, c.c_double) for name in ("lowest_beta1", "log_decay", "eta", "weight_decay", "warmup")),
        *((name, c.c_double) for name in ("edge_penalty", "edge_threshold", "detail", "frequency")),
        *((name, c.c_double) for name in ("emphasis", "rank_strength", "own_share", "update_share")),
        ("share", c.c_double * MAX_SCALES),
        ("scale_rate", c.c_double * MAX_SCALES),
        *((name, c.c_int32) for name in ("scales", "mixed", "improved", "allora", "grams", "cautious")),
        *((name, c.c_int32) for name in ("decay_always", "spd", "background", "d_coef", "tam", "mask")),
        *((name, c.c_int32) for name in ("signals", "table")),
    ]


COLUMNS = ("exp_avg", "sq", "sq_row", "sq_col", "res", "res_row", "res_col", "spatial", "edge")


class Task(c.Structure):
    """One parameter."""

    _fields_ = [
        *((name, c.c_uint64) for name in ("p", "g")),
        *((name, c.c_int64) for name in ("batch", "rows", "cols", "height", "width")),
        *((name, c.c_int64) for name in ("sketch_place", "sketch_offset")),
        *((name, Coded) for name in COLUMNS),
        ("scale", Coded * MAX_SCALES),
        *((name, c.c_uint64) for name in ("step", "avg_lr", "torque", "mask_sum", "mask", "polarity")),
        *((name, c.c_uint64) for name in ("basis", "lowrank_rate", "level", "anchor", "rest")),
        *((name, c.c_int32) for name in ("p_type", "g_type", "options", "key", "rounds", "matrix")),
        *((name, c.c_int32) for name in ("kept", "ok", "tail", "sampled")),
        ("square", c.c_double),
    ]


class Step(c.Structure):
    """Everything of one step."""

    _fields_ = [
        *((name, c.c_void_p) for name in ("tasks", "options", "mask_sums")),
        *((name, c.c_int64) for name in ("count", "mask_count")),
        *((name, c.c_double) for name in ("masked", "mask_mean")),
        ("sketch", c.c_void_p),
        ("square", c.c_double),
        ("bad", c.c_int64),
        ("level", c.c_float * 8),
        ("looks", c.c_int64),
        *((name, c.c_int32) for name in ("threads", "flavour")),
    ]


class Field(NamedTuple):
    """Where a field of a structure lies, in bytes, and what its elements are."""

    offset: int
    size: int
    kind: str

    def __str__(self) -> str:
        return f"{self.kind} at {self.offset}, {self.size} bytes"


KINDS: dict[Any, str] = {
    **{c.c_void_p: "address", c.c_uint64: "address"},
    **{c.c_double: "float64", c.c_float: "float32", c.c_int64: "int64", c.c_int32: "int32", Coded: "Coded"},
}


def fields() -> dict[str, Field]:
    """Every field of every structure, by its name in ``abi.h``, such as ``Options.lr``."""
    found: dict[str, Field] = {}
    for structure in (Coded, Options, Task, Step):
        for name, kind, *_ in structure._fields_:
            place, element = getattr(structure, name), getattr(kind, "_type_", None)
            kind = element if hasattr(kind, "_length_") else kind
            found[f"{structure.__name__}.{name}"] = Field(place.offset, place.size, KINDS[kind])
    return found
