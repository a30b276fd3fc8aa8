"""The way of gradients to the host and of weights back, through a bounded ring of host memory.

Who has a gradient ready loads it, with its weight, into the ring, and may free it. A thread takes the loads
in their order, has them updated, and sends the weights back. The ring is all the memory of what crosses:
where it is full, loading waits, so backward is never further ahead than the ring is long. The thread never
waits for backward, only for copies, so the two cannot wait for each other.

A weight goes back as soon as it is updated, not when backward ends: all new weights at once would be as much
memory as the model. It may, because a gradient is complete only when every node that used the weight has run,
checkpoints and other uses of a shared weight included; what autograd does not know of (a detached use) it
refuses by the weight's version, which is moved when the gradient leaves and not when the weight comes back.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

import torch
from torch import Tensor

from ..state import tensors
from ..state.crossing import Crossing, aligned
from . import offload

BATCH = 1 / 4  # of the ring, at most, is stepped together: room comes free while backward goes on
IDLE = 0.2  # seconds that the thread waits for more before it ends


_RINGS: weakref.WeakSet[Ring] = weakref.WeakSet()  # all of this process


class Updates(Protocol):
    """Who is told of what has arrived, in the ring's thread."""

    def update(self, loads: list[Load]) -> None:
        """Update these weights where they lie, and send each that changed with ``Load.send``."""
        ...

    def add(self, load: Load) -> None:
        """Add a gradient to others, on the host."""
        ...

    def failed(self, load: Load, error: BaseException) -> None:
        """Neither was possible; nothing of this load was changed on the device."""
        ...


@dataclass(eq=False)
class Load:
    """One gradient on its way.

    Args:
        p: the parameter on the device.
        place: where its memory was.
        mark: of its gradient there.
        whose: who is told of it.
        weight, grad: views of the ring. No weight: the gradient is only added to others. No gradient: it is
            on the host already.
        end: where the load ends in the ring.
        here: reached when both have arrived.
        transfer: between the device and the host.
        gone: reached when the new weight has left the ring.
    """

    p: Tensor
    place: int
    mark: tuple[int, int]
    whose: Updates
    weight: Tensor | None
    grad: Tensor | None
    end: int
    here: offload.Ticket
    transfer: offload.Transfer
    gone: offload.Ticket = None

    @property
    def moved(self) -> bool:
        """Whether somebody has put the weight elsewhere since."""
        return tensors.mark(self.p)[0] != self.place

    def send(self) -> None:
        """Send the weight back."""
        assert self.weight is not None
        self.gone = self.transfer.put(self.weight, self.p.detach())


