"""Watches the whole model; multiplies every rate of the next step."""

from .controller import ContextualController

__all__ = ["ContextualController"]
