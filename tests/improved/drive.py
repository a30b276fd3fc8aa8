"""Driving the improved recipe and its classes by hand: options, fresh state, gradients, many steps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from automagic_cameamp import (
    Automagic_CameAMP_8Bit,
    Automagic_CameAMP_Improved,
    Automagic_CameAMP_Improved_8Bit,
    recipes,
)
from automagic_cameamp import techniques as T
from automagic_cameamp.configs import ImprovedOptimizerConfig, in_group
from automagic_cameamp.recipes import improved
from automagic_cameamp.schedule import phase_of
from automagic_cameamp.types import Layout, Phase
from reference import drive as base_drive

WARMUP = 6

# The regularisers that make the improved recipe more than the base recipe, all off.
OFF: dict[str, Any] = {
    "edge_suppression": False,
    "spatial_awareness": False,
    "background_regularization": False,
    "frequency_penalty": 0.0,
    "lora_rank_penalty": False,
    "use_cautious": False,
    "use_spd": False,
    "d_coef": 1,
}

# Small tensors have a tail too, and the search for it repeats within a short run.
SMALL: dict[str, Any] = {"rank_keep": 2, "sync_frequency": 3, "weight_decay": 0.1, "warmup_steps": WARMUP}

# One entry per way through the recipe.
WAYS: dict[str, dict[str, Any]] = {
    "default": {},
    "all off": OFF,
    "strong": {
        "edge_penalty": 1.0,
        "detail_preservation": 1.0,
        "frequency_penalty": 1.0,
        "rank_penalty_strength": 1.0,
        "low_rank_emphasis": 3.0,
        "d_coef": 7,
    },
    "kernels only": {"spatial_mode": "conv"},
    "adabelief": {"came": False},
    "unfactored": {"factored": False, "confidence_1d": True},
    "no signs": {"use_grams": False, "use_cautious": False},
    "no decay": {"use_spd": False, "weight_decay": 0.0},
    "agr and orthograd": {"use_agr": True, "use_orthograd": True, "full_finetune": True},
    "torque per row": {"tam_granularity": "row"},
    "additive mask": {"lr_mask_rule": "additive"},
    "mask per row": {"lr_mask_granularity": "row"},
    "mask per tensor": {"lr_mask_granularity": "tensor"},
    "mask per group": {"lr_mask_granularity": "group"},
    "no mask": {"lr_mask_rule": "none"},
    "percentile": {"percentile_clipping": 50},
    "distance": {"lr_level": "distance"},
    "vote": {"lr_level": "vote"},
}

# class -> options that make its code visible on small tensors
CODED: dict[str, tuple[type, dict[str, Any]]] = {
    "fp32": (Automagic_CameAMP_Improved, {}),
    "affine": (Automagic_CameAMP_8Bit, {"block_size": 64}),
    "affine without correction": (Automagic_CameAMP_8Bit, {"error_correction": False, "block_size": 64}),
    "softsign+8": (Automagic_CameAMP_8Bit, {"state_code": "softsign", "error_bits": 8}),
    "bf16 vectors": (Automagic_CameAMP_8Bit, {"state_code": "dynamic", "mixed_precision": False}),
    "dynamic": (Automagic_CameAMP_Improved_8Bit, {"min_8bit_size": 0, "force_8bit": True}),
    "memory_optimized": (
        Automagic_CameAMP_Improved_8Bit,
        {"profile": "memory_optimized", "min_8bit_size": 0},
    ),
}


def allowed(cls: Any, options: dict[str, Any]) -> dict[str, Any]:
    """The options that a class knows: percentile_clipping belongs to one of them only."""
    known = {f.name for f in fields(cls.config_class)}
    return {name: value for name, value in options.items() if name in known}


def hyper(layout: Layout, **options: Any) -> improved.Hyper:
    """Options of a group, as the engine hands them to the recipe."""
    values: dict[str, Any] = {f.name: f.default for f in fields(ImprovedOptimizerConfig)}
    values |= {"lr": 1e-3, "max_lr": 1e-2, "percentile_clipping": 100, **SMALL, **options}
    values["base_lr"] = float(options.get("base_lr", values["lr"]))
    values["allora"], values["lora"], values["table"] = not values["full_finetune"], True, 0
    values["final_clip"] = values["clip_threshold"] if values["final_clip"] is None else values["final_clip"]
    values = in_group(values)
    return improved.Hyper(**{name: x for name, x in values.items() if name in improved.Hyper._fields})


def fresh(p: Tensor, hp: improved.Hyper, layout: Layout) -> improved.State:
    """First state of a stack."""
    state = {}
    for spec in improved.specs(layout, hp):
        value = recipes.initial(spec.name, list(p), layout)
        if value is None:
            shape = (p.shape[0], *spec.stack_shape(layout))
            value = torch.full(shape, spec.initial, dtype=spec.dtype or p.dtype)
        state[spec.name] = value.clone()
    return recipes.make_state(state)


def shared(hp: improved.Hyper, t: int, dtype: torch.dtype = torch.float32, size: int = 2) -> improved.Shared:
    """Scalars over a model that is larger than a stack of this size; they move with t."""
    level = 1.0 + 0.1 * t if hp.lr_level == "distance" else 0.03 * t
    numbers = (torch.tensor(x, dtype=dtype) for x in (1.0 + 0.01 * t, (-1.0) ** t * 3, level))
    first = improved.Shared(*numbers, level_start=hp.base_lr, clock=torch.tensor(t - 1.0))
    return first._replace(refresh=tuple(range(size)) if t % 3 == 1 else ())


def flatten(result: improved.Result) -> dict[str, Tensor]:
    """Weights and every state field by name."""
    found = {name: x for name, x in recipes.as_dict(result.state).items() if x is not None}
    return {"p": result.p, "ok": result.ok, **found}


def run(
    p: Tensor,
    gradients: Iterable[Tensor],
    hp: improved.Hyper,
    layout: Layout,
    phase: Callable[[int], Phase] | None = None,
) -> Iterator[dict[str, Tensor]]:
    """Drive the recipe; yields everything after each update."""
    state = fresh(p, hp, layout)
    for t, g in enumerate(gradients, start=1):
        now = phase_of(t, hp.warmup_steps) if phase is None else phase(t)
        result = T.alone(improved.update(p, g, state, shared(hp, t, p.dtype, len(p)), hp, now, layout))
        p, state = result.p, result.state
        yield flatten(result)


def train(params: list[torch.nn.Parameter], steps: int, cls: Any, seed: int = 0, **options: Any) -> Any:
    """An optimizer that has taken some steps."""
    given = {"lr": 1e-3, "max_lr": 1e-2, **SMALL, **options}
    return base_drive.train(params, steps, cls, seed, **allowed(cls, given))
