"""What an optimizer keeps from step to step that no checkpoint needs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from .counts import Phases, Searches

LISTS_KEPT = 4096


class DeviceLists:
    """Short lists as tensors, made once and without waiting for the device."""

    def __init__(self) -> None:
        self._made: dict[tuple[Any, ...], Tensor] = {}

    def __call__(self, values: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        """These values on this device."""
        key = (device, dtype, *values)
        if key not in self._made:
            if len(self._made) >= LISTS_KEPT:  # sets of active parameters that change for ever
                self._made.clear()
            host = torch.tensor(values, dtype=dtype, device="cpu")
            if device.type == "cuda":
                host = host.pin_memory()
            self._made[key] = host.to(device, non_blocking=True)
        return self._made[key]


class Kept:
    """Caches and counters; a copy of the optimizer begins with new ones.

    Args:
        built: False while the constructor adds its groups.
    """

    def __init__(self, built: bool) -> None:
        self.built = built
        self.matrices: dict[int, bool] = {}  # id of a group -> whether it had any when it was first seen
        self.steps = 0
        self.lists = DeviceLists()
        self.skipped: dict[torch.device, Tensor] = {}  # skipped updates of every parameter, int32
        self.searches = Searches()
        self.phases = Phases()
        self.types: dict[int, torch.dtype] = {}  # of the parameters, as of the last step that looked
        self.neutral = False  # whether it was said that the controller starts without memory
        self.options: dict[int, dict[str, Any]] = {}  # of each group, as they were last checked
        self.said: set[str] = set()  # of what is said once for an optimizer
        self.unsaid: list[dict[str, Any]] = []  # groups that are being added, for which nobody gave a rate

    def forget(self) -> None:
        """State was put in place: what is known of the old one may not hold."""
        self.searches.clear()
        self.phases.clear()

    def count_skipped(self, updates: Iterable[tuple[list[int], Tensor]], total: int) -> None:
        """Count the updates that were skipped, without looking at them; one launch for all of a device.

        Args:
            updates: indices of parameters among all, and [len(indices)] bool, False where one was skipped.
            total: number of parameters.
        """
        found: dict[torch.device, tuple[list[Tensor], list[Tensor]]] = {}
        for indices, ok in updates:
            places, flags = found.setdefault(ok.device, ([], []))
            places.append(self.lists(indices, torch.int64, ok.device))
            flags.append(ok)
        for device, (places, flags) in found.items():
            counts = self.skipped.get(device)
            if counts is None or len(counts) < total:
                grown = torch.zeros(total, dtype=torch.int32, device=device)
                if counts is not None:
                    grown[: len(counts)] = counts
                counts = self.skipped[device] = grown
            skipped = (~torch.cat(flags)).to(torch.int32)
            counts.index_add_(0, torch.cat(places), skipped)
