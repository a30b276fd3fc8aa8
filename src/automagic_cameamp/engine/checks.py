"""What is refused, or warned of, when a parameter group is added."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from ..validate import callers_depth, fail


def check_parameter(p: Any) -> None:
    """Refuse what cannot be optimized."""
    if not isinstance(p, Tensor):
        return  # torch's own message is clear
    if p.layout is not torch.strided:
        raise ValueError(f"a {p.layout} parameter cannot be optimized: only dense parameters are supported.")
    if p.is_complex():
        raise ValueError(
            f"a complex parameter ({p.dtype}) cannot be optimized: pass torch.view_as_real(p) instead."
        )


def check_rate(group: dict[str, Any]) -> None:
    """Warn where lr lies outside the mask's range; refuse a level rule without a start."""
    lr, low, high = group["base_lr"], group["min_lr"], group["max_lr"]
    if group["lr_level"] == "distance" and lr == 0:
        raise fail("lr", lr, "lr_level='distance' needs a start above 0", "For example lr=1e-6.")
    if group["use_lr_mask"] and group["lr_mask_rule"] == "additive" and lr == 0:
        raise fail("lr", lr, "lr_mask_rule='additive' needs a rate above 0 to start from")
    if lr > high:
        text = f"lr={lr:g} is above max_lr={high:g}: rates are clamped to max_lr. Pass a higher max_lr."
        warnings.warn(text, stacklevel=callers_depth())
    elif 0 < lr < low:
        text = f"lr={lr:g} is below min_lr={low:g}: rates are raised to min_lr. Pass a lower min_lr."
        warnings.warn(text, stacklevel=callers_depth())
