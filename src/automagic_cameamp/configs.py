"""Every option of every optimizer: default, allowed values, one line of explanation.

The dataclasses are plain and mutable, and ``Cls(params, **config.__dict__)`` works for each.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import InitVar, fields
from typing import Any, ClassVar

from torch import Tensor

from .aliases import TechniqueWords, config
from .types import CAP, START
from .validate import (
    Untouched,
    betas,
    checked,
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
    technique,
)


@config
class SharedConfig:
    """Options of every optimizer of the family; all but the engine's may be set per group.

    Those that set a single technique are the words of ``techniques``, and may be given by their own names.
    """

    lr: float | Tensor = option(
        Untouched(START), rate, "learning rate, the scheduler's; left out, the right one is found"
    )
    min_lr: float = option(
        1e-7, number(0), "lowest rate that the mask may give, at the schedule's start; never above lr"
    )
    max_lr: float = option(
        Untouched(CAP),
        number(0, open_low=True, infinite=True),
        "highest rate of any element; left out, lr itself where that is higher",
    )
    lr_bump: float = technique(3e-6, number(0), "step of the additive mask rule")
    eps: tuple[float, ...] = option(
        (1e-30, 1e-16, 1e-8), epsilons, "floors of squared gradient, residual, denominator"
    )
    clip_threshold: float = technique(
        1.0, number(0, open_low=True, infinite=True), "RMS limit of the normalised update"
    )
    betas: tuple[float, ...] = option((0.8, 0.99, 0.999), betas, "decays of momentum, moment, confidence")
    beta1_decay: float = technique(0.9995, number(0, 1, open_low=True), "decay of beta1 and of the Grams mix")
    beta1_follows_lr: bool | None = technique(
        None,
        optional(flag),
        "beta1 decays no further than the learning rate has fallen; None: where the rate is found",
    )
    eta: float = technique(2.0, number(0, open_low=True), "ALLoRA: gain of a zero row")
    weight_decay: float = option(5e-4, number(0), "strength of the adaptive weight decay")
    warmup_steps: int = option(500, integer(0), "length of the warm-up: phases and mask learning")
    came: bool = option(True, flag, "CAME second moments; False: AdaBelief")
    full_finetune: bool = option(False, flag, "True switches ALLoRA's row gain off")
    verbose: bool = option(False, flag, "log through logging, rate limited")

    factored: bool = technique(True, flag, "row and column second moments (CAME); False: full size")
    confidence_1d: bool = technique(False, flag, "CAME confidence for vectors too")
    final_clip: float | None = technique(
        None,
        optional(number(0, open_low=True, infinite=True)),
        "RMS limit of the final update; None: clip_threshold",
    )
    use_agr: bool = technique(False, flag, "adaptive gradient regularisation")
    use_tam: bool = technique(True, flag, "torque-aware momentum in the early phase")
    use_grams: bool = technique(True, flag, "pull the update's sign to the gradient's")
    use_orthograd: bool = technique(False, flag, "project the early displacement off the weights")
    use_lr_mask: bool = technique(True, flag, "the Automagic mask")
    tam_granularity: str = technique("tensor", choice("tensor", "row"), "one torque per tensor or per row")
    hard_min_lr: bool = technique(False, flag, "min_lr also when the scheduler goes below it")
    lr_mask_rule: str = technique("geometric", choice("geometric", "additive", "none"), "how the mask moves")
    lr_mask_granularity: str = technique(
        "element", choice("element", "row", "tensor", "group"), "what shares one mask value"
    )
    lr_level: str | None = option(
        None,
        optional(choice("auto", "fixed", "distance", "vote")),
        "who sets the level of the rate; None: auto where no lr is given, fixed where one is",
    )
    stochastic_rounding: bool | None = option(
        None, optional(flag), "engine: round bf16/fp16 weights stochastically; None: yes"
    )
    master_weight_bits: int | None = option(
        None,
        optional(choice(24)),
        "engine: 24 keeps what bf16/fp16 weights round away in 8 bits beside them; None: nothing",
    )
    seed: int = option(0, integer(0, 2**32 - 1), "engine: seed of the stochastic rounding")
    engine: str = option(
        "auto", choice("auto", "reference", "native", "compiled"), "who executes the step; auto: the fastest"
    )
    offload: str = option("none", choice("none", "cpu"), "engine: cpu: state and step in host memory")
    techniques: InitVar[TechniqueWords] = None

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, value in state.items():  # of an older version, perhaps: by names that are properties now
            setattr(self, name, value)


@config
class OptimizerConfig(SharedConfig):
    """Options of ``Automagic_CameAMP``."""

    weight_decay_phase: str = technique("early", choice("early", "always"), "when weights decay")


@config
class OptimizerConfig8bit(OptimizerConfig):
    """Options of ``Automagic_CameAMP8bit``."""

    blocksize: int = option(256, power_of_two(64, 4096), "elements that share a scale")
    state_code: str = option("dynamic", choice("dynamic", "softsign", "softsign4"), "code of the momentum")


def strategy(name: str, value: Any) -> Any:
    """None, or an object with should_quantize(name, shape, type) and get_block_size(shape)."""
    methods = ("should_quantize", "get_block_size")
    if value is not None and not all(callable(getattr(value, m, None)) for m in methods):
        raise fail(name, value, "None, or an object with " + " and ".join(f"{m}(...)" for m in methods))
    return value


@config
class RegularizedConfig(SharedConfig):
    """Options of the improved recipe."""

    edge_suppression: bool = option(True, flag, "damp the update where the gradient has edges")
    edge_penalty: float = option(0.1, number(0, 1), "strength of the edge damping")
    edge_threshold: float = option(
        0.6, number(0, 1, open_low=True, open_high=True), "how sharp an edge must be; .6 is 1.5 RMS"
    )
    background_regularization: bool = option(True, flag, "damp rows that receive almost no gradient")
    spatial_awareness: bool = option(True, flag, "larger steps for rows with more detail")
    detail_preservation: float = technique(0.8, number(0, 1), "strength of the row detail gain")
    frequency_penalty: float = option(
        0.05, number(0, 1), "damping of the gradient's highest frequency; 0: off"
    )
    lora_rank_penalty: bool = option(True, flag, "shrink directions beyond the kept rank, lean to the others")
    rank_penalty_strength: float = option(0.01, number(0, 1), "strength of that shrinking")
    low_rank_emphasis: float = option(1.2, number(1, open_high=True), "lean to the kept directions; 1: off")
    rank_keep: int = technique(10, integer(1), "directions that are kept")
    d_coef: int = technique(2, integer(1, 40), "mask bumps are this large where early descent grows weights")
    spatial_mode: str = technique(
        "all", choice("all", "conv"), "what counts as a picture: matrices too, or kernels"
    )
    use_cautious: bool = technique(True, flag, "Cautious signs once Grams has faded to a half")
    use_spd: bool = technique(True, flag, "Selective Projection Decay in the warm-up")
    sync_frequency: int = option(100, integer(1), "updates of a weight between two searches for directions")


@config
class ImprovedOptimizerConfig(RegularizedConfig):
    """Options of ``Automagic_CameAMP_Improved``."""


@config
class Optimizer8BitConfig(RegularizedConfig):
    """Options of ``Automagic_CameAMP_8Bit``."""

    quantize_states: bool = option(True, flag, "False: exact 32-bit state")
    error_correction: bool = option(True, flag, "keep what the code rounds away in a second plane")
    error_bits: int = technique(4, choice(4, 8), "bits of the plane of error correction")
    block_size: int = option(256, power_of_two(32, 4096), "elements that share a scale")
    mixed_precision: bool = option(True, flag, "fp32 row and column statistics; False: 16-bit logarithms")
    adaptive_block_size: bool = option(False, flag, "block size from the tensor's size")
    min_block_size: int = option(64, power_of_two(32, 4096), "least adaptive block size")
    max_block_size: int = option(1024, power_of_two(32, 4096), "largest adaptive block size")
    quantization_strategy: Any = option(None, strategy, "object that decides per parameter")
    state_code: str = option(
        "affine", choice("affine", "softsign", "dynamic", "softsign4"), "code of the momentum"
    )


@config
class Improved8BitOptimizerConfig(RegularizedConfig):
    """Options of ``Automagic_CameAMP_Improved_8Bit``."""

    optim_bits: int = option(8, choice(4, 8, 32), "bits of the momentum; 32: exact 32-bit state")
    min_8bit_size: int = option(4096, integer(0), "smaller tensors keep fp32 state")
    force_8bit: bool = option(False, flag, "quantise vectors and embeddings too")
    percentile_clipping: int = option(100, integer(1, 100), "clip to this percentile of 100 gradient norms")
    block_wise: bool = option(True, flag, "False: one scale per tensor")
    stable_emb: bool = option(False, flag, "fp32 state for parameters marked _is_embedding")
    profile: str | None = option(
        None,
        optional(choice("memory_optimized", "quality_optimized", "balanced", "minimal")),
        "named set of options; explicit options win",
    )


# Options that belong to the optimizer as a whole; all others live in the parameter groups.
ENGINE_OPTIONS = (
    "verbose",
    "stochastic_rounding",
    "master_weight_bits",
    "seed",
    "engine",
    "offload",
    "blocksize",
    "state_code",
    "quantize_states",
    "error_correction",
    "error_bits",
    "block_size",
    "mixed_precision",
    "adaptive_block_size",
    "min_block_size",
    "max_block_size",
    "quantization_strategy",
    "optim_bits",
    "min_8bit_size",
    "force_8bit",
    "block_wise",
    "stable_emb",
    "profile",
)


def engine_options(config: Any) -> tuple[str, ...]:
    """Options of this config, or class of configs, that no parameter group has."""
    return (*ENGINE_OPTIONS, *getattr(config, "CONTROLLER_OPTIONS", ()))


# Options that a parameter group holds under another name: OneCycleLR writes group["min_lr"] and ["max_lr"].
GROUP_NAMES = {"min_lr": "lr_floor", "max_lr": "lr_cap"}


def in_group(values: Mapping[str, Any]) -> dict[str, Any]:
    """Options by their names in a group; a cap that nobody has set is None there.

    Who sets the level is decided here: a rate that nobody has set asks for one to be found.
    """
    named = {GROUP_NAMES.get(name, name): value for name, value in values.items()}
    if isinstance(named.get("lr_cap"), Untouched):
        named["lr_cap"] = None
    if "lr" in named and named.get("lr_level", "") is None:
        # The additive rule is about rates as such, and finds them by itself.
        found = isinstance(named["lr"], Untouched) and named.get("lr_mask_rule") != "additive"
        named["lr_level"] = "auto" if found else "fixed"
    if isinstance(named.get("lr"), Untouched):
        named["lr"] = float(named["lr"])
    return named


def checked_group(config_class: type, group: Mapping[str, Any], owner: str) -> dict[str, Any]:
    """The group with its options checked, converted and named as in a group.

    A group with ``lr_floor`` or ``lr_cap`` is one of ours: ``min_lr`` or ``max_lr`` in it is a scheduler's.
    """
    held = {name: group[key] for name, key in GROUP_NAMES.items() if key in group}
    names = {f.name for f in fields(config_class)} - set(engine_options(config_class)) - held.keys()
    given = {name: group[name] for name in names & group.keys()}
    set_before = {name: value for name, value in held.items() if name != "max_lr" or value is not None}
    rest = {key: value for key, value in group.items() if key not in given}
    return {**rest, **in_group(checked(config_class, {**given, **set_before}, owner))}


def check_together(values: Mapping[str, Any], where: str) -> None:
    """Rules between options, named as in a config or as in a group."""
    bounds = values if "lr_floor" in values else in_group(values)
    low, high = bounds["lr_floor"], CAP if bounds["lr_cap"] is None else bounds["lr_cap"]
    if low >= high:
        raise fail("min_lr", low, f"it must be below max_lr={high!r}", f"Set both {where}.")
    if values["lr_mask_rule"] == "additive" and values["lr_level"] == "auto":
        raise fail("lr_level", "auto", "it cannot go with lr_mask_rule='additive'", "Use 'geometric'.")
    if values["lr_mask_granularity"] == "group" and values["lr_level"] == "vote":
        raise fail("lr_level", "vote", "it cannot go with lr_mask_granularity='group'", "Use 'element'.")
    if values.get("min_block_size", 0) > values.get("max_block_size", 0):
        allowed = f"it must not exceed max_block_size={values['max_block_size']!r}"
        raise fail("min_block_size", values["min_block_size"], allowed)


def _scales(name: str, value: Any) -> list[int] | None:
    """Lengths of momentum in steps, each once, or None."""
    if value is None:
        return None
    if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
        raise fail(name, value, "a list of whole numbers >= 1, or None", "For example [1, 5, 10, 25].")
    scales = [integer(1, 1_000_000)(f"{name}[{i}]", s) for i, s in enumerate(value)]
    if not scales or len(set(scales)) < len(scales):
        raise fail(name, value, "a list of different whole numbers >= 1, or None", "Use None for one scale.")
    return scales


def _multiplier_bounds(name: str, value: Any) -> tuple[float, float]:
    """Lowest and highest multiplier; 1 lies between them."""
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        raise fail(name, value, "two numbers", "For example (0.5, 2.0).")
    low = number(0, 1, open_low=True)(f"{name}[0]", value[0])
    return low, number(1, open_high=True)(f"{name}[1]", value[1])


@config
class ContextualConfig(OptimizerConfig):
    """Options of ``Automagic_CameAMP_COptim``; those of the controller hold for the whole optimizer."""

    CONTROLLER_OPTIONS: ClassVar[tuple[str, ...]] = (
        "context_window",
        "edge_case_threshold",
        "adaptation_rate",
        "context_lr_bounds",
    )

    context_window: int = option(100, integer(2), "controller: steps of its slow means and histories")
    edge_case_threshold: float = option(
        0.95, number(0, 1, open_low=True, open_high=True), "controller: lower means fewer edge cases"
    )
    adaptation_rate: float = option(
        0.1, number(0, 1), "controller: speed of its fast means and of the multiplier; 0: always 1"
    )
    context_lr_bounds: tuple[float, float] = option(
        (0.5, 2.0), _multiplier_bounds, "controller: lowest and highest multiplier of the rates"
    )
    momentum_scales: list[int] | None = option(
        [1, 5, 10, 25], _scales, "lengths of momentum in steps, averaged; None: beta1's alone"
    )

    @property
    def edge_threshold(self) -> float:
        """``edge_case_threshold`` by the documents' name."""
        return self.edge_case_threshold

    @edge_threshold.setter
    def edge_threshold(self, value: float) -> None:
        self.edge_case_threshold = value


@config
class ContextualConfig8bit(ContextualConfig):
    """Options of ``Automagic_CameAMP_COptim8bit``."""

    blocksize: int = option(4096, power_of_two(64, 4096), "elements that share a scale")
    state_code: str = option("dynamic", choice("dynamic", "softsign", "softsign4"), "code of the momentum")
