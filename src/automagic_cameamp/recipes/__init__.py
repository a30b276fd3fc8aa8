"""One short text per algorithm: which techniques, in which order. What all of them share is named here."""

from ..techniques import Level, Steps, Sum, alone, speed_limit, together
from ._data import SCALE, Hyper, Shared
from ._level import initial, level_under, one_of, rescale, seen, steered_here
from ._rate import LAGGED, has_mask, share
from ._stages import Result, as_dict, make_state

__all__ = [
    "LAGGED",
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
    "initial",
    "level_under",
    "make_state",
    "one_of",
    "rescale",
    "share",
    "seen",
    "speed_limit",
    "steered_here",
    "together",
]
