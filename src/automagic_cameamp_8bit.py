"""``Automagic_CameAMP_8Bit`` and its config, under the module name that the documents import from."""

from automagic_cameamp import Automagic_CameAMP_8Bit, Optimizer8BitConfig

__all__ = ["Automagic_CameAMP_8Bit", "Optimizer8BitConfig"]
