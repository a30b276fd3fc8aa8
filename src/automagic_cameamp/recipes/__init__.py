"""One short text per algorithm: which techniques, in which order."""

from ..techniques import Level, Steps, Sum, alone, together
from ._level import level_under, steered
from ._rate import has_mask

__all__ = ["Level", "Steps", "Sum", "alone", "has_mask", "level_under", "steered", "together"]
