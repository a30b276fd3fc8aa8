"""Automagic CameAMP COptim: the base recipe with momentum of several lengths and a controller.

What is added to ``base``: the running mean of step 3 becomes the mean of several lengths, and every
rate is multiplied by the number that ``control.ContextualController`` found from the steps before.
What the controller needs to know leaves ``update`` as ``Signals``.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .. import techniques as T
from ..storage.spec import StateSpec
from ..types import Layout, Phase, Scalars
from . import _rate
from ._data import SCALE, Hyper, Shared, State
from ._stages import (
    Result,
    accumulate,
    belief,
    confidence,
    decay,
    displacement,
    moment_specs,
    moved,
    normalise,
    scalars,
)


class Signals(NamedTuple):
    """What the controller learns from a stack.

    Args:
        sketch: [B,W] sketch of each tensor's update of unit size, W = min(numel, 4096); 0 where
            the gradient was not usable.
        square: [B] sum of squares of each raw gradient; 0 where it was not usable.
        bad: [B] bool, the gradient was not usable.
    """

    sketch: Tensor
    square: Tensor
    bad: Tensor


class Mixture(NamedTuple):
    """The momentum as numbers.

    Args:
        beta: coefficient of ``exp_avg``, before its own schedule.
        own, update: weights of ``exp_avg`` and of this step's update.
        kept: lengths of the means that have fields of their own.
        others: their weights.
        mixed: whether anything but ``exp_avg`` counts.
    """

    beta: float
    own: float
    update: float
    kept: tuple[int, ...]
    others: tuple[float, ...]
    mixed: bool


def mixture(hp: Hyper) -> Mixture:
    """How the means of several lengths are weighed under these options."""
    start, scales = hp.base_beta1, hp.momentum_scales
    beta = T.own_beta(hp.betas[0], scales, start)
    if scales is None or set(scales) == {T.own_scale(start, scales)}:
        return Mixture(beta, 1.0, 0.0, (), (), False)
    own, update, others = T.scale_weights(start, scales)
    return Mixture(beta, own, update, T.kept_scales(start, scales), others, True)


def specs(layout: Layout, hp: Hyper) -> tuple[StateSpec, ...]:
    """Fields that a parameter of this layout keeps under these options."""
    kept = T.kept_scales(hp.base_beta1, hp.momentum_scales)
    means = [StateSpec(f"{SCALE}{s}", "full", "signed") for s in kept]
    return (*moment_specs(layout, hp), *means, *_rate.specs(layout, hp))


def update(
    p: Tensor, g: Tensor, state: State, shared: Shared, hp: Hyper, phase: Phase, layout: Layout
) -> T.Steps[Result]:
    """One step of a stack; arguments, sums and result as in ``base.update``."""
    k = scalars(state, p, hp, phase, T.own_beta(hp.betas[0], hp.momentum_scales, hp.base_beta1))
    raw = g
    if hp.use_agr:
        g = yield from T.agr.steps(g)

    u = g
    if hp.came:
        u, state = yield from normalise(g, state, hp)
    u, state, ok = yield from accumulate(u, state, k, hp, phase)
    m, state = _mix(u, state, k, hp)
    own = state.exp_avg
    state = state._replace(exp_avg=m)  # the stages below work on the mixture
    if hp.came:
        out, state = yield from confidence(u, state, hp)
    else:
        out, state, ok = yield from belief(g, state, k, hp)
    state = state._replace(exp_avg=own)
    if hp.use_grams:
        out = T.grams(out, raw, k.grams_mix)

    (d, rate, state), strength, signals = yield from T.together(
        displacement(p, raw, u, out, state, shared, k, hp, phase, layout),
        decay(p, raw, k, hp, phase),
        _signals(raw, u, ok, hp, layout),
    )
    new = moved(p, d, rate, strength, hp)
    return Result(new, state._replace(step=k.t.to(state.step.dtype)), ok, signals)


def _mix(u: Tensor, state: State, k: Scalars, hp: Hyper) -> tuple[Tensor, State]:
    """Momentum over all scales, and the state with its means moved on."""
    start, scales = hp.base_beta1, hp.momentum_scales
    means = {
        f"{SCALE}{s}": T.ema(state.scales[f"{SCALE}{s}"], u, 1 - 1 / s) for s in T.kept_scales(start, scales)
    }
    m = T.multiscale(state.exp_avg, u, list(means.values()), start, scales)
    if not hp.came:  # AdaBelief divides by the gain of exp_avg alone: give the mixture the same
        assert state.beta1_product is not None
        product = state.beta1_product * k.beta1
        m = m * ((1 - product) / T.multiscale_gain(product, k.t, start, scales))
    return m, state._replace(scales=means)


def _signals(g: Tensor, u: Tensor, ok: Tensor, hp: Hyper, layout: Layout) -> T.Steps[Signals]:
    """Direction and size of this step's gradient, for the controller."""
    place = layout.place
    part = T.sketch(u) if place is None else T.sketch(u, first=place.first, whole=place.whole)
    [square, count, q] = yield [T.total(g.square()), T.elements(g), T.exact(part)]
    good, square = ok.flatten(), square.flatten()
    if not hp.came:  # u is the raw gradient: bring every tensor to a root mean square of 1
        q = q * (count.flatten() / square.clamp(min=1e-38)).sqrt().unsqueeze(1)
    return Signals(torch.where(good.unsqueeze(1), q, 0.0), torch.where(good, square, 0.0).float(), ~good)
