"""Weights and gradients of less than 32 bits in training loops."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ..validate import callers_depth, fail

LOW_PRECISION = (torch.bfloat16, torch.float16)


class ScalerAdvice:
    """Tells what to do where a GradScaler meets float16 weights, whose gradients torch does not unscale."""

    param_groups: list[dict[str, Any]]
    _advised: bool = False

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """What GradScaler asks before it unscales: absent, so that it does; the moment to warn."""
        grads = (p.grad for group in self.param_groups for p in group["params"])
        if not self._advised and any(g is not None and g.dtype == torch.float16 for g in grads):
            self._advised = True
            warnings.warn(
                "a GradScaler is used with float16 weights. torch refuses to unscale their gradients, unless "
                "the trainer allows it; small updates are lost to their range either way. Keep the trained "
                "weights in float32 (model.float(), or the LoRA weights only) under "
                "torch.autocast(dtype=torch.float16), or train in bfloat16 without a scaler.",
                stacklevel=callers_depth(),
            )
        raise AttributeError("_step_supports_amp_scaling")

    @_step_supports_amp_scaling.setter
    def _step_supports_amp_scaling(self, value: bool) -> None:
        if value:
            raise fail(
                "_step_supports_amp_scaling", value, "only False", "GradScaler unscales the gradients."
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

    for thing in gc.get_objects():
        # type(): isinstance() would run the __class__ of lazy objects.
        if issubclass(type(thing), GradScaler) and thing.is_enabled() and thing._scale is not None:
            raise RuntimeError(
                "a GradScaler scales the loss, but released gradients are used before it can unscale them "
                "or see an overflow: train in bf16 or fp32 without a scaler, or do not release gradients. "
                "If the scaler is another model's, pass unscaled=True."
            )
