"""Names under which a parameter's state is held: which are ours, and of which field and plane."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from ..recipes import _carry

# Longest first: a suffix may end with another.
SUFFIXES = ("_q_residual", "_q_scale", "_q_zero", "_q", "_scale", "")


def split_key(key: str) -> tuple[str, str]:
    """A key of a saved state -> name of the field, suffix of the plane."""
    suffix = next(s for s in SUFFIXES if key.endswith(s))
    return key[: len(key) - len(suffix)], suffix


@lru_cache(maxsize=256)
def is_ours(key: Any) -> bool:
    """Whether a key of a parameter's state is one that the family writes, the controller's memory aside."""
    return _carry.in_family(split_key(str(key))[0])
