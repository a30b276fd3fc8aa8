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

import torch
from torch import Tensor

from .. import schedule
from .. import techniques as T
from ..storage.spec import StateSpec
from ..types import Layout, Phase, Scalars
from . import _rate
from ._rate import LAGGED, Shared, share
from ._stages import (
    Hyper,
    Result,
    State,
    accumulate,
    as_dict,
    belief,
    confidence,
    make_state,
    moment_specs,
    normalise,
)

__all__ = [
    "LAGGED",
    "Hyper",
    "Result",
    "Shared",
    "State",
    "as_dict",
    "initial",
    "make_state",
    "share",
    "specs",
    "update",
]


def specs(layout: Layout, hp: Hyper) -> tuple[StateSpec, ...]:
    """Fields that a parameter of this layout keeps under these options."""
    return (*moment_specs(layout, hp), *_rate.specs(layout, hp))


def initial(name: str, params: list[Tensor], layout: Layout) -> Tensor | None:
    """First values [B,*] of a field that depends on the weights; None for all others."""
    return _rate.anchor(params, layout) if name == "level_anchor" else None


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
        u, state = normalise(g, state, hp)
    else:
        u = g
    state = accumulate(u, state, k, hp, phase)
    out, state, ok = confidence(u, state, hp) if hp.came else belief(g, state, k, hp)
    if hp.use_grams:
        out = T.grams(out, raw, k.grams_mix)

    gain = T.allora_gain(p, hp.eta) if hp.allora and layout.matrix else torch.ones_like(k.t)
    rate, state = _rate.rate(raw, u, p, gain, state, shared, k, hp, phase)
    clip = T.rms_gain(out, hp.final_clip) if not math.isinf(hp.final_clip) else torch.ones_like(k.t)
    d = out * rate * (clip * hp.lr)
    if hp.use_orthograd and phase.may_be_early:
        d = torch.where(k.early, T.orthograd(d, p), d)

    mean_rate = T.tensor_mean(rate) * hp.lr
    p = _decay(p, raw, rate, k, hp, phase) - d
    return Result(p, state._replace(step=state.step + 1, avg_lr=mean_rate.float()), ok)


def _decay(p: Tensor, g: Tensor, rate: Tensor, k: Scalars, hp: Hyper, phase: Phase) -> Tensor:
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
