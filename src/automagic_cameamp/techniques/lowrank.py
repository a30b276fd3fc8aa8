"""Low-rank structure of the weights: keep the strongest directions, let the rest shrink."""

from __future__ import annotations

import torch
from torch import Tensor

from ..types import Layout, Locality, local
from .sums import Steps, summing, total

LARGEST_SIDE = 128  # a larger Gram matrix costs more than the penalty is worth


def has_tail(layout: Layout, rank_keep: int) -> bool:
    """Whether a parameter has directions beyond the kept ones, and a side small enough to find them."""
    return layout.matrix and rank_keep < min(layout.rows, layout.cols) <= LARGEST_SIDE


def _product(a: Tensor, b: Tensor) -> Tensor:
    """Matrix product of two stacks, rounded once from fp64.

    On CPU one by one, from copies: the kernel that torch takes, and so the last bits, depend on the
    size of a batch, on alignment and on threads; in fp64 none of that survives the rounding.
    """
    if a.device.type != "cpu":
        return a @ b
    pairs = zip(a.flatten(0, 1).unbind(0), b.flatten(0, 1).unbind(0), strict=True)
    products = [torch.mm(_copy(x), _copy(y)) for x, y in pairs]
    return torch.stack(products).view(*a.shape[:-1], b.shape[-1]).to(a.dtype)


def _copy(x: Tensor) -> Tensor:
    return x.to(torch.float64, copy=True, memory_format=torch.contiguous_format)


def tail_is_smaller(layout: Layout, rank_keep: int) -> bool:
    """Whether the directions beyond the kept ones are fewer, and so the cheaper basis."""
    return min(layout.rows, layout.cols) - rank_keep < rank_keep


def _project(basis: Tensor, x: Tensor) -> Tensor:
    """The part of [B,K,m,n] in the directions of a basis of its short side."""
    if x.shape[-2] <= x.shape[-1]:
        return _product(basis, _product(basis.mT, x))
    return _product(_product(x, basis), basis.mT)


def _directions(w: Tensor) -> Tensor:
    """[B,K,r,r] orthonormal directions of the short side, weakest first, from its Gram matrix."""
    # In fp64 the small Gram matrix is exact enough that no thread count shows in the result.
    wide = w.double()
    gram = _product(wide, wide.mT) if w.shape[-2] <= w.shape[-1] else _product(wide.mT, wide)
    # Eigenvalues of what is not finite raise, for the whole stack; its update is thrown away anyway.
    gram = torch.where(gram.isfinite().flatten(-2).all(-1)[..., None, None], gram, 0.0)
    if w.device.type != "cpu":
        return torch.linalg.eigh(gram).eigenvectors
    # One by one from copies, for the same reason as in _product.
    vectors = [torch.linalg.eigh(one.clone()).eigenvectors for one in gram.flatten(0, 1).unbind(0)]
    return torch.stack(vectors).view_as(gram)


def top_basis(w: Tensor, rank_keep: int) -> Tensor:
    """Orthonormal basis of the strongest directions of the short side.

    Args:
        w: [B,K,m,n] weights.
        rank_keep: directions to keep.

    Returns:
        [B,K,r,rank_keep], r = min(m, n), from the Gram matrix of that side.
    """
    return _directions(w)[..., -rank_keep:].to(w.dtype)


def tail_basis(w: Tensor, rank_keep: int) -> Tensor:
    """Orthonormal basis of all other directions: [B,K,r,r - rank_keep]; see ``top_basis``."""
    return _directions(w)[..., :-rank_keep].to(w.dtype)


@local(Locality.TENSOR)
def shrink_tail(w: Tensor, basis: Tensor, strength: Tensor, tail: bool = False) -> Tensor:
    r"""Shrink what lies outside the kept directions.

    .. math:: W - s\,(W - P W)

    Args:
        w: [B,K,m,n] weights.
        basis: [B,K,r,k] of the kept directions.
        strength: [B,1,1,1], the rate accumulated since the last time, clamped to 1.
        tail: the basis is that of the other directions.

    Returns:
        [B,K,m,n]; the kept singular values are unchanged, the others scaled by 1 - s.

    Source: ours. The documents' penalty multiplies every singular value, which is plain decay, before the
    gradient is normalised, which makes its strength arbitrary; their emphasis multiplies a running mean
    by 1.2 at every step, which diverges.
    Deviations: only matrices whose short side is above ``rank_keep`` and at most 128; only parameters of
    a LoRA ([trainers.md](trainers.md#which-parameters-are-a-lora)). Rows without a gradient lose their
    tail too. What is stored is the smaller basis: of the kept directions in bf16, or of the others in
    eight bits.
    Options: lora_rank_penalty, rank_penalty_strength, low_rank_emphasis, rank_keep, sync_frequency. An
    emphasis of 1 is off. A LoRA of rank 10 or less is never touched.
    Measured: the kept singular values are unchanged, the others scaled by exactly ``1 - s``, the kept
    subspace stays; the emphasis keeps the norm (``tests/improved/test_lowrank.py``).
    """
    inside = _project(basis, w)
    return w - strength.clamp(max=1.0) * (inside if tail else w - inside)


@local(Locality.TENSOR)
@summing
def emphasise(u: Tensor, basis: Tensor, emphasis: float, tail: bool = False) -> Steps[Tensor]:
    r"""Turn an update towards the kept directions without changing its length.

    .. math:: u' = \|u\| \frac{u + (e - 1) P u}{\|u + (e - 1) P u\|}

    Args:
        u: [B,K,m,n] update.
        basis: [B,K,r,k] of the kept directions; 0 before the first one was found.
        emphasis: e >= 1; 1 is the identity.
        tail: the basis is that of the other directions.

    Returns:
        [B,K,m,n] with the norm of u.
    """
    if emphasis == 1:
        return u
    inside = _project(basis, u)
    turned = u + (emphasis - 1) * (u - inside if tail else inside)
    [before, after] = yield [total(u.square()), total(turned.square())]
    return turned * torch.where(after > 0, (before / after).sqrt(), 1.0)
