"""Makes the optimizers known to training programs, without an edit of theirs.

    automagic integrate install --trainer transformers      # every Python of this environment, until removed
    automagic_cameamp.integrations.enable("transformers")   # this process only

Nothing is registered by importing this package, or ``automagic_cameamp``.
"""

from __future__ import annotations

import sys

from . import hook

__all__ = ["enable"]


def enable(*trainers: str) -> None:
    """Register with these programs in this process: at once where they are imported, else when they are.

    Args:
        trainers: names as `automagic integrate list` shows them; none: all.

    Raises:
        ValueError: a name that is not in that list.

    Example:
        >>> enable("transformers")  # TrainingArguments(optim="automagic_cameamp8bit") works from here on
    """
    from .registers import register

    unknown = [name for name in trainers if name not in hook.MODULES]
    if unknown:
        raise ValueError(f"trainers={unknown!r} is not allowed: one of {', '.join(hook.MODULES)}.")
    chosen = trainers or tuple(hook.MODULES)
    hook.watch(*chosen)
    for name in [module for trainer in chosen for module in hook.MODULES[trainer]]:
        if name in sys.modules:
            register(sys.modules[name])
