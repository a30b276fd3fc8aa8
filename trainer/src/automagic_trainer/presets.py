"""What the trainer gives an optimizer unless the user says otherwise."""

from __future__ import annotations

import dataclasses
from typing import Any

from automagic_cameamp.factory import OptimizerArgumentError, our_optimizers, resolve_optimizer

from .settings import TrainSettings

# For a LoRA of rank 8 on a few pictures: the best of a grid of powers of two by held-out loss after 150 steps
# of the cat LoRA. `python -m benchmarks.compare` measures it, rows are in benchmarks/results. Ours need none.
LEARNING_RATES = {"adamw": 8e-3, "bitsandbytes.adamw8bit": 8e-3}
DEFAULT_LR = 1e-3

DEMO_OPTIMIZERS = ("AdamW", "Automagic_CameAMP8bit")
DEMO_STEPS = 125  # two minutes of training on two slow cores
QUICK_OPTIMIZERS = ("AdamW", "Automagic_CameAMP8bit")
QUICK_STEPS = 20


def filled(settings: TrainSettings) -> TrainSettings:
    """The settings with the learning rate and our optimizers' arguments written out.

    Ours get a warm-up of a third of the run, because their default of 500 steps is longer than a short run,
    and no absolute caps: the rate mask keeps its own limits relative to the rate that was asked for.
    """
    try:
        ours = resolve_optimizer(settings.optimizer) in our_optimizers().values()
    except OptimizerArgumentError:
        return settings  # reported with everything else before training
    extra: dict[str, Any] = {}
    if ours:
        extra = {"warmup_steps": max(1, settings.steps // 3), "min_lr": 0.0, "max_lr": 1.0}
    lr = settings.lr
    if lr is None and "lr" not in settings.optimizer_args and not ours:  # ours find theirs
        lr = LEARNING_RATES.get(settings.optimizer.lower(), DEFAULT_LR)
    return dataclasses.replace(settings, lr=lr, optimizer_args=extra | settings.optimizer_args)