class Ring:
    """Host memory, the loads in it, and the thread that works on them."""

    def __init__(self) -> None:
        self.memory = torch.empty(0, dtype=torch.uint8, device="cpu")
        self._head = self._tail = 0  # bytes since the beginning: loaded, and free again
        self._begin()
        self._transfers: dict[torch.device, offload.Transfer] = {}
        self._ahead = 0
        _RINGS.add(self)

    def _begin(self) -> None:
        """With nobody at work and nothing on its way."""
        self._loads: deque[Load] = deque()  # in the ring, the oldest first
        self._taken = 0  # of them, by the thread
        # A condition is entered in Python, where an interrupt may come after the lock was taken and before
        # anybody would give it back; a lock is entered in C.
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._loading = threading.Lock()  # backward has a thread per device
        self._worker: threading.Thread | None = None  # who works on the loads, set by itself
        # Gradients, as far as known.
        self._flying: deque[tuple[offload.Transfer, offload.Ticket, int]] = deque()

    def forked(self) -> None:
        """In a child the worker is gone, and a lock that it held stays taken."""
        left = self._loads
        self._begin()
        self._tail = self._head
        for load in left:
            load.whose.failed(load, RuntimeError("the process was forked while the weight was on its way"))

    def load(self, p: Tensor, grad: Tensor | None, whose: Updates, weight: bool = True) -> None:
        """Begin to copy; waits where the ring is full.

        Args:
            p: parameter.
            grad: its gradient, which may be freed (not written) afterwards; None: it is on the host already.
            whose: who is told when it is here.
            weight: copy the weight too, to be updated.
        """
        with self._loading:
            parts = [x for x in (p if weight else None, grad) if x is not None]
            sizes = [aligned(x) for x in parts]
            start = self._room(sum(sizes), p)
            self._let_go(0 if grad is None else sizes[-1])
            transfer = self._transfer(p.device)
            place = start % len(self.memory)
            views: list[Tensor] = []
            try:
                for x, size in zip(parts, sizes, strict=True):
                    raw = self.memory[place : place + x.numel() * x.element_size()]
                    views.append(raw.view(x.dtype).view(x.shape))
                    transfer.fetch(tensors.plain(x), views[-1])
                    place += size
                here = transfer.mark()
            except BaseException:  # the next load comes to lie here, and what has begun still writes
                transfer.wait()
                raise
            if grad is not None:
                self._flying.append((transfer, here, sizes[-1]))
            if weight:
                # Written from here on, for autograd: a pass that still needs the old weight is refused, as
                # where the weight is updated in the hook, and not only where the new one happens to be early.
                torch.autograd.graph.increment_version(p)
            load = Load(
                p,
                tensors.mark(p)[0],
                tensors.mark(grad),
                whose,
                views[0] if weight else None,
                None if grad is None else views[-1],
                start + sum(sizes),
                here,
                transfer,
            )
            with self._lock:
                self._head = load.end
                self._loads.append(load)
                self._wake()

    def reserve(self, needed: Crossing, like: Tensor) -> None:
        """Have at least these bytes, in memory fit for copies from the device of ``like``."""
        with self._loading:
            self._ahead = max(self._ahead, needed.ahead)
            self._grow(needed.ring, like)

    def drain(self) -> None:
        """Wait until nothing is on its way; what the device computes afterwards sees the new weights."""
        self._wait(self._empty)
        for transfer in self._transfers.values():
            transfer.join()

    # ---------------------------------------------------------------- room

    def _transfer(self, device: torch.device) -> offload.Transfer:
        if device not in self._transfers:
            self._transfers[device] = offload.transfer_for(device)
        return self._transfers[device]

    def _room(self, size: int, like: Tensor) -> int:
        """Where a load of this size begins, once there is room for it in one piece."""
        self._grow(size, like)
        whole, start = len(self.memory), self._head
        if start % whole + size > whole:
            start += whole - start % whole
        self._wait(lambda: start + size - self._tail <= whole or self._empty())
        return start

    def _let_go(self, more: int) -> None:
        """Wait for older gradients to leave the device, where these bytes beside them would be too many."""
        while self._flying and sum(size for *_, size in self._flying) + more > max(self._ahead, more):
            transfer, here, _ = self._flying.popleft()
            transfer.reach(here)

    def _grow(self, size: int, like: Tensor) -> None:
        if size <= len(self.memory):
            return
        self._wait(self._empty)
        self.memory = torch.empty(0, dtype=torch.uint8, device="cpu")  # or both would be held
        words = torch.empty(-(-size // 4), dtype=torch.float32, device="meta")
        self.memory = self._transfer(like.device).buffer(words).view(torch.uint8)
        self._head = self._tail = 0

    def _empty(self) -> bool:
        return not self._loads

    def _wait(self, true: Callable[[], bool]) -> None:
        with self._lock:
            self._wake()
            self._changed.wait_for(true)

    # ---------------------------------------------------------------- the thread

    def _wake(self) -> None:
        """Let the thread look; called with ``_lock``."""
        # Whom an interrupt keeps from starting has not begun to work; one too many goes away by itself. To
        # ask whether a thread is alive is no way: interrupted, Python takes one that is for one that is not.
        if self._loads and self._worker is None:
            threading.Thread(target=self._work, name="automagic_cameamp host step").start()
        self._changed.notify_all()

    @torch.inference_mode(False)
    @torch.no_grad()
    def _work(self) -> None:
        leaving: list[Load] = []
        with self._lock:
            if self._worker is not None:
                return
            self._worker = threading.current_thread()
        while True:
            with self._lock:
                if not leaving:
                    self._changed.wait_for(lambda: self._taken < len(self._loads), IDLE)
                batch = self._batch()
                if not batch and not leaving:
                    self._worker = None
                    return
            if batch:
                self._run(batch)
            self._free(leaving)
            leaving = batch

    def _batch(self) -> list[Load]:
        """The next loads of one kind."""
        batch: list[Load] = []
        for load in islice(self._loads, self._taken, None):
            first = batch[0] if batch else load
            alike = load.whose is first.whose and (load.weight is None) == (first.weight is None)
            if not alike or load.end - first.end > BATCH * len(self.memory):
                break
            batch.append(load)
        self._taken += len(batch)
        return batch

    def _run(self, batch: list[Load]) -> None:
        whose = batch[0].whose
        try:
            for load in batch:
                load.transfer.reach(load.here)
            if batch[0].weight is None:
                for load in batch:
                    whose.add(load)
            else:
                whose.update(batch)
        except BaseException as error:  # nobody hears of it in a thread, and the ring would stay full
            for load in batch:
                whose.failed(load, error)

    def _free(self, left: list[Load]) -> None:
        """The oldest loads are done with, once their weights have left."""
        for load in left:
            try:
                load.transfer.reach(load.gone)
            except BaseException as error:
                load.whose.failed(load, error)
        with self._lock:
            for load in left:
                self._tail = load.end
                self._loads.popleft()
            self._taken -= len(left)
            self._changed.notify_all()


_SHARED: list[weakref.ref[Ring]] = []
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: [ring.forked() for ring in list(_RINGS)])


def shared() -> Ring:
    """The ring of all optimizers of this process, for programs that have one per group or per parameter."""
    ring = _SHARED[0]() if _SHARED else None
    if ring is None:
        ring = Ring()
        _SHARED[:] = [weakref.ref(ring)]
    return ring
