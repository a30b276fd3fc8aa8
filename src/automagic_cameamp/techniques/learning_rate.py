"""What multiplies the learning rate: the Automagic mask, ALLoRA's row gain."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..types import CAP, CAP_RATIO, Locality, local
from ._reduce import row_sum
from .sums import ROWS, WHOLE, Steps, summing, total

MASK_LOW, MASK_HIGH = 1 / 16, 4.0
GEOMETRIC_STEP = math.log2(MASK_HIGH / MASK_LOW) / 127  # octaves per count
LARGEST = torch.finfo(torch.float32).max
TINY = torch.finfo(torch.float32).tiny  # of a rate that something is divided by


class MaskCode(NamedTuple):
    """How a counter k is held in an integer word: ``2 * (k + offset) + [last gradient negative]``.

    Args:
        dtype: type of the word.
        counter: type of the counter in arithmetic.
        offset: added to k so that the word is not negative in an unsigned type.
        low, high: limits of k; 0-D tensors where the learning rate is one.
    """

    dtype: torch.dtype
    counter: torch.dtype
    offset: int
    low: int | Tensor
    high: int | Tensor

    @property
    def start(self) -> int:
        """The word of k = 0."""
        return 2 * self.offset


# 2 ** (k * step) stays inside [1/16, 4] for every k of this range, so no value needs clamping.
GEOMETRIC = MaskCode(torch.uint8, torch.int8, 84, -84, 42)


def additive_code(lr: float | Tensor, bump: float, low: float | Tensor, high: float | Tensor) -> MaskCode:
    """Code of the additive rule around a rate: counters that lead to the ends of [low, high], in 15 bits."""
    if bump == 0:
        return MaskCode(torch.int16, torch.int16, 0, 0, 0)
    down, up = (lr - low) / bump, (high - lr) / bump
    if isinstance(down, Tensor) or isinstance(up, Tensor):
        least, most = (_scalar(x).clamp(0, 16383).ceil().to(torch.int16) for x in (down, up))
        return MaskCode(torch.int16, torch.int16, 0, -least, most)
    least, most = (math.ceil(min(max(x, 0), 16383)) for x in (down, up))
    return MaskCode(torch.int16, torch.int16, 0, -least, most)


def check_additive(lr: float, bump: float, low: float, high: float) -> None:
    """ValueError where 15 bits cannot hold the counters of the additive rule."""
    widest = max(lr - low, high - lr)
    if bump > 0 and widest > 16383 * bump:
        raise ValueError(
            f"lr_bump={bump} needs more than 16,383 steps from lr={lr} to the ends of [min_lr={low}, "
            f"max_lr={high}]: use lr_bump >= {widest / 16383:.3g}, a narrower range, or "
            "lr_mask_rule='geometric'"
        )


def split_word(word: Tensor, code: MaskCode) -> tuple[Tensor, Tensor]:
    """Words -> counter k and last sign (+1 or -1), both in the counter's type."""
    k = (word >> 1).to(code.counter)
    last = (word & 1).to(code.counter).mul_(-2).add_(1)
    return k.sub_(code.offset), last


def join_word(k: Tensor, last: Tensor, code: MaskCode) -> Tensor:
    """Counter k and last sign (+1 or -1) -> words."""
    return (k + code.offset).to(code.dtype).mul_(2).add_((last < 0).to(code.dtype))


@local(Locality.ELEMENT)
def agreement(g: Tensor, last: Tensor, live: Tensor) -> tuple[Tensor, Tensor]:
    """Compare each gradient's sign with the last one seen.

    Args:
        g: [B,K,m,n] raw gradient.
        last: [B,K,m,n] integer, sign (+1 or -1) of the last gradient that was not 0.
        live: [B,1,1,1] bool, False while there is no last sign (t = 1) or the mask is frozen.

    Returns:
        Bump (+1 agree, -1 disagree, 0 where g is 0 or not live) and the new last sign, both in
        the type of ``last``.
    """
    sign = g.sign().to(last.dtype)
    bump = (sign * last).mul_(live.to(last.dtype))
    return bump, last * (1 - sign.abs()) + sign


@local(Locality.ELEMENT)
def count(k: Tensor, bump: Tensor, code: MaskCode) -> Tensor:
    """Saturating step of the counter."""
    return limited(k + bump, code.low, code.high)


@local(Locality.ELEMENT)
def geometric_mask(k: Tensor, mean: Tensor) -> Tensor:
    r"""Multiplier of the geometric rule, divided by its mean over all parameters.

    .. math:: \mu = 64^{k / 127} / \bar\mu \in [1/16, 4] / \bar\mu

    Args:
        k: integer counter, any shape.
        mean: mean multiplier, one number.

    Returns:
        Multipliers in the dtype of ``mean``.

    Source: Automagic, ostris/ai-toolkit (MIT), sign agreement per element; the geometric counter
    and the division by the mean are ours.
    """
    # A table of 127 values: faster than an exponential, and the same bits wherever an element stands.
    low, high = int(GEOMETRIC.low), int(GEOMETRIC.high)
    codes = torch.arange(low, high + 1, dtype=mean.dtype, device=mean.device)
    table = torch.exp2(codes * GEOMETRIC_STEP) / mean
    index = k.to(torch.int32).sub_(low).flatten()
    return table.index_select(0, index).view(k.shape)


