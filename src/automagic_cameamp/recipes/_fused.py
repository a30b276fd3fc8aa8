"""What an engine that fuses a whole step has to know of the recipes: which options it may meet, and numbers.

The fused kernels restate the recipes' equations for another machine; tests hold both in lock-step.
Options that no kernel implements are named here, and the reference runs them.
"""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from .. import techniques as T
from ..types import Layout
from . import _rate, contextual, improved

__all__ = [
    "hyper_row",
    "mask_table",
    "momenta",
    "picture_size",
    "renews",
    "sign_table",
    "unsupported",
    "weights",
]


GRAINS = ("element", "row", "tensor")  # what shares a value of the mask, as the kernels know it


def unsupported(recipe: ModuleType, hp: Any, layout: Layout) -> str | None:
    """The option of this group that the fused kernels do not implement, or None."""
    wrong = {
        "came=False": not hp.came,
        "use_agr=True": hp.use_agr,
        "use_orthograd=True": hp.use_orthograd,
        "tam_granularity='row'": hp.tam_granularity == "row" and hp.use_tam,
        f"lr_level={hp.lr_level!r}": hp.lr_level != "fixed",
    }
    if _rate.has_mask(hp):
        wrong[f"lr_mask_rule={hp.lr_mask_rule!r}"] = hp.lr_mask_rule != "geometric"
        grain = hp.lr_mask_granularity
        wrong[f"lr_mask_granularity={grain!r}"] = grain not in GRAINS
    if recipe is improved:
        wrong["percentile_clipping"] = hp.percentile_clipping < 100
        wrong["factored=False with background_regularization"] = (
            hp.background_regularization and layout.matrix and not hp.factored
        )
        sides = hp.spatial_awareness and hp.detail_preservation > 0 and layout.matrix
        wrong["factored=False with spatial_awareness"] = sides and not hp.factored
        wrong["factored=False with lora_rank_penalty"] = renews(recipe, hp, layout) and not hp.factored
    return next((name for name, bad in wrong.items() if bad), None)


def renews(recipe: ModuleType, hp: Any, layout: Layout) -> bool:
    """Whether a parameter has a basis that is found anew from time to time, which the reference does."""
    return recipe is improved and improved._has_low_rank(layout, hp)


def hyper_row(recipe: ModuleType, hp: Any) -> dict[str, float]:
    """Options of a group as the numbers that the kernels read, by name of the column (``H_*``)."""
    beta1 = hp.betas[0]
    if recipe is contextual:
        beta1 = T.own_beta(beta1, hp.momentum_scales)
    bounded = hp.base_lr > 0
    mask = 0
    if _rate.has_mask(hp):
        mask = GRAINS.index(hp.lr_mask_granularity) + 1
    row = {
        "EPS0": hp.eps[0],
        "EPS1": hp.eps[1],
        "EPS2": hp.eps[2],
        "CLIP": hp.clip_threshold,
        "FINAL": hp.final_clip,
        "BETA1": beta1,
        "W1": 1 - beta1,
        "W2": 1 - hp.betas[1],
        "W3": 1 - hp.betas[2],
        "LOG_DECAY": math.log(hp.beta1_decay),
        "FLOOR": min(0.4, beta1),
        "WARMUP": hp.warmup_steps,
        "ALLORA": hp.allora,
        "ETA2": 1 / hp.eta**2,
        "TAM": hp.use_tam and hp.warmup_steps > 0,
        "GRAMS": hp.use_grams,
        "MASK": mask,
        "LOW": hp.min_lr / hp.base_lr if bounded else -math.inf,
        "HIGH": hp.max_lr / hp.base_lr if bounded else math.inf,
        "HARD": hp.min_lr if hp.hard_min_lr else 0.0,
        "BOOST": getattr(hp, "d_coef", 1),
        "OWN": 1.0,
    }
    if recipe is improved:
        row |= {
            "CAUTIOUS": hp.use_cautious,
            "SPD": hp.weight_decay if hp.use_spd else 0.0,
            "EDGE": hp.edge_penalty,
            "EDGE_AT": hp.edge_threshold,
            "BACKGROUND": hp.background_regularization,
            "DETAIL": hp.detail_preservation,
            "FREQUENCY": hp.frequency_penalty,
            "EMPHASIS": hp.low_rank_emphasis,
            "OWED": hp.rank_penalty_strength,
        }
    else:
        row |= {"DECAY": hp.weight_decay, "DECAY_ALWAYS": hp.weight_decay_phase == "always"}
    if recipe is contextual and hp.momentum_scales is not None:
        row["OWN"], row["NOW"], _ = T.scale_weights(hp.betas[0], hp.momentum_scales)
    return row


def momenta(recipe: ModuleType, hp: Any) -> list[str]:
    """Names of the further running means that a group keeps."""
    if recipe is not contextual:
        return []
    return [f"{contextual.FIELD}{s}" for s in T.kept_scales(hp.betas[0], hp.momentum_scales)]


def weights(recipe: ModuleType, hp: Any) -> list[float]:
    """For each of them: weight of a new update, and share in the mixture."""
    if recipe is not contextual or hp.momentum_scales is None:
        return []
    scales = T.kept_scales(hp.betas[0], hp.momentum_scales)
    shares = T.scale_weights(hp.betas[0], hp.momentum_scales)[2]
    return [x for s, share in zip(scales, shares, strict=True) for x in (1 - (1 - 1 / s), share)]


def picture_size(recipe: ModuleType, hp: Any, layout: Layout) -> tuple[int, int]:
    """Height and width of the pictures that a parameter is seen as; zeros where it is none."""
    if recipe is not improved or not improved.has_picture(layout, hp):
        return 0, 0
    return layout.shape[-2], layout.shape[-1]


def sign_table(device: torch.device) -> Tensor:
    """The cyclic table of random signs behind sketches."""
    return T.random_signs(65_537, 0, torch.empty((), device=device)).contiguous()


def mask_table(device: torch.device) -> Tensor:
    """Multipliers of all counters of the geometric mask, lowest first."""
    one = torch.ones((), device=device)
    codes = torch.arange(T.GEOMETRIC.low, T.GEOMETRIC.high + 1, dtype=torch.int32, device=device)
    return T.geometric_mask(codes, one)
