"""Plug-in for axolotl, which gives names that it does not know to Hugging Face's Trainer.

plugins:
  - automagic_cameamp.integrations.axolotl.Plugin
optimizer: automagic_cameamp8bit
optim_args: {warmup_steps: 200}
"""

from __future__ import annotations

from axolotl.integrations.base import BasePlugin  # type: ignore[import-not-found]

from . import enable


class Plugin(BasePlugin):
    """Registers the optimizers before axolotl builds its Trainer; nothing else changes."""

    def __init__(self) -> None:
        super().__init__()
        enable("transformers")  # here, since not every command of axolotl calls `register`
