"""Knows torch.optim; knows no equation."""

from .checkpoint import CheckpointError
from .optimizer import CameAMPOptimizer

__all__ = ["CameAMPOptimizer", "CheckpointError"]
