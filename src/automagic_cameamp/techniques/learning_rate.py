"""What multiplies the learning rate: the Automagic mask, ALLoRA's row gain."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..types import Locality, local
from ._reduce import row_sum, tensor_sum

MASK_LOW, MASK_HIGH = 1 / 16, 4.0
GEOMETRIC_STEP = math.log2(MASK_HIGH / MASK_LOW) / 127  # octaves per count


class MaskCode(NamedTuple):
    """How a counter k is held in an integer word: ``2 * (k + offset) + [last gradient negative]``.

    Args:
        dtype: type of the word.
        counter: type of the counter in arithmetic.
        offset: added to k so that the word is not negative in an unsigned type.
        low, high: limits of k.
    """

    dtype: torch.dtype
    counter: torch.dtype
    offset: int
    low: int
    high: int

    @property
    def start(self) -> int:
        """The word of k = 0."""
        return 2 * self.offset


# 2 ** (k * step) stays inside [1/16, 4] for every k of this range, so no value needs clamping.
GEOMETRIC = MaskCode(torch.uint8, torch.int8, 84, -84, 42)


def additive_code(lr: float, bump: float, low: float, high: float) -> MaskCode:
    """Counter limits of the additive rule, or ValueError where 15 bits cannot hold them."""
    if bump == 0:
        return MaskCode(torch.int16, torch.int16, 0, 0, 0)
    limits = -math.ceil(max(lr - low, 0) / bump), math.ceil(max(high - lr, 0) / bump)
    if min(limits) < -16384 or max(limits) > 16383:
        least = max(lr - low, high - lr) / 16383
        raise ValueError(
            f"lr_bump={bump} needs more than 16,383 steps from lr={lr} to the ends of [min_lr={low}, "
            f"max_lr={high}]: use lr_bump >= {least:.3g}, a narrower range, or lr_mask_rule='geometric'"
        )
    return MaskCode(torch.int16, torch.int16, 0, *limits)


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
    return (k + bump).clamp(code.low, code.high)


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
    codes = torch.arange(GEOMETRIC.low, GEOMETRIC.high + 1, dtype=mean.dtype, device=mean.device)
    table = torch.exp2(codes * GEOMETRIC_STEP) / mean
    index = k.to(torch.int32).sub_(GEOMETRIC.low).flatten()
    return table.index_select(0, index).view(k.shape)


@local(Locality.ELEMENT)
def additive_mask(k: Tensor, dtype: torch.dtype, lr: float, bump: float, low: float, high: float) -> Tensor:
    r"""Multiplier of the additive rule: :math:`\mathrm{clamp}(\eta_0 + kb, \eta_{min}, \eta_{max}) / \eta_0`.

    Args:
        k: integer counter, any shape.
        dtype: dtype of the result.
        lr, bump, low, high: base rate, bump, limits; all rates.

    Returns:
        Multipliers relative to ``lr``.

    Source: Automagic 1, ostris/ai-toolkit (MIT). Deviations: an exact counter instead of a rate
    that is added to and clamped; the two differ by at most one partial bump per clamp.
    """
    return k.to(dtype).mul_(bump).add_(lr).clamp_(low, high).div_(lr)


@local(Locality.ROW)
def allora_gain(p: Tensor, eta: float) -> Tensor:
    r"""Larger steps for rows that are still small.

    .. math:: 1 / \sqrt{\|p_i\| + 1/\eta^2}

    Args:
        p: [B,K,m,n] weights.
        eta: gain of a zero row, > 0.

    Returns:
        [B,K,m,1], in (0, eta].

    Source: Huang & Balestriero 2024 (ALLoRA), arXiv 2410.09692 (abstract only).
    Deviations: row norms are those of now, not of the initial weights.
    """
    return (row_sum(p.square()).sqrt() + 1 / eta**2).rsqrt()


@local(Locality.TENSOR)
def majority(bump: Tensor, granularity: str) -> tuple[Tensor, Tensor]:
    """Sum of the bumps of a row or of a tensor, and the sign of that sum.

    Args:
        bump: [B,K,m,n] integers -1, 0, +1.
        granularity: 'row' or 'tensor'.

    Returns:
        Sum [B,K,m,1] or [B,1,1,1] float32, and its sign in the type of ``bump``.
    """
    votes = bump.to(torch.float32)
    total = row_sum(votes) if granularity == "row" else tensor_sum(votes)
    return total, total.sign().to(bump.dtype)
