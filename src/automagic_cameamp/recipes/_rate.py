"""The learning rate of every element: level x mask, kept between min_lr and max_lr.

Everything here is relative to the group's ``lr``, which belongs to the scheduler: a rate of 1
means exactly ``group["lr"]``. Bounds never move that centre, but for a cap that lies below it. What
has to be known over all parameters (mean of the mask, level, votes) is read one step late from
numbers that each parameter keeps, so nothing waits for a reduction over the model and nothing
lives outside ``optimizer.state``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .. import techniques as T
from ..storage.spec import StateSpec
from ..types import Layout, Phase, Scalars
from . import _level
from ._data import Hyper, Shared, State

# One number per parameter, gathered over all of them before each step; ``lr_mask`` where a group shares it.
LAGGED = ("lr_mask_sum", "lr_mask_vote", "lr_mask", *_level.LAGGED)


def mask_code(hp: Hyper) -> T.MaskCode:
    """Integer code of the mask under these options."""
    if hp.lr_mask_rule == "geometric":
        return T.GEOMETRIC
    centre, low, high = T.additive_range(hp.lr, hp.base_lr, hp.lr_floor, hp.lr_cap)
    return T.additive_code(centre, hp.lr_bump, low, high)


def has_mask(hp: Hyper) -> bool:
    """Whether any mask is kept: there is nothing to learn without a warm-up."""
    return hp.use_lr_mask and hp.lr_mask_rule != "none" and hp.warmup_steps > 0


def specs(layout: Layout, hp: Hyper) -> list[StateSpec]:
    """Fields that the rate of one parameter needs."""
    fields: list[StateSpec] = []
    if has_mask(hp):
        code = mask_code(hp)
        if hp.lr_mask_rule == "additive":
            cap = T.additive_range(hp.base_lr, hp.base_lr, hp.lr_floor, hp.lr_cap)[2]
            T.check_additive(hp.base_lr, hp.lr_bump, hp.lr_floor, float(cap))
        if hp.lr_mask_granularity == "element":
            fields.append(StateSpec("lr_mask", "full", dtype=code.dtype, initial=code.start))
        else:
            extent = "row" if hp.lr_mask_granularity == "row" else "tensor"
            bits = T.packed_size(layout.numel)
            fields.append(StateSpec("lr_mask", extent, dtype=code.counter))
            fields.append(StateSpec("last_polarity", "bits", dtype=torch.uint8, count=bits))
        if hp.lr_mask_granularity == "group":
            fields.append(StateSpec("lr_mask_vote", "tensor", dtype=torch.float32))
            fields.append(_level.CLOCK)
        if hp.lr_mask_rule == "geometric":
            fields.append(StateSpec("lr_mask_sum", "tensor", dtype=torch.float32, initial=layout.numel))
    fields += _level.specs(layout, hp)
    return fields


def share(
    every: dict[str, Tensor],
    group: dict[str, Tensor],
    masked: int,
    clock: int,
    hp: Hyper,
    start: float,
    like: Tensor,
    schedule: float | Tensor = 1.0,
    limit: float | Tensor = math.inf,
) -> Shared:
    """Combine the numbers that the parameters keep.

    Args:
        every: field name -> [N] values over all parameters that keep it.
        group: the same over the parameters of one group.
        masked: number of elements of the parameters behind ``every['lr_mask_sum']``.
        clock: steps that the group has taken.
        hp: options of the group.
        start: d0, the largest base rate of all groups.
        like: a tensor of the wanted device and type.
        schedule: learning rate of the group that is furthest in its schedule, relative to its first one.
        limit: of the level that is found.
    """
    one = torch.ones((), dtype=like.dtype, device=like.device)
    count: Tensor | None = None
    mean, vote, level = one, one * 0, one if hp.lr_level == "distance" else one * 0
    if "lr_mask_sum" in every:
        sums = every["lr_mask_sum"]
        # In doubles no engine's order of summation shows; MPS has none.
        sums = sums if sums.device.type == "mps" else sums.double()
        mean = (sums.sum() / masked).to(like.dtype)
    fresh = one
    if "vote_clock" in group:
        # Votes of the group's last update, whose clock may have gone on without it since.
        fresh = (group["vote_clock"] == group["vote_clock"].max()).float()
    if "lr_mask_vote" in group:
        vote = (group["lr_mask_vote"] * fresh).sum().to(like.dtype)
        count = group["lr_mask"].index_select(0, fresh.argmax().view(1)).view(())  # [index] would wait for it
    if hp.lr_level == "distance" and "lr_level" in every:
        r, norm = every["level_r"].sum(), every["level_norm"].sum()
        level = T.distance_level(every["lr_level"].max(), r, norm, start).to(like.dtype)
        level = level.clamp(max=highest_level(hp) / T.DISTANCE_GAIN)
    elif hp.lr_level == "vote" and "lr_level" in group:
        norm = (group["level_norm"] * fresh).sum()
        step = torch.where(norm > 0, (group["level_r"] * fresh).sum() / norm, 0.0)
        # Every parameter keeps the level of its own last step; the latest one counts.
        level = ((group["lr_level"] * fresh).sum() / fresh.sum() + step).to(like.dtype)
        level = level.clamp(max=math.log(highest_level(hp)))
    now = torch.full((), float(clock), dtype=torch.float32, device=like.device)
    steering = None
    if hp.lr_level == "auto":
        steering = _level.steered(every.get("auto_level"), start, schedule, like.device, limit)
        # In numbers where there is nobody to wait for: a device's are tensors.
        here = T.Level(*steering.tolist()) if steering.is_cpu else T.Level.of(steering)
        found = _level.level_under(here, start, float(schedule) if steering.is_cpu else schedule)
        level = torch.as_tensor(found, dtype=torch.float32, device=like.device).to(like.dtype)
    return Shared(mean, vote, level, start, mask_count=count, clock=now, steering=steering)


def rate(
    g: Tensor,
    u: Tensor,
    p: Tensor,
    gain: Tensor | None,
    state: State,
    shared: Shared,
    k: Scalars,
    hp: Hyper,
    phase: Phase,
) -> T.Steps[tuple[Tensor, State]]:
    """Rate of every element, relative to the group's lr, and the state that follows.

    Args:
        g: [B,K,m,n] raw gradient.
        u: [B,K,m,n] normalised update.
        p: [B,K,m,n] weights before the step.
        gain: gains that belong to the rate (ALLoRA's), broadcast to [B,K,m,n]; None: 1.

    Returns:
        A tensor that broadcasts to [B,K,m,n], and the state with its mean.
    """
    level, mask = _level.level(shared, hp), None
    if gain is not None:
        value = gain * level
    else:
        value = level.expand_as(k.t) if isinstance(level, Tensor) else torch.full_like(k.t, level)
    if shared.multiplier is not None:
        value = value * shared.multiplier
    if has_mask(hp):
        mask, state = yield from _mask(g, p, state, shared, k, hp, phase)
        value = mask * value
    value = _clamp(value, hp)
    # Where one multiplier stands for several elements it counts for each of them.
    learns = mask if phase.may_warm_up and state.lr_mask_sum is not None else None
    wanted = [T.mean(value, like=g), *([] if learns is None else [T.total(learns, like=g)])]
    sums, seen = yield from T.together(_answered(wanted), _level.evidence(g, u, p, state, shared, k, hp))
    state = state._replace(**seen)
    if state.lr_mask_sum is not None and learns is not None:
        total = torch.where(k.warm, (sums[1] * shared.mask_mean).float(), state.lr_mask_sum)
        state = state._replace(lr_mask_sum=total)
    return value, state._replace(avg_lr=(sums[0] * hp.lr).float())


def _clamp(value: Tensor, hp: Hyper) -> Tensor:
    """Keep value where the bounds allow it to be; see ``techniques.rate_bounds``."""
    value = T.limited(value, *rate_bounds(hp))
    if hp.hard_min_lr:
        value = T.limited(value, absolute_floor(hp), math.inf)
    return value


def rate_bounds(hp: Hyper) -> tuple[float | Tensor, float | Tensor]:
    """Limits of everything that multiplies the learning rate."""
    free = hp.lr_level == "auto" and hp.lr_cap is None  # the cap follows the rate, wherever that goes
    return T.rate_bounds(hp.lr, hp.base_lr, hp.lr_floor, math.inf if free else hp.lr_cap)


def highest_level(hp: Hyper) -> float:
    """Where a level that is sought has reached the cap: beyond, it would hide the schedule."""
    return max(1.0, float(T.rate_bounds(hp.base_lr, hp.base_lr, hp.lr_floor, hp.lr_cap)[1]))


def absolute_floor(hp: Hyper) -> float | Tensor:
    """What keeps lr * value above min_lr whatever the scheduler does; 0 at lr = 0."""
    if isinstance(hp.lr, Tensor):
        return torch.where(hp.lr > 0, hp.lr_floor / hp.lr, 0.0)
    return hp.lr_floor / hp.lr if hp.lr > 0 else 0.0


def _mask(
    g: Tensor, p: Tensor, state: State, shared: Shared, k: Scalars, hp: Hyper, phase: Phase
) -> T.Steps[tuple[Tensor, State]]:
    """Multiplier of the mask; counters move in the warm-up and are frozen afterwards."""
    assert state.lr_mask is not None
    code = mask_code(hp)
    if phase.may_warm_up:
        counter, state = yield from _count(g, p, state, shared, k, hp, code, phase)
    elif hp.lr_mask_granularity == "element":
        counter = T.split_word(state.lr_mask, code)[0]
    else:
        counter = state.lr_mask
    if hp.lr_mask_rule == "additive":
        return additive_mask(counter, g.dtype, hp), state
    return T.geometric_mask(counter, shared.mask_mean), state


def additive_mask(counter: Tensor, dtype: torch.dtype, hp: Hyper) -> Tensor:
    """Multiplier of the additive rule, whose counter 0 is the learning rate itself."""
    centre, low, high = T.additive_range(hp.lr, hp.base_lr, hp.lr_floor, hp.lr_cap)
    return T.additive_mask(counter, dtype, centre, hp.lr_bump, low, high)


def _count(
    g: Tensor,
    p: Tensor,
    state: State,
    shared: Shared,
    k: Scalars,
    hp: Hyper,
    code: T.MaskCode,
    phase: Phase,
) -> T.Steps[tuple[Tensor, State]]:
    """Move the counters by sign agreement. Frozen tensors of a MIXED stack keep every bit."""
    live = k.warm & (k.t > 1)
    elements = hp.lr_mask_granularity == "element"
    assert state.lr_mask is not None
    if elements:
        counter, last = T.split_word(state.lr_mask, code)
    else:
        assert state.last_polarity is not None
        counter = state.lr_mask
        bits = T.unpack_bits(state.last_polarity, tuple(g.shape[1:]))
        last = bits.to(code.counter).mul_(-2).add_(1)
    bump, new_last = T.agreement(g, last, live)
    if phase is Phase.MIXED:
        new_last = last + (new_last - last) * k.warm.to(last.dtype)
    if elements:
        bump = yield from _boost(bump, g, p, k, hp)
        counter = T.count(counter, bump, code)
        return counter, state._replace(lr_mask=T.join_word(counter, new_last, code))

    state = state._replace(last_polarity=T.pack_bits(new_last < 0))
    grain = "row" if hp.lr_mask_granularity == "row" else "tensor"
    total, move = yield from T.majority.steps(bump, grain)
    move = yield from _boost(move, g, p, k, hp)
    if hp.lr_mask_granularity == "group":
        total = yield from _boost(total, g, p, k, hp)
        move = shared.mask_vote.sign().to(code.counter) * k.warm.to(code.counter)
        if shared.mask_count is not None:  # who had no part in the group's last update takes its counter over
            counter = torch.where(k.warm, shared.mask_count.to(code.counter), counter)
        assert state.lr_mask_vote is not None and state.vote_clock is not None
        assert shared.clock is not None
        now = shared.clock.expand_as(state.vote_clock)
        state = state._replace(
            lr_mask_vote=torch.where(k.warm, total, state.lr_mask_vote),
            vote_clock=torch.where(k.warm, now, state.vote_clock),
        )
    counter = T.count(counter, move, code)
    return counter, state._replace(lr_mask=counter)


def _boost(bump: Tensor, g: Tensor, p: Tensor, k: Scalars, hp: Hyper) -> T.Steps[Tensor]:
    """Bumps d_coef times as large in the early phase, where descent makes the weights grow."""
    factor = hp.d_coef
    if factor == 1:
        return bump
    [along] = yield [T.total(g * p)]
    grows = (along < 0) & k.early
    return bump * (1 + (factor - 1) * grows.to(bump.dtype))


def _answered(wanted: list[T.Sum]) -> T.Steps[list[Tensor]]:
    """The sums that are asked for."""
    return (yield wanted)
