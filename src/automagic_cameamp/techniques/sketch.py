"""A short summary of a long vector that keeps its angles: a structured count sketch."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from ..types import Locality, local

SKETCH_SIZE = 4096
# Length of the cyclic table of random signs. It is odd, so rows of 4096 elements never read the
# same signs twice before 65,537 rows have passed; small, so that it stays in cache.
_PERIOD = 65_537


@lru_cache(maxsize=8)
def _table(device: torch.device, dtype: torch.dtype) -> Tensor:
    """Signs from the counter: top bit of a 32-bit hash (Wellons' lowbias32, public domain)."""
    x = torch.arange(1, _PERIOD + 1, dtype=torch.int64, device=device)
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & 0xFFFFFFFF
    x = ((x ^ (x >> 15)) * 0x846CA68B) & 0xFFFFFFFF
    return ((x ^ (x >> 16)) >> 31).to(dtype).mul_(-2).add_(1)


def random_signs(count: int, offset: int, like: Tensor) -> Tensor:
    """[count] of +1 and -1, from place ``offset`` of the cyclic table; a view where no end is crossed."""
    table = _table(like.device, like.dtype)
    start = offset % _PERIOD
    end = start + count
    return (table if end <= _PERIOD else table.repeat(-(-end // _PERIOD)))[start:end]


@local(Locality.TENSOR)
def sketch(x: Tensor, offset: int = 0, first: int = 0, whole: int | None = None) -> Tensor:
    r"""Random signs, then a sum over every 4096th element.

    .. math:: q_b = \sum_{i \equiv b \;(4096)} \sigma_i x_i, \qquad
              \mathbb{E}\, \langle q(x), q(y)\rangle = \langle x, y\rangle

    Args:
        x: [B,K,m,n].
        offset: where in the table of signs the first element of the tensor reads.
        first, whole: x are the elements from ``first`` on of a tensor of ``whole``; its sketch is the sum
            over the parts.

    Returns:
        [B, min(numel, 4096)]; a tensor of up to 4096 elements keeps all of its angles.

    Source: Charikar, Chen and Farach-Colton 2002 (count sketch).
    Deviations: the bucket is the position, not a hash, so it is a dense sum: no scatter, no atomics, the
    same bits every time; the table has 65,537 signs, an odd number, so equal signs never meet in equal
    buckets within the first 65,537 rows.
    Measured: standard error of the cosine at most .02 for 500,000 elements, for noise and for rank-one
    matrices.
    """
    flat = x.flatten(1)
    n = flat.shape[1]
    if whole is not None and whole != n:
        return _part(flat * random_signs(n, offset + first, x), first, whole)
    signed = flat * random_signs(n, offset, x)
    if n <= SKETCH_SIZE:
        return signed
    even = n - n % SKETCH_SIZE
    q = signed[:, :even].unflatten(1, (-1, SKETCH_SIZE)).sum(1)
    if even < n:
        q[:, : n - even] += signed[:, even:]
    return q


def _part(signed: Tensor, first: int, whole: int) -> Tensor:
    """What the elements from ``first`` on add to the sketch of a tensor of ``whole`` elements."""
    n = signed.shape[1]
    if whole <= SKETCH_SIZE:
        return torch.nn.functional.pad(signed, (first, whole - first - n))
    before = first % SKETCH_SIZE
    padded = torch.nn.functional.pad(signed, (before, -(before + n) % SKETCH_SIZE))
    return padded.unflatten(1, (-1, SKETCH_SIZE)).sum(1)


def fold(rows: Tensor, offset: int) -> Tensor:
    """Sketches of the tensors of a stack [B, width] -> one [4096] of the stack."""
    q = sketch(rows.reshape(1, 1, 1, -1), offset).view(-1)
    return torch.nn.functional.pad(q, (0, SKETCH_SIZE - q.shape[0]))
