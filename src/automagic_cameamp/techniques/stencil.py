"""Neighbourhoods: edges and frequencies of a gradient seen as a picture.

The last two dimensions are the picture: the kernel of a convolution, or a whole matrix. The
neighbouring rows of a linear layer have no geometry; that the documents treat them as pictures
is why ``spatial_mode='all'`` exists, not a reason to expect anything of it. A matrix with a row that
has no gradient is not even that, but a table whose rows are used one by one: ``neighbours``.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..types import Layout, Locality, local
from .sums import Steps, mean, summing

EDGE_BETA = 0.9


class Sides(NamedTuple):
    """Which neighbours the elements of a picture have: [B,*,1,1] of 0 and 1.

    Args:
        down: those in other rows.
        across: those in the same row.
    """

    down: Tensor
    across: Tensor


def neighbours(picture: Tensor, layout: Layout, table: int = 0) -> Sides | None:
    """Which neighbours count; None where all do.

    A matrix of which a row has no gradient in this step is a table: an embedding of which some
    tokens were seen. What a stencil would carry into the other rows is no gradient, and CAME's row
    statistics would blow it up to a step of full size. The same holds for columns (the token side of
    an embedding's LoRA). Kernels of a convolution are pictures whatever their gradient is.

    Args:
        picture: [B,*,h,w] gradient.
        layout: view of the parameter.
        table: 1: the rows are no neighbours whatever the gradient is; 2: nor are the columns.
    """
    if picture.shape[1:] != layout.view:
        return None
    there = picture != 0
    down = there.any(-1, keepdim=True).all(-2, keepdim=True) & (table < 1)
    across = there.any(-2, keepdim=True).all(-1, keepdim=True) & (table < 2)
    return Sides(down.to(picture.dtype), across.to(picture.dtype))


def picture(x: Tensor, layout: Layout, mode: str) -> Tensor | None:
    """View [B,K,m,n] as pictures [B,*,h,w], or None where the parameter is none.

    Args:
        x: [B,K,m,n] stack.
        layout: its view.
        mode: 'all' (kernels and matrices) or 'conv' (kernels of at least 3 x 3 only).
    """
    if not layout.matrix:
        return None
    height, width = layout.shape[-2:]
    kernel = len(layout.shape) >= 4
    if max(height, width) < 2:
        return None
    if mode == "conv" and not (kernel and min(height, width) >= 3):
        return None
    return x.reshape(x.shape[0], -1, height, width)


def second_difference(x: Tensor, dim: int) -> Tensor:
    """x[i-1] - 2 x[i] + x[i+1] along ``dim`` (-1 or -2), the border repeated."""
    step = x.diff(dim=dim)
    after = (0, 1) if dim == -1 else (0, 0, 0, 1)
    before = (1, 0) if dim == -1 else (0, 0, 1, 0)
    return torch.nn.functional.pad(step, after) - torch.nn.functional.pad(step, before)


def laplacian(x: Tensor, sides: Sides | None = None) -> Tensor:
    """Five-point Laplacian on the last two dimensions; the border is repeated, and what is no neighbour."""
    across, down = second_difference(x, -1), second_difference(x, -2)
    return across + down if sides is None else sides.across * across + sides.down * down


@local(Locality.TENSOR)
@summing
def edge_hits(picture: Tensor, like: Tensor, threshold: float, sides: Sides | None = None) -> Steps[Tensor]:
    r"""How much of an edge the gradient has at each element.

    .. math:: e = \frac{|L|}{|L| + \mathrm{RMS}(L)}, \qquad \mathrm{hit} = [e > \theta]\, e

    Args:
        picture: [B,*,h,w] gradient.
        like: [B,K,m,n], the shape of the result.
        threshold: theta in (0, 1); .6 means |L| > 1.5 RMS, 13% of white noise.
        sides: which neighbours count; None: all.

    Returns:
        [B,K,m,n] in [0, 1); unchanged by a rescaling of the gradient.

    Source: ours. The documents compare ``|L|`` with an absolute number, which fires never or always
    depending on the scale of the gradient.
    Deviations: from the documents: the threshold is relative; the update is damped, nothing is added to
    the gradient.
    Options: edge_suppression, edge_penalty, edge_threshold, spatial_mode. 0.6 is ``|L| > 1.5 RMS(L)``.
    Measured: fires on an eighth of white noise whatever its scale; constants and the inside of ramps have
    no edge; gain always in ``[1 - edge_penalty, 1]`` (``tests/improved/test_stencil.py``).
    """
    edge = laplacian(picture, sides).reshape(like.shape).abs_()
    [square] = yield [mean(edge.square())]
    e = edge / (edge + square.sqrt() + 1e-38)
    return e * (e - threshold).sign_().clamp_(min=0.0)


@local(Locality.STENCIL)
def frequency_filter(picture: Tensor, penalty: float, sides: Sides | None = None) -> Tensor:
    r"""Damp the high frequencies of a gradient.

    .. math:: g' = g - p\,(g - B g), \qquad
              \mathrm{gain} = 1 - p\left(1 - \cos^2\tfrac{\omega_x}{2} \cos^2\tfrac{\omega_y}{2}\right)

    B is the binomial [1 2 1] x [1 2 1] / 16 with the border repeated; its eigenvectors are the
    DCT-II modes, with :math:`\omega = \pi j / \text{size}`.

    Args:
        picture: [B,*,h,w] gradient.
        penalty: p in [0, 1]; 0 is the identity.
        sides: which neighbours count; None: all. Without those in other rows, B is [1 2 1] / 4.

    Returns:
        [B,*,h,w]; constants and the sum are kept, the norm never grows; the identity for
        pictures below 3 x 3.

    Source: ours.
    Deviations: from the documents: they mask the magnitudes of an unshifted FFT, which damps the low
    frequencies and forgets the phases.
    Options: frequency_penalty. 0 is off. Pictures below 3 x 3 are left alone.
    Measured: every mode of seven picture sizes has exactly that gain; constants and the sum are kept, the
    norm never grows, a checkerboard loses exactly ``f`` (``tests/improved/test_stencil.py``).
    """
    if penalty == 0 or max(picture.shape[-2:]) < 3:
        return picture
    across = 0.25 * second_difference(picture, -1)
    smooth = picture + (across if sides is None else sides.across * across)
    down = 0.25 * second_difference(smooth, -2)
    smooth = smooth + (down if sides is None else sides.down * down)
    return torch.lerp(picture, smooth, penalty)
