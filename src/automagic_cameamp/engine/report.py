"""What the optimizer holds and does, read on request."""

from __future__ import annotations

from typing import Any

from torch import Tensor

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
        coded = {f.spec.name for f in fields if f.codec is not None}
        for key, value in state.items():
            if not isinstance(value, Tensor):
                continue
            owner = next((name for name in coded if key in (f"{name}_q", f"{name}_q_scale")), None)
            if owner is None:
                high += _bytes(value)
                as_fp32 += 4 * value.numel()
            else:
                quantized += _bytes(value)
                as_fp32 += 4 * value.numel() if key.endswith("_q") else 0
        if state:
            quantized_params += p.numel() if coded else 0
            high_params += 0 if coded else p.numel()
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
