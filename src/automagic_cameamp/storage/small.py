"""Codes of small states: four bits of [0, 1], and sixteen bits of a vector."""

from __future__ import annotations

import torch
from torch import Tensor

from ..types import Layout
from .codec import Plane
from .residual import pack_nibbles, unpack_nibbles
from .rounding import round_to_grid
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


class Log16:
    r"""Sixteen-bit logarithmic code of a vector of means >= 0; rounded stochastically, or it would freeze.

    .. math:: q = \mathrm{round}\left(\frac{\ln x - a}{s}\right), \qquad x = e^{a + s q}, \quad
              q \in \{0, \dots, 65534\}

    A vector has its own a (a multiple of 1/16, at most ln min x) and s (a multiple of 2^-19 that lets
    65,534 steps reach ln max x): both exact in fp16, and a grid that stays put while its range does.
    All of [2^-126, 2^127] fits, at a relative step of .27%; a vector spread over 28 octaves has one of
    .03%, below fp16's. Anything smaller is held as exactly 0.

    Source: ours; the measurements behind it are in docs/evidence/log.md.
    """

    name = "log16"
    random = True
    top = 65534
    coarse, fine = 16.0, 2.0**19  # the grids of a and s, per natural logarithm
    least, most = 2.0**-126, 2.0**127

    def __init__(self, spec: StateSpec, layout: Layout) -> None:
        self.spec = spec
        self.shape = spec.stack_shape(layout)

    def planes(self, layout: Layout) -> tuple[Plane, ...]:
        return (
            Plane("_q", self.shape, self.spec.own_shape(layout), torch.int16),
            Plane("_q_scale", (2,), (2,), torch.float16),
        )

    def encode(self, x: Tensor, bits: Tensor | None = None) -> tuple[Tensor, ...]:
        x = x.float()
        live = x >= self.least
        log = x.clamp(self.least, self.most).log_()
        high = log.amax((1, 2, 3), keepdim=True)
        low = torch.where(live, log, high).amin((1, 2, 3), keepdim=True)
        low = (low * self.coarse).floor_().div_(self.coarse)
        step = ((high - low) * (self.fine / self.top)).ceil_().clamp_(min=1.0).div_(self.fine)
        t = (log - low).div_(step)
        if bits is None:
            q = t.round_()
        else:
            q = t.floor()
            q.add_((t.sub_(q) > (bits & 0x1FFF).float().mul_(2.0**-13)).to(q.dtype))
        # Stored minus 32,768, for want of arithmetic on uint16; the least code is that of 0.
        q = q.clamp_(0, self.top).sub_(32767).masked_fill_(~live, -32768)
        return q.to(torch.int16), torch.cat([low, step], 1).view(-1, 2).half()

    def decode(self, planes: tuple[Tensor, ...]) -> Tensor:
        codes, scale = planes
        low, step = scale.float().view(-1, 2, 1, 1, 1).unbind(1)
        x = codes.float().add_(32767).mul_(step).add_(low).exp_()
        return x.masked_fill_(codes == -32768, 0.0)


class Half16:
    """What the first checkpoints hold instead: fp16 and one fp32 scale per vector. Only read."""

    def __init__(self, spec: StateSpec, layout: Layout) -> None:
        self.spec = spec
        self.shape = spec.stack_shape(layout)

    def planes(self, layout: Layout) -> tuple[Plane, ...]:
        return (
            Plane("", self.shape, self.spec.own_shape(layout), torch.float16),
            Plane("_scale", (1, 1, 1), (), torch.float32),
        )

    def decode(self, planes: tuple[Tensor, ...]) -> Tensor:
        return planes[0].float() * planes[1]
