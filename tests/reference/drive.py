"""Driving a recipe or an optimizer by hand: options, fresh state, gradients, many steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from automagic_cameamp import Automagic_CameAMP, recipes
from automagic_cameamp import techniques as T
from automagic_cameamp.configs import OptimizerConfig, in_group
from automagic_cameamp.recipes import base
from automagic_cameamp.schedule import phase_of
from automagic_cameamp.types import Layout, Phase
from reference import draws

# Everything that is not CAME itself, switched off.
PLAIN: dict[str, Any] = {
    "use_agr": False,
    "use_tam": False,
    "use_grams": False,
    "use_orthograd": False,
    "use_lr_mask": False,
    "full_finetune": True,
    "beta1_decay": 1.0,
    "final_clip": math.inf,
    "weight_decay": 0.0,
    "warmup_steps": 0,
}

# One entry per way through the recipe.
WAYS: dict[str, dict[str, Any]] = {
    "default": {},
    "plain": PLAIN,
    "adabelief": {"came": False},
    "adabelief plain": {**PLAIN, "came": False},
    "unfactored": {"factored": False},
    "confidence for vectors": {"confidence_1d": True},
    "agr and orthograd": {"use_agr": True, "use_orthograd": True, "full_finetune": True},
    "torque per row": {"tam_granularity": "row"},
    "decay always": {"weight_decay_phase": "always", "weight_decay": 0.1},
    "additive mask": {"lr_mask_rule": "additive"},
    "no mask": {"lr_mask_rule": "none"},
    "mask per row": {"lr_mask_granularity": "row"},
    "mask per tensor": {"lr_mask_granularity": "tensor"},
    "mask per group": {"lr_mask_granularity": "group"},
    "additive per row": {"lr_mask_granularity": "row", "lr_mask_rule": "additive"},
    "distance": {"lr_level": "distance"},
    "vote": {"lr_level": "vote"},
    "absolute floor": {"hard_min_lr": True, "min_lr": 5e-4},
}


def hyper(layout: Layout, **options: Any) -> base.Hyper:
    """Options of a group, as the engine hands them to the recipe."""
    values: dict[str, Any] = {f.name: f.default for f in fields(OptimizerConfig)}
    values |= {"lr": 1e-3, "max_lr": 1e-2, "warmup_steps": 6, **options}
    values["base_lr"] = float(options.get("base_lr", values["lr"]))
    values["allora"] = not values["full_finetune"]
    values["final_clip"] = values["clip_threshold"] if values["final_clip"] is None else values["final_clip"]
    values = in_group(values)
    return base.Hyper(**{name: x for name, x in values.items() if name in base.Hyper._fields})


def fresh(p: Tensor, hp: base.Hyper, layout: Layout) -> base.State:
    """First state of a stack."""
    state, params = {}, [row.reshape(layout.shape) for row in p]
    for spec in base.specs(layout, hp):
        value = recipes.initial(spec.name, params, layout)
        if value is None:
            shape = (p.shape[0], *spec.stack_shape(layout))
            value = torch.full(shape, spec.initial, dtype=spec.dtype or p.dtype)
        state[spec.name] = value
    return recipes.make_state(state)


def shared(hp: base.Hyper, t: int, dtype: torch.dtype = torch.float32) -> base.Shared:
    """Scalars over a model that is larger than the stack; they move with t."""
    level = 1.0 + 0.1 * t if hp.lr_level == "distance" else 0.03 * t
    numbers = (torch.tensor(x, dtype=dtype) for x in (1.0 + 0.01 * t, (-1.0) ** t * 3, level))
    return base.Shared(*numbers, level_start=hp.base_lr, clock=torch.tensor(t - 1.0))


def flatten(result: base.Result) -> dict[str, Tensor]:
    """Weights and every state field by name."""
    found = {name: x for name, x in recipes.as_dict(result.state).items() if x is not None}
    return {"p": result.p, "ok": result.ok, **found}


def run(
    p: Tensor,
    gradients: Iterable[Tensor],
    hp: base.Hyper,
    layout: Layout,
    phase: Callable[[int], Phase] | None = None,
    state: base.State | None = None,
    first: int = 1,
) -> Iterator[dict[str, Tensor]]:
    """Drive the recipe; yields everything after each update."""
    state = fresh(p, hp, layout) if state is None else state
    for t, g in enumerate(gradients, start=first):
        now = phase_of(t, hp.warmup_steps) if phase is None else phase(t)
        result = T.alone(base.update(p, g, state, shared(hp, t, p.dtype), hp, now, layout))
        p, state = result.p, result.state
        yield flatten(result)


def gradients(
    shape: tuple[int, ...], steps: int, seed: int = 0, batch: int = 1, dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    """Noise around a constant mean, with uneven scales, as [B,K,m,n] per step."""
    scale = draws.stack(shape, 10_000 + seed, batch).exp()
    mean = 0.3 * draws.stack(shape, 20_000 + seed, batch)
    noise = (draws.stack(shape, 100 * seed + t, batch) for t in range(steps))
    return [(scale * (mean + x)).to(dtype) for x in noise]


def parameters(
    shapes: Iterable[tuple[int, ...]], seed: int = 0, dtype: torch.dtype = torch.float32, scale: float = 0.1
) -> list[torch.nn.Parameter]:
    """Normal parameters of these shapes, marked as a LoRA's: the reference has ALLoRA's row gain."""
    values = (draws.normal(s, seed + i, scale, dtype) for i, s in enumerate(shapes))
    params = [torch.nn.Parameter(value) for value in values]
    for p in params:
        p._is_lora_layer = True  # type: ignore[attr-defined]
    return params


def give_gradients(params: list[torch.nn.Parameter], t: int, seed: int = 0) -> list[Tensor]:
    """Noise around a constant mean for step t; returns what was given."""
    for i, p in enumerate(params):
        mean = 0.5 * draws.normal(tuple(p.shape), 5_000 + 17 * i + seed)
        noise = draws.normal(tuple(p.shape), 1_000_000 + 7_919 * t + 31 * i + seed)
        p.grad = (mean + noise).to(p.dtype)
    return [p.grad for p in params if p.grad is not None]


def train(
    params: list[torch.nn.Parameter], steps: int, cls: Any = Automagic_CameAMP, seed: int = 0, **options: Any
) -> Any:
    """An optimizer that has taken some steps."""
    optimizer = cls(params, **{"lr": 1e-3, "max_lr": 1e-2, "warmup_steps": 6, **options})
    for t in range(1, steps + 1):
        give_gradients(params, t, seed)
        optimizer.step()
    return optimizer


def bits(optimizer: Any) -> list[Tensor]:
    """All weights and all state tensors, in a fixed order."""
    found = []
    for group in optimizer.param_groups:
        for p in group["params"]:
            found.append(p.detach().clone())
            found += [x.clone() for _, x in sorted(optimizer.state[p].items())]
    return found


def equal(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
