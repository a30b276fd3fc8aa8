"""One bit per element in uint8 bytes."""

from __future__ import annotations

import torch
from torch import Tensor


def packed_size(count: int) -> int:
    """Bytes that hold ``count`` bits."""
    return (count + 7) // 8


def pack_bits(bits: Tensor) -> Tensor:
    """[B, *] bool -> [B, ceil(numel/8)] uint8, first element in the lowest bit."""
    flat = bits.flatten(1).to(torch.uint8)
    flat = torch.nn.functional.pad(flat, (0, -flat.shape[1] % 8)).unflatten(1, (-1, 8))
    shifts = torch.arange(8, dtype=torch.uint8, device=bits.device)  # made there: no copy to wait for
    return (flat << shifts).sum(-1, dtype=torch.uint8)


def unpack_bits(packed: Tensor, shape: tuple[int, ...]) -> Tensor:
    """[B, ceil(numel/8)] uint8 -> bool [B, *shape]."""
    count = 1
    for size in shape:
        count *= size
    shifts = torch.arange(8, dtype=torch.uint8, device=packed.device)
    bits = (packed.unsqueeze(-1) >> shifts) & 1
    return bits.flatten(1)[:, :count].reshape(packed.shape[0], *shape).bool()
