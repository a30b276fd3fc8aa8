"""Second moments: from a gradient to an update of unit size."""

from __future__ import annotations

import math

from torch import Tensor

from ..types import Locality, local
from ._reduce import col_mean, columns, mean_of_rows, rms, row_mean
from .momentum import ema


@local(Locality.CROSS)
def factored_moment(
    row: Tensor, col: Tensor, square: Tensor, beta: float, eps: float, site: str = ""
) -> tuple[Tensor, Tensor]:
    r"""Running row and column means of a squared quantity.

    .. math:: R \leftarrow \beta R + (1-\beta)(\mathrm{rowmean}(x^2) + \epsilon), \quad
              C \leftarrow \beta C + (1-\beta)(\mathrm{colmean}(x^2) + \epsilon)

    Args:
        row: [B,K,m,1] running row means.
        col: [B,K,1,n] running column means.
        square: [B,K,m,n] squared quantity, >= 0.
        beta: decay, [0, 1).
        eps: floor added to the squares, inside the average, >= 0.
        site: name of the sums (``_reduce``).

    Returns:
        New row and column means.

    Source: Shazeer & Stern 2018, arXiv 1804.04235, section 3; Luo et al. 2023 (CAME), arXiv
    2307.02047, algorithm 1.
    """
    return ema(row, row_mean(square) + eps, beta), ema(col, col_mean(square, f"{site}.col") + eps, beta)


@local(Locality.TENSOR)
def factored_rsqrt(x: Tensor, row: Tensor, col: Tensor, site: str = "") -> Tensor:
    r"""Divide by the square root of the rank-one second moment.

    .. math:: x \,/\, \sqrt{R\, C^T / \mathrm{mean}(R)}

    Args:
        x: [B,K,m,n].
        row: [B,K,m,1] row means, > 0.
        col: [B,K,1,n] column means, > 0.
        site: name of the sums (``_reduce``).

    Returns:
        [B,K,m,n].

    Source: CAME, arXiv 2307.02047, algorithm 1 (used for the gradient and for the confidence).
    """
    mean = mean_of_rows(row, site)
    return (x * (row / mean).rsqrt()).mul_(columns(col, site).rsqrt())


@local(Locality.TENSOR)
def rms_gain(x: Tensor, threshold: float, site: str = "", scale: Tensor | None = None) -> Tensor:
    r"""Factor that brings the root mean square of each tensor down to ``threshold``.

    .. math:: 1 / \max(1, \mathrm{RMS}(x) / d)

    Args:
        x: [B,K,m,n].
        threshold: d, > 0.
        site, scale: name of the sum, and a factor of x that followed from other sums (``_reduce``).

    Returns:
        [B,1,1,1], in (0, 1].

    Source: Shazeer & Stern 2018, arXiv 1804.04235, section 6.
    """
    return (rms(x, site, scale) / threshold).clamp(min=1.0).reciprocal()


@local(Locality.TENSOR)
def rms_clip(x: Tensor, threshold: float, site: str = "") -> Tensor:
    """``x * rms_gain(x, threshold)``; the identity for an infinite threshold."""
    return x if math.isinf(threshold) else x * rms_gain(x, threshold, site)


@local(Locality.ELEMENT)
def belief_residual(u: Tensor, m: Tensor) -> Tensor:
    r"""Squared surprise of an update: :math:`(u - m)^2`.

    Args:
        u: [B,K,m,n] normalised update (CAME) or gradient (AdaBelief).
        m: [B,K,m,n] its running mean, this step's u included.

    Returns:
        [B,K,m,n], >= 0.

    Source: Zhuang et al. 2020 (AdaBelief), arXiv 2010.07468; CAME, arXiv 2307.02047.
    """
    return (u - m).square_()
