"""The level of the learning rate: rules that find it by themselves (opt-in)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..types import Locality, local
from ._reduce import sum_last

DISTANCE_BETA = 0.9995
DISTANCE_GAIN = 0.25
DISTANCE_STRIDE = 11
DISTANCE_WHOLE = 4096
VOTE_HISTORY = 8


def sample_size(numel: int) -> int:
    """Elements of one tensor that the distance rule looks at: all of a small tensor, every 11th of others."""
    return numel if numel < DISTANCE_WHOLE else -(-numel // DISTANCE_STRIDE)


def sample(x: Tensor) -> Tensor:
    """[B,K,m,n] -> [B, sample_size(numel)]."""
    flat = x.flatten(1)
    return flat if flat.shape[1] < DISTANCE_WHOLE else flat[:, ::DISTANCE_STRIDE]


@local(Locality.TENSOR)
def distance_evidence(
    r: Tensor, s: Tensor, g: Tensor, travelled: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Evidence of one tensor for the distance to the solution.

    .. math:: r \leftarrow \beta r + w \langle g, p_0 - p\rangle, \quad s \leftarrow \beta s + w g,
              \qquad w = d^2 / d_0, \; \beta = .9995

    Args:
        r: [B] running inner product.
        s: [B,S] running gradient sum on the sample.
        g: [B,S] sampled raw gradient.
        travelled: [B,S] p0 - p on the sample.
        weight: w, scalar tensor.

    Returns:
        New r, new s, and [B] the l1 norm of s.

    Source: Mishchenko & Defazio 2023 (Prodigy), arXiv 2306.06101, algorithm 4 (code read).
    Deviations: one d for all parameters, on a strided sample, applied at a quarter.
    """
    r = DISTANCE_BETA * r + weight * sum_last(g * travelled).squeeze(-1)
    s = DISTANCE_BETA * s + weight * g
    return r, s, sum_last(s.abs()).squeeze(-1)


def distance_level(level: Tensor, r: Tensor, s_norm: Tensor, start: float) -> Tensor:
    r"""New d / d0 from the evidence of all tensors: :math:`\max(d, \sum r / \sum \|s\|_1) / d_0`."""
    estimate = torch.where(s_norm > 0, r / s_norm, 0.0) / start
    return torch.maximum(level, estimate)


@local(Locality.ELEMENT)
def push_sign(history: Tensor, g: Tensor) -> Tensor:
    """[B,K,m,n] uint8 of the last eight signs (1 = negative), newest in the lowest bit."""
    return (history << 1) | (g < 0).to(torch.uint8)


@local(Locality.TENSOR)
def sign_vote(history: Tensor, u: Tensor, enough: Tensor) -> tuple[Tensor, Tensor]:
    r"""Weight of the elements whose last eight signs agree, less those that alternate.

    .. math:: \sum |u| ([\text{all equal}] - [\text{alternate}]), \qquad \sum |u|

    Args:
        history: [B,K,m,n] uint8 signs, newest in the lowest bit.
        u: [B,K,m,n] update.
        enough: [B] bool, whether eight signs have been seen.

    Returns:
        Numerator and denominator, each [B]. Both patterns are equally likely under noise, so the
        vote has no drift there.

    Source: Automagic 3, ostris/ai-toolkit (MIT), rule of 2026-06.
    """
    equal = (history == 0) | (history == 255)
    alternate = (history == 0x55) | (history == 0xAA)
    weight = u.abs()
    signed = weight * (equal.to(u.dtype) - alternate.to(u.dtype))
    gate = enough.to(u.dtype)
    return sum_last(signed.flatten(1)).squeeze(-1) * gate, sum_last(weight.flatten(1)).squeeze(-1)
