"""``Automagic_CameAMP_Improved`` and its config, under the module name that the documents import from."""

from automagic_cameamp import Automagic_CameAMP_Improved, ImprovedOptimizerConfig

__all__ = ["Automagic_CameAMP_Improved", "ImprovedOptimizerConfig"]
