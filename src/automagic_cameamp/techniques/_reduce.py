"""Reductions over one parameter of a stack [B, K, m, n]: the only file that knows dimension 0.

Every result keeps its reduced dimensions. A tensor's result never depends on the other tensors of
the stack, nor on the number of threads: torch splits a reduction to a single number over its
threads, so sums go through many short rows first and no large reduction ever yields one number.

These are sums of what this process holds; ``sums`` asks for those over the whole tensor.
"""

from __future__ import annotations

from torch import Tensor

_SPLIT = 1024  # a sum of more than four of these goes through pieces of this length


def sum_last(x: Tensor) -> Tensor:
    """[..., n] -> [..., 1]; long rows in pieces, so that no thread ever gets a part of a sum."""
    n = x.shape[-1]
    if n <= 4 * _SPLIT or not x.is_cpu:  # a device has no threads that could share a row differently
        return x.sum(-1, keepdim=True)
    whole = n - n % _SPLIT
    pieces = x[..., :whole].unflatten(-1, (-1, _SPLIT)).sum(-1)
    total = sum_last(pieces)
    return total + x[..., whole:].sum(-1, keepdim=True) if whole < n else total


def row_sum(x: Tensor) -> Tensor:
    """[B,K,m,n] -> [B,K,m,1]."""
    return x.sum(-1, keepdim=True) if x.shape[-2] * x.shape[-3] > 1 else sum_last(x)


def row_mean(x: Tensor) -> Tensor:
    """[B,K,m,n] -> [B,K,m,1]."""
    return row_sum(x) / x.shape[-1]


def col_sum(x: Tensor) -> Tensor:
    """[B,K,m,n] -> [B,K,1,n]."""
    if x.shape[-1] * x.shape[-3] != 1:
        return x.sum(-2, keepdim=True)
    return sum_last(x.transpose(-1, -2))


def mean_of_rows(row: Tensor) -> Tensor:
    """Mean of a row statistic over the rows of each matrix: [B,K,m,1] -> [B,K,1,1]."""
    return col_sum(row) / row.shape[-2]


def tensor_sum(x: Tensor) -> Tensor:
    """[B,K,m,n] -> [B,1,1,1]."""
    # Flat, not row by row: rows of a thin matrix are too short for a fast reduction.
    return sum_last(x.flatten(1)).view(-1, 1, 1, 1)


def rms(x: Tensor) -> Tensor:
    """Root mean square of each tensor: [B,K,m,n] -> [B,1,1,1]."""
    return (tensor_sum(x.square()) / (x.shape[1] * x.shape[2] * x.shape[3])).sqrt()
