"""Weight decay."""

from __future__ import annotations

import torch
from torch import Tensor

from ..types import Locality, local
from ._reduce import numel, square_sum_after, tensor_mean, tensor_sum


@local(Locality.TENSOR)
def adaptive_decay(g: Tensor, alpha: float = 4.0) -> Tensor:
    r"""Per-element strength of weight decay: more where the gradient is large for its layer.

    .. math:: \theta = \frac{2}{1 + e^{-\alpha z}}, \qquad
              z = \frac{|g| - \mathrm{mean}|g|}{\mathrm{std}|g|}

    Args:
        g: [B,K,m,n] gradient.
        alpha: steepness; 0 gives 1 everywhere (AdamW's decay).

    Returns:
        [B,K,m,n] in (0, 2); 1 for a tensor of one element. Its mean is about .88 for Gaussian g.

    Source: Nakamura & Hong 2019 (AdaDecay), arXiv 1907.08931 (abstract only).
    Deviations: the standard deviation has a floor of 1e-4 of the mean, so that equal magnitudes
    give 1 instead of rounding noise.
    """
    if numel(g) < 2:
        return torch.ones_like(g)
    magnitude = g.abs()
    mean = tensor_mean(magnitude, "decay.mean")
    offset = magnitude - mean
    std = tensor_mean(offset.square(), "decay.std").sqrt()
    # 2 / (1 + e^-x) spelled out: torch's sigmoid is slower and rounds by position in memory.
    slope = -alpha / (std + 1e-4 * mean + 1e-30)
    return (offset * slope).exp_().add_(1).reciprocal_().mul_(2)


@local(Locality.TENSOR)
def spd(p: Tensor, new: Tensor, g: Tensor, strength: float, scale: Tensor | None = None) -> Tensor:
    r"""Selective projection decay: pull back only what moved away from the origin for nothing.

    .. math:: c = -\langle g, p\rangle; \quad c < 0: \; p' = \tilde p\,(1 - \lambda r), \qquad
              r = \mathrm{clamp}\left(1 - \|p\| / \|\tilde p\|, 0, 1\right)

    Args:
        p: [B,K,m,n] weights before the step.
        new: [B,K,m,n] weights after the step.
        g: [B,K,m,n] raw gradient.
        strength: lambda = weight_decay.
        scale: [B,1,1,1] factor of the displacement that followed from other sums (``_reduce``).

    Returns:
        [B,K,m,n]; ``new`` where the step shrinks the norm or c >= 0; never a larger norm.

    Source: Tian et al. 2024 (SPD), arXiv 2411.01713, section 3 (code read).
    Deviations: the anchor is 0, which for a LoRA is its initial product.
    """
    before = tensor_sum(p.square(), "spd.before").sqrt()
    after = square_sum_after(p, new, "spd.after", scale).sqrt()
    ratio = torch.where(after > 0, 1 - before / after, 0.0).clamp_(0.0, 1.0)
    along = (tensor_sum(g * p, "spd.along") > 0).to(p.dtype)  # c < 0
    return new * (1 - (strength * along * ratio).clamp(max=1.0))
