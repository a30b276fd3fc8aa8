"""Ways in which the elements of a tensor may lie in memory."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def permuted(order: Callable[[int], list[int]]) -> Callable[[Tensor], Tensor]:
    """The tensor, lying as if its dimensions came in another order."""

    def arrange(x: Tensor) -> Tensor:
        dims = order(x.dim())
        back = [dims.index(i) for i in range(x.dim())]
        return x.permute(dims).contiguous().permute(back)

    return arrange


def with_gaps(x: Tensor) -> Tensor:
    """Every other element of a tensor."""
    return torch.stack([x, x], -1)[..., 0]


def sliced(x: Tensor) -> Tensor:
    """The left half of a tensor."""
    return torch.cat([x, x], -1)[..., : x.shape[-1]] if x.dim() else x.clone()


ARRANGED: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x.clone(memory_format=torch.contiguous_format),
    "transposed": permuted(lambda n: list(range(n))[::-1]),
    "channels_last": permuted(lambda n: [0, *range(2, n), 1] if n > 2 else list(range(n))),
    "rotated": permuted(lambda n: [*range(1, n), 0] if n else []),
    "gaps": with_gaps,
    "sliced": sliced,
}
