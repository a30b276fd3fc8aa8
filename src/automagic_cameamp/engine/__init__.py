"""Knows torch.optim; knows no equation."""

from .checkpoint import CheckpointError, convert_state
from .importers import ImportReport, export_state, import_state
from .optimizer import CameAMPOptimizer

__all__ = [
    "CameAMPOptimizer",
    "CheckpointError",
    "ImportReport",
    "convert_state",
    "export_state",
    "import_state",
]
