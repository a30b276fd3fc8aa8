"""The improved classes with the profile "minimal": four bits of momentum. See ``presets``."""

from __future__ import annotations

from .presets import namespace

__getattr__, __dir__ = namespace(__name__)
