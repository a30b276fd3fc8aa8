"""What the optimizer shows of itself, gathered once for every user in this package."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

MB = 2**20


def unwrap(optimizer: Any) -> Any:
    """Our optimizer, also out of accelerate's wrapper or an ``AdaptiveOptimizer``."""
    inner = optimizer
    while inner is not None and not hasattr(inner, "get_memory_stats"):
        inner = getattr(inner, "optimizer", None)
    if inner is None:
        kind = type(optimizer).__name__
        raise TypeError(f"optimizer={kind} is not allowed: pass an optimizer of automagic_cameamp")
    return inner


def state_bytes(stats: dict[str, Any]) -> int:
    """All bytes of state."""
    return int(stats["total_quantized_memory"] + stats["total_high_precision_memory"])


def names(optimizer: Any) -> list[str]:
    """Name of each parameter, in the order that numbers them."""
    found: list[str] = []
    for group in optimizer.param_groups:
        given = group.get("param_names")
        found += given or [f"param_{len(found) + i}" for i in range(len(group["params"]))]
    return found


def device_of(optimizer: Any) -> torch.device:
    """Where the parameters are: the first CUDA device among them, else the CPU."""
    for group in optimizer.param_groups:
        for p in group["params"]:
            if p.is_cuda:
                return p.device
    return torch.device("cpu")


def error_norms(optimizer: Any) -> Iterator[tuple[int, str, float]]:
    """(parameter, state, norm of what its error correction holds) of every quantised state.

    0 where a state has no error correction.
    """
    for param_id, states in optimizer.quantized_states.items():
        for name, state in states.items():
            error = getattr(state, "error_accumulator", None)
            yield param_id, name, 0.0 if error is None else float(torch.linalg.vector_norm(error.float()))


def masks(optimizer: Any) -> Iterator[tuple[int, Tensor]]:
    """(parameter, its learning-rate mask as rates) of every parameter that has one."""
    for param_id, states in optimizer.high_precision_states.items():
        if "lr_mask" in states:
            yield param_id, states["lr_mask"]


def number(value: Any) -> float:
    """A loss as a float: a number or a tensor of one element."""
    return float(value.detach()) if isinstance(value, Tensor) else float(value)
