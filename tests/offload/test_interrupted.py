"""An interrupt at any moment of a load leaves no lock taken: who saves afterwards must not wait for ever."""

from __future__ import annotations

import os
import sys
import threading
import time
import warnings
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
import torch
from torch import Tensor

from automagic_cameamp import release_gradients
from automagic_cameamp.training import ring
from loops.helpers import build, loss_of, model
from offload.test_ring_faults import within

FILES = {ring.__file__, threading.__file__}


class Plus:
    """Adds 1 to every weight."""

    def update(self, loads: list[ring.Load]) -> None:
        for load in loads:
            assert load.weight is not None
            load.weight.add_(1)
            load.send()

    def add(self, load: ring.Load) -> None:
        raise AssertionError("every load has a weight")

    def failed(self, load: ring.Load, error: BaseException) -> None:
        raise AssertionError("nothing fails here") from error


def starts(frame: FrameType | None) -> bool:
    """Whether a thread is being started: the wait for that is Python's own, and no lock of ours."""
    while frame is not None:
        if frame.f_code is threading.Thread.start.__code__:
            return True
        frame = frame.f_back
    return False


def interrupted(at: int, run: Callable[[], object]) -> BaseException | None:
    """Run, with an interrupt at one moment when Python looks for signals: entries, and returns of C."""
    seen = 0

    def look(frame: FrameType, event: str, _: Any) -> None:
        nonlocal seen
        if event in ("call", "c_return") and frame.f_code.co_filename in FILES and not starts(frame):
            seen += 1
            if seen == at:
                sys.setprofile(None)
                raise KeyboardInterrupt

    sys.setprofile(look)
    try:
        run()
    except BaseException as error:
        return error
    finally:
        sys.setprofile(None)
    return None


def test_an_interrupt_at_any_moment_leaves_no_lock_taken() -> None:
    at, whose = 0, Plus()
    while True:
        at += 1
        crossing = ring.Ring()
        params: list[Tensor] = [torch.zeros(64) for _ in range(3)]

        def load(crossing: ring.Ring = crossing, params: list[Tensor] = params) -> None:
            for p in params:  # the ring holds one: the second waits
                crossing.load(p, torch.ones(64), whose)
            crossing.drain()

        error = interrupted(at, load)
        within(10, crossing.drain)
        assert all(float(p[0]) in (0.0, 1.0) and bool((p == p[0]).all()) for p in params)
        within(10, lambda crossing=crossing, p=params[0]: crossing.load(p, torch.ones(64), whose))
        within(10, crossing.drain)
        if error is None:
            break
        assert isinstance(error, KeyboardInterrupt) or isinstance(error.__context__, KeyboardInterrupt)
    assert at > 50
    assert all(float(p[0]) == 1.0 + (p is params[0]) for p in params)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize("held", [False, True])
def test_a_forked_child_has_a_worker_of_its_own(held: bool) -> None:
    """Right after a step, while the parent's worker still waits for more, or holds the lock."""
    net = model()
    far = build("Automagic_CameAMP8bit", list(net.parameters()), offload="cpu")
    with release_gradients(net, far):
        loss_of(net, 1).backward()
        far.step()
        lock = ring.shared()._lock
        taker = threading.Thread(target=lambda: (lock.acquire(), time.sleep(0.5), lock.release()))
        if held:
            taker.start()
            time.sleep(0.05)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12: there are threads
            child = os.fork()
        if child == 0:  # whatever happens, it must not go on as a second pytest
            code = 1
            try:
                within(20, lambda: loss_of(net, 2).backward())
                within(20, far.step)
                code = 7
            finally:
                os._exit(code)
        deadline = time.monotonic() + 60
        while (done := os.waitpid(child, os.WNOHANG))[0] == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        if done[0] == 0:
            os.kill(child, 9)
            os.waitpid(child, 0)
        assert done[0] == child and os.waitstatus_to_exitcode(done[1]) == 7
        if held:
            taker.join()
        loss_of(net, 2).backward()
        far.step()


def test_what_was_on_its_way_when_the_process_forked_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    failures: list[BaseException] = []

    class Told(Plus):
        def failed(self, load: ring.Load, error: BaseException) -> None:
            failures.append(error)

    crossing, p = ring.Ring(), torch.zeros(64)
    with monkeypatch.context() as patch:
        patch.setattr(ring.Ring, "_wake", lambda self: None)  # a child has no worker
        crossing.load(p, torch.ones(64), Told())
    crossing.forked()
    assert [str(error) for error in failures] == ["the process was forked while the weight was on its way"]
    crossing.load(p, torch.ones(64), Plus())
    within(10, crossing.drain)
    assert bool((p == 1).all())
