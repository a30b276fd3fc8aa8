"""Knows torch.optim; knows no equation."""

from .checkpoint import CheckpointError, convert_state
from .importers import ImportReport, export_state, import_state
from .optimizer import CameAMPOptimizer
from .release import ReleaseHandle, release_gradients

__all__ = [
    "CameAMPOptimizer",
    "CheckpointError",
    "ImportReport",
    "ReleaseHandle",
    "convert_state",
    "export_state",
    "import_state",
    "release_gradients",
]
