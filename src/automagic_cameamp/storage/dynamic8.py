"""bitsandbytes' signed dynamic eight-bit code, in plain torch, code for code.

The map spends its 256 values on seven decades: a value is a sign, a decimal exponent given by
the number of leading zeros, and a linear fraction in the bits that are left. Nearest value wins;
on a tie the lower code.

Source: Dettmers et al. 2021, arXiv 2110.02861, section 2.1 and appendix; the test oracle is
bitsandbytes itself (MIT).
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from ..types import Layout
from .blocks import from_blocks, to_blocks
from .codec import Plane, _absmax, _coded_planes, _divisor

EXPONENT_BITS = 7
# Cells of the encoder's table: sign, 8 exponent bits and 6 mantissa bits of an fp32 number. No
# cell of this width holds two midpoints of the map, so one comparison finishes the search.
_SHIFT, _CELLS = 17, 1 << 15


@lru_cache(maxsize=1)
def dynamic_map() -> Tensor:
    """The 256 values in ascending order, fp32: 0, 1 and 127 fractions of each sign."""
    values = [0.0, 1.0]
    for exponent in range(EXPONENT_BITS):
        count = 1 << exponent
        edges = torch.linspace(0.1, 1, count + 1, dtype=torch.float32, device="cpu")
        centres = (edges[:-1] + edges[1:]) / 2
        scaled = (10.0 ** (exponent - EXPONENT_BITS + 1) * centres).tolist()
        values += scaled + [-value for value in scaled]
    return torch.tensor(sorted(values), dtype=torch.float32, device="cpu")


@lru_cache(maxsize=8)
def _tables(device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Map, code at the low end of each cell, and the midpoint inside the cell (inf if none)."""
    values = dynamic_map()
    middles = (values[:-1] + values[1:]) / 2
    keys = torch.arange(_CELLS, dtype=torch.int32, device="cpu")
    first = (keys << _SHIFT).view(torch.float32)
    last = ((keys << _SHIFT) | ((1 << _SHIFT) - 1)).view(torch.float32)
    low = torch.minimum(first, last).nan_to_num(nan=0.0)  # NaN cells are never reached
    base = torch.bucketize(low, middles)
    bound = torch.cat([middles, middles.new_tensor([float("inf")])])[base]
    return values.to(device), base.float().to(device), bound.to(device)


class Dynamic8:
    """Signed dynamic code, blocks of ``block_size`` elements, fp32 absmax per block.

    Args:
        block_size: elements per scale.
    """

    name = "dynamic"
    random = False

    def __init__(self, block_size: int) -> None:
        self.block_size = block_size

    def planes(self, layout: Layout) -> tuple[Plane, ...]:
        return _coded_planes(layout, self.block_size, torch.uint8, 1)

    def encode(self, x: Tensor, bits: Tensor | None = None) -> tuple[Tensor, ...]:
        blocks = to_blocks(x.float(), min(self.block_size, max(1, x[0].numel())))
        scale = _absmax(blocks)
        v = blocks * _divisor(scale).reciprocal()
        _, base, bound = _tables(x.device)
        key = (v.view(torch.int32) >> _SHIFT).bitwise_and_(_CELLS - 1).flatten()
        code = base.index_select(0, key)
        above = (v.flatten() - bound.index_select(0, key)).sign_().clamp_(min=0.0)
        # fp32 -> int8 is a vector instruction on CPU, fp32 -> uint8 is not.
        q = (code.add_(above).sub_(128)).to(torch.int8).view(torch.uint8) ^ 128
        return from_blocks(q.view(v.shape), tuple(x.shape[1:])), scale

    def decode(self, planes: tuple[Tensor, ...]) -> Tensor:
        codes, scale = planes
        values = _tables(codes.device)[0]
        blocks = to_blocks(codes, min(self.block_size, max(1, codes[0].numel())))
        x = values.index_select(0, blocks.flatten().to(torch.int32)).view(blocks.shape)
        return from_blocks(x.mul_(scale.unsqueeze(-1)), tuple(codes.shape[1:]))
