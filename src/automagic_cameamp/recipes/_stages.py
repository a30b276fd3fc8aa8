"""Types and stages that the recipes share: what happens between a gradient and a direction."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import schedule
from .. import techniques as T
from ..storage.spec import StateSpec
from ..types import Layout, Phase, Scalars
from . import _rate
from ._data import SCALE, Hyper, State


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
    scales = {name: value for name, value in fields.items() if name.startswith(SCALE)}
    return State(**{name: value for name, value in fields.items() if name not in scales}, scales=scales)


def as_dict(state: State) -> dict[str, Any]:
    """Fields by name."""
    fields = state._asdict()
    return {**fields.pop("scales"), **fields}


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


def scalars(state: State, p: Tensor, hp: Hyper, phase: Phase, beta1: float | None = None) -> Scalars:
    """Scalars of the update that follows a state, in the type of the weights.

    Args:
        beta1: coefficient of ``exp_avg``; None: that of the options.
    """
    beta1 = hp.betas[0] if beta1 is None else beta1
    lowest = schedule.lowest_beta1(beta1, hp.lr, hp.base_lr, hp.beta1_follows_lr)
    return schedule.scalars(state.step.to(p.dtype) + 1, beta1, hp.beta1_decay, hp.warmup_steps, phase, lowest)


def normalise(g: Tensor, state: State, hp: Hyper) -> T.Steps[tuple[Tensor, State]]:
    """Gradient -> update of unit size, and the new moments."""
    square = g.square()
    if state.exp_avg_sq_row is not None and state.exp_avg_sq_col is not None:
        row, col, level = yield from T.factored_moment.steps(
            state.exp_avg_sq_row, state.exp_avg_sq_col, square, hp.betas[1], hp.eps[0]
        )
        state = state._replace(exp_avg_sq_row=row, exp_avg_sq_col=col)
        return T.factored_rsqrt(g, row, col, level), state
    assert state.exp_avg_sq is not None
    full = T.ema(state.exp_avg_sq, square + hp.eps[0], hp.betas[1])
    return g * full.rsqrt(), state._replace(exp_avg_sq=full)


def accumulate(
    u: Tensor, state: State, k: Scalars, hp: Hyper, phase: Phase
) -> T.Steps[tuple[Tensor, State, Tensor]]:
    """Clip the update, then momentum: torque-aware in the first half of the warm-up, consistency after it.

    Returns:
        The update with a root mean square of at most clip_threshold, the state, and [B,1,1,1] bool whether
        the gradient was usable. (AdaBelief clips nothing here, and ``belief`` says what was usable.)
    """
    s = state.s if phase.may_be_early else None
    clip, turn, ok = yield from T.together(
        T.rms_gain.steps(u, hp.clip_threshold if hp.came else math.inf),
        T.torque.steps(s, state.exp_avg, u, per_row=hp.tam_granularity == "row")
        if s is not None
        else T.nothing(None),
        T.all_finite.steps(*_moments(state)) if hp.came else T.nothing(None),
    )
    u = u * clip if hp.came else u
    damped = u
    if s is not None:
        turned, damping = turn
        damping = torch.where(k.early, damping + hp.eps[2], 1.0)
        state = state._replace(s=torch.where(k.early, turned, s))
        damped = u * damping
    return u, state._replace(exp_avg=T.ema(state.exp_avg, damped, k.beta1)), ok


def _moments(state: State) -> tuple[Tensor, ...]:
    """What holds a trace of every element of the gradient."""
    if state.exp_avg_sq_row is not None and state.exp_avg_sq_col is not None:
        return state.exp_avg_sq_row, state.exp_avg_sq_col
    assert state.exp_avg_sq is not None
    return (state.exp_avg_sq,)


def confidence(u: Tensor, state: State, hp: Hyper) -> T.Steps[tuple[Tensor, State]]:
    """CAME: divide the momentum by the root of its running surprise (matrices; vectors on request)."""
    m = state.exp_avg
    if state.exp_avg_res_row is not None and state.exp_avg_res_col is not None:
        surprise = T.belief_residual(u, m)
        row, col, level = yield from T.factored_moment.steps(
            state.exp_avg_res_row, state.exp_avg_res_col, surprise, hp.betas[2], hp.eps[1]
        )
        state = state._replace(exp_avg_res_row=row, exp_avg_res_col=col)
        return T.factored_rsqrt(m, row, col, level), state
    if state.exp_avg_res is not None:
        full = T.ema(state.exp_avg_res, T.belief_residual(u, m) + hp.eps[1], hp.betas[2])
        return m * full.rsqrt(), state._replace(exp_avg_res=full)
    return m, state


def belief(g: Tensor, state: State, k: Scalars, hp: Hyper) -> T.Steps[tuple[Tensor, State, Tensor]]:
    """AdaBelief: bias-corrected momentum over the root of its variance around the momentum."""
    assert state.exp_avg_var is not None and state.beta1_product is not None
    var = T.ema(state.exp_avg_var, T.belief_residual(g, state.exp_avg), hp.betas[1]) + hp.eps[1]
    product = state.beta1_product * k.beta1
    decayed = (k.t * math.log(hp.betas[1])).exp() if hp.betas[1] else torch.zeros_like(k.t)
    corrected = var / (1 - decayed)
    out = state.exp_avg / (1 - product) / (corrected.sqrt() + hp.eps[2])
    ok = yield from T.all_finite.steps(var)
    return out, state._replace(exp_avg_var=var, beta1_product=product), ok


def displacement(
    p: Tensor,
    g: Tensor,
    u: Tensor,
    out: Tensor,
    state: State,
    shared: _rate.Shared,
    k: Scalars,
    hp: Hyper,
    phase: Phase,
    layout: Layout,
    gain: Tensor | None = None,
) -> T.Steps[tuple[Tensor, Tensor, State]]:
    """Direction -> what is subtracted from the weights: clipped, times the rate of each element.

    Args:
        p: [B,K,m,n] weights before the step.
        g: [B,K,m,n] raw gradient.
        u: [B,K,m,n] update of unit size.
        out: [B,K,m,n] direction.
        gain: factors that are no part of the rate, broadcast to [B,K,m,n].

    Returns:
        The displacement, the rate relative to the group's lr, the new state.
    """
    row_gain = T.allora_gain(p, hp.eta) if hp.allora and layout.matrix else None
    (rate, state), clip = yield from T.together(
        _rate.rate(g, u, p, row_gain, state, shared, k, hp, phase), T.rms_gain.steps(out, hp.final_clip)
    )
    d = out * rate * (clip * hp.lr)
    if gain is not None:
        d = d * gain
    if hp.use_orthograd and phase.may_be_early:
        d = torch.where(k.early, (yield from T.orthograd.steps(d, p)), d)
    return d, rate, state


def decay(p: Tensor, g: Tensor, k: Scalars, hp: Hyper, phase: Phase) -> T.Steps[Tensor | None]:
    """Strength of the decoupled weight decay, more where the gradient is large; early phase by default."""
    early_only = hp.weight_decay_phase == "early"
    if hp.weight_decay == 0 or (early_only and not phase.may_be_early):
        return None
    strength = yield from T.adaptive_decay.steps(g)
    return strength * k.early.to(p.dtype) if early_only and phase is Phase.MIXED else strength


def moved(p: Tensor, d: Tensor, rate: Tensor, strength: Tensor | None, hp: Hyper) -> Tensor:
    """Weights after their decay and the displacement."""
    if strength is None:
        return p - d
    strength = strength * rate
    if isinstance(hp.lr, Tensor):
        return torch.addcmul(p, strength * (hp.lr * hp.weight_decay), p, value=-1) - d
    return torch.addcmul(p, strength, p, value=-hp.lr * hp.weight_decay) - d
