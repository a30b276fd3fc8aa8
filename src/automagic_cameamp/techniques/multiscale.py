"""Several running means of one update, averaged."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from ..types import Locality, local


def own_scale(beta1: float, scales: Sequence[int]) -> int:
    r"""The scale that ``exp_avg`` stands for: the one nearest to :math:`1/(1-\beta_1)`, as a ratio."""
    length = -math.log1p(-beta1)
    return min(scales, key=lambda s: (abs(math.log(s) - length), s))


def own_beta(beta1: float, scales: Sequence[int] | None, start: float | None = None) -> float:
    r"""Coefficient of ``exp_avg``: beta1 where a scale says the same, else :math:`1 - 1/s` of its scale.

    A schedule of beta1 moves the length of ``exp_avg`` in the ratio in which it moves that of beta1, and
    the other means stay:

    .. math:: \beta = 1 - (1 - \beta_{own}) \frac{1 - \beta_1}{1 - \beta_{start}}

    Args:
        beta1: coefficient of now.
        scales: lengths in steps.
        start: coefficient that the scales were chosen by; None for ``beta1``.
    """
    if scales is None:
        return beta1
    start = beta1 if start is None else start
    scale = own_scale(start, scales)
    if math.isclose(scale * (1 - start), 1.0, rel_tol=1e-9):
        return beta1
    if beta1 == start:  # to the bit
        return 1 - 1 / scale
    return max(0.0, 1 - (1 - beta1) / (1 - start) / scale)


def kept_scales(beta1: float, scales: Sequence[int] | None) -> tuple[int, ...]:
    """Scales that need a field of their own: not that of ``exp_avg``, and not 1, which is the update."""
    return tuple(sorted(set(scales or ()) - {1, own_scale(beta1, scales)})) if scales else ()


def scale_weights(beta1: float, scales: Sequence[int]) -> tuple[float, float, tuple[float, ...]]:
    """Shares of ``exp_avg``, of the update (0 where no scale of 1 stands beside it), of the others: equal."""
    share = 1 / len(set(scales))
    update = share if 1 in scales and own_scale(beta1, scales) != 1 else 0.0
    return share, update, (share,) * len(kept_scales(beta1, scales))


@local(Locality.ELEMENT)
def multiscale(
    own: Tensor, u: Tensor, kept: Sequence[Tensor], beta1: float, scales: Sequence[int] | None
) -> Tensor:
    r"""Momentum over several lengths of time, each counting the same.

    .. math:: m = \frac1n \sum_s m_s, \qquad m_s \leftarrow (1 - 1/s)\, m_s + u / s

    Args:
        own: [B,K,m,n] ``exp_avg``, the mean whose length is that of beta1, u included.
        u: [B,K,m,n] this update; it is its own mean of length 1 and needs no field.
        kept: [B,K,m,n] each, means of the other scales in ascending order, u included.
        beta1: coefficient that the scales were chosen by.
        scales: lengths in steps; None for ``own`` alone.

    Returns:
        [B,K,m,n]; ``own`` itself where it is the only scale. A constant u is a fixed point.

    Source: the public original of this optimizer family.
    Deviations: that one averages *raw* gradients, only every s-th step, mixes them with normalised
    updates, and keeps fp32 copies beside the 8-bit ones. Weights of 1/s, which it has, make three quarters
    of the mixture of this very update: 1 to 2% behind one mean of length 5, where equal ones are level
    with it (``docs/evidence/rate.md``).
    Options: momentum_scales. In the contextual classes.
    Measured: a constant update is a fixed point; the formula against a plain second writing; the weights;
    ``[5]`` with a still controller is ``Automagic_CameAMP``, bit for bit.
    """
    if scales is None or set(scales) == {own_scale(beta1, scales)}:
        return own
    share, update, others = scale_weights(beta1, scales)
    m = own * share
    if update:
        m = m.add_(u, alpha=update)
    for mean, weight in zip(kept, others, strict=True):
        m = m.add_(mean, alpha=weight)
    return m


def multiscale_gain(product: Tensor, t: Tensor, beta1: float, scales: Sequence[int] | None) -> Tensor:
    r"""How much of a constant update the mixture holds after t steps from zero.

    .. math:: \frac1n \sum_s (1 - \beta_s^t)

    Args:
        product: [B,1,1,1] product of the coefficients that ``exp_avg`` had so far.
        t: [B,1,1,1] number of this update, from 1.
        beta1: coefficient that the scales were chosen by.
        scales: lengths in steps; None for ``exp_avg`` alone.

    Returns:
        [B,1,1,1] in (0, 1]; 1 - product where ``exp_avg`` is alone.
    """
    if scales is None or set(scales) == {own_scale(beta1, scales)}:
        return 1 - product
    share, update, others = scale_weights(beta1, scales)
    gain = (1 - product) * share + update
    for s, weight in zip(kept_scales(beta1, scales), others, strict=True):
        gain = gain + weight * (1 - (t * math.log1p(-1 / s)).exp())
    return gain
