"""Automagic CameAMP: the base recipe, to be read from top to bottom like an algorithm box.

One update of a stack of same-shape parameters:

1.  statistics of the gradient, kept as row and column means          (CAME)
2.  an update of unit size, its root mean square clipped              (CAME, Adafactor)
3.  a running mean that listens less to updates that turn away        (TAM, then consistency)
4.  division by how surprising the updates are                        (CAME confidence)
5.  signs pulled towards the gradient's                               (Grams)
6.  a rate per element: scheduler x level x mask x row gain           (Automagic, ALLoRA)
7.  weight decay, projection, write

With ``came=False`` steps 1, 2 and 4 are AdaBelief's. Sources and deviations stand at each technique.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .. import schedule
from .. import techniques as T
from ..storage.spec import StateSpec
from ..types import Layout, Phase, Scalars
from . import _rate
from ._rate import LAGGED, Shared, share

__all__ = ["LAGGED", "Hyper", "Result", "Shared", "State", "initial", "share", "specs", "update"]


class Hyper(NamedTuple):
    """Options of one parameter group. Rates are per step; everything else has no unit."""

    lr: float | Tensor
    base_lr: float
    min_lr: float
    max_lr: float
    lr_bump: float
    eps: tuple[float, float, float]
    clip_threshold: float
    betas: tuple[float, float, float]
    beta1_decay: float
    eta: float
    weight_decay: float
    warmup_steps: int
    came: bool
    allora: bool
    factored: bool
    confidence_1d: bool
    final_clip: float
    use_agr: bool
    use_tam: bool
    use_grams: bool
    use_orthograd: bool
    use_lr_mask: bool
    tam_granularity: str
    weight_decay_phase: str
    hard_min_lr: bool
    lr_mask_rule: str
    lr_mask_granularity: str
    lr_level: str


class State(NamedTuple):
    """State of a stack; None where the options need no such field. Shapes: see ``StateSpec``."""

    step: Tensor
    exp_avg: Tensor
    avg_lr: Tensor
    exp_avg_sq: Tensor | None = None
    exp_avg_sq_row: Tensor | None = None
    exp_avg_sq_col: Tensor | None = None
    exp_avg_res: Tensor | None = None
    exp_avg_res_row: Tensor | None = None
    exp_avg_res_col: Tensor | None = None
    exp_avg_var: Tensor | None = None
    beta1_product: Tensor | None = None
    s: Tensor | None = None
    lr_mask: Tensor | None = None
    lr_mask_sum: Tensor | None = None
    lr_mask_vote: Tensor | None = None
    last_polarity: Tensor | None = None
    lr_level: Tensor | None = None
    level_anchor: Tensor | None = None
    level_sum: Tensor | None = None
    level_r: Tensor | None = None
    level_norm: Tensor | None = None
    sign_history: Tensor | None = None


class Result(NamedTuple):
    """New weights, new state, and [B,1,1,1] bool: False where the gradient was not usable."""

    p: Tensor
    state: State
    ok: Tensor


def specs(layout: Layout, hp: Hyper) -> tuple[StateSpec, ...]:
    """Fields that a parameter of this layout keeps under these options."""
    fields = [StateSpec("step", "tensor", dtype=torch.float32), StateSpec("exp_avg", "full", "signed")]
    factored = layout.matrix and hp.factored
    if hp.came:
        fields += _moment("exp_avg_sq", factored)
        if layout.matrix or hp.confidence_1d:
            fields += _moment("exp_avg_res", factored)
    else:
        fields.append(StateSpec("exp_avg_var", "full", "positive"))
        fields.append(StateSpec("beta1_product", "tensor", initial=1.0))
    if hp.use_tam and hp.warmup_steps > 0:
        per_row = hp.tam_granularity == "row" and layout.matrix
        fields.append(StateSpec("s", "row" if per_row else "tensor"))
    fields.append(StateSpec("avg_lr", "tensor", dtype=torch.float32))
    return (*fields, *_rate.specs(layout, hp))


def _moment(name: str, factored: bool) -> list[StateSpec]:
    if factored:
        return [StateSpec(f"{name}_row", "row"), StateSpec(f"{name}_col", "col")]
    return [StateSpec(name, "full", "positive")]


def initial(name: str, p: Tensor) -> Tensor | None:
    """First value of a field that depends on the weights [B,K,m,n]; None for all others."""
    return T.sample(p).float() if name == "level_anchor" else None


def update(
    p: Tensor, g: Tensor, state: State, shared: Shared, hp: Hyper, phase: Phase, layout: Layout
) -> Result:
    """One step of a stack.

    Args:
        p: [B,K,m,n] weights in the type of the arithmetic (fp32; fp64 for fp64 weights).
        g: [B,K,m,n] raw gradient, same type.
        state: decoded state of the stack.
        shared: scalars over all parameters, from the previous step.
        hp: options of the group.
        phase: where the whole stack stands, or MIXED.
        layout: the view of the parameters.

    Returns:
        New weights and state; the engine keeps the old ones where ``ok`` is False.
    """
    k = schedule.scalars(state.step.to(p.dtype) + 1, hp.betas[0], hp.beta1_decay, hp.warmup_steps)
    raw = g
    if hp.use_agr:
        g = T.agr(g)

    if hp.came:
        u, state = _normalise(g, state, hp)
    else:
        u = g
    state = _accumulate(u, state, k, hp, phase)
    out, state, ok = _confidence(u, state, hp) if hp.came else _belief(g, state, k, hp)
    if hp.use_grams:
        out = T.grams(out, raw, k.grams_mix)

    rate, state = _rate.rate(raw, u, p, state, shared, k, hp, phase)
    gain = T.allora_gain(p, hp.eta) if hp.allora and layout.matrix else torch.ones_like(k.t)
    clip = T.rms_gain(out, hp.final_clip) if not math.isinf(hp.final_clip) else torch.ones_like(k.t)
    d = out * (gain * clip * hp.lr) * rate
    if hp.use_orthograd and phase.may_be_early:
        d = torch.where(k.early, T.orthograd(d, p), d)

    mean_rate = T.tensor_mean((gain * rate).expand_as(p)) * hp.lr
    p = _decay(p, raw, rate, k, hp, phase) - d
    return Result(p, state._replace(step=state.step + 1, avg_lr=mean_rate.float()), ok)


def _normalise(g: Tensor, state: State, hp: Hyper) -> tuple[Tensor, State]:
    """Gradient -> update of unit size, clipped to a root mean square of clip_threshold."""
    square = g.square()
    if state.exp_avg_sq_row is not None and state.exp_avg_sq_col is not None:
        row, col = T.factored_moment(
            state.exp_avg_sq_row, state.exp_avg_sq_col, square, hp.betas[1], hp.eps[0]
        )
        state = state._replace(exp_avg_sq_row=row, exp_avg_sq_col=col)
        u = T.factored_rsqrt(g, row, col)
    else:
        assert state.exp_avg_sq is not None
        full = T.ema(state.exp_avg_sq, square + hp.eps[0], hp.betas[1])
        state = state._replace(exp_avg_sq=full)
        u = g * full.rsqrt()
    return T.rms_clip(u, hp.clip_threshold), state


def _accumulate(u: Tensor, state: State, k: Scalars, hp: Hyper, phase: Phase) -> State:
    """Momentum: torque-aware in the first half of the warm-up, consistency momentum after it."""
    if state.s is not None and phase.may_be_early:
        s, damping = T.torque(state.s, state.exp_avg, u, per_row=hp.tam_granularity == "row")
        damping = torch.where(k.early, damping + hp.eps[2], 1.0)
        state = state._replace(s=torch.where(k.early, s, state.s))
        u = u * damping
    return state._replace(exp_avg=T.ema(state.exp_avg, u, k.beta1))


def _confidence(u: Tensor, state: State, hp: Hyper) -> tuple[Tensor, State, Tensor]:
    """CAME: divide the momentum by the root of its running surprise (matrices; vectors on request)."""
    m = state.exp_avg
    if state.exp_avg_res_row is not None and state.exp_avg_res_col is not None:
        surprise = T.belief_residual(u, m)
        row, col = T.factored_moment(
            state.exp_avg_res_row, state.exp_avg_res_col, surprise, hp.betas[2], hp.eps[1]
        )
        state = state._replace(exp_avg_res_row=row, exp_avg_res_col=col)
        out = T.factored_rsqrt(m, row, col)
    elif state.exp_avg_res is not None:
        full = T.ema(state.exp_avg_res, T.belief_residual(u, m) + hp.eps[1], hp.betas[2])
        state = state._replace(exp_avg_res=full)
        out = m * full.rsqrt()
    else:
        out = m
    moment = state.exp_avg_sq_row if state.exp_avg_sq_row is not None else state.exp_avg_sq
    assert moment is not None
    return out, state, T.all_finite(moment)


def _belief(g: Tensor, state: State, k: Scalars, hp: Hyper) -> tuple[Tensor, State, Tensor]:
    """AdaBelief: bias-corrected momentum over the root of its variance around the momentum."""
    assert state.exp_avg_var is not None and state.beta1_product is not None
    var = T.ema(state.exp_avg_var, T.belief_residual(g, state.exp_avg), hp.betas[1]) + hp.eps[1]
    product = state.beta1_product * k.beta1
    corrected = var / (1 - hp.betas[1] ** k.t)
    out = state.exp_avg / (1 - product) / (corrected.sqrt() + hp.eps[2])
    return out, state._replace(exp_avg_var=var, beta1_product=product), T.all_finite(var)


def _decay(
    p: Tensor, g: Tensor, rate: Tensor | float, k: Scalars, hp: Hyper, phase: Phase
) -> Tensor:
    """Decoupled weight decay, stronger where the gradient is large; early phase only by default."""
    early_only = hp.weight_decay_phase == "early"
    if hp.weight_decay == 0 or (early_only and not phase.may_be_early):
        return p
    strength = T.adaptive_decay(g) * rate * (hp.lr * hp.weight_decay)
    if early_only:
        strength = strength * k.early.to(p.dtype)
    return p - strength * p
