"""One short text per algorithm: which techniques, in which order."""

from ..techniques import Level, Steps, Sum, alone, together
from ._data import SCALE, Hyper, Shared
from ._level import level_under, steered
from ._rate import has_mask
from ._stages import Result, as_dict, make_state

__all__ = [
    "Hyper",
    "Level",
    "Result",
    "SCALE",
    "Shared",
    "Steps",
    "Sum",
    "alone",
    "as_dict",
    "has_mask",
    "level_under",
    "make_state",
    "steered",
    "together",
]
