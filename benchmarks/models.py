"""Shapes of what people train: LoRAs on known models, and whole U-Nets.

The linears are counted from the published architectures; the totals are asserted, because they are
the numbers that other tools print ("create LoRA for U-Net: 722 modules").
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from benchmarks.workloads import Shape, lora_pairs, sdxl_unet_linears

Linear = tuple[int, int]


def sd15_unet_linears() -> list[Linear]:
    """(in, out) of the 192 linears and 1 x 1 convolutions of the SD 1.5 U-Net's attention blocks."""
    linears: list[Linear] = []
    for width, transformers in ((320, 5), (640, 5), (1280, 6)):
        attention = [(width, width)] * 4 + [(width, width), (768, width), (768, width), (width, width)]
        feed_forward = [(width, 8 * width), (4 * width, width)]
        linears += ([(width, width)] * 2 + attention + feed_forward) * transformers
    return linears


def flux_linears() -> list[Linear]:
    """(in, out) of the 304 linears of FLUX.1's 19 double and 38 single blocks."""
    d = 3072
    stream = [(d, 3 * d), (d, d), (d, 4 * d), (4 * d, d), (d, 6 * d)]
    single = [(d, 7 * d), (5 * d, d), (d, 3 * d)]
    return stream * 2 * 19 + single * 38


def llama8b_linears() -> list[Linear]:
    """(in, out) of the 224 linears of a Llama-3-8B-like model: 32 layers, grouped queries."""
    d, wide, kv = 4096, 14336, 1024
    return [(d, d), (d, kv), (d, kv), (d, d), (d, wide), (d, wide), (wide, d)] * 32


def lokr(linears: list[Linear], factor: int = 8) -> list[Shape]:
    """LoKr with a full second factor: W = W1 (factor x factor) kron W2."""
    return [
        shape
        for fan_in, fan_out in linears
        for shape in ((factor, factor), (fan_out // factor, fan_in // factor))
    ]


def _diffusers(name: str, **config: Any) -> list[Shape]:
    import diffusers
    import torch

    with torch.device("meta"):
        model = getattr(diffusers, name)(**config)
    return [tuple(p.shape) for p in model.parameters()]


def sd15_unet() -> list[Shape]:
    return _diffusers("UNet2DConditionModel", cross_attention_dim=768, attention_head_dim=8)


def sdxl_unet() -> list[Shape]:
    return _diffusers(
        "UNet2DConditionModel",
        block_out_channels=(320, 640, 1280),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=[1, 2, 10],
        attention_head_dim=[5, 10, 20],
        cross_attention_dim=2048,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
        use_linear_projection=True,
    )


def flux_transformer() -> list[Shape]:
    return _diffusers("FluxTransformer2DModel", guidance_embeds=True)


# name -> (shapes, their number of elements)
TRAININGS: dict[str, tuple[Callable[[], list[Shape]], int]] = {
    "SD 1.5 LoRA r=16": (lambda: lora_pairs(sd15_unet_linears(), 16), 6_782_976),
    "SDXL LoRA r=16": (lambda: lora_pairs(sdxl_unet_linears(), 16), 42_557_440),
    "SDXL LoRA r=128": (lambda: lora_pairs(sdxl_unet_linears(), 128), 340_459_520),
    "SDXL LoKr factor 8": (lambda: lokr(sdxl_unet_linears()), 34_542_208),
    "Flux LoRA r=16": (lambda: lora_pairs(flux_linears(), 16), 76_578_816),
    "8B LLM LoRA r=16": (lambda: lora_pairs(llama8b_linears(), 16), 41_943_040),
    "SD 1.5 U-Net, full": (sd15_unet, 859_520_964),
    "SDXL U-Net, full": (sdxl_unet, 2_567_463_684),
    "FLUX.1-dev, full": (flux_transformer, 11_901_408_320),
}


@lru_cache
def shapes_of(training: str) -> tuple[Shape, ...]:
    """All parameter shapes of a training; an ImportError where it needs diffusers."""
    return tuple(TRAININGS[training][0]())


def count(shapes: tuple[Shape, ...]) -> int:
    return sum(math.prod(shape) for shape in shapes)
