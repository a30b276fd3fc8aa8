"""Step number -> phase and per-tensor scalars. Everything that changes with time is decided here."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .types import Phase, Scalars

BETA1_FLOOR = 0.4  # of the documents


def phase_of(t: float, warmup_steps: int) -> Phase:
    """Phase of update number ``t`` (from 1) for a warm-up of ``warmup_steps``; 0 means LATE at once."""
    if t >= warmup_steps:
        return Phase.LATE
    return Phase.EARLY if t < warmup_steps / 2 else Phase.MIDDLE


def phase_between(first: float, last: float, warmup_steps: int) -> Phase:
    """The common phase of updates ``first..last``, or MIXED where they differ."""
    low, high = phase_of(first, warmup_steps), phase_of(last, warmup_steps)
    return low if low is high else Phase.MIXED


def _documented_floor(beta1: float) -> float:
    return min(BETA1_FLOOR, beta1)


def lowest_beta1(beta1: float, lr: float | Tensor, base_lr: float | Tensor, follows: bool) -> float | Tensor:
    r"""What the decay of beta1 stops at.

    .. math:: \max(\min(0.4, \beta_1),\; \beta_1 \min(1, \eta / \eta_0))

    A falling schedule averages the noise of the steps out, and momentum is in its way at the end of a run; at
    a constant rate nothing else does, and without it long runs end behind AdamW. By default where the rate is
    found: one that was typed may be changed by hand, and its moves are the documents' times its schedule.

    Args:
        beta1: momentum coefficient, [0, 1).
        lr: current learning rate; a tensor gives a tensor.
        base_lr: the first one.
        follows: False for the first term alone, which is what the documents say.

    Returns:
        The lowest coefficient.

    Source: ours; what it gains at constant rates and that it costs nothing under a cosine is in
    docs/evidence/log.md (2026-11-30).
    """
    low = _documented_floor(beta1)
    if not follows:
        return low
    if isinstance(base_lr, Tensor):
        left = torch.where(base_lr > 0, lr / base_lr.clamp(min=torch.finfo(torch.float32).tiny), 1.0)
    elif base_lr > 0:
        left = lr / base_lr
    else:
        return beta1
    if isinstance(left, Tensor):
        return (left.clamp(max=1.0) * beta1).clamp(min=low)
    return max(low, beta1 * min(1.0, left))


def scalars(
    t: Tensor,
    beta1: float,
    beta1_decay: float,
    warmup_steps: int,
    phase: Phase = Phase.MIXED,
    lowest: float | Tensor | None = None,
) -> Scalars:
    r"""Scalars of update number t.

    .. math:: \beta_{1,t} = \beta_1 \;(t < W/2), \quad \max(\beta_1 d^t, \beta_{low}) \;\text{after};
              \qquad a_t = d^t

    Args:
        t: [B,1,1,1] number of this update, from 1, in the dtype of the arithmetic.
        beta1: momentum coefficient, [0, 1).
        beta1_decay: d, (0, 1]; 1 keeps beta1 and a pure Grams direction for ever.
        warmup_steps: W, >= 0.
        phase: where all of them stand.
        lowest: what beta1 decays to; None: 0.4, or beta1 where that is lower.

    Returns:
        Scalars, each [B,1,1,1].

    Source: momentum schedule after Xu et al. 2024, arXiv 2404.07946 (abstract only).
    Deviations: a coefficient below the floor from the start (beta1 < 0.4) is kept as it is; by default the
    floor is higher while the learning rate is (``lowest_beta1``).
    """
    decay = (t * math.log(beta1_decay)).exp()  # torch.pow rounds by position in the stack
    floor = _documented_floor(beta1) if lowest is None else lowest
    now = decay * beta1
    now = torch.maximum(now, floor.to(now.dtype)) if isinstance(floor, Tensor) else now.clamp(min=floor)
    if phase.may_be_early:
        now = torch.where(t < warmup_steps / 2, beta1, now)
    return Scalars(t, now, decay, warmup_steps)
