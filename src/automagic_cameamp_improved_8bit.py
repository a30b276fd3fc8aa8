"""``Automagic_CameAMP_Improved_8Bit`` and its kin, under the module name that the documents import from."""

from automagic_cameamp import (
    BITSANDBYTES_AVAILABLE,
    Automagic_CameAMP_Improved_8Bit,
    Improved8BitOptimizerConfig,
    OptimizationProfiles,
    create_improved_8bit_optimizer,
)

__all__ = [
    "BITSANDBYTES_AVAILABLE",
    "Automagic_CameAMP_Improved_8Bit",
    "Improved8BitOptimizerConfig",
    "OptimizationProfiles",
    "create_improved_8bit_optimizer",
]
