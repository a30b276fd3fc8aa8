"""The improved classes with the profile "quality_optimized": all regularisers, stronger. See ``presets``."""

from __future__ import annotations

from .presets import namespace

__getattr__, __dir__ = namespace(__name__)
