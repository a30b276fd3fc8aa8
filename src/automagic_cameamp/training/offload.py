"""Offload: parameters stay on their device, state and step live in host memory.

Every parameter has a host twin. A gradient is copied into its twin's as soon as backward has
accumulated it; ``step()`` runs on the twins, as it would for a model on the CPU, and sends the weights
back. What was changed since it was copied (clipping, unscaling) is copied again: torch counts the writes,
but not those of a GradScaler or through ``.data``, which the sum of the bits tells. Gradients that are
released as they come (``ring``) have no twins: they and their weights pass through a ring.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import compress
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from ..eager import eager
from ..state import kinds, tensors
from ..state.adapters import stand_in
from ..state.fields import compute_dtype
from ..state.model import Model
from ..state.owned import Owned
from ..state.shards import is_distributed
from ..validate import fail

logger = logging.getLogger("automagic_cameamp")
Mark = tuple[int, int, torch.Size]
Ticket = torch.cuda.Event | threading.Event | None  # a moment of a stream; None: it is over


class Transfer(Protocol):
    """Copies between one device and the host."""

    def buffer(self, like: Tensor) -> Tensor:
        """Unfilled host memory for a tensor of the device."""
        ...

    def fetch(self, source: Tensor, target: Tensor) -> None:
        """Begin a copy to the host."""
        ...

    def wait(self) -> None:
        """Return when all that was fetched is on the host."""
        ...

    def send(self, source: Tensor, target: Tensor) -> None:
        """Copy to the device; what it computes afterwards sees the copy."""
        ...

    def mark(self) -> Ticket:
        """The moment when all that this thread has begun to fetch is on the host."""
        ...

    def reach(self, ticket: Ticket) -> None:
        """Return when a moment has come."""
        ...

    def put(self, source: Tensor, target: Tensor) -> Ticket:
        """Begin to copy to the device, from any thread, what it has no more use for until ``join``.

        Returns:
            The moment when the source may be written again.
        """
        ...

    def join(self) -> None:
        """What the device computes afterwards for this thread sees all that was put."""
        ...


class Clones:
    """Plain copies, for devices without streams."""

    def buffer(self, like: Tensor) -> Tensor:
        return torch.empty(like.shape, dtype=like.dtype, device="cpu")

    def fetch(self, source: Tensor, target: Tensor) -> None:
        target.copy_(source)

    def wait(self) -> None:
        return

    def send(self, source: Tensor, target: Tensor) -> None:
        target.copy_(source)

    def mark(self) -> Ticket:
        return None

    def reach(self, ticket: Ticket) -> None:
        return

    def put(self, source: Tensor, target: Tensor) -> Ticket:
        target.copy_(source)
        return None

    def join(self) -> None:
        return


class Streams:
    """Copies beside the computation, through pinned memory. What crosses is pinned; state never does."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device)
        self.back = torch.cuda.Stream(device)  # of what is put, so that it waits for no fetch

    def buffer(self, like: Tensor) -> Tensor:
        return torch.empty(like.shape, dtype=like.dtype, device="cpu", pin_memory=True)

    def fetch(self, source: Tensor, target: Tensor) -> None:
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.stream):
            target.copy_(source, non_blocking=True)
        source.record_stream(self.stream)  # or its memory could be used again before it is read

    def wait(self) -> None:
        self.stream.synchronize()

    def send(self, source: Tensor, target: Tensor) -> None:
        current = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            target.copy_(source, non_blocking=True)
        target.record_stream(self.stream)
        current.wait_stream(self.stream)

    def mark(self) -> Ticket:
        event = torch.cuda.Event(blocking=True)  # who waits sleeps: the cores are for the step
        event.record(self.stream)
        return event

    def reach(self, ticket: Ticket) -> None:
        if isinstance(ticket, torch.cuda.Event):
            ticket.synchronize()

    def put(self, source: Tensor, target: Tensor) -> Ticket:
        # No wait for the computing stream: its work up to the hook was over when the weight had been fetched.
        with torch.cuda.stream(self.back):
            target.copy_(source, non_blocking=True)
            event = torch.cuda.Event(blocking=True)
            event.record(self.back)
        target.record_stream(self.back)
        return event

    def join(self) -> None:
        torch.cuda.current_stream(self.device).wait_stream(self.back)


