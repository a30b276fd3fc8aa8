"""Automagic CameAMP: memory-efficient optimizers for fine-tuning on small GPUs."""

from ._version import __version__
from .checkpoints.importers import ImportReport, export_state, import_state
from .checkpoints.load import convert_state
from .checkpoints.saved import CheckpointError
from .configs import (
    ContextualConfig,
    ContextualConfig8bit,
    Improved8BitOptimizerConfig,
    ImprovedOptimizerConfig,
    Optimizer8BitConfig,
    OptimizerConfig,
    OptimizerConfig8bit,
)
from .lora import LoraMarks, mark_lora, unmark_lora
from .optimizer import CameAMPOptimizer
from .optimizers import (
    OPTIMIZERS,
    Automagic_CameAMP,
    Automagic_CameAMP8bit,
    Automagic_CameAMP_8Bit,
    Automagic_CameAMP_COptim,
    Automagic_CameAMP_COptim8bit,
    Automagic_CameAMP_Improved,
    Automagic_CameAMP_Improved_8Bit,
    create_improved_8bit_optimizer,
)
from .policies import BITSANDBYTES_AVAILABLE
from .profiles import OptimizationProfiles
from .training.precision import accumulate_in_fp32
from .training.release import ReleaseHandle, release_gradients

__all__ = [
    "BITSANDBYTES_AVAILABLE",
    "OPTIMIZERS",
    "Automagic_CameAMP",
    "Automagic_CameAMP8bit",
    "Automagic_CameAMP_8Bit",
    "Automagic_CameAMP_COptim",
    "Automagic_CameAMP_COptim8bit",
    "Automagic_CameAMP_Improved",
    "Automagic_CameAMP_Improved_8Bit",
    "CameAMPOptimizer",
    "CheckpointError",
    "ContextualConfig",
    "ContextualConfig8bit",
    "ImportReport",
    "Improved8BitOptimizerConfig",
    "ImprovedOptimizerConfig",
    "LoraMarks",
    "OptimizationProfiles",
    "Optimizer8BitConfig",
    "OptimizerConfig",
    "OptimizerConfig8bit",
    "ReleaseHandle",
    "__version__",
    "accumulate_in_fp32",
    "convert_state",
    "create_improved_8bit_optimizer",
    "export_state",
    "import_state",
    "mark_lora",
    "release_gradients",
    "unmark_lora",
]
