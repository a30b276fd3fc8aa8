"""Is the run well? Losses, memory pressure, quantisation error, learning rates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TextIO

import numpy as np
import torch

from .read import MB, device_of, error_norms, masks, names, number, unwrap

LOOK_BACK = 20  # steps over which the loss should fall
RECENT = 10  # steps over which it should be calm
LITTLE_QUANTISED = 0.2
CALM = 0.1
FULL = 0.9  # of the GPU's memory
SAME = 1e-4

SUGGESTIONS = {
    "convergence_stall": "quantise less, for more precision: smaller blocks, a larger min_8bit_size",
    "memory_pressure": "quantise more, to save memory: memory_optimized, a smaller min_8bit_size",
    "not_finite": "lower the learning rate, and look at optimizer.health() for the parameters at fault",
}


def check_training_health(
    optimizer: Any, losses: Sequence[Any], threshold_ratio: float = 0.1
) -> dict[str, Any]:
    """Look for little quantisation, slow convergence, and an unstable or non-finite loss.

    Args:
        optimizer: one of ours.
        losses: one per step, oldest first; any finite sign.
        threshold_ratio: the share by which the loss should have fallen over the last 20 steps.

    Returns:
        ``status`` ('healthy' or 'warning'), ``issues``, and ``suggestions``, one for each issue;
        ``codes`` names the issues for programs: 'low_quantization', 'slow_convergence', 'unstable',
        'not_finite'.
    """
    found: list[tuple[str, str, str]] = []
    report = unwrap(optimizer).get_memory_efficiency_report()
    if report["compression_ratio"] < LITTLE_QUANTISED:
        share = f"{report['compression_ratio']:.0%} of the parameters have 8-bit state"
        found.append(("low_quantization", f"little is quantised: {share}", "look at min_8bit_size"))
    values = [number(loss) for loss in losses[-LOOK_BACK - 1 :]]
    if not all(math.isfinite(v) for v in values):
        found.append(("not_finite", "a loss is not finite", SUGGESTIONS["not_finite"]))
    else:
        found += _convergence(values, threshold_ratio) + _stability(values)
    return {
        "status": "warning" if found else "healthy",
        "issues": [issue for _, issue, _ in found],
        "suggestions": [suggestion for _, _, suggestion in found],
        "codes": [code for code, _, _ in found],
    }


def _convergence(values: list[float], threshold: float) -> list[tuple[str, str, str]]:
    if len(values) <= LOOK_BACK:
        return []
    then, now = values[-LOOK_BACK], values[-1]
    if then == 0 == now:
        return []  # a loss of 0 has nowhere to fall
    improvement = (then - now) / (abs(then) or abs(now))
    if improvement >= threshold:
        return []
    text = f"the loss fell by {improvement:.1%} over {LOOK_BACK} steps, {threshold:.0%} was asked for"
    return [("slow_convergence", text, "try another learning rate, or quantise less")]


def _stability(values: list[float]) -> list[tuple[str, str, str]]:
    if len(values) <= RECENT:
        return []
    recent = np.asarray(values[-RECENT:])
    size = float(np.abs(recent).mean())  # the mean, for losses above 0
    if size == 0 or float(recent.var()) / size <= CALM:
        return []
    text = f"the loss varies: {recent.min():.4g} to {recent.max():.4g} in {RECENT} steps"
    return [("unstable", text, "lower the learning rate, or regularise more")]


class AdaptiveTrainingMonitor:
    """Keeps the last losses and GPU memory readings, and says when the configuration should change.

    Args:
        optimizer: one of ours.
        window_size: how many readings to keep; nothing is judged before there are as many.
    """

    def __init__(self, optimizer: Any, window_size: int = 50) -> None:
        if window_size < 1:
            raise ValueError(f"window_size={window_size!r} is not allowed: it must be at least 1")
        self.optimizer = optimizer
        self.window_size = window_size
        self.loss_history: list[float] = []
        self.memory_history: list[float] = []

    def update(self, loss: Any) -> None:
        """Take in one loss, and the GPU's memory where the parameters are on one (in MB)."""
        self.loss_history.append(number(loss))
        device = device_of(unwrap(self.optimizer))
        if device.type == "cuda":
            self.memory_history.append(torch.cuda.memory_allocated(device) / MB)
        del self.loss_history[: -self.window_size], self.memory_history[: -self.window_size]

    def should_adjust_config(self) -> tuple[bool, str | None]:
        """(whether, why): 'not_finite', 'convergence_stall' or 'memory_pressure'."""
        if len(self.loss_history) < self.window_size:
            return False, None
        recent = self.loss_history[-RECENT:]
        if not all(math.isfinite(v) for v in recent):
            return True, "not_finite"
        # the same to four decimals, or to four digits where losses are small
        if len(recent) > 1 and max(recent) - min(recent) <= SAME * min(1.0, max(map(abs, recent))):
            return True, "convergence_stall"
        if self.memory_history:
            held = self.memory_history[-RECENT:]
            if sum(held) / len(held) > FULL * self._gpu_memory():
                return True, "memory_pressure"
        return False, None

    def _gpu_memory(self) -> float:
        """Memory of the GPU that the parameters are on, in MB."""
        return torch.cuda.get_device_properties(device_of(unwrap(self.optimizer))).total_memory / MB

    def get_adjustment_suggestion(self, issue: str | None) -> str:
        """What to do about an issue."""
        return SUGGESTIONS.get(issue or "", "nothing to suggest")


def check_quantization_quality(optimizer: Any, *, file: TextIO | None = None) -> dict[str, dict[str, float]]:
    """Print the norm of what error correction holds for each quantised state.

    Returns:
        Parameter name -> state name -> norm; 0 where there is no error correction.
    """
    inner = unwrap(optimizer)
    known, found = names(inner), {}
    for param_id, state, norm in error_norms(inner):
        found.setdefault(known[param_id], {})[state] = norm
        print(f"{known[param_id]}, state {state}: Error norm = {norm:.6f}", file=file)
    if not found:
        print("no state is quantised (yet: state is made at the first step)", file=file)
    return found


def monitor_learning_rates(optimizer: Any, *, file: TextIO | None = None) -> dict[str, dict[str, float]]:
    """Print how each parameter's learning-rate mask is spread, as rates at the base learning rate.

    Returns:
        Parameter name -> ``min``, ``max``, ``mean``.
    """
    inner = unwrap(optimizer)
    known, found = names(inner), {}
    for param_id, mask in masks(inner):
        low, high = mask.aminmax()
        row = {"min": float(low), "max": float(high), "mean": float(mask.mean())}
        found[known[param_id]] = row
        text = f"min={row['min']:.2e}, max={row['max']:.2e}, mean={row['mean']:.2e}"
        print(f"{known[param_id]}: LR stats: {text}", file=file)
    if not found:
        rates = ", ".join(f"{rate:.2e}" for rate in inner.get_learning_rates())
        print(f"no learning-rate mask; mean rate of each group: {rates}", file=file)
    return found
