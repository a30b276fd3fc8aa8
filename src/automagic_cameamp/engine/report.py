"""What the optimizer holds and does, read on request."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from ..types import Layout

ADAM_BYTES = 8


def _bytes(t: Tensor) -> int:
    return t.numel() * t.element_size()


def memory_stats(entries: list[tuple[Tensor, dict[str, Any], list[Any]]]) -> dict[str, int | float]:
    """Memory of the state tensors really held.

    Args:
        entries: per parameter: the parameter, its state, its fields (``execute.Field``).
    """
    quantized = high = as_fp32 = quantized_params = high_params = 0
    for p, state, fields in entries:
        layout = Layout.of(tuple(p.shape))
        coded: set[str] = set()
        for spec, codec in fields:
            as_fp32 += 4 * math.prod(spec.own_shape(layout))
            if codec is not None:
                coded.update(spec.name + plane.suffix for plane in codec.planes(layout))
        for key, value in state.items():
            if key in coded:
                quantized += _bytes(value)
            elif isinstance(value, Tensor):
                high += _bytes(value)
        eight_bit = any(spec.name == "exp_avg" and codec is not None for spec, codec in fields)
        quantized_params += p.numel() if eight_bit else 0
        high_params += 0 if eight_bit else p.numel()
    total, params = quantized + high, quantized_params + high_params
    return {
        "total_quantized_memory": quantized,
        "total_high_precision_memory": high,
        "quantized_params": quantized_params,
        "high_precision_params": high_params,
        "compression_ratio": total / as_fp32 if as_fp32 else 0.0,
        "bytes_per_parameter": total / params if params else 0.0,
        "fraction_of_adam": total / (ADAM_BYTES * params) if params else 0.0,
    }
