"""Launcher for kohya sd-scripts and musubi-tuner: the plain command lines work in an unmodified checkout.

    python -m automagic_cameamp.kohya train_network.py --optimizer_type=Automagic_CameAMP_Improved_8Bit \
        --optimizer_args profile=memory_optimized lr=1e-4 ...
    accelerate launch -m automagic_cameamp.kohya train_network.py ...

``register()`` alone puts the classes into ``torch.optim``, where those trainers look for a bare name.
"""

from __future__ import annotations

from typing import Any

__all__ = ["main", "register"]


def register() -> list[str]:
    """Make every class known to ``torch.optim`` by all its names; returns them."""
    import torch

    from ..presets import every_name

    names = every_name()
    for name, cls in names.items():
        setattr(torch.optim, name, cls)
    return list(names)


def main(argv: list[str] | None = None) -> int:
    """Run the launcher; see ``python -m automagic_cameamp.kohya --help``."""
    from .launch import main as run

    return run(argv)


def __getattr__(name: str) -> Any:
    """The classes under names that do not end in "8bit"."""
    if name.endswith("Q8"):
        from ..presets import aliases

        if name in aliases():
            return aliases()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
