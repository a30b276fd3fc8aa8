"""How much the optimizer's state holds, and whether it grows."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any, TextIO

import torch
from torch import Tensor

from .read import MB, device_of, state_bytes, unwrap

LOW, HIGH = 0.3, 0.8  # share of parameters with eight-bit state: below is a warning, above is praise
_SEEN: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()


class MemoryMonitor:
    """Takes training steps, and prints the optimizer's memory every so many of them.

    Args:
        optimizer: one of ours.
        log_frequency: steps between two reports.
        file: where to print; None is standard output.
    """

    def __init__(self, optimizer: Any, log_frequency: int = 100, *, file: TextIO | None = None) -> None:
        if log_frequency < 1:
            raise ValueError(f"log_frequency={log_frequency!r} is not allowed: it must be at least 1")
        self.optimizer = optimizer
        self.log_frequency = log_frequency
        self.step_count = 0
        self.history: list[dict[str, Any]] = []
        self._file = file

    def step(self, loss_fn: Callable[[], Tensor]) -> Tensor:
        """One training step; ``loss_fn`` runs the model and returns the loss, which is returned."""
        self.optimizer.zero_grad()
        loss = loss_fn()
        loss.backward()
        self.optimizer.step()
        self.step_count += 1
        if self.step_count % self.log_frequency == 0:
            self._report()
        return loss.detach()

    def _report(self) -> None:
        stats = unwrap(self.optimizer).get_memory_stats()
        self.history.append({"step": self.step_count, **stats})
        print(f"Step {self.step_count}:", file=self._file)
        print(f"  Quantized: {stats['total_quantized_memory'] / MB:.2f} MB", file=self._file)
        print(f"  High-precision: {stats['total_high_precision_memory'] / MB:.2f} MB", file=self._file)
        print(f"  Compression: {stats['fraction_of_fp32']:.2%} of the same states in fp32", file=self._file)


def analyze_memory_usage(optimizer: Any, *, file: TextIO | None = None) -> dict[str, Any]:
    """Print how many parameters have eight-bit state and what that saves; returns the report.

    ``8bit_fraction`` is the share of parameters with eight-bit state: larger is better.
    """
    report = unwrap(optimizer).get_memory_efficiency_report()
    ratio = report["8bit_fraction"]
    print("Memory of the optimizer state:", file=file)
    print(f"  bitsandbytes installed: {'yes' if report['bitsandbytes_available'] else 'no'}", file=file)
    print(f"  parameters: {report['total_parameters']:,}", file=file)
    print(f"  with 8-bit state: {report['8bit_parameters']:,}", file=file)
    print(f"  with 32-bit state: {report['32bit_parameters']:,}", file=file)
    print(f"  saved against fp32: {report['memory_saved_mb']:.2f} MB", file=file)
    print(f"  share in 8 bits: {ratio:.2%}", file=file)
    if ratio < LOW:
        print("  Little is quantised: look at min_8bit_size and quantize_states.", file=file)
    elif ratio > HIGH:
        print("  Nearly everything is quantised.", file=file)
    return report


def check_memory_leak(optimizer: Any, *, file: TextIO | None = None) -> dict[str, int]:
    """Print the memory held now, collect garbage, and tell what changed since the last call.

    An optimizer's state stops growing when every parameter has had its first gradient. Call this between
    epochs: ``growth`` should be 0 from the second call on.

    Returns:
        ``gpu_bytes`` allocated by torch (0 without CUDA), ``optimizer_bytes`` of state, ``growth`` of the
        state since the last call for this optimizer, ``freed_gpu_bytes`` by the garbage collection.
    """
    inner = unwrap(optimizer)
    device = device_of(inner)
    cuda = device.type == "cuda"
    held = state_bytes(inner.get_memory_stats())
    growth = held - _SEEN.get(inner, held)
    _SEEN[inner] = held
    before = torch.cuda.memory_allocated(device) if cuda else 0
    if cuda:
        print(f"GPU Memory: {before / MB:.2f} MB", file=file)
    print(f"Optimizer Memory: {held / MB:.2f} MB", file=file)
    if growth:
        print(f"Changed by {growth / MB:+.2f} MB since the last check", file=file)
    gc.collect()
    if cuda:
        torch.cuda.empty_cache()
    after = torch.cuda.memory_allocated(device) if cuda else 0
    return {
        "gpu_bytes": before,
        "optimizer_bytes": held,
        "growth": growth,
        "freed_gpu_bytes": before - after,
    }
