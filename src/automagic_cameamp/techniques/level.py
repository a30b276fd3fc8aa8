"""The level of the learning rate: rules that find it by themselves."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..types import START, Locality, local
from ._numbers import Number, Truth, clamp, exp2, maximum, where
from ._reduce import sum_last
from .sums import Steps, summing, total

DISTANCE_BETA = 0.9995
DISTANCE_GAIN = 0.25
DISTANCE_STRIDE = 11
DISTANCE_WHOLE = 4096
VOTE_HISTORY = 8

# Of the automatic level; see ``steer``.
CONVENTION = 0.1  # from here on a learning rate is no start, but means "1"
HIGHEST_START = 1e-5
GROWTH, FIRST_GROWTH = 1.2, 4.0  # per step of the take-off; below ``HIGHEST_START``
KEEP = 0.7  # of the mean correlation, per step of the take-off
BLIND = 8  # steps that grow whatever they see, and the shortest look back
BACK = 1.4  # the take-off is noticed so late
DEAD = 0.05  # share of the highest correlation that ends the take-off
SEVERAL = 1.5  # between one observation and two
SURE = 3.0  # standard errors that it must have differed from 0 by
SURE_UNTIL, SURE_NOT = 20.0, 60.0  # from the one step to the other these fall to 0
FULL = 0.5  # share of it that moves the level at full speed afterwards
SPEED = 4.0  # doublings while the number of steps grows e-fold
REST = 300.0  # from this step on less and less, so that a long run's level comes to rest
OFTEN = 128  # until then it looks at every step, for the windows are short
LOOKS = 4  # later at one step in four
SETTLE = 60.0  # from this step on the level falls less and less under a schedule that falls by itself
LIFT = 6.0  # what a schedule that falls may add, as it falls
LOW = 0.5  # below it a schedule slows the growth of the take-off
JUMP = 0.95  # of the schedule of the step before: what is lower did not fall, but was set
FASTEST = 0.1  # of the weights' own size, per step
TINY = 1e-30  # stands for 0 where something is divided by it
LARGEST = 1e30  # of a sum: what is larger is as good as that
LEFT, LEAST_LEFT = 16, 512  # one column of so many is looked at, or elements of a tensor at least


def sample_size(numel: int) -> int:
    """Elements of one tensor that the distance rule looks at: all of a small tensor, every 11th of others."""
    return numel if numel < DISTANCE_WHOLE else -(-numel // DISTANCE_STRIDE)


def sample(x: Tensor) -> Tensor:
    """[B,K,m,n] -> [B, sample_size(numel)]."""
    flat = x.flatten(1)
    return flat if flat.shape[1] < DISTANCE_WHOLE else flat[:, ::DISTANCE_STRIDE]


@local(Locality.TENSOR)
def distance_evidence(
    r: Tensor, s: Tensor, g: Tensor, travelled: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Evidence of one tensor for the distance to the solution.

    .. math:: r \leftarrow \beta r + w \langle g, p_0 - p\rangle, \quad s \leftarrow \beta s + w g,
              \qquad w = d^2 / d_0, \; \beta = .9995

    Args:
        r: [B] running inner product.
        s: [B,S] running gradient sum on the sample.
        g: [B,S] sampled raw gradient.
        travelled: [B,S] p0 - p on the sample.
        weight: w, scalar tensor.

    Returns:
        New r, new s, and [B] the l1 norm of s.

    Source: Mishchenko & Defazio 2023 (Prodigy), arXiv 2306.06101, algorithm 4 (code read).
    Deviations: one d for all parameters, on a strided sample, applied at a quarter.
    """
    r = DISTANCE_BETA * r + weight * sum_last(g * travelled).squeeze(-1)
    s = DISTANCE_BETA * s + weight * g
    return r, s, sum_last(s.abs()).squeeze(-1)


def distance_level(level: Tensor, r: Tensor, s_norm: Tensor, start: float) -> Tensor:
    r"""New d / d0 from the evidence of all tensors: :math:`\max(d, \sum r / \sum \|s\|_1) / d_0`."""
    estimate = torch.where(s_norm > 0, r / s_norm, 0.0) / start
    return torch.maximum(level, estimate)


