"""Weight decay."""

from __future__ import annotations

import torch
from torch import Tensor

from ..types import Locality, local
from .sums import Steps, mean, summing, total


@local(Locality.TENSOR)
@summing
def adaptive_decay(g: Tensor, alpha: float = 4.0) -> Steps[Tensor]:
    r"""Per-element strength of weight decay: more where the gradient is large for its layer.

    .. math:: \theta = \frac{2}{1 + e^{-\alpha z}}, \qquad
              z = \frac{|g| - \mathrm{mean}|g|}{\mathrm{std}|g|}

    Args:
        g: [B,K,m,n] gradient.
        alpha: steepness; 0 gives 1 everywhere (AdamW's decay).

    Returns:
        [B,K,m,n] in (0, 2); 1 for a tensor of one element. Its mean is about .88 for Gaussian g.

    Source: Nakamura & Hong 2019 (AdaDecay), arXiv 1907.08931 (abstract only).
    Deviations: the standard deviation has a floor of 1e-4 of the mean, so that gradients of equal size
    decay plainly (theta = 1) instead of by rounding noise; a tensor of one element decays plainly.
    Options: weight_decay, weight_decay_phase. ``'always'`` keeps decaying.
    Measured: the mean of theta is 0.88 for a normal gradient, so the average decay is a little below
    AdamW's (``tests/techniques/test_decay.py``).
    """
    magnitude = g.abs()
    [centre] = yield [mean(magnitude)]
    offset = magnitude - centre
    [variance] = yield [mean(offset.square())]
    # 2 / (1 + e^-x) spelled out: torch's sigmoid is slower and rounds by position in memory.
    slope = -alpha / (variance.sqrt() + 1e-4 * centre + 1e-30)
    return (offset * slope).exp_().add_(1).reciprocal_().mul_(2)


@local(Locality.TENSOR)
@summing
def spd(p: Tensor, new: Tensor, g: Tensor, strength: float) -> Steps[Tensor]:
    r"""Selective projection decay: pull back only what moved away from the origin for nothing.

    .. math:: c = -\langle g, p\rangle; \quad c < 0: \; p' = \tilde p\,(1 - \lambda r), \qquad
              r = \mathrm{clamp}\left(1 - \|p\| / \|\tilde p\|, 0, 1\right)

    Args:
        p: [B,K,m,n] weights before the step.
        new: [B,K,m,n] weights after the step.
        g: [B,K,m,n] raw gradient.
        strength: lambda = weight_decay.

    Returns:
        [B,K,m,n]; ``new`` where the step shrinks the norm or c >= 0; never a larger norm.

    Source: Tian et al. 2024, arXiv 2411.01713, section 3 (code read).
    Deviations: the anchor is 0 (a LoRA's own starting point, and no memory), not the initial weights. The
    factor never changes a sign, however large ``weight_decay`` is.
    Options: use_spd, weight_decay. Early and middle phase only. It takes the place of weight decay: there
    is no other in these classes.
    Measured: equals the closed form from three inner products; a step that shrinks the weights, or that
    descent itself wants to grow them, is left alone bit for bit; the norm ends between ``|p|`` and
    ``|p~|`` (``tests/improved/test_spd.py``).
    """
    [before, after, along] = yield [total(p.square()), total(new.square()), total(g * p)]
    ratio = torch.where(after > 0, 1 - before.sqrt() / after.sqrt(), 0.0).clamp_(0.0, 1.0)
    along = (along > 0).to(p.dtype)  # c < 0
    return new * (1 - (strength * along * ratio).clamp(max=1.0))
