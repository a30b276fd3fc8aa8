"""What the optimizer holds and does, read on request."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

from torch import Tensor

from ..state.crossing import Crossing, crossing
from ..storage import Plane
from ..types import Layout

ADAM_BYTES = 8


class Planned(NamedTuple):
    """What an optimizer will hold and work on, known from shapes alone.

    Args:
        state: bytes of state once every parameter had a gradient, without a controller's memory.
        alone: elements of the largest tensor that is stepped alone.
        stacked: elements of the largest stack of several tensors.
        crossing: what crosses to the host where gradients are released and ``offload='cpu'`` is set.
    """

    state: int
    alone: int
    stacked: int
    crossing: Crossing


def _bytes(t: Tensor) -> int:
    return t.numel() * t.element_size()


def planned(entries: list[tuple[Layout, int, list[Plane]]], trained: list[Tensor]) -> Planned:
    """Add up planes.

    Args:
        entries: per chunk: the view of its tensors, how many there are, the stored planes of one.
        trained: the parameters that will have gradients.
    """
    state = sum(n * math.prod(q.own_shape) * q.dtype.itemsize for _, n, planes in entries for q in planes)
    sizes = [(n, n * layout.numel) for layout, n, _ in entries]
    return Planned(
        state,
        max((size for n, size in sizes if n == 1), default=0),
        max((size for n, size in sizes if n > 1), default=0),
        crossing(trained),
    )


def memory_stats(entries: list[tuple[Tensor, dict[str, Any], list[Any]]]) -> dict[str, int | float]:
    """Memory of the state tensors really held.

    Args:
        entries: per parameter: the parameter, its state, its fields (``Field``).
    """
    quantized = high = as_fp32 = quantized_params = high_params = 0
    for p, state, fields in entries:
        layout = Layout.of(tuple(p.shape))
        coded: set[str] = set()
        for spec, codec in fields:
            as_fp32 += 4 * math.prod(spec.own_shape(layout))
            if codec is not None:
                coded.update(spec.name + plane.suffix for plane in codec.planes(layout))
        as_fp32 += sum(4 * value.numel() for _, value in _others(state, fields, layout))
        for key, value in state.items():
            if key in coded:
                quantized += _bytes(value)
            elif isinstance(value, Tensor):
                high += _bytes(value)
        eight_bit = any(spec.name == "exp_avg" and codec is not None for spec, codec in fields)
        quantized_params += p.numel() if eight_bit else 0
        high_params += 0 if eight_bit else p.numel()
    total, params = quantized + high, quantized_params + high_params
    share = total / as_fp32 if as_fp32 else 0.0
    return {
        "total_quantized_memory": quantized,
        "total_high_precision_memory": high,
        "quantized_params": quantized_params,
        "high_precision_params": high_params,
        "fraction_of_fp32": share,
        "compression_ratio": share,  # the documents' name
        "bytes_per_parameter": total / params if params else 0.0,
        "fraction_of_adam": total / (ADAM_BYTES * params) if params else 0.0,
    }


def _others(state: dict[str, Any], fields: list[Any], layout: Layout) -> Iterator[tuple[str, Tensor]]:
    """State that belongs to no field of the parameter: the memory of a controller."""
    known = {spec.name for spec, _ in fields}
    for spec, codec in fields:
        if codec is not None:
            known.update(spec.name + plane.suffix for plane in codec.planes(layout))
    yield from ((k, v) for k, v in state.items() if isinstance(v, Tensor) and k not in known)


def efficiency(entries: list[tuple[Tensor, dict[str, Any], list[Any]]]) -> dict[str, Any]:
    """Parameters with eight-bit state, and the bytes of every state."""
    eight = total = held = as_fp32 = 0
    breakdown: dict[str, int] = {}
    for p, state, fields in entries:
        layout = Layout.of(tuple(p.shape))
        total += p.numel()
        for spec, codec in fields:
            eight += p.numel() if spec.name == "exp_avg" and codec is not None else 0
            planes = codec.planes(layout) if codec is not None else ()
            keys = [spec.name + plane.suffix for plane in planes] or [spec.name]
            size = sum(_bytes(state[key]) for key in keys if key in state)
            if state:
                held += size
                as_fp32 += 4 * math.prod(spec.own_shape(layout))
                breakdown[spec.name] = breakdown.get(spec.name, 0) + size
        for key, value in _others(state, fields, layout):
            held += _bytes(value)
            as_fp32 += 4 * value.numel()
            breakdown[key] = breakdown.get(key, 0) + _bytes(value)
    share = eight / total if total else 0.0
    return {
        "total_parameters": total,
        "8bit_parameters": eight,
        "32bit_parameters": total - eight,
        "memory_saved_mb": (as_fp32 - held) / 2**20,
        "8bit_fraction": share,
        "compression_ratio": share,  # the documents' name
        "states_breakdown": breakdown,
    }
