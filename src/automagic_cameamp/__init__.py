"""Automagic CameAMP: memory-efficient optimizers for fine-tuning on small GPUs."""

from ._version import __version__
from .configs import OptimizerConfig, OptimizerConfig8bit
from .engine import CameAMPOptimizer, CheckpointError
from .optimizers import OPTIMIZERS, Automagic_CameAMP, Automagic_CameAMP8bit

__all__ = [
    "OPTIMIZERS",
    "Automagic_CameAMP",
    "Automagic_CameAMP8bit",
    "CameAMPOptimizer",
    "CheckpointError",
    "OptimizerConfig",
    "OptimizerConfig8bit",
    "__version__",
]