def transfer_for(device: torch.device) -> Transfer:
    """The way to and from a device."""
    return Streams(device) if device.type == "cuda" else Clones()


class Twin:
    """Host copies of one parameter and its gradient, and of which versions they are copies."""

    def __init__(self, p: Tensor, transfer: Transfer) -> None:
        self.transfer = transfer
        self.weight = transfer.buffer(p.detach())
        self.grad: Tensor | None = None
        self.seen: Mark | None = None
        self.seen_grad: Mark | None = None
        self.bits: Tensor | None = None  # of a gradient that was copied before ``step()``

    def take(self, p: Tensor, early: bool = False) -> None:
        """Begin to copy what has changed on the device; ``early`` if the program may still change it."""
        if self.seen != _mark(p):
            self.transfer.fetch(tensors.plain(p), self.weight)
            self.seen = _mark(p)
        g = p.grad
        if g is None:
            self.seen_grad = None
        elif self.seen_grad != _mark(g):
            if self.grad is None or self.grad.shape != g.shape or self.grad.dtype != g.dtype:
                self.grad = self.transfer.buffer(g)
            self.transfer.fetch(tensors.plain(g), self.grad)
            self.seen_grad = _mark(g)
            self.bits = _bits(g) if early else None

    def give(self, p: Tensor) -> None:
        """Send the weights back; the next step takes them anew, for nobody knows who writes between."""
        self.transfer.send(self.weight, p.detach())
        self.seen = self.seen_grad = self.bits = None


