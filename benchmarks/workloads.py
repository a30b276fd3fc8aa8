"""The named sets of parameter shapes that the step and memory benchmarks run on.

Gradients are re-drawn every step at no cost: each parameter's ``grad`` is a view into one random
pool, and the offset into the pool moves. So the signs really change from step to step (the
learning-rate mask of our optimizers depends on that) without spending time on random numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Workload:
    name: str
    shapes: tuple[Shape, ...]
    dtype: torch.dtype = torch.float32

    @property
    def numel(self) -> int:
        return sum(math.prod(s) for s in self.shapes)


def lora_pairs(linears: list[tuple[int, int]], rank: int) -> list[Shape]:
    """A and B of a LoRA on each (in, out) linear."""
    return [shape for fan_in, fan_out in linears for shape in ((rank, fan_in), (fan_out, rank))]


def sdxl_unet_linears() -> list[tuple[int, int]]:
    """(in, out) of the 722 linears of the SDXL U-Net's attention blocks.

    Two widths: 640 (5 spatial transformers of 2 blocks) and 1280 (6 of 10 blocks); the text context is
    2048 wide; the feed-forward is GEGLU, so its first linear is 8 times as wide as the model.
    """
    linears: list[tuple[int, int]] = []
    for width, transformers, depth in ((640, 5, 2), (1280, 6, 10)):
        self_attention = [(width, width)] * 4
        cross_attention = [(width, width), (2048, width), (2048, width), (width, width)]
        feed_forward = [(width, 8 * width), (4 * width, width)]
        block = self_attention + cross_attention + feed_forward
        projections = [(width, width)] * 2  # proj_in, proj_out
        linears += (projections + block * depth) * transformers
    return linears


def gpt2_small_shapes() -> list[Shape]:
    """GPT-2 small: 12 layers of width 768, tied output, learned positions."""
    d = 768
    layer: list[Shape] = [(d,), (d,), (d, 3 * d), (3 * d,), (d, d), (d,)]
    layer += [(d,), (d,), (d, 4 * d), (4 * d,), (4 * d, d), (d,)]
    return [(50257, d), (1024, d), *(layer * 12), (d,), (d,)]


def one_billion_shapes() -> list[Shape]:
    """A decoder of 22 layers, width 2048, grouped attention, gated feed-forward: 1.1 billion."""
    d, kv, ff = 2048, 256, 5632
    layer: list[Shape] = [(d, d), (kv, d), (kv, d), (d, d), (ff, d), (ff, d), (d, ff), (d,), (d,)]
    return [(32000, d), *(layer * 22), (d,), (32000, d)]


def _build() -> dict[str, Workload]:
    lora = tuple(lora_pairs(sdxl_unet_linears(), rank=16))
    gpt2 = tuple(gpt2_small_shapes())
    quick = tuple(lora_pairs([(640, 640), (2048, 640), (640, 5120)] * 2, rank=16))
    items = [
        Workload("lora-sdxl", lora),
        Workload("lora-sdxl-bf16", lora, torch.bfloat16),
        Workload("full-124m", gpt2),
        Workload("one-big", ((16384, 4096),)),
        Workload("one-big-bf16", ((16384, 4096),), torch.bfloat16),
        Workload("one-billion-bf16", tuple(one_billion_shapes()), torch.bfloat16),
        Workload("one-small", ((256, 256),)),
        Workload("quick", quick),
    ]
    return {w.name: w for w in items}


WORKLOADS = _build()

# The counts that documents and other people's tables refer to.
assert len(sdxl_unet_linears()) == 722
assert len(WORKLOADS["lora-sdxl"].shapes) == 1444
assert WORKLOADS["lora-sdxl"].numel == 42_557_440
assert len(set(WORKLOADS["lora-sdxl"].shapes)) == 9
assert len(WORKLOADS["full-124m"].shapes) == 148
assert WORKLOADS["full-124m"].numel == 124_439_808
assert WORKLOADS["one-billion-bf16"].numel == 1_100_048_384


def make_params(workload: Workload, seed: int = 0, device: str = "cpu") -> list[torch.nn.Parameter]:
    """Parameters of the workload: normal with standard deviation 0.02."""
    generator = torch.Generator().manual_seed(seed)
    params = []
    for shape in workload.shapes:
        value = torch.empty(shape).normal_(0.0, 0.02, generator=generator)
        params.append(torch.nn.Parameter(value.to(device=device, dtype=workload.dtype)))
    return params


class GradientPool:
    """Gradients for a workload, re-drawn by moving an offset into one pool of normal numbers."""

    SLACK = 1 << 20  # elements the offset can move over
    ALIGN = 32  # elements: a multiple of 64 bytes in fp32 and in bf16

    def __init__(self, workload: Workload, seed: int = 1, device: str = "cpu", scale: float = 1e-3):
        self.starts, start = [], 0
        for shape in workload.shapes:
            self.starts.append(start)
            start += -(-math.prod(shape) // self.ALIGN) * self.ALIGN
        self.shapes = workload.shapes
        generator = torch.Generator().manual_seed(seed)
        slack = min(self.SLACK, max(self.ALIGN * 64, start))
        pool = torch.empty(start + slack).normal_(0.0, scale, generator=generator)
        self.pool = pool.to(device=device, dtype=workload.dtype)
        self.positions = slack // self.ALIGN
        self.draw = 0

    def redraw(self, params: list[torch.nn.Parameter]) -> None:
        """Give every parameter a new gradient (a view, no copy)."""
        self.draw += 1
        offset = (self.draw * 7919) % self.positions * self.ALIGN  # 7919 is prime: all positions are visited
        for param, start, shape in zip(params, self.starts, self.shapes, strict=True):
            begin = offset + start
            param.grad = self.pool[begin : begin + math.prod(shape)].view(shape)
