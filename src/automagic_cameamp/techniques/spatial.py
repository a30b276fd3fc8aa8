"""Gains of whole rows."""

from __future__ import annotations

import torch
from torch import Tensor

from ..types import Locality, local
from ._reduce import row_mean
from .sums import COLUMNS, Steps, mean, summing

SPATIAL_BETA = 0.9
# Of a row's mean square: below it, a variance is what rounding left of a difference of two numbers.
FLAT = 1e-4


@local(Locality.TENSOR)
@summing
def background_gain(energy: Tensor) -> Steps[Tensor]:
    r"""Halve the update of rows that receive almost no gradient.

    .. math:: \mathrm{clamp}\left(\sqrt{b_i / 0.1}, \tfrac12, 1\right), \qquad
              b_i = E_i / \mathrm{mean}(E)

    Args:
        energy: [B,K,m,1] mean squared gradient of each row, >= 0.

    Returns:
        [B,K,m,1] in [1/2, 1]; 1 where all rows are equal.

    Source: ours.
    Deviations: from the documents: they halve the update where an absolute variance is below 1e-6, which
    holds for most tensors.
    Options: background_regularization.
    Measured: 1 where all rows are equal; between 1/2 and 1; invariant to the gradient's scale
    (``tests/improved/test_gains.py``).
    """
    [level] = yield [mean(energy, over=COLUMNS)]
    share = (energy + 1e-38) / (level + 1e-38)
    return (share / 0.1).sqrt().clamp(0.5, 1.0)


@local(Locality.ELEMENT)
def variance_of(square: Tensor, centre: Tensor) -> Tensor:
    """Variance from a mean square and a mean, at least ``FLAT`` of the first: less is rounding."""
    return torch.maximum(square - centre.square(), FLAT * square)


@local(Locality.ROW)
def row_variance(u: Tensor) -> Tensor:
    """Variance of an update within each row, as in ``variance_of``: [B,K,m,n] -> [B,K,m,1]."""
    return variance_of(row_mean(u.square()), row_mean(u))


@local(Locality.TENSOR)
@summing
def spatial_gain(variance: Tensor, detail: float) -> Steps[Tensor]:
    r"""Larger steps for rows with more detail than the average row.

    .. math:: \mathrm{clamp}(1 + d\,(\rho_i - 1), .5, 1.5), \qquad \rho_i = v_i / \mathrm{mean}(v)

    Args:
        variance: [B,K,m,1] running variance of the update within each row.
        detail: d = detail_preservation in [0, 1].

    Returns:
        [B,K,m,1]; 1 where all rows are equal; mean-neutral to first order.

    Source: ours. The documents use an absolute variance.
    Deviations: the variance is taken on the short side of a matrix (per column of a tall one), where it
    costs least.
    Options: spatial_awareness, detail_preservation. 0 is off.
    Measured: 1 where all rows are equal, or constant to a hundredth; mean 1 where nothing is clamped;
    invariant to scale (``tests/improved/test_gains.py``).
    """
    [level] = yield [mean(variance, over=COLUMNS)]
    ratio = (variance + 1e-38) / (level + 1e-38)
    return (1 + detail * (ratio - 1)).clamp(0.5, 1.5)
