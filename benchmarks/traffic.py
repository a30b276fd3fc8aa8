"""Bytes that the native passes move between memory and cache, counted per pass from the tensors held.

A tensor whose scratch fits into the L2 cache (``RESIDENT`` elements, kernels/cpu/job.h) is read and
written once per step. A larger one is walked once per pass: the gradient in all three; the momentum
in the second and again, with its write, in the third (in fp32 and without neighbourhoods it is written
in the second); the weights in the third. Row and column
statistics are read and written once. Write-allocation and evictions are not counted.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

RESIDENT = 196608
# GB/s: what is left of two channels of DDR4-3200 and of DDR5-5600.
MEMORY = {"40 GB/s": 40.0, "70 GB/s": 70.0}
MASKS = ("lr_mask", "last_polarity")
PASSES = ("gradient", "momentum", "weights")


def _bytes(x: Tensor) -> int:
    return x.numel() * x.element_size()


def _planes(state: dict[str, Any], stem: str) -> int:
    """Bytes of a field with its scales, zero points and residuals."""
    names = [k for k in state if k == stem or k.startswith(f"{stem}_q")]
    return sum(_bytes(state[k]) for k in names if isinstance(state[k], Tensor))


def passes_of(p: Tensor, state: dict[str, Any], early: bool, late: bool) -> dict[str, int]:
    """Bytes of each pass over one parameter.

    Args:
        p: the parameter, with a gradient.
        state: its state.
        early: in the first half of the warm-up, where the torque reads the momentum before the update.
        late: after the warm-up, where the mask is frozen.
    """
    g, w = _bytes(p.grad if p.grad is not None else p), _bytes(p)
    m = _planes(state, "exp_avg")
    mask = sum(_bytes(state[k]) for k in MASKS if k in state)
    moved = 1 if late else 2
    edge = _planes(state, "edge_history")
    counted = m + mask + edge
    tensors = {k: _bytes(v) for k, v in state.items() if isinstance(v, Tensor)}
    vectors = sum(tensors.values()) - counted
    torque = m if early and "s" in state else 0
    if p.numel() <= RESIDENT:
        return {
            "gradient": g + vectors,
            "momentum": 2 * m + moved * mask,
            "weights": 2 * w + 2 * edge + vectors,
        }
    scales = any(name.startswith("momentum_scale_") for name in state)
    # fp32 momentum without scratch planes is moved where it lies, in the second pass.
    plain = "exp_avg" in state and state["exp_avg"].dtype == torch.float32
    written = m if plain and not edge and not scales else 0
    return {
        "gradient": g + torque + vectors,
        "momentum": g + m + written + moved * mask,
        "weights": g + 2 * m - written + 2 * w + mask + 2 * edge + vectors,
    }


def bytes_per_param(optimizer: torch.optim.Optimizer, phase: str | None) -> dict[str, float]:
    """Bytes per parameter and step, by pass and in all, and the bound: every byte once."""
    total = dict.fromkeys((*PASSES, "bound"), 0)
    count = 0
    for group in optimizer.param_groups:
        for p in group["params"]:
            state = optimizer.state[p]
            for name, moved in passes_of(p, state, phase == "early", phase == "late").items():
                total[name] += moved
            held = sum(_bytes(v) for v in state.values() if isinstance(v, Tensor))
            frozen = sum(_bytes(state[k]) for k in MASKS if k in state) if phase == "late" else 0
            total["bound"] += 3 * _bytes(p) + 2 * held - frozen
            count += p.numel()
    found = {name: moved / count for name, moved in total.items()}
    found["all"] = sum(found[name] for name in PASSES)
    return found
