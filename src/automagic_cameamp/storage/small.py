"""Codes of small states: four bits of [0, 1], and sixteen bits of a vector."""

from __future__ import annotations

import torch
from torch import Tensor

from ..types import Layout
from .codec import Plane
from .residual import pack_nibbles, unpack_nibbles
from .rounding import round_to_grid, stochastic_round
from .spec import StateSpec


class Unit4:
    """Four bits for a running mean in [0, 1]; rounded stochastically, or it would freeze near 0."""

    name = "unit4"
    random = True

    def planes(self, layout: Layout) -> tuple[Plane, ...]:
        shape = ((layout.numel + 1) // 2,)
        return (Plane("_q", shape, shape, torch.uint8),)

    def __init__(self, layout: Layout) -> None:
        self.layout = layout

    def encode(self, x: Tensor, bits: Tensor | None = None) -> tuple[Tensor, ...]:
        x = x.float() * 15
        q = x.round() if bits is None else round_to_grid(x, bits)
        return (pack_nibbles(q.clamp_(0, 15).to(torch.int8).view(torch.uint8).flatten(1)),)

    def decode(self, planes: tuple[Tensor, ...]) -> Tensor:
        flat = unpack_nibbles(planes[0], self.layout.numel).to(torch.float32).div_(15)
        return flat.view(-1, *self.layout.view)


class Half16:
    """fp16 and one fp32 scale for a slow positive mean; rounded stochastically, or it would freeze.

    The largest element becomes 2^14, which leaves 28 octaves below it at full precision: eight
    times finer than bf16, whose rounding noise alone puts 3.5% into a mean over 1,000 steps.
    """

    name = "half"
    random = True

    def __init__(self, spec: StateSpec, layout: Layout) -> None:
        self.spec = spec
        self.shape = spec.stack_shape(layout)

    def planes(self, layout: Layout) -> tuple[Plane, ...]:
        return (
            Plane("", self.shape, self.spec.own_shape(layout), torch.float16),
            Plane("_scale", (1, 1, 1), (), torch.float32),
        )

    def encode(self, x: Tensor, bits: Tensor | None = None) -> tuple[Tensor, ...]:
        x = x.float()
        top = x.abs().amax((1, 2, 3), keepdim=True)
        # A power of two: scaling back and forth then costs no bits.
        scale = torch.where(top > 0, torch.exp2(top.log2().floor() - 14), torch.ones_like(top))
        scaled = x / scale
        return scaled.half() if bits is None else stochastic_round(scaled, bits, torch.float16), scale

    def decode(self, planes: tuple[Tensor, ...]) -> Tensor:
        return planes[0].float() * planes[1]