@local(Locality.ELEMENT)
def additive_mask(
    k: Tensor, dtype: torch.dtype, lr: float | Tensor, bump: float, low: float | Tensor, high: float | Tensor
) -> Tensor:
    r"""Multiplier of the additive rule: :math:`\mathrm{clamp}(\eta_0 + kb, \eta_{min}, \eta_{max}) / \eta_0`.

    Args:
        k: integer counter, any shape.
        dtype: dtype of the result.
        lr: the rate that k = 0 stands for; nothing is learned relative to a rate of 0.
        bump: rate of one count.
        low, high: limits; rates, with ``lr`` between them.

    Returns:
        Multipliers relative to ``lr``.

    Source: Automagic 1, ostris/ai-toolkit (MIT). Deviations: an exact counter instead of a rate
    that is added to and clamped; the two differ by at most one partial bump per clamp.
    """
    rates = k.to(dtype) * bump
    if isinstance(lr, Tensor):
        lr = lr.to(dtype)
        return torch.where(lr >= TINY, limited(rates + lr, low, high) / lr, 1.0)
    return limited(rates.add_(lr), low, high).div_(lr) if lr >= TINY else torch.ones_like(rates)


def additive_range(
    lr: float | Tensor, base_lr: float, floor: float, cap: float | None
) -> tuple[float | Tensor, float | Tensor, float | Tensor]:
    """Rate that the additive rule is relative to, and its ends; never without that rate between them.

    Args:
        lr: current learning rate.
        base_lr: the first one. While ``lr`` is below it, all rates shrink with the schedule.
        floor: lowest rate.
        cap: highest rate; None for 1e-3, or the rate itself where that is higher.

    Returns:
        ``max(base_lr, lr)``, the lowest and the highest rate.
    """
    cap = CAP if cap is None else cap
    if isinstance(lr, Tensor):
        centre = lr.clamp(min=base_lr)
        return centre, centre.clamp(max=floor), centre.clamp(min=cap)
    centre = max(base_lr, lr)
    return centre, min(floor, centre), max(cap, centre)


def rate_bounds(
    lr: float | Tensor, base_lr: float | Tensor, floor: float, cap: float | None
) -> tuple[float | Tensor, float | Tensor]:
    r"""Limits of what may multiply the learning rate. 1 lies between them but for a cap below the rate.

    .. math:: \min(1, \eta_{min} / \max(\eta_0, \eta)) \le \frac{\eta_i}{\eta} \le \eta_{max} / \eta

    Args:
        lr: current learning rate; a tensor gives tensors, without waiting for its device.
        base_lr: the first one: while ``lr`` is below it, the floor shrinks with the schedule.
        floor: lowest rate, at the schedule's start.
        cap: highest rate, at any time; None for 1e-3, or ten times ``lr`` where that is higher.

    Returns:
        Lowest and highest multiplier.
    """
    if isinstance(lr, Tensor):
        start = base_lr.clamp(min=TINY) if isinstance(base_lr, Tensor) else max(base_lr, TINY)
        low = (floor / lr.clamp(min=start)).clamp(max=1.0)
        limit = (lr * CAP_RATIO).clamp(min=CAP) if cap is None else cap
        return low, torch.where(lr > 0, limit / lr, LARGEST).clamp(max=LARGEST)
    low = min(1.0, floor / max(float(base_lr), lr, TINY))
    limit = max(CAP, CAP_RATIO * lr) if cap is None else cap
    return low, min(limit / lr, LARGEST) if lr > 0 else LARGEST


def limited(x: Tensor, low: float | Tensor, high: float | Tensor) -> Tensor:
    """``x.clamp(low, high)`` with limits that are numbers or 0-D tensors, on any device."""
    if not isinstance(low, Tensor) and not isinstance(high, Tensor):
        return x.clamp(low, high)
    least, most = (_scalar(limit).to(x.dtype) for limit in (low, high))
    return torch.minimum(torch.maximum(x, least), most)


def _scalar(x: float | Tensor) -> Tensor:
    """A 0-D tensor, on the host where it is a number: there it goes with tensors of any device."""
    return x if isinstance(x, Tensor) else torch.tensor(x, device="cpu")


@local(Locality.ROW)
def allora_gain(p: Tensor, eta: float) -> Tensor:
    r"""Larger steps for rows that are still small.

    .. math:: 1 / \sqrt{\|p_i\| + 1/\eta^2}

    Args:
        p: [B,K,m,n] weights.
        eta: gain of a zero row, > 0.

    Returns:
        [B,K,m,1], in (0, eta].

    Source: Huang & Balestriero 2024, arXiv 2410.09692 (abstract only).
    Deviations: the row's norm is the present one, at every step, not that of the initial weights; the
    gain is part of the rate, inside the clamp to ``min_lr`` and ``max_lr``.
    Options: full_finetune, eta. It applies to the matrices and convolutions of a LoRA, found by marks,
    names or shapes ([trainers.md](trainers.md#which-parameters-are-a-lora)).
    Measured: ends and monotony (``tests/techniques/test_learning_rate.py``).
    """
    return (row_sum(p.square()).sqrt() + 1 / eta**2).rsqrt()


@local(Locality.TENSOR)
@summing
def majority(bump: Tensor, granularity: str) -> Steps[tuple[Tensor, Tensor]]:
    """Sum of the bumps of a row or of a tensor, and the sign of that sum.

    Args:
        bump: [B,K,m,n] integers -1, 0, +1.
        granularity: 'row' or 'tensor'.

    Returns:
        Sum [B,K,m,1] or [B,1,1,1] float32, and its sign in the type of ``bump``.
    """
    votes = bump.to(torch.float32)
    [counted] = yield [total(votes, over=ROWS if granularity == "row" else WHOLE)]
    return counted, counted.sign().to(bump.dtype)