class Level(NamedTuple):
    """What the automatic level remembers, the same for all parameters: numbers, or 0-D tensors on a device.

    Args:
        steps: updates so far.
        value: the level: rate of a weight where schedule, mask and all gains are 1.
        along, size: sums of correlations and of their weights since the last renewal.
        since: the step at which the weights were last remembered; in the take-off the sum of squared
            correlations, with the weights of ``along``, negated (0 until 2026-12-01).
        peak: highest correlation so far, in the take-off less its standard error.
        minus: the learning rate of that step, relative to the first one, negated. Until 2026-11-30 a 1 stood
            here once the take-off had ended: what is positive is not known.
        top: highest learning rate so far, relative to the first one, and lowered with it where that jumped.
    """

    steps: Number
    value: Number
    along: Number
    size: Number
    since: Number
    peak: Number
    minus: Number
    top: Number

    @classmethod
    def of(cls, numbers: Tensor) -> Level:
        """From a vector of eight."""
        return cls(*numbers.unbind())

    @classmethod
    def begun(cls, lr: float) -> Level:
        """Before the first update, in numbers; ``lr`` is the largest of all groups."""
        return cls(0.0, level_start(lr), 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)

    def renews(self, before: Number) -> Truth:
        """Whether weights are remembered anew in this step that were last updated at this ``since``.

        Not only in the step that it names: some have no gradient in that one.
        """
        return (self.since > 0) & (self.since != before)

    @property
    def looks(self) -> Truth:
        """Whether this step looks back: all of the first, later one of ``LOOKS``, never the same for long.

        Else a cycle of the program could hide from it.
        """
        turn = self.steps // LOOKS + self.steps // LOOKS**2
        return self.flies | (self.steps <= OFTEN) | (self.steps % LOOKS == turn % LOOKS)

    @property
    def flies(self) -> Truth:
        """Whether it is in the take-off, whose end is the first time that the weights are remembered anew."""
        return self.since <= 0


def speed_limit(mean_square: Number) -> Number:
    r"""Highest level, from the matrices before the first step.

    .. math:: \kappa \operatorname{rms}(w), \qquad \kappa = .1

    A task that is solved fast lets c fall only where the steps are of the size of the weights, ten times and
    more above the best rate, and what has gone there does not come back: gradients say nothing there.

    Args:
        mean_square: of the elements of those that are not all 0; 0 where there is to be no limit.

    Source: ours; that a step is measured by the weights' size is LARS's (You et al. 2017, arXiv 1708.03888,
    abstract read). Deviations: a bound for all layers together, not a rate for each.
    """
    return where(mean_square > 0, FASTEST * mean_square**0.5, math.inf)


def level_start(lr: float) -> float:
    """Where the level begins, from the largest learning rate of all groups."""
    return START if lr >= CONVENTION else min(lr, HIGHEST_START)


