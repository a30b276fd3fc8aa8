"""Gains of whole rows."""

from __future__ import annotations

from torch import Tensor

from ..types import Locality, local
from ._reduce import row_mean
from .sums import COLUMNS, Steps, mean, summing

SPATIAL_BETA = 0.9


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


@local(Locality.ROW)
def row_variance(u: Tensor) -> Tensor:
    """Variance of an update within each row: [B,K,m,n] -> [B,K,m,1]."""
    return (row_mean(u.square()) - row_mean(u).square()).clamp_(min=0.0)


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
    Measured: 1 where all rows are equal; mean 1 where nothing is clamped; invariant to scale
    (``tests/improved/test_gains.py``).
    """
    [level] = yield [mean(variance, over=COLUMNS)]
    ratio = (variance + 1e-38) / (level + 1e-38)
    return (1 + detail * (ratio - 1)).clamp(0.5, 1.5)
