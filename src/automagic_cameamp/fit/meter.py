"""Bytes that live tensors hold, counted operator by operator; the same for real and for fake tensors."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Meter(TorchDispatchMode):
    """Counts storages from the operator that makes them until nothing holds them any more.

    What a kernel allocates and frees inside is not seen. A storage counts once, however many tensors look at
    it, and by what it holds, not by what a tensor shows of it.

    Args:
        held: tensors that are there already; they count from the start.

    Source: the idea is that of torch.distributed._tools.mem_tracker (BSD-3-Clause); the code is our own.
    """

    def __init__(self, held: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.live = self.peak = self.both = self.kept = 0
        self._known: dict[int, weakref.ref[Any]] = {}
        for tensor in held:
            self.watch(tensor)

    def watch(self, tensor: Tensor) -> None:
        """Count the storage of a tensor, if it is new."""
        storage = tensor.untyped_storage()
        key, size = id(storage), storage.nbytes()  # torch keeps one object per storage
        if key in self._known:
            return

        def gone(_: Any) -> None:
            if self._known.pop(key, None) is not None:
                self.live -= size

        self._known[key] = weakref.ref(storage, gone)
        self.live += size
        self.peak = max(self.peak, self.live)
        self.both = max(self.both, self.live + self.kept)

    def keep(self, size: int) -> None:
        """From now on ``both`` counts so many bytes more, as of a gradient that a plain loop would hold."""
        self.kept += size

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor) and leaf.layout == torch.strided:
                self.watch(leaf)
        return out
