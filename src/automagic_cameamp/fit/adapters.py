"""Adapters and quantised frozen weights, as trainers put them into a model: to be counted, not trained."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .models import FitError

# Bytes per element of a frozen weight; nf4: four bits, an fp8 scale per 64, an fp32 scale per 256 of those.
BASES = {"fp8": 1.0, "nf4": 0.5 + 1 / 64 + 4 / (64 * 256)}


def layers(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    """Parent, name and layer of every linear layer and 1 x 1 convolution that adapters are put on.

    In a U-Net those of its attention blocks, else all linear layers inside a list of blocks: what kohya's
    networks take, heads and embeddings left out.
    """
    names = dict(model.named_modules())
    unet = any(".attentions." in name for name in names)
    lists = [f"{name}." for name, module in names.items() if isinstance(module, nn.ModuleList)]
    for name, module in names.items():
        small = isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1)
        if not (isinstance(module, nn.Linear) or (unet and small)):
            continue
        inside = ".attentions." in name if unet else any(name.startswith(start) for start in lists)
        if inside:
            parent, _, last = name.rpartition(".")
            yield names[parent], last, module


class _Unpacked(torch.autograd.Function):
    """A product with weights that are unpacked when they are needed, in both directions, and not kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, packed: Tensor, shape: tuple[int, int]) -> Tensor:
        ctx.save_for_backward(packed)
        ctx.shape = shape
        return x @ packed.new_empty(shape, dtype=x.dtype).t()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (packed,) = ctx.saved_tensors
        return grads[0] @ packed.new_empty(ctx.shape, dtype=grads[0].dtype), None, None


class Adapted(nn.Module):
    """A frozen layer, perhaps quantised, with an adapter beside it.

    Args:
        layer: a linear layer or a 1 x 1 convolution.
        kind: 'lora' or 'lokr'.
        size: the rank of a LoRA; the largest factor of a LoKr.
        dtype: of the adapter's weights.
        base: one of ``BASES``, or '' for weights as they are.
    """

    def __init__(self, layer: nn.Module, kind: str, size: int, dtype: torch.dtype, base: str) -> None:
        super().__init__()
        weight: Any = layer.weight
        self.shape = (weight.shape[0], math.prod(weight.shape[1:]))
        self.spatial, self.base = weight.dim() == 4, base
        out, inner = self.shape
        frozen = weight.detach().reshape(self.shape)
        if base == "nf4":
            frozen = torch.zeros(math.ceil(out * inner * BASES["nf4"]), dtype=torch.uint8)
        elif base == "fp8":
            frozen = torch.zeros(self.shape, dtype=torch.float8_e4m3fn)
        self.register_buffer("frozen", frozen)
        self.bias: Tensor | None = layer.bias  # type: ignore[assignment]
        if kind == "lora":
            self.lora_down = nn.Parameter(torch.zeros(size, inner, dtype=dtype))
            self.lora_up = nn.Parameter(torch.zeros(out, size, dtype=dtype))
        else:
            factor = next(f for f in range(min(size, out, inner), 0, -1) if not (out % f or inner % f))
            self.lokr_w1 = nn.Parameter(torch.zeros(factor, factor, dtype=dtype))
            self.lokr_w2 = nn.Parameter(torch.zeros(out // factor, inner // factor, dtype=dtype))
        self.kind = kind

    def _frozen(self, x: Tensor) -> Tensor:
        packed = self.get_buffer("frozen")
        if self.base == "nf4":
            return _Unpacked.apply(x, packed, self.shape)  # type: ignore[no-any-return]
        return F.linear(x, packed.to(x.dtype))

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output; a LoKr's matrix is formed and added to the weight, as LyCORIS does."""
        if self.spatial:
            x = x.movedim(1, -1)
        if self.kind == "lora":
            y = self._frozen(x)
            y = y + F.linear(F.linear(x, self.lora_down.to(x.dtype)), self.lora_up.to(x.dtype))
        elif self.base == "nf4":
            y = self._frozen(x) + F.linear(x, torch.kron(self.lokr_w1, self.lokr_w2).to(x.dtype))
        else:
            delta = torch.kron(self.lokr_w1, self.lokr_w2)
            y = F.linear(x, self.get_buffer("frozen").to(x.dtype) + delta.to(x.dtype))
        if self.bias is not None:
            y = y + self.bias
        return y.movedim(-1, 1) if self.spatial else y


def adapt(model: nn.Module, kind: str, size: int, dtype: torch.dtype, base: str) -> int:
    """Freeze a model and put adapters on its layers; returns how many.

    Raises:
        FitError: it has no layers that take one.
    """
    model.requires_grad_(False)
    found = list(layers(model))
    if not found:
        raise FitError(
            f"train={kind!r}: {type(model).__name__} has no linear layers in blocks to put adapters on"
        )
    for parent, name, layer in found:
        setattr(parent, name, Adapted(layer, kind, size, dtype, base))
    return len(found)
