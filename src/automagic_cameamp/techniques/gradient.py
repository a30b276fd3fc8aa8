"""What is done to the gradient before any statistics see it."""

from __future__ import annotations

import torch
from torch import Tensor

from ..types import Locality, local
from .sums import Steps, elements, summing, total


@local(Locality.TENSOR)
@summing
def agr(g: Tensor) -> Steps[Tensor]:
    r"""Adaptive gradient regularisation: shrink an element by its share of the tensor's gradient.

    .. math:: a_i = \min\left(\frac{|g_i|}{\sum_j |g_j|}, \frac12\right), \qquad g' = (1 - a)\, g

    Args:
        g: [B,K,m,n] gradient.

    Returns:
        [B,K,m,n]; same sign, never larger; a tensor of one element is returned as it is.

    Source: Jiang et al. 2024, arXiv 2407.16944 (page read).
    Deviations: the share is capped at 1/2 so that a dominant element still learns.
    Measured: no effect beyond 1e-4 for tensors of more than 10,000 elements; off by default.
    """
    magnitude = g.abs()
    [whole, count] = yield [total(magnitude), elements(g)]
    share = magnitude / whole.clamp(min=1e-38)
    return g - torch.where(count > 1, share.clamp(max=0.5), 0.0) * g
