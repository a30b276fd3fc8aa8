"""Second moments: from a gradient to an update of unit size."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..types import Locality, local
from ._reduce import row_mean
from .momentum import ema
from .sums import COLUMNS, Steps, mean, summing, total


@local(Locality.CROSS)
@summing
def factored_moment(
    row: Tensor, col: Tensor, square: Tensor, beta: float, eps: float
) -> Steps[tuple[Tensor, Tensor, Tensor]]:
    r"""Running row and column means of a squared quantity.

    .. math:: R \leftarrow \beta R + (1-\beta)(\mathrm{rowmean}(x^2) + \epsilon), \quad
              C \leftarrow \beta C + (1-\beta)(\mathrm{colmean}(x^2) + \epsilon)

    Args:
        row: [B,K,m,1] running row means.
        col: [B,K,1,n] running column means.
        square: [B,K,m,n] squared quantity, >= 0.
        beta: decay, [0, 1).
        eps: floor added to the squares, inside the average, >= 0.

    Returns:
        New row and column means, and the mean of the row means [B,K,1,1].

    Source: Luo et al. 2023, arXiv 2307.02047, algorithm 1 (code read); factors and clipping from Shazeer
    & Stern 2018 (Adafactor), arXiv 1804.04235, sections 3 and 6.
    Deviations: convolutions are factored as ``O x (I * kernel)``; the reference code factors the kernel's
    last two dimensions, which for 3 x 3 kernels stores two thirds of the tensor. ``final_clip`` limits
    the RMS of the final update: in the paper a persistent gradient makes ``m / sqrt(S)`` grow without
    bound.
    Options: came, factored, confidence_1d, clip_threshold, final_clip. None is the same as
    ``clip_threshold``.
    Measured: with everything else off the recipe equals our fp64 port of the paper's algorithm to 1e-12
    over 200 steps on 0-D to 5-D shapes, and to 1e-6 per step in fp32; without the final clip a constant
    gradient moves a weight more than ten times as far as with it within 500 steps
    (``tests/recipes/test_oracles.py``).
    """
    row = ema(row, row_mean(square) + eps, beta)
    [across, level] = yield [mean(square, over=COLUMNS), mean(row, over=COLUMNS)]
    return row, ema(col, across + eps, beta), level


@local(Locality.ELEMENT)
def factored_rsqrt(x: Tensor, row: Tensor, col: Tensor, level: Tensor) -> Tensor:
    r"""Divide by the square root of the rank-one second moment.

    .. math:: x \,/\, \sqrt{R\, C^T / \mathrm{mean}(R)}

    Args:
        x: [B,K,m,n].
        row: [B,K,m,1] row means, > 0.
        col: [B,K,1,n] column means, > 0.
        level: [B,K,1,1] mean(R).

    Returns:
        [B,K,m,n].

    Source: CAME, arXiv 2307.02047, algorithm 1 (used for the gradient and for the confidence).
    """
    return (x * (row / level).rsqrt()).mul_(col.rsqrt())


@local(Locality.TENSOR)
@summing
def rms_gain(x: Tensor, threshold: float) -> Steps[Tensor]:
    r"""Factor that brings the root mean square of each tensor down to ``threshold``.

    .. math:: 1 / \max(1, \mathrm{RMS}(x) / d)

    Args:
        x: [B,K,m,n].
        threshold: d, > 0; without a limit the gain is 1.

    Returns:
        [B,1,1,1], in (0, 1].

    Source: Shazeer & Stern 2018, arXiv 1804.04235, section 6.
    """
    if math.isinf(threshold):
        return torch.ones((x.shape[0], 1, 1, 1), dtype=x.dtype, device=x.device)
    [square] = yield [mean(x.square())]
    return (square.sqrt() / threshold).clamp(min=1.0).reciprocal()


@local(Locality.TENSOR)
@summing
def rms_clip(x: Tensor, threshold: float) -> Steps[Tensor]:
    """``x * rms_gain(x, threshold)``; the identity for an infinite threshold."""
    return x if math.isinf(threshold) else x * (yield from rms_gain.steps(x, threshold))


@summing
def all_finite(x: Tensor, columns: Tensor | None = None) -> Steps[Tensor]:
    """Whether every element is finite and their sum does not overflow: [B,1,1,1] bool.

    Args:
        x: [B,K,m,n] or [B,K,m,1].
        columns: [B,K,1,n] statistics over all rows, looked at too; every process has them.
    """
    if columns is None:
        [sums] = yield [total(x)]
        return sums.abs() < math.inf  # NaN is not; torch.isfinite would be four operations
    [rows, cols] = yield [total(x), total(columns, over=(1, 3))]
    return (rows.abs() < math.inf) & (cols.abs() < math.inf)


@local(Locality.ELEMENT)
def belief_residual(u: Tensor, m: Tensor) -> Tensor:
    r"""Squared surprise of an update: :math:`(u - m)^2`.

    Args:
        u: [B,K,m,n] normalised update (CAME) or gradient (AdaBelief).
        m: [B,K,m,n] its running mean, this step's u included.

    Returns:
        [B,K,m,n], >= 0.

    Source: Zhuang et al. 2020, arXiv 2010.07468, algorithm 2 (code read).
    Deviations: the bias correction of ``m`` uses the product of the coefficients really used, because
    they change (A5); ``final_clip`` applies here too.
    Options: came. AdaBelief is on where that is False.
    Measured: equals our fp64 port to 1e-12 over 200 steps (``tests/recipes/test_oracles.py``). Its
    training results: not measured yet.
    """
    return (u - m).square_()