class Offload:
    """Twins of all parameters of an optimizer."""

    def __init__(self) -> None:
        self.twins: Owned[Twin] = Owned()
        self.transfers: dict[torch.device, Transfer] = {}
        self._hooks: list[RemovableHandle] = []

    def twin(self, p: Tensor) -> Twin:
        """The twin of a parameter as it is now; made at its first use."""
        found = self.twins.get(p)
        if found is None or found.weight.shape != p.shape or found.weight.dtype != p.dtype:
            hook = found is None and p.requires_grad and p.is_leaf
            if p.device not in self.transfers:
                self.transfers[p.device] = transfer_for(p.device)
            found = self.twins[p] = Twin(p, self.transfers[p.device])
            if hook:
                self._hooks.append(tensors.on_gradient(p, _Arrival(self)))
        return found

    def clear(self) -> None:
        """Give the memory back; twins are made again when they are needed."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        self.twins.clear()

    def check_early(self, params: Iterable[Tensor]) -> None:
        """See which gradients were written since in a way that torch does not count: they are taken again."""
        early: dict[torch.device, list[tuple[Tensor, Tensor, Twin]]] = defaultdict(list)
        for p in params:
            twin = self.twin(p)
            if p.grad is not None and twin.bits is not None and twin.seen_grad == _mark(p.grad):
                early[p.grad.device].append((p, twin.bits, twin))
        for found in early.values():
            now = torch.stack([_bits(p.grad) for p, _, _ in found if p.grad is not None])
            changed = (now != torch.stack([bits for _, bits, _ in found])).tolist()
            for _, _, twin in compress(found, changed):
                twin.seen_grad = None

    def wait(self) -> None:
        """Until everything taken is here."""
        for transfer in self.transfers.values():
            transfer.wait()


class _Arrival:
    """Begins the copy of a gradient during backward."""

    def __init__(self, offload: Offload) -> None:
        self.offload = weakref.ref(offload)

    @eager
    @torch.no_grad()
    def __call__(self, p: Tensor) -> None:
        offload = self.offload()
        if offload is not None and offload.twins.get(p) is not None and p.grad is not None:
            if tensors.is_readable(p.grad) and tensors.is_readable(p):  # others are refused by step()
                offload.twin(p).take(p, early=True)


def _mark(x: Tensor) -> Mark:
    return (*tensors.mark(x), x.shape)


def _bits(x: Tensor) -> Tensor:
    """Sum of the bits of all elements, read as whole numbers: exact, in whatever order they are added."""
    whole = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()]
    return tensors.plain(x).detach().view(whole).sum(dtype=torch.int64)


def check(model: Model, only: Tensor | None = None) -> None:
    """Refuse what cannot be stepped on the host; ``only`` as in ``kinds.before_step``."""
    kinds.before_step(model, only)
    check_places(model)


def check_places(model: Model) -> None:
    """Refuse parameters of which this process holds a part."""
    if any(map(is_distributed, model.params())):
        allowed = "only 'none' with sharded parameters"
        raise fail(
            "offload", "cpu", allowed, "fully_shard(..., offload_policy=CPUOffloadPolicy()) does this."
        )


def announce(model: Model, crossing: int, what: str) -> None:
    """Log once what the host will hold, before any of it is allocated.

    Args:
        model: its state is counted.
        crossing: bytes of what is not state.
        what: that is, in words.
    """
    if "host" in model.kept.said:
        return
    model.kept.said.add("host")
    state = 0
    for group, chunk in model.chunks():
        for field in model.fields(group, chunk):
            for plane in field.planes(chunk.layout, compute_dtype(chunk.params[0].dtype)):
                size = torch.Size(plane.own_shape).numel()
                state += len(chunk.params) * size * plane.dtype.itemsize
    logger.info(
        "%s: offload='cpu' needs %d bytes of host memory: %d for %s, %d for state",
        model.called,
        crossing + state,
        crossing,
        what,
        state,
    )


def liken(twin: Tensor, p: Tensor) -> None:
    """Give a host tensor what the optimizer reads of its parameter, beside the values."""
    for name, value in p.__dict__.items():  # marks of LoRA and embeddings
        setattr(twin, name, value)
    stand_in(twin, p)
    if hasattr(p, "grad_dtype"):  # fp32 gradients of bf16 weights
        twin.grad_dtype = p.grad_dtype  # type: ignore[attr-defined]


@contextmanager
def on_host(offload: Offload, model: Model, stepping: bool = True) -> Iterator[None]:
    """Show the optimizer its parameters' twins in place of them, where it is offloaded.

    Args:
        offload: the twins.
        model: its groups and its state are the twins' inside, the parameters' again outside.
        stepping: gradients are shown too, and the weights go back to the device at the end.

    Raises:
        ValueError: parameters that cannot be offloaded; nothing was changed.
    """
    check(model)
    if stepping:
        size = 2 * sum(p.numel() * p.element_size() for p in model.params())
        announce(model, size, "weights and gradients")
    params = model.params()
    offload.twins.keep(params)
    twins = [offload.twin(p) for p in params]
    if stepping:
        offload.check_early(params)
    # The limit of the rate is that of all weights that are trained, whoever has a gradient at the first step.
    first = any(g["lr_level"] == "auto" and not g["clock"] for g in model.groups)
    for p, twin in zip(params, twins, strict=True):
        if p.grad is not None or not stepping or (first and p.requires_grad):
            twin.take(p)
    offload.wait()
    for p, twin in zip(params, twins, strict=True):
        liken(twin.weight, p)
        twin.weight.requires_grad_(p.requires_grad)
        twin.weight.grad = twin.grad if stepping and p.grad is not None else None
    owner = {id(twin.weight): p for p, twin in zip(params, twins, strict=True)}
    _rename(model, {id(p): twin.weight for p, twin in zip(params, twins, strict=True)})
    try:
        yield
    finally:
        _rename(model, owner)
        for p, twin in zip(params, twins, strict=True):
            if stepping and p.grad is not None:
                twin.give(p)
            twin.weight.grad = None


def _rename(model: Model, names: dict[int, Tensor]) -> None:
    """Other tensors in the place of a group's parameters, and as the keys of their state."""
    for group in model.groups:
        group["params"] = [names[id(p)] for p in group["params"]]
    state = {names.get(id(key), key): value for key, value in model.state.items()}
    model.owner.state = defaultdict(dict, state)
    rename_types(model, names)


def rename_types(model: Model, names: dict[int, Tensor]) -> None:
    """Other tensors in the place of parameters whose types are known."""
    types = model.kept.types
    model.kept.types = {id(names[k]) if k in names else k: v for k, v in types.items()}
