"""Tensors that do not lie in the order of their indices, for kernels that read no other order.

Weights and gradients in another order of strides (channels_last, transposed) or with gaps are stepped
through contiguous copies, made and written back a batch at a time: memory for them is bounded by the batch,
or by the largest such tensor, not by the model. State always lies in the order of the indices, so a
checkpoint does not know how the weights lie, and the step equals that of contiguous weights bit for bit.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator

import torch
from torch import Tensor

# Elements of a batch: weights, gradients and state of so many stay in a cache.
BATCH = 262_144
ALIGNED = 64


def plain(x: Tensor) -> bool:
    """Whether the elements lie where a kernel that knows only address and shape looks for them."""
    return x.is_contiguous() and not x.is_neg() and not x.is_conj()


def apart(x: Tensor) -> bool:
    """Whether no two elements share memory, as those of an expanded tensor do."""
    reach = 0
    for stride, size in sorted((s, n) for n, s in zip(x.shape, x.stride(), strict=True) if n > 1):
        if stride <= reach:
            return False
        reach += stride * (size - 1)
    return True


class Scratch:
    """Memory for the copies of a batch, used again by the next one; what is larger comes and goes."""

    def __init__(self) -> None:
        self.held = torch.empty(0, dtype=torch.uint8, device="cpu")
        self.used = 0

    def begin(self) -> None:
        """Forget the copies of the last batch."""
        self.used = 0

    def copy(self, x: Tensor) -> Tensor:
        """A contiguous copy, valid until ``begin``."""
        size = x.numel() * x.element_size()
        start, self.used = self.used, self.used + -(-size // ALIGNED) * ALIGNED
        if not len(self.held):
            self.held = torch.empty(2 * BATCH * 4 + ALIGNED, dtype=torch.uint8, device="cpu")
        if self.used > len(self.held):
            return torch.empty(x.shape, dtype=x.dtype, device="cpu").copy_(x.detach())
        return self.held[start : start + size].view(x.dtype).view(x.shape).copy_(x.detach())


class _Own(threading.local):
    """Scratch of a thread."""

    def __init__(self) -> None:
        self.scratch = Scratch()


own = _Own()


def give_back(copy: Tensor, x: Tensor) -> None:
    """Write a copy into the tensor that it is of."""
    x = x.detach()
    if x.dim() == 2 and x.stride(0) < x.stride(1):  # torch is twice as fast where the target is contiguous
        x, copy = x.t(), copy.t()
    x.copy_(copy)


def batches(places: list[int], sizes: list[int]) -> Iterator[list[int]]:
    """Places in their order, cut so that a batch has at most ``BATCH`` elements, or one tensor."""
    batch: list[int] = []
    held = 0
    for place, size in zip(places, sizes, strict=True):
        if batch and held + size > BATCH:
            yield batch
            batch, held = [], 0
        batch.append(place)
        held += size
    if batch:
        yield batch
