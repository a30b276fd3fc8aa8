"""Every option of every optimizer: default, allowed values, one line of explanation.

The dataclasses are plain and mutable, and ``Cls(params, **config.__dict__)`` works for each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .validate import (
    betas,
    choice,
    epsilons,
    fail,
    flag,
    integer,
    number,
    option,
    optional,
    power_of_two,
    rate,
)


@dataclass
class OptimizerConfig:
    """Options of ``Automagic_CameAMP``; all but those under "engine" may be set per group."""

    lr: Any = option(1e-6, rate, "base learning rate; the scheduler's, and the start of the mask")
    min_lr: float = option(1e-7, number(0), "lowest rate of any element, at the schedule's start")
    max_lr: float = option(1e-3, number(0, open_low=True), "highest rate of any element")
    lr_bump: float = option(3e-6, number(0), "step of the additive mask rule")
    eps: tuple[float, ...] = option(
        (1e-30, 1e-16, 1e-8), epsilons, "floors of squared gradient, residual, denominator"
    )
    clip_threshold: float = option(1.0, number(0, open_low=True), "RMS limit of the normalised update")
    betas: tuple[float, ...] = option((0.8, 0.99, 0.999), betas, "decays of momentum, moment, confidence")
    beta1_decay: float = option(0.9995, number(0, 1, open_low=True), "decay of beta1 and of the Grams mix")
    eta: float = option(2.0, number(0, open_low=True), "ALLoRA: gain of a zero row")
    weight_decay: float = option(5e-4, number(0), "strength of the adaptive weight decay")
    warmup_steps: int = option(500, integer(0), "length of the warm-up: phases and mask learning")
    came: bool = option(True, flag, "CAME second moments; False: AdaBelief")
    full_finetune: bool = option(False, flag, "True switches ALLoRA's row gain off")
    verbose: bool = option(False, flag, "log through logging, rate limited")

    factored: bool = option(True, flag, "row and column second moments (CAME); False: full size")
    confidence_1d: bool = option(False, flag, "CAME confidence for vectors too")
    final_clip: float | None = option(
        None, optional(number(0, open_low=True)), "RMS limit of the final update; None: clip_threshold"
    )
    use_agr: bool = option(False, flag, "adaptive gradient regularisation")
    use_tam: bool = option(True, flag, "torque-aware momentum in the early phase")
    use_grams: bool = option(True, flag, "pull the update's sign to the gradient's")
    use_orthograd: bool = option(False, flag, "project the early displacement off the weights")
    use_lr_mask: bool = option(True, flag, "the Automagic mask")
    tam_granularity: str = option("tensor", choice("tensor", "row"), "one torque per tensor or per row")
    weight_decay_phase: str = option("early", choice("early", "always"), "when weights decay")
    hard_min_lr: bool = option(False, flag, "min_lr also when the scheduler goes below it")
    lr_mask_rule: str = option("geometric", choice("geometric", "additive", "none"), "how the mask moves")
    lr_mask_granularity: str = option(
        "element", choice("element", "row", "tensor", "group"), "what shares one mask value"
    )
    lr_level: str = option("fixed", choice("fixed", "distance", "vote"), "who sets the level of the rate")
    stochastic_rounding: bool | None = option(
        None, optional(flag), "engine: round bf16/fp16 weights stochastically; None: yes"
    )
    seed: int = option(0, integer(0, 2**32 - 1), "engine: seed of the stochastic rounding")


@dataclass
class OptimizerConfig8bit(OptimizerConfig):
    """Options of ``Automagic_CameAMP8bit``."""

    blocksize: int = option(256, power_of_two(64, 4096), "elements that share a scale")
    state_code: str = option("dynamic", choice("dynamic", "softsign"), "eight-bit code of the momentum")


# Options that belong to the optimizer as a whole; all others live in the parameter groups.
ENGINE_OPTIONS = ("verbose", "stochastic_rounding", "seed", "blocksize", "state_code")


def check_together(values: dict[str, Any], where: str) -> None:
    """Rules between options."""
    if values["min_lr"] >= values["max_lr"]:
        allowed = f"it must be below max_lr={values['max_lr']!r}"
        raise fail("min_lr", values["min_lr"], allowed, f"Set both {where}.")
    if values["lr_mask_granularity"] != "element" and values["lr_level"] == "vote":
        raise fail("lr_level", "vote", "only with lr_mask_granularity='element' or lr_mask_rule='none'")
