"""One short text per algorithm: which techniques, in which order."""

from ..techniques import Steps, Sum, alone, together
from ._rate import has_mask

__all__ = ["Steps", "Sum", "alone", "has_mask", "together"]
