"""A device whose copies arrive late and out of order, in another thread, and whose host memory is NaN."""

from __future__ import annotations

import random
import threading
import time
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from automagic_cameamp import host
from automagic_cameamp.training import offload, ring


@dataclass(eq=False)
class Done:
    """A flag. Interrupted, the locks of an event could stay taken."""

    over: bool = False


@dataclass(eq=False)
class Copy:
    source: Tensor
    target: Tensor
    back: bool
    done: Done = field(default_factory=Done)


class All(threading.Event):
    """Over when all of these are. It keeps no copy alive, as an event of a stream does not."""

    def __init__(self, copies: list[Copy]) -> None:
        super().__init__()
        self.parts = [copy.done for copy in copies]

    def wait(self, timeout: float | None = None) -> bool:
        while not all(part.over for part in self.parts):
            time.sleep(2e-5)
        return True


class Wild(offload.Clones):
    """Copies read their source and write their target when they feel like it.

    Args:
        seed: of the order and of the delays.
        delay: most seconds before a copy, and around every call.
    """

    def __init__(self, seed: int = 0, delay: float = 2e-4) -> None:
        self.random, self.delay = random.Random(seed), delay
        self.pending: list[Copy] = []
        self.changed = threading.RLock()
        self.thread: threading.Thread | None = None
        self.fetched = self.put_back = self.bytes = 0

    def pause(self) -> None:
        # Mostly a word to the other threads alone: whole orders are drawn in order.py.
        time.sleep(max(0.0, 4 * self.random.random() - 3) * self.delay)

    def buffer(self, like: Tensor) -> Tensor:
        self.bytes += like.numel() * like.element_size()
        return torch.full(like.shape, float("nan"), dtype=like.dtype, device="cpu")

    def _ask(self, copy: Copy) -> Copy:
        self.pause()
        with self.changed:
            self.pending.append(copy)
            if self.thread is None:
                self.thread = threading.Thread(target=self._copy_all)
                self.thread.start()
        return copy

    @torch.no_grad()
    def _copy_all(self) -> None:
        while True:
            with self.changed:
                if not self.pending:
                    self.thread = None
                    return
            self.pause()
            with self.changed:
                copy = self.random.choice(self.pending)
            copy.target.copy_(copy.source)
            with self.changed:
                self.pending.remove(copy)
                done = copy.done
            del copy  # and the memory of the source with it
            done.over = True

    def fetch(self, source: Tensor, target: Tensor) -> None:
        self.fetched += 1
        self._ask(Copy(source, target, False))

    def wait(self) -> None:
        self.reach(self.mark())

    def mark(self) -> offload.Ticket:
        with self.changed:
            return All([copy for copy in self.pending if not copy.back])

    def reach(self, ticket: offload.Ticket) -> None:
        self.pause()
        if isinstance(ticket, threading.Event):
            ticket.wait()

    def put(self, source: Tensor, target: Tensor) -> offload.Ticket:
        self.put_back += 1
        return All([self._ask(Copy(source, target, True))])

    def join(self) -> None:
        with self.changed:
            back = All([copy for copy in self.pending if copy.back])
        back.wait()


def installed(monkeypatch: pytest.MonkeyPatch) -> Wild:
    """A wild device for every optimizer that is built from here on."""
    device = Wild()
    monkeypatch.setattr(offload, "transfer_for", lambda _: device)
    monkeypatch.setattr(ring, "_SHARED", [])
    monkeypatch.setattr(host, "LARGE", 1000)  # some parameters of a small model are large
    return device
