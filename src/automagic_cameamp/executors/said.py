"""What is said once per process."""

from __future__ import annotations

import warnings

from ..validate import callers_depth

SAID: set[str] = set()


def say(text: str, key: str | None = None) -> None:
    """Warn once per process; of texts with the same key, the first one."""
    if not was_said(key or text):
        SAID.add(key or text)
        warnings.warn(text, stacklevel=callers_depth())


def was_said(key: str) -> bool:
    """Whether this was warned of."""
    return key in SAID
