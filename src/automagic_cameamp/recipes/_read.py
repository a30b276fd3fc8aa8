"""State of the rate in a user's units: rates, signs and gains instead of counters and bits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import techniques as T
from ..types import Layout
from ._data import Hyper
from ._rate import additive_mask, has_mask, mask_code, rate_bounds

__all__ = ["has_mask", "mask_rates", "polarity", "row_scaling"]


def row_scaling(p: Tensor, hp: Hyper) -> Tensor:
    """ALLoRA's gain of every row of one parameter [1,K,m,n]: [K * m]."""
    return T.allora_gain(p, hp.eta).flatten()


def mask_rates(
    state: dict[str, Any], layout: Layout, hp: Hyper, mask_mean: float, found: float | Tensor = 1.0
) -> Tensor:
    """Rate that the mask gives each element at the group's learning rate of now, without gains.

    Args:
        found: the automatic level, the group's ``d``, which the bounds count as well; 1 with any other level.
    """
    code = mask_code(hp)
    word = state["lr_mask"]
    counter = T.split_word(word, code)[0] if hp.lr_mask_granularity == "element" else word
    if hp.lr_mask_rule == "additive":
        mask = additive_mask(counter, torch.float32, hp)
    else:
        mask = T.geometric_mask(counter, torch.tensor(mask_mean, dtype=torch.float32, device=word.device))
    rates = T.limited(mask * found, *rate_bounds(hp)) * hp.lr
    if hp.lr_mask_granularity == "row" and layout.matrix:
        lead = rates.reshape(layout.batch, layout.rows, 1)
        return lead.expand(layout.view).reshape(layout.shape)
    return rates.expand(layout.shape)


def polarity(state: dict[str, Any], layout: Layout, hp: Hyper) -> Tensor:
    """True where the last gradient that was not 0 was positive."""
    if hp.lr_mask_granularity == "element":
        return (state["lr_mask"] & 1) == 0
    bits = T.unpack_bits(state["last_polarity"].unsqueeze(0), layout.view)
    return ~bits.reshape(layout.shape)
