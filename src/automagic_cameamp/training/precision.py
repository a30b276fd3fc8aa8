"""Weights and gradients of less than 32 bits in training loops."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ..state.fields import LOW_PRECISION
from ..state.model import Model
from ..validate import callers_depth

SCALED = "float16 weights under a GradScaler"  # key of what is said once


def advise_scaler(model: Model) -> None:
    """Tell what to do where a GradScaler meets float16 weights, whose gradients torch does not unscale."""
    grads = (p.grad for p in model.params())
    if SCALED not in model.kept.said and any(g is not None and g.dtype == torch.float16 for g in grads):
        model.kept.said.add(SCALED)
        warnings.warn(
            "a GradScaler is used with float16 weights. torch refuses to unscale their gradients, unless "
            "the trainer allows it; small updates are lost to their range either way. Keep the trained "
            "weights in float32 (model.float(), or the LoRA weights only) under "
            "torch.autocast(dtype=torch.float16), or train in bfloat16 without a scaler.",
            stacklevel=callers_depth(),
        )


def accumulate_in_fp32(model: nn.Module | Iterable[Tensor]) -> list[Tensor]:
    """Let gradients of bf16 and fp16 weights add up in fp32.

    Between micro-batches a bf16 gradient forgets every part below 1/256 of its size. With this,
    ``p.grad`` is fp32: ``clip_grad_norm_`` and the optimizer see the exact sum, for two more bytes
    per parameter while gradients live.

    Args:
        model: module or parameters; those of 32 bits and more, and frozen ones, are left alone.

    Returns:
        The parameters that were changed.

    Raises:
        RuntimeError: this torch has no ``Tensor.grad_dtype``, or a gradient is there already.
    """
    params = list(model.parameters() if isinstance(model, nn.Module) else model)
    changed = [p for p in params if p.dtype in LOW_PRECISION and p.requires_grad and p.is_leaf]
    if changed and not hasattr(changed[0], "grad_dtype"):
        raise RuntimeError(
            f"torch {torch.__version__} cannot hold fp32 gradients of {changed[0].dtype} weights: it has no "
            "Tensor.grad_dtype. Use a newer torch, or fp32 weights under torch.autocast."
        )
    if any(p.grad is not None for p in changed):
        raise RuntimeError("there are gradients already: call zero_grad() before accumulate_in_fp32().")
    for p in changed:
        p.grad_dtype = torch.float32  # type: ignore[attr-defined]
    return changed


def refuse_scaler() -> None:
    """A GradScaler that has scaled a loss: nobody would unscale, and no overflow could be undone."""
    from torch.amp import GradScaler  # type: ignore[attr-defined]

    kinds = _with_subclasses(GradScaler)
    # Instances are among those; a walk through all objects in Python takes three times as long.
    for thing in gc.get_referrers(*kinds):
        # type(): isinstance() would run the __class__ of lazy objects.
        if type(thing) in kinds and thing.is_enabled() and thing._scale is not None:
            raise RuntimeError(
                "a GradScaler scales the loss, but released gradients are used before it can unscale them "
                "or see an overflow: train in bf16 or fp32 without a scaler, or do not release gradients. "
                "If the scaler is another model's, pass unscaled=True."
            )


def _with_subclasses(cls: type) -> set[type]:
    return {cls}.union(*map(_with_subclasses, cls.__subclasses__()))
