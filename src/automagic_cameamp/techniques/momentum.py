"""Running means and how much a new update counts in them."""

from __future__ import annotations

import torch
from torch import Tensor

from ..types import Locality, local
from .sums import ROWS, WHOLE, Steps, summing, total

TORQUE_BETA = 0.9


@local(Locality.ELEMENT)
def ema(old: Tensor, new: Tensor, beta: float | Tensor) -> Tensor:
    r"""Exponential moving average :math:`\beta\, \mathrm{old} + (1-\beta)\, \mathrm{new}`.

    Args:
        old: running mean.
        new: new value, same shape.
        beta: decay in [0, 1]; a number or a tensor that broadcasts.

    Returns:
        The new mean; a fixed point where old == new, whatever beta.
    """
    return torch.lerp(old, new, 1 - beta)  # 1 - beta in double: 1 - fp32(.999) is 1e-5 off


@local(Locality.TENSOR)
@summing
def torque(s: Tensor, m: Tensor, u: Tensor, per_row: bool = False) -> Steps[tuple[Tensor, Tensor]]:
    r"""Torque-aware momentum: damp an update that turns away from the running mean.

    .. math:: s \leftarrow 0.9\, s + 0.1 \cos(m, u), \qquad d = 1 + s

    Args:
        s: [B,1,1,1] running cosine ([B,K,m,1] when ``per_row``).
        m: [B,K,m,n] momentum before this update.
        u: [B,K,m,n] this update, of any size: a cosine does not see it.
        per_row: one cosine per row instead of one per tensor.

    Returns:
        New s and the factor d in [0, 2]; the cosine is 0 where either norm is 0.

    Source: Malviya et al. 2024, arXiv 2412.18790 (page read).
    Deviations: an average instead of the paper's heavy-ball sum, so that the size of ``m`` does not jump
    where the early phase ends; for the same reason 1 + s instead of (1 + s) / 2: stochastic gradients have
    an s near 0, and half of every update would come in at once when the phase ends, in short runs
    near the end of the run; the cosine is 0 where either norm is 0. ``tam_granularity='row'`` takes
    one cosine per row.
    Options: use_tam, tam_granularity. Early phase only.
    Measured: bounds, limits and scale invariance (``tests/techniques/test_momentum.py``).
    """
    over = ROWS if per_row else WHOLE
    [mm, uu, mu] = yield [total(m.square(), over=over), total(u.square(), over=over), total(m * u, over=over)]
    norms = (mm * uu).sqrt()
    cosine = torch.where(norms > 0, mu / norms, 0.0).clamp(-1.0, 1.0)
    s = ema(s, cosine, TORQUE_BETA)
    return s, 1 + s
