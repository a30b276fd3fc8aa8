"""Automagic CameAMP Improved: the base recipe with regularisers for small data and LoRA.

What is added to ``base``: high frequencies of the gradient are damped before any statistics see
them; the update leans to the strongest directions of the weights; edges, empty rows and plain
rows move less; signs follow Grams, and Cautious once that has faded; Selective Projection
Decay takes the place of weight decay; and directions beyond the kept rank shrink slowly.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import techniques as T
from ..storage.spec import StateSpec
from ..types import Layout, Phase, Scalars
from . import _rate
from ._data import Hyper, Shared, State
from ._stages import (
    Result,
    accumulate,
    belief,
    confidence,
    displacement,
    moment_specs,
    normalise,
    scalars,
)

CLIP_HISTORY = 100
TAIL_CODES = 127  # of a component of a unit vector
HANDOVER = 0.500001  # mix of Grams below which Cautious chooses the signs; a hair above 1/2, whoever rounds


def specs(layout: Layout, hp: Hyper) -> tuple[StateSpec, ...]:
    """Fields that a parameter of this layout keeps under these options."""
    fields = [*moment_specs(layout, hp), *_rate.specs(layout, hp)]
    if hp.edge_suppression and hp.edge_penalty > 0 and has_picture(layout, hp):
        fields.append(StateSpec("edge_history", "full", "unit"))
    if hp.spatial_awareness and hp.detail_preservation > 0 and layout.matrix:
        side = "row" if _by_rows(layout) else "col"
        fields.append(StateSpec("spatial_variance", side, "vector"))
    if _has_low_rank(layout, hp):
        # The fewer directions, those kept or the others; at rank 16 every byte of a basis counts.
        if T.tail_is_smaller(layout, hp.rank_keep):
            count = min(layout.rows, layout.cols) - hp.rank_keep
            fields.append(StateSpec("lowrank_tail", "basis", dtype=torch.int8, count=count))
        else:
            fields.append(StateSpec("lowrank_basis", "basis", dtype=torch.bfloat16, count=hp.rank_keep))
        fields.append(StateSpec("lowrank_rate", "tensor", dtype=torch.float32))
    if hp.percentile_clipping < 100:
        fields.append(StateSpec("gnorm_history", "sample", dtype=torch.float32, count=CLIP_HISTORY))
    return tuple(fields)


def has_picture(layout: Layout, hp: Hyper) -> bool:
    """Whether edges and frequencies are looked for in a parameter of this layout."""
    return T.picture(torch.empty(1, *layout.view, device="meta"), layout, hp.spatial_mode) is not None


def _has_low_rank(layout: Layout, hp: Hyper) -> bool:
    active = hp.rank_penalty_strength > 0 or hp.low_rank_emphasis > 1
    return hp.lora_rank_penalty and active and hp.lora and T.has_tail(layout, hp.rank_keep)


def update(
    p: Tensor, g: Tensor, state: State, shared: Shared, hp: Hyper, phase: Phase, layout: Layout
) -> T.Steps[Result]:
    """One step of a stack; arguments, sums and result as in ``base.update``."""
    k = scalars(state, p, hp, phase)
    g, state = yield from _clip_percentile(g, state, k, hp)
    raw = g
    pictured = hp.frequency_penalty > 0 or state.edge_history is not None
    view = T.picture(g, layout, hp.spatial_mode) if pictured else None
    sides = None if view is None else T.neighbours(view, layout, hp.table)
    if view is not None and hp.frequency_penalty > 0:
        g = T.frequency_filter(view, hp.frequency_penalty, sides).reshape(p.shape)
    if hp.use_agr:
        g = yield from T.agr.steps(g)

    u = g
    if hp.came:
        u, state = yield from normalise(g, state, hp)
    if state.lowrank_basis is not None:
        u = yield from T.emphasise.steps(u, state.lowrank_basis.to(p.dtype), hp.low_rank_emphasis)
    elif state.lowrank_tail is not None:
        basis = state.lowrank_tail.to(p.dtype) / TAIL_CODES
        u = yield from T.emphasise.steps(u, basis, hp.low_rank_emphasis, tail=True)
    u, state, ok = yield from accumulate(u, state, k, hp, phase)
    if hp.came:
        out, state = yield from confidence(u, state, hp)
    else:
        out, state, ok = yield from belief(g, state, k, hp)

    out, (gain, state) = yield from T.together(
        _signs(out, raw, k, hp, phase), _gains(raw, u, view, sides, state, layout, hp)
    )
    d, _, state = yield from displacement(p, raw, u, out, state, shared, k, hp, phase, layout, gain)
    new = p - d
    new = yield from _pull(p, new, raw, k, hp, phase)
    new, state = _shrink_rank(new, state, shared, hp)
    return Result(new, state._replace(step=k.t.to(state.step.dtype)), ok)


def _pull(p: Tensor, new: Tensor, g: Tensor, k: Scalars, hp: Hyper, phase: Phase) -> T.Steps[Tensor]:
    """Selective Projection Decay, in the warm-up."""
    if not (hp.use_spd and hp.weight_decay > 0 and phase.may_warm_up):
        return new
    pulled = yield from T.spd.steps(p, new, g, hp.weight_decay)
    return pulled if phase is not Phase.MIXED else torch.where(k.warm, pulled, new)


def _clip_percentile(g: Tensor, state: State, k: Scalars, hp: Hyper) -> T.Steps[tuple[Tensor, State]]:
    """Scale a gradient whose norm exceeds the p-th percentile of its last 100 norms down to it."""
    history = state.gnorm_history
    if history is None:
        return g, state
    [square] = yield [T.total(g.square())]
    norm = square.sqrt().flatten().float()
    count = k.t.flatten().clamp(max=CLIP_HISTORY).long()
    history = torch.cat([norm.unsqueeze(1), history[:, :-1]], 1)  # newest first; 0 where none yet
    ordered = history.sort(1, descending=True).values
    # The value that p% of the norms seen so far do not exceed, nearest rank.
    rank = ((100 - hp.percentile_clipping) * count // 100).clamp(max=CLIP_HISTORY - 1)
    limit = ordered.gather(1, rank.unsqueeze(1)).squeeze(1)
    scale = torch.where(norm > limit, limit / norm, 1.0).to(g.dtype)
    return g * scale.view(-1, 1, 1, 1), state._replace(gnorm_history=history)


def _signs(out: Tensor, g: Tensor, k: Scalars, hp: Hyper, phase: Phase) -> T.Steps[Tensor]:
    """Grams, and Cautious from where it has faded to one half: there both zero what disagrees.

    Never Cautious in the early phase; without Grams, in all of the rest.
    """
    pulled = T.grams(out, g, k.grams_mix) if hp.use_grams else out
    if not hp.use_cautious or phase is Phase.EARLY or (hp.use_grams and hp.beta1_decay == 1):
        return pulled
    kept = yield from T.cautious.steps(out, g)
    if not hp.use_grams and phase is not Phase.MIXED:
        return kept
    chosen = ~k.early
    if hp.use_grams:
        chosen = chosen & (k.grams_mix <= HANDOVER)
    return torch.where(chosen, kept, pulled)


def _gains(
    g: Tensor,
    u: Tensor,
    view: Tensor | None,
    sides: T.Sides | None,
    state: State,
    layout: Layout,
    hp: Hyper,
) -> T.Steps[tuple[Tensor | None, State]]:
    """Edges, empty rows, plain rows: what makes an element move less."""
    energy = None
    if hp.background_regularization and layout.matrix:
        energy = state.exp_avg_sq_row if state.exp_avg_sq_row is not None else T.row_mean(g.square())
    several = [
        T.background_gain.steps(energy) if energy is not None else T.nothing(None),
        _detail(u, state, layout, hp) if state.spatial_variance is not None else T.nothing(None),
        T.edge_hits.steps(view, g, hp.edge_threshold, sides)  # the view is that of the raw gradient
        if state.edge_history is not None and view is not None
        else T.nothing(None),
    ]
    background, detail, hits = yield from T.together(*several)
    gains: list[Tensor] = [] if background is None else [background]
    if detail is not None:
        gain, variance = detail
        state = state._replace(spatial_variance=variance)
        gains.append(gain)
    if hits is not None and state.edge_history is not None:
        history = T.ema(state.edge_history, hits, T.EDGE_BETA)
        state = state._replace(edge_history=history)
        gains.append(1 - hp.edge_penalty * history)
    if not gains:
        return None, state
    product = gains[0]
    for gain in gains[1:]:
        product = product * gain
    return product, state


def _detail(u: Tensor, state: State, layout: Layout, hp: Hyper) -> T.Steps[tuple[Tensor, Tensor]]:
    """Gain of rows (of columns, where those are fewer) with more detail, and the variance behind it."""
    assert state.spatial_variance is not None
    if _by_rows(layout):
        variance = T.ema(state.spatial_variance, T.row_variance(u), T.SPATIAL_BETA)
        return (yield from T.spatial_gain.steps(variance, hp.detail_preservation)), variance
    [square, centre] = yield [T.mean(u.square(), over=T.COLUMNS), T.mean(u, over=T.COLUMNS)]
    variance = T.ema(state.spatial_variance, T.variance_of(square, centre), T.SPATIAL_BETA)
    return T.spatial_gain(variance.mT, hp.detail_preservation).mT, variance  # all columns are here


def _by_rows(layout: Layout) -> bool:
    """Whether the detail of rows is looked at, not of columns: the short side costs least."""
    rows = layout.place.size if layout.place is not None and layout.place.split == 2 else layout.rows
    return rows <= layout.cols


def _shrink_rank(p: Tensor, state: State, shared: Shared, hp: Hyper) -> tuple[Tensor, State]:
    """Every ``sync_frequency`` updates of a parameter: its strongest directions anew, the others shrunk."""
    if state.lowrank_rate is None:
        return p, state
    owed = state.lowrank_rate + state.avg_lr * hp.rank_penalty_strength
    if not shared.refresh:
        return p, state._replace(lowrank_rate=owed)
    tail = state.lowrank_tail is not None
    name = "lowrank_tail" if tail else "lowrank_basis"
    if len(shared.refresh) == p.shape[0]:
        new, basis = renew_directions(p, owed, hp, tail)
        return new, state._replace(lowrank_rate=torch.zeros_like(owed), **{name: basis})
    # A search costs more than all the rest: only of those that are due.
    stacks = [list(x.unbind(0)) for x in (p, getattr(state, name), owed)]
    weights, due = (torch.stack([stack[i] for i in shared.refresh]) for stack in (stacks[0], stacks[2]))
    found = (*renew_directions(weights, due, hp, tail), torch.zeros_like(due))
    for stack, new in zip(stacks, found, strict=True):
        for i, row in zip(shared.refresh, new.unbind(0), strict=True):
            stack[i] = row
    p, basis, owed = (torch.stack(stack) for stack in stacks)
    return p, state._replace(lowrank_rate=owed, **{name: basis})


def renew_directions(p: Tensor, owed: Tensor, hp: Hyper, tail: bool) -> tuple[Tensor, Tensor]:
    """The weights without what their tail owes, and their new directions as the state holds them.

    Args:
        p: [B,K,m,n] weights at the end of a step.
        owed: [B,1,1,1] rate accumulated since the last search.
        hp: options.
        tail: the directions beyond the kept ones are held, not those.
    """
    basis = T.tail_basis(p, hp.rank_keep) if tail else T.top_basis(p, hp.rank_keep)
    p = T.shrink_tail(p, basis, owed.to(p.dtype), tail)
    return p, (basis * TAIL_CODES).round().to(torch.int8) if tail else basis.bfloat16()
