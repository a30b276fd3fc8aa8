"""Weight decay."""

from __future__ import annotations

import torch
from torch import Tensor

from ..types import Locality, local
from ._reduce import numel, tensor_mean


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
    mean = tensor_mean(magnitude)
    offset = magnitude - mean
    std = tensor_mean(offset.square()).sqrt()
    # 2 / (1 + e^-x) spelled out: torch's sigmoid is slower and rounds by position in memory.
    slope = -alpha / (std + 1e-4 * mean + 1e-30)
    return (offset * slope).exp_().add_(1).reciprocal_().mul_(2)
