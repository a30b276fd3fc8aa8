"""Types and stages that the recipes share: what happens between a gradient and a direction."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import techniques as T
from ..storage.spec import StateSpec
from ..types import Layout, Phase, Scalars
from . import _rate


class Hyper(NamedTuple):
    """Options of one parameter group. Rates are per step; everything else has no unit.

    ``base_lr`` is the rate at construction, ``lr_floor`` and ``lr_cap`` are min_lr and max_lr (None where
    the user gave none).
    """

    lr: float | Tensor
    base_lr: float
    lr_floor: float
    lr_cap: float | None
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
    vote_clock: Tensor | None = None
    edge_history: Tensor | None = None
    spatial_variance: Tensor | None = None
    lowrank_basis: Tensor | None = None
    lowrank_tail: Tensor | None = None
    lowrank_rate: Tensor | None = None
    gnorm_history: Tensor | None = None
    sign_history: Tensor | None = None


class Result(NamedTuple):
    """What an update returns.

    Args:
        p: [B,K,m,n] new weights.
        state: new state.
        ok: [B,1,1,1] bool, False where the gradient was not usable.
        signals: what a controller over the whole model wants to know.
    """

    p: Tensor
    state: State
    ok: Tensor
    signals: Any = None


def make_state(fields: dict[str, Tensor]) -> State:
    """State from decoded fields by name."""
    return State(**fields)


def as_dict(state: State) -> dict[str, Any]:
    """Fields by name."""
    return state._asdict()


def moment_specs(layout: Layout, hp: Hyper) -> list[StateSpec]:
    """Fields of the shared stages for a parameter of this layout."""
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
    fields.append(StateSpec("avg_lr", "tensor", dtype=torch.float32, initial=hp.base_lr))
    return fields


def _moment(name: str, factored: bool) -> list[StateSpec]:
    if factored:
        return [StateSpec(f"{name}_row", "row", "vector"), StateSpec(f"{name}_col", "col", "vector")]
    return [StateSpec(name, "full", "positive")]


def normalise(g: Tensor, state: State, hp: Hyper) -> tuple[Tensor, State]:
    """Gradient -> update of unit size, clipped to a root mean square of clip_threshold."""
    square = g.square()
    if state.exp_avg_sq_row is not None and state.exp_avg_sq_col is not None:
        row, col = T.factored_moment(
            state.exp_avg_sq_row, state.exp_avg_sq_col, square, hp.betas[1], hp.eps[0], "square"
        )
        state = state._replace(exp_avg_sq_row=row, exp_avg_sq_col=col)
        u = T.factored_rsqrt(g, row, col, "square")
    else:
        assert state.exp_avg_sq is not None
        full = T.ema(state.exp_avg_sq, square + hp.eps[0], hp.betas[1])
        state = state._replace(exp_avg_sq=full)
        u = g * full.rsqrt()
    return T.rms_clip(u, hp.clip_threshold, "update"), state


def accumulate(u: Tensor, state: State, k: Scalars, hp: Hyper, phase: Phase) -> State:
    """Momentum: torque-aware in the first half of the warm-up, consistency momentum after it."""
    if state.s is not None and phase.may_be_early:
        s, damping = T.torque(state.s, state.exp_avg, u, per_row=hp.tam_granularity == "row")
        damping = torch.where(k.early, damping + hp.eps[2], 1.0)
        state = state._replace(s=torch.where(k.early, s, state.s))
        u = u * damping
    return state._replace(exp_avg=T.ema(state.exp_avg, u, k.beta1))


def confidence(u: Tensor, state: State, hp: Hyper) -> tuple[Tensor, State, Tensor]:
    """CAME: divide the momentum by the root of its running surprise (matrices; vectors on request)."""
    m = state.exp_avg
    if state.exp_avg_res_row is not None and state.exp_avg_res_col is not None:
        surprise = T.belief_residual(u, m)
        row, col = T.factored_moment(
            state.exp_avg_res_row, state.exp_avg_res_col, surprise, hp.betas[2], hp.eps[1], "surprise"
        )
        state = state._replace(exp_avg_res_row=row, exp_avg_res_col=col)
        out = T.factored_rsqrt(m, row, col, "surprise")
    elif state.exp_avg_res is not None:
        full = T.ema(state.exp_avg_res, T.belief_residual(u, m) + hp.eps[1], hp.betas[2])
        state = state._replace(exp_avg_res=full)
        out = m * full.rsqrt()
    else:
        out = m
    if state.exp_avg_sq_row is not None and state.exp_avg_sq_col is not None:
        rows = T.all_finite(state.exp_avg_sq_row, "finite.row")
        return out, state, rows & T.all_finite(state.exp_avg_sq_col, "finite.col")
    assert state.exp_avg_sq is not None
    return out, state, T.all_finite(state.exp_avg_sq, "finite")


def belief(g: Tensor, state: State, k: Scalars, hp: Hyper) -> tuple[Tensor, State, Tensor]:
    """AdaBelief: bias-corrected momentum over the root of its variance around the momentum."""
    assert state.exp_avg_var is not None and state.beta1_product is not None
    var = T.ema(state.exp_avg_var, T.belief_residual(g, state.exp_avg), hp.betas[1]) + hp.eps[1]
    product = state.beta1_product * k.beta1
    decayed = (k.t * math.log(hp.betas[1])).exp() if hp.betas[1] else torch.zeros_like(k.t)
    corrected = var / (1 - decayed)
    out = state.exp_avg / (1 - product) / (corrected.sqrt() + hp.eps[2])
    return out, state._replace(exp_avg_var=var, beta1_product=product), T.all_finite(var, "finite.variance")


def displacement(
    p: Tensor,
    g: Tensor,
    u: Tensor,
    out: Tensor,
    state: State,
    shared: _rate.Shared,
    k: Scalars,
    hp: Any,
    phase: Phase,
    layout: Layout,
    gain: Tensor | None = None,
    scale: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, State]:
    """Direction -> what is subtracted from the weights: clipped, times the rate of each element.

    Args:
        p: [B,K,m,n] weights before the step.
        g: [B,K,m,n] raw gradient.
        u: [B,K,m,n] update of unit size.
        out: [B,K,m,n] direction.
        gain: factors that are no part of the rate, broadcast to [B,K,m,n].
        scale: [B,1,1,1] factor of ``out`` that followed from other sums over the tensor.

    Returns:
        The displacement, the rate relative to the group's lr, the gain of the clip, the new state.
    """
    row_gain = T.allora_gain(p, hp.eta) if hp.allora and layout.matrix else torch.ones_like(k.t)
    rate, state = _rate.rate(g, u, p, row_gain, state, shared, k, hp, phase)
    clip = torch.ones_like(k.t)
    if not math.isinf(hp.final_clip):
        clip = T.rms_gain(out, hp.final_clip, "final", scale)
    d = out * rate * (clip * hp.lr)
    if gain is not None:
        d = d * gain
    if hp.use_orthograd and phase.may_be_early:
        d = torch.where(k.early, T.orthograd(d, p), d)
    return d, rate, clip, state


def decay(p: Tensor, g: Tensor, rate: Tensor, k: Scalars, hp: Hyper, phase: Phase) -> Tensor:
    """Decoupled weight decay, stronger where the gradient is large; early phase only by default."""
    early_only = hp.weight_decay_phase == "early"
    if hp.weight_decay == 0 or (early_only and not phase.may_be_early):
        return p
    strength = T.adaptive_decay(g).mul_(rate)
    if early_only and phase is Phase.MIXED:
        strength = strength * k.early.to(p.dtype)
    if isinstance(hp.lr, Tensor):
        return torch.addcmul(p, strength * (hp.lr * hp.weight_decay), p, value=-1)
    return torch.addcmul(p, strength, p, value=-hp.lr * hp.weight_decay)
