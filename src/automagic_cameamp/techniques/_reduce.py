"""Reductions over one parameter of a stack [B, K, m, n]: the only file that knows dimension 0.

Every result keeps its reduced dimensions. A tensor's result never depends on the other tensors of
the stack, nor on the number of threads: torch splits a reduction to a single number over its
threads, so sums go through many short rows first and no large reduction ever yields one number.

Where a tensor is split over several processes, its sums are over all of them: for the time of an
update ``over_ranks`` puts somebody in place who knows the other parts (``recipes/_sharded.py``).
He knows a sum by its ``site``, its name in one update.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor

_SPLIT = 1024  # a sum of more than four of these goes through pieces of this length


class Ranks(Protocol):
    """Sums of tensors of which this process holds a part.

    Args:
        split: dimension of [B,K,m,n] that is split.
        first: flat index of the first element that is here.
        whole: elements of one tensor.
    """

    split: int
    first: int
    whole: int

    def sum(self, x: Tensor, site: str, scale: Tensor | None = None) -> Tensor: ...
    def exact(self, x: Tensor, site: str) -> Tensor: ...
    def moved(self, p: Tensor, new: Tensor, site: str, scale: Tensor | None) -> Tensor: ...
    def col_mean(self, x: Tensor, site: str) -> Tensor: ...
    def mean_of_rows(self, row: Tensor, site: str) -> Tensor: ...
    def columns(self, col: Tensor, site: str) -> Tensor: ...
    def numel(self, x: Tensor) -> int: ...


_ranks: Ranks | None = None


@contextmanager
def over_ranks(ranks: Ranks) -> Iterator[None]:
    """Sums inside are those over all processes."""
    global _ranks
    before, _ranks = _ranks, ranks
    try:
        yield
    finally:
        _ranks = before


def ranks_of() -> Ranks | None:
    """Who knows the other parts of the tensors, or None where they are whole."""
    return _ranks


def sum_last(x: Tensor) -> Tensor:
    """[..., n] -> [..., 1]; long rows in pieces, so that no thread ever gets a part of a sum."""
    n = x.shape[-1]
    if n <= 4 * _SPLIT:
        return x.sum(-1, keepdim=True)
    whole = n - n % _SPLIT
    pieces = x[..., :whole].unflatten(-1, (-1, _SPLIT)).sum(-1)
    total = sum_last(pieces)
    return total + x[..., whole:].sum(-1, keepdim=True) if whole < n else total


def row_sum(x: Tensor, site: str = "") -> Tensor:
    """[B,K,m,n] -> [B,K,m,1]."""
    if _ranks is not None and _ranks.split == 3:
        return _ranks.sum(x, site)
    return x.sum(-1, keepdim=True) if x.shape[-2] * x.shape[-3] > 1 else sum_last(x)


def row_mean(x: Tensor) -> Tensor:
    """[B,K,m,n] -> [B,K,m,1]."""
    return row_sum(x) / x.shape[-1]


def col_mean(x: Tensor, site: str = "") -> Tensor:
    """[B,K,m,n] -> [B,K,1,n]."""
    if _ranks is not None and _ranks.split == 2:
        return _ranks.col_mean(x, site)
    if x.shape[-1] * x.shape[-3] != 1:
        return x.mean(-2, keepdim=True)
    return sum_last(x.transpose(-1, -2)) / x.shape[-2]


def mean_of_rows(row: Tensor, site: str = "") -> Tensor:
    """Mean of a row statistic over the rows of each matrix: [B,K,m,1] -> [B,K,1,1]."""
    if _ranks is not None and _ranks.split == 2:
        return _ranks.mean_of_rows(row, site)
    return sum_last(row.transpose(-1, -2)) / row.shape[-2]


def columns(col: Tensor, site: str) -> Tensor:
    """Column statistics [B,K,1,n] that something is about to be scaled with."""
    return col if _ranks is None or _ranks.split != 2 else _ranks.columns(col, site)


def tensor_sum(x: Tensor, site: str = "", scale: Tensor | None = None) -> Tensor:
    """[B,K,m,n] -> [B,1,1,1].

    Args:
        x: what is summed.
        site: name of the sum in an update.
        scale: [B,1,1,1] factor in the root of x that followed from other sums over the tensor.
    """
    return local_sum(x) if _ranks is None else _ranks.sum(x, site, scale)


def local_sum(x: Tensor) -> Tensor:
    """[B,K,m,n] -> [B,1,1,1] over what this process holds."""
    # Flat, not row by row: rows of a thin matrix are too short for a fast reduction.
    return sum_last(x.flatten(1)).view(-1, 1, 1, 1)


def tensor_mean(x: Tensor, site: str = "", scale: Tensor | None = None) -> Tensor:
    """[B,K,m,n] -> [B,1,1,1]."""
    return tensor_sum(x, site, scale) / numel(x)


def square_sum_after(p: Tensor, new: Tensor, site: str, scale: Tensor | None = None) -> Tensor:
    """Sum of squares of ``new``, which differs from p by a displacement in which ``scale`` is a factor."""
    return tensor_sum(new.square()) if _ranks is None else _ranks.moved(p, new, site, scale)


def numel(x: Tensor) -> int:
    """Number of elements of one tensor of the stack."""
    if _ranks is not None:
        return _ranks.numel(x)
    return x.shape[1] * x.shape[2] * x.shape[3]


def rms(x: Tensor, site: str = "", scale: Tensor | None = None) -> Tensor:
    """Root mean square of each tensor: [B,K,m,n] -> [B,1,1,1]."""
    return tensor_mean(x.square(), site, scale).sqrt()


def all_finite(x: Tensor, site: str = "") -> Tensor:
    """Whether every element is finite and their sum does not overflow: [B,K,m,n] -> [B,1,1,1] bool."""
    return torch.isfinite(tensor_sum(x, site))