def left_columns(rows: int, cols: int, matrix: bool) -> int:
    """Columns of a matrix, the leftmost, that the automatic level looks at; all of a vector."""
    return min(cols, max(1, cols // LEFT, -(-LEAST_LEFT // max(1, rows)))) if matrix else cols


def left(x: Tensor, columns: int) -> Tensor:
    """[B,K,m,n] -> [B,K,m,columns], a view."""
    return x[..., :columns]


@local(Locality.TENSOR)
@summing
def look_back(
    g: Tensor, anchor: Tensor, p: Tensor, level: Level, before: Tensor
) -> Steps[tuple[Tensor, Tensor]]:
    r"""What one tensor says about the way that its weights have come since they were remembered.

    .. math:: \langle g, p_a - p\rangle, \quad \|g\|^2, \quad \|p_a - p\|^2,
              \qquad \text{each} \times n / \text{columns}

    Args:
        g: [B,K,m,n] raw gradient.
        anchor: [B,K,m,columns] remembered weights.
        p: [B,K,m,n] weights before the step.
        level: of this step: whether it looks at all, and whether it remembers p.
        before: [B] ``since`` of the level of each tensor's last update.

    Returns:
        [B,3] the sums, 0 where it does not look; the weights that are remembered from now on.
    """
    columns = anchor.shape[-1]
    now, seen = left(p, columns), left(g, columns)
    renews = torch.as_tensor(level.renews(before), device=p.device).view(-1, 1, 1, 1)
    anchor = torch.where(renews, now.to(anchor.dtype), anchor)
    way = anchor.to(p.dtype) - now
    # Where a process holds nothing of a vector, the sums are still those of the whole one.
    looks = torch.as_tensor(level.looks, dtype=p.dtype, device=p.device)
    share = looks * (p.shape[-1] / columns if columns else 1.0)
    sums = yield [total(seen * way), total(seen * seen), total(way * way)]
    return torch.cat([(x.flatten(1) * share).clamp(-LARGEST, LARGEST) for x in sums], 1), anchor


def steer(
    old: Level,
    evidence: tuple[Number, Number, Number],
    schedule: Number,
    active: Number = 1.0,
    limit: Number = math.inf,
) -> Level:
    r"""The automatic level of the next step.

    .. math:: c_t = \frac{\langle g_t, p_a - p_t\rangle}{\|g_t\| \|p_a - p_t\|}, \qquad
              q = \frac{\sum_i w_i c_i}{\sum_i w_i}, \qquad r = \frac{q}{\max q}

    over the whole model. c is positive as long as the loss still falls along the way that the weights have
    come since they were p_a: they could have gone faster. It is negative where they have gone too far. The
    level at which it is near 0 was within a factor of two of the best constant rate on every task looked at,
    whatever the noise, which only scales c: hence the comparison with its own peak.

    * Take-off: p_a are the first weights, w fades by .7 a step; the level grows 1.2-fold per step (4-fold
      below 1e-5), and to the power of 2 s of that where a schedule has fallen below a half, and of the
      share of the parameters that are updated in a step (whoever has no gradient in most steps does not see
      in time what the others' growth does to him), until r <= .05, and goes back 1.4-fold, and by the
      schedule of then. max q is that of q less its standard error, of two samples or more. Before the
      take-off ends it must be 3 standard errors (of now), or q be as many below 0: single samples say
      nothing in eight steps. From step 20 to 60 the 3 fall to 0. Where no weight has moved yet, for
      rounding, it grows on.
    * Never above ``limit``.
    * Then, with w the distance and p_a renewed at each doubling of the number of steps:
      :math:`\log_2\lambda \mathrel{+}= v_t ([2r]_0^1 \min(s, 1)^2 - a_t [-2r]_0^1 (s/\hat s)^4)`,
      :math:`v_t = 4/t \cdot \min(1, 300/t)`, :math:`a_t = \min(1, 60/t)^2` where s has fallen, else 1.
      So it can grow and fall, each doubling of the steps less often, and the less the nearer c is to 0: a
      window is as long as all steps before it, and with full speed at every r the level swung about
      its place. After t > 300 steps no more than 1200/t doublings are left. A schedule s that is low for
      its own reasons, and for that lets c grow, does not make it grow; one that has fallen from its top
      :math:`\hat s` is going to do what a lower level would: c is negative where the noise of the steps
      outweighs their way, which is what such a schedule takes care of. There the level falls only as far
      as the take-off went too high. A schedule below .95 of the step before did not fall but was set: its
      top is lowered with it.

    Args:
        old: of the last step.
        evidence: three sums of ``look_back`` over all parameters, from the step that ``old`` is of.
        schedule: the learning rate relative to its start.
        active: share of the parameters that had a gradient other than 0 in the step that ``old`` is of.
        limit: ``speed_limit``.

    All are numbers, or all are 0-D tensors of one kind.

    Returns:
        The next ``Level``, of the same kind.

    Source: ours. The inner product is D-Adaptation's (Defazio & Mishchenko 2023, arXiv 2301.07733) and
    that of hypergradient descent (Baydin et al. 2018, arXiv 1703.04782). Deviations: a correlation over a
    window that grows with the run instead of a bound on the distance, which never falls, or of one step,
    which anneals too early.
    """
    steps, value, along, size, since, peak, minus, top = old
    product, g_square, way_square = evidence
    seen = (g_square > 0) & (way_square > 0)
    way = way_square**0.5
    cosine = product / clamp(g_square**0.5, TINY) / clamp(way, TINY) * seen
    steps, flying = steps + 1, old.flies
    jumps = (minus < 0) & (schedule < -JUMP * minus)
    top = maximum(where(jumps, schedule / clamp(fallen(-minus, top), TINY), top), schedule)
    part, remains = clamp(schedule, 0.0, 1.0), fallen(schedule, top)
    weight, fade = where(flying, 1.0, way) * seen, where(flying & seen, KEEP, 1.0)
    along, size = fade * along + weight * cosine, fade * size + weight
    noise = fade * clamp(-since, 0.0) + weight * cosine**2
    age, span = steps - since, clamp(since, BLIND)
    known = (size > 0) & (flying | (4 * age >= span))
    mean = where(known, along / clamp(size, TINY), 0.0)
    # A faded mean is as good as one of so many observations; of one alone no error is known.
    count = (1 + KEEP) * size / clamp(2 - (1 - KEEP) * size, TINY)
    spread = clamp(noise / clamp(size, TINY) - mean**2, 0.0)
    error = where(count > SEVERAL, (spread / clamp(count - 1, TINY)) ** 0.5, LARGEST)
    peak = maximum(peak, where(flying, mean - error, mean))
    ratio = mean / clamp(peak, TINY)
    doubt = SURE * clamp((SURE_NOT - steps) / (SURE_NOT - SURE_UNTIL), 0.0, 1.0) * error
    stops = (steps > BLIND) & (ratio <= DEAD) & ((peak >= doubt) | (mean <= -doubt))
    lands = flying & seen & stops
    # What has not moved a weight yet is lost in their rounding.
    grows = seen | ((steps > BLIND) & (minus < 0) & (g_square > 0) & (way_square == 0))
    share = where(remains < 1, clamp(part / LOW, 0.0, 1.0), 1.0) * (schedule > 0)
    climb = where(value < HIGHEST_START, FIRST_GROWTH, GROWTH) ** (share * active)
    rises, falls = clamp(ratio / FULL, 0.0, 1.0), clamp(-ratio / FULL, 0.0, 1.0)
    falls = falls * where(remains < 1, (SETTLE / clamp(steps, SETTLE)) ** 2, 1.0)
    drift = rises * part**2 - falls * remains**4
    speed = SPEED / clamp(steps, BLIND) * (REST / clamp(steps, REST))
    factor = where(flying, where(grows, climb, 1.0), exp2(drift * speed))
    value = value * where(lands, part / BACK, factor)
    renews = lands | ((since > 0) & (age >= span))
    return Level(
        steps=steps,
        value=where(value > limit, limit, value),
        along=where(renews, 0.0, along),
        size=where(renews, 0.0, size),
        since=where(renews, steps, where(flying, -noise, since)),
        peak=peak,
        minus=-schedule,
        top=top,
    )


def fallen(schedule: Number, top: Number) -> Number:
    """What a schedule has left of its top: 1 while it rises."""
    return where(top > 0, clamp(schedule / clamp(top, TINY), 0.0, 1.0), 1.0)


def lifted(level: Level, schedule: Number) -> Number:
    r"""The level under a schedule that has fallen from its top: :math:`\lambda (1 + 6 (1 - s/\hat s))`.

    A run that ends with low rates stands, and wants, higher ones before: measured, 2 to 4 times the best
    constant rate. So the whole is :math:`\lambda s (7 - 6 s)` for a top of 1, high in the middle, and
    does not end low where s does not. Only a fall in small steps is a schedule's: what is set to less than
    .95 of what it was is meant so, and lowers what is applied by as much.
    """
    return level.value * (1 + LIFT * (1 - fallen(schedule, level.top)))


@local(Locality.ELEMENT)
def push_sign(history: Tensor, g: Tensor) -> Tensor:
    """[B,K,m,n] uint8 of the last eight signs (1 = negative), newest in the lowest bit."""
    return (history << 1) | (g < 0).to(torch.uint8)


@local(Locality.TENSOR)
def sign_vote(history: Tensor, u: Tensor, enough: Tensor) -> tuple[Tensor, Tensor]:
    r"""Weight of the elements whose last eight signs agree, less those that alternate.

    .. math:: \sum |u| ([\text{all equal}] - [\text{alternate}]), \qquad \sum |u|

    Args:
        history: [B,K,m,n] uint8 signs, newest in the lowest bit.
        u: [B,K,m,n] update.
        enough: [B] bool, whether eight signs have been seen.

    Returns:
        Numerator and denominator, each [B]. Both patterns are equally likely under noise, so the
        vote has no drift there.

    Source: Automagic 3, ostris/ai-toolkit (MIT), rule of 2026-06.
    """
    equal = (history == 0) | (history == 255)
    alternate = (history == 0x55) | (history == 0xAA)
    weight = u.abs()
    signed = weight * (equal.to(u.dtype) - alternate.to(u.dtype))
    gate = enough.to(u.dtype)
    return sum_last(signed.flatten(1)).squeeze(-1) * gate, sum_last(weight.flatten(1)).squeeze(-1)
