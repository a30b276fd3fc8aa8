"""Knows torch.optim; knows no equation."""

from .checkpoint import CheckpointError, convert_state
from .importers import ImportReport, export_state, import_state
from .optimizer import CameAMPOptimizer
from .precision import accumulate_in_fp32
from .release import ReleaseHandle, release_gradients

__all__ = [
    "CameAMPOptimizer",
    "CheckpointError",
    "ImportReport",
    "ReleaseHandle",
    "accumulate_in_fp32",
    "convert_state",
    "export_state",
    "import_state",
    "release_gradients",
]
