"""Threads of which one runs at a time: who goes on is drawn at every line of the files that are watched.

What a delay of any length at any place could bring about is an order of such lines, so the order is drawn and
nobody sleeps. A deadlock is then a fact, not a test that takes long: nobody is left who could go on.
"""

from __future__ import annotations

import random
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType, ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from automagic_cameamp.training import offload, ring


class Deadlock(BaseException):
    """Nobody can go on."""


class Task:
    """A thread; it runs while its gate is open."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.gate = threading.Lock()
        self.gate.acquire()
        self.waits: Callable[[], bool] | None = None  # what for
        self.impatient = False  # it may also go on without
        self.done = False

    def can(self) -> bool:
        return not self.done and (self.waits is None or self.impatient or self.waits())


class Order:
    """Who runs.

    Args:
        seed: of the order.
        share: of the watched lines before which somebody else may run.
        files: modules that are watched.
    """

    def __init__(self, seed: int, share: float, files: tuple[ModuleType, ...]) -> None:
        self.random, self.share = random.Random(seed), share
        self.files = {module.__file__ for module in files}
        self.tasks: list[Task] = []
        self.now = self.made("main")
        self.dead = ""
        self.threads: list[threading.Thread] = []
        self.raised: list[BaseException] = []
        self.switches = 0
        self.at_end: Callable[[], None] = lambda: None

    def made(self, name: str) -> Task:
        task = Task(name)
        self.tasks.append(task)
        return task

    # ---------------------------------------------------------------- the choice

    def line(self) -> None:
        if self.random.random() < self.share:
            self.choose()

    def until(self, true: Callable[[], bool], impatient: bool = False) -> bool:
        """Let others run until this is so; or until any moment, where that is allowed."""
        me = self.now
        me.waits, me.impatient = true, impatient
        self.choose()
        me.waits, me.impatient = None, False
        return true()

    def choose(self) -> None:
        me = self.now
        able = [task for task in self.tasks if task.can()]
        # Whose patience ends does so late: at most once in a while, or as the only one.
        patient = [task for task in able if not task.impatient or (task.waits is not None and task.waits())]
        if patient and self.random.random() < 0.95:
            able = patient
        if not able and not self.dead:
            self.stop(", ".join(task.name for task in self.tasks if not task.done))
        if self.dead:
            raise Deadlock(self.dead)
        self.now = self.random.choice(able)
        if self.now is not me:
            self.switches += 1
            self.now.gate.release()
            if not me.done:
                me.gate.acquire()
                if self.dead:
                    raise Deadlock(self.dead)

    def stop(self, why: str) -> None:
        """Nobody goes on: all threads end where they are."""
        self.dead = why
        for task in self.tasks:
            if task.gate.locked():
                task.gate.release()

    def trace(self, frame: FrameType, event: str, _: Any) -> Any:
        if frame.f_code.co_filename not in self.files:
            return None
        return self.traced

    def traced(self, frame: FrameType, event: str, _: Any) -> Any:
        if event == "line":
            self.line()
        return self.traced

    def body(self, task: Task, target: Callable[[], object]) -> None:
        """A thread from its first turn to its last."""
        task.gate.acquire()
        sys.settrace(self.trace)
        try:
            if not self.dead:
                target()
        except BaseException as error:
            if not self.dead:  # else the main thread says what went wrong
                self.raised.append(error)
        sys.settrace(None)
        task.done = True
        if not self.dead:
            with suppress(Deadlock):
                self.choose()

    def run(self, target: Callable[[], object]) -> None:
        """Run in this thread, and then until all others have ended."""
        before = sys.gettrace()
        sys.settrace(self.trace)
        try:
            target()
            sys.settrace(before)
            self.at_end()
            self.until(lambda: all(task.done for task in self.tasks[1:]))
            if self.raised:
                raise self.raised[0]
        except BaseException:
            self.stop(self.dead or "given up")
            raise
        finally:
            sys.settrace(before)
            for thread in self.threads:
                thread.join(10)

    def thread(self, target: Callable[[], object], name: str) -> Task:
        """Another that takes turns; what it raises is raised in the main thread at the end."""
        thread = self.threading().Thread(target, name)
        thread.start()
        return thread.task

    # ---------------------------------------------------------------- what stands for ``threading``

    def threading(self) -> SimpleNamespace:
        order = self

        class Lock:
            def __init__(self) -> None:
                self.holder: Task | None = None

            def acquire(self) -> None:
                assert self.holder is not order.now, "it waits for itself"
                order.until(lambda: self.holder is None)
                self.holder = order.now

            def release(self) -> None:
                assert self.holder is order.now or order.dead
                self.holder = None

            def __enter__(self) -> None:
                self.acquire()

            def __exit__(self, *_: object) -> None:
                self.release()

        class Condition:
            def __init__(self, lock: Lock) -> None:
                self.lock = lock
                self.sleepers: list[list[bool]] = []

            def notify_all(self) -> None:
                assert self.lock.holder is order.now
                for sleeper in self.sleepers:
                    sleeper[0] = True
                self.sleepers.clear()

            def wait_for(self, true: Callable[[], bool], timeout: float | None = None) -> bool:
                while not (found := true()):
                    told = [False]
                    self.sleepers.append(told)
                    self.lock.release()
                    woken = order.until(lambda told=told: told[0], timeout is not None)  # type: ignore[misc]
                    self.lock.acquire()
                    if not woken:
                        return true()
                return found

        class Thread:
            current: dict[int, Thread] = {}

            def __init__(self, target: Callable[[], object], name: str) -> None:
                self.task = order.made(name)
                self.task.waits = lambda: False  # not started
                self.real = threading.Thread(
                    target=order.body, args=(self.task, target), name=name, daemon=True
                )

            def start(self) -> None:
                self.task.waits = None
                Thread.current[id(self.task)] = self
                order.threads.append(self.real)
                self.real.start()
                order.line()

        def current_thread() -> Thread | None:
            return Thread.current.get(id(order.now))

        return SimpleNamespace(
            Lock=Lock, RLock=Lock, Condition=Condition, Thread=Thread, current_thread=current_thread
        )


class Drawn(offload.Clones):
    """A device whose copies come in the order that is drawn, as late as that is; its host memory is NaN."""

    def __init__(self, order: Order, threads: SimpleNamespace) -> None:
        self.order = order
        self.pending: list[tuple[Tensor, Tensor, bool]] = []
        self.over = False
        self.lazy = order.random.choice([0.0, 0.7, 0.95])  # how often it lets others go first
        threads.Thread(target=self._copy_all, name="device").start()

    @torch.no_grad()
    def _copy_all(self) -> None:
        while True:
            self.order.until(lambda: bool(self.pending) or self.over)
            if not self.pending:
                return
            while self.order.random.random() < self.lazy:
                self.order.choose()
            source, target, _ = copy = self.order.random.choice(self.pending)
            target.copy_(source)
            self.pending = [other for other in self.pending if other is not copy]

    def end(self) -> None:
        """No more will be asked."""
        self.over = True

    def buffer(self, like: Tensor) -> Tensor:
        return torch.full(like.shape, float("nan"), dtype=like.dtype, device="cpu")

    def _ask(self, source: Tensor, target: Tensor, back: bool) -> Any:
        copy = (source, target, back)
        self.pending = [*self.pending, copy]
        self.order.line()
        return [copy]

    def _are_over(self, copies: list[Any]) -> bool:
        return not any(copy is other for copy in copies for other in self.pending)

    def fetch(self, source: Tensor, target: Tensor) -> None:
        self._ask(source, target, False)

    def mark(self) -> Any:
        return [copy for copy in self.pending if not copy[2]]

    def wait(self) -> None:
        self.reach(self.mark())

    def reach(self, ticket: Any) -> None:
        self.order.until(lambda: self._are_over(ticket or []))

    def put(self, source: Tensor, target: Tensor) -> Any:
        return self._ask(source, target, True)

    def join(self) -> None:
        self.reach([copy for copy in self.pending if copy[2]])


@contextmanager
def drawn(
    monkeypatch: pytest.MonkeyPatch, seed: int, share: float, files: tuple[ModuleType, ...]
) -> Iterator[Order]:
    """An order, and a device and a ring whose threads obey it, for what is built and run inside."""
    order = Order(seed, share, files)
    threads = order.threading()
    with monkeypatch.context() as patch:
        device = Drawn(order, threads)
        order.at_end = device.end
        patch.setattr(offload, "transfer_for", lambda _: device)
        patch.setattr(ring, "_SHARED", [])
        patch.setattr(ring, "threading", threads)
        yield order
