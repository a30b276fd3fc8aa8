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

from torch import Tensor

from .. import techniques as T
from ..storage.spec import StateSpec
from ..types import Layout, Phase
from . import _rate
from ._data import Hyper, Shared, State
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


def specs(layout: Layout, hp: Hyper) -> tuple[StateSpec, ...]:
    """Fields that a parameter of this layout keeps under these options."""
    return (*moment_specs(layout, hp), *_rate.specs(layout, hp))


def update(
    p: Tensor, g: Tensor, state: State, shared: Shared, hp: Hyper, phase: Phase, layout: Layout
) -> T.Steps[Result]:
    """One step of a stack.

    Args:
        p: [B,K,m,n] weights in the type of the arithmetic (fp32; fp64 for fp64 weights).
        g: [B,K,m,n] raw gradient, same type.
        state: decoded state of the stack.
        shared: scalars over all parameters, from the previous step.
        hp: options of the group.
        phase: where the whole stack stands, or MIXED.
        layout: the view of what is here of the parameters.

    Yields:
        Sums over whole tensors, and gets them back (``techniques.sums``).

    Returns:
        New weights and state; the engine keeps the old ones where ``ok`` is False.
    """
    k = scalars(state, p, hp, phase)
    raw = g
    if hp.use_agr:
        g = yield from T.agr.steps(g)

    u = g
    if hp.came:
        u, state = yield from normalise(g, state, hp)
    u, state, ok = yield from accumulate(u, state, k, hp, phase)
    if hp.came:
        out, state = yield from confidence(u, state, hp)
    else:
        out, state, ok = yield from belief(g, state, k, hp)
    if hp.use_grams:
        out = T.grams(out, raw, k.grams_mix)

    (d, rate, state), strength = yield from T.together(
        displacement(p, raw, u, out, state, shared, k, hp, phase, layout), decay(p, raw, k, hp, phase)
    )
    new = moved(p, d, rate, strength, hp)
    return Result(new, state._replace(step=k.t.to(state.step.dtype)), ok)
