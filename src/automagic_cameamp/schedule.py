"""Step number -> phase and per-tensor scalars. Everything that changes with time is decided here."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .types import Phase, Scalars

BETA1_FLOOR = 0.4


def phase_of(t: float, warmup_steps: int) -> Phase:
    """Phase of update number ``t`` (from 1) for a warm-up of ``warmup_steps``; 0 means LATE at once."""
    if t >= warmup_steps:
        return Phase.LATE
    return Phase.EARLY if t < warmup_steps / 2 else Phase.MIDDLE


def phase_between(first: float, last: float, warmup_steps: int) -> Phase:
    """The common phase of updates ``first..last``, or MIXED where they differ."""
    low, high = phase_of(first, warmup_steps), phase_of(last, warmup_steps)
    return low if low is high else Phase.MIXED


def scalars(
    t: Tensor, beta1: float, beta1_decay: float, warmup_steps: int, phase: Phase = Phase.MIXED
) -> Scalars:
    r"""Scalars of update number t.

    .. math:: \beta_{1,t} = \beta_1 \;(t < W/2), \quad \max(\beta_1 d^t, 0.4) \;\text{after};
              \qquad a_t = d^t

    Args:
        t: [B,1,1,1] number of this update, from 1, in the dtype of the arithmetic.
        beta1: momentum coefficient, [0, 1).
        beta1_decay: d, (0, 1]; 1 keeps beta1 and a pure Grams direction for ever.
        warmup_steps: W, >= 0.
        phase: where all of them stand.

    Returns:
        Scalars, each [B,1,1,1].

    Source: momentum schedule after Xu et al. 2024, arXiv 2404.07946 (abstract only).
    Deviations: a coefficient below the floor from the start (beta1 < 0.4) is kept as it is.
    """
    decay = (t * math.log(beta1_decay)).exp()  # torch.pow rounds by position in the stack
    floor = min(BETA1_FLOOR, beta1)
    now = (decay * beta1).clamp(min=floor)
    if phase.may_be_early:
        now = torch.where(t < warmup_steps / 2, beta1, now)
    return Scalars(t, now, decay, warmup_steps)
