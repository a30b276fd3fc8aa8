"""Sign and orientation of the update."""

from __future__ import annotations

import torch
from torch import Tensor

from ..types import Locality, local
from .sums import Steps, elements, mean, summing, total


@local(Locality.ELEMENT)
def grams(out: Tensor, g: Tensor, mix: float | Tensor) -> Tensor:
    r"""Blend an update with the same update carrying the gradient's sign.

    .. math:: a\,|U|\,\mathrm{sign}(g) + (1-a)\,U = U\,(1 - 2a\,[U g < 0])

    Args:
        out: [B,K,m,n] update U.
        g: [B,K,m,n] gradient; an element that is 0 counts as agreement.
        mix: a in [0, 1]; 0 keeps U, 1 is Grams, 1/2 zeroes what disagrees.

    Returns:
        [B,K,m,n].

    Source: Cao et al. 2024, arXiv 2412.17107, algorithm 1 (code read).
    Deviations: where the gradient is 0 the update is kept (the paper's sign(0) = 0 would stop it).
    Options: use_grams.
    Measured: the identity and both ends (``tests/techniques/test_direction.py``).
    """
    # Arithmetic instead of torch.where: a random mask costs twenty times a product on CPU.
    disagree = (out * g).sign_().clamp_(max=0.0)  # -1 or 0
    return out * disagree.mul_(2 * mix).add_(1)


@local(Locality.TENSOR)
@summing
def cautious(out: Tensor, g: Tensor) -> Steps[Tensor]:
    r"""Keep the elements that agree with the gradient, rescaled to the same mass.

    .. math:: U\,\phi / \max(\mathrm{mean}(\phi), 10^{-3}), \qquad \phi = [U g > 0]

    Args:
        out: [B,K,m,n] update U.
        g: [B,K,m,n] gradient.

    Returns:
        [B,K,m,n]; exactly 0 where nothing agrees.

    Source: Liang et al. 2024, *Cautious Optimizers*, arXiv 2411.16085, algorithm 1 (code read). There is
    no paper on "contextual optimization" under that number.
    Deviations: divides by the mean of the mask, as the authors' current code does, instead of ``(nnz + 1)
    / n``.
    Options: use_cautious. In the Improved classes after the early phase, where the mix of Grams has faded to
    1/2 (step 1,386 by default) or there is no Grams: at 1/2 both zero what disagrees. Before that Grams
    goes on, as in the base classes, which have no Cautious: with one in the other's place at W/2, inside
    the run, they ended 1% behind (``docs/evidence/rate.md``).
    Measured: descent in every element, exactly 0 where nothing agrees
    (``tests/techniques/test_direction.py``).
    """
    agree = (out * g).sign_().clamp_(min=0.0)
    [share] = yield [mean(agree)]
    return out * agree * share.clamp(min=1e-3).reciprocal()


@local(Locality.TENSOR)
@summing
def orthograd(d: Tensor, p: Tensor) -> Steps[Tensor]:
    r"""Remove from a displacement its part along the weights, keep its length.

    .. math:: k = \frac{\langle p, D\rangle}{\langle p, p\rangle}, \qquad
              D_\perp = \min\left(\frac{\|D\|}{\|D - k p\|}, 10\right)(D - k p)

    Args:
        d: [B,K,m,n] final displacement (after mask and row gains: rescaling elements afterwards
            would undo the projection).
        p: [B,K,m,n] weights.

    Returns:
        [B,K,m,n]; unchanged where p is 0 or the tensor has one element.

    Source: Prieto et al. 2025, arXiv 2501.04697 (code read).
    Deviations: projects the final displacement ``D``, after mask and gains, because scaling single
    elements afterwards would undo it; the growth is capped at 10; nothing happens where ``p`` is 0 (a
    LoRA's B at the start).
    Options: use_orthograd. Early phase only.
    Measured: orthogonal to 1e-6 of ``|D| |p|`` in fp32 with a random mask active
    (``tests/techniques/test_direction.py``).
    """
    [pp, pd, dd, count] = yield [total(p.square()), total(p * d), total(d.square()), elements(d)]
    k = torch.where(pp > 0, pd / pp, 0.0)
    rest = d - k * p
    # A second pass removes what rounding left along p; the first alone keeps ~1e-7 of |D| |p|.
    [along] = yield [total(p * rest)]
    rest = rest - torch.where(pp > 0, along / pp, 0.0) * p
    [left] = yield [total(rest.square())]
    gain = torch.where(left > 0, (dd / left).sqrt(), 1.0).clamp(max=10.0)
    return torch.where((pp > 0) & (count > 1), gain * rest, d)
