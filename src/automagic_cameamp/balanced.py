"""The improved classes with the profile "balanced": all regularisers, default strength. See ``presets``."""

from __future__ import annotations

from .presets import namespace

__getattr__, __dir__ = namespace(__name__)
