"""An interrupt at any moment of a load leaves no lock taken: who saves afterwards must not wait for ever."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from automagic_cameamp.training import ring
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
