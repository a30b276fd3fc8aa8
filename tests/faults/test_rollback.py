"""A rollback keeps its promise: exact state, bounded error of the weights, nothing half-applied."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import automagic_cameamp as A
from faults.recorded import ENGINES, build, give, held, same


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    "cls", [A.Automagic_CameAMP8bit, A.Automagic_CameAMP_COptim, A.Automagic_CameAMP_8Bit]
)
def test_exact_rollback_is_bitwise_and_goes_on_alike(engine: str, cls: type) -> None:
    optimizer, params = build(engine, cls=cls)
    optimizer.record(5, snapshot_every=3, snapshot_bits=32)

    def run(start: int, stop: int) -> list[Any]:
        for step in range(start, stop):
            give(params, step)
            optimizer.step(loss=1.0)
        return held(optimizer, params)

    good = run(1, 4)
    later = run(4, 6)
    assert optimizer.rollback() == 3
    assert same(held(optimizer, params), good)
    assert same(run(4, 6), later)  # and the snapshot is not changed by what came after it:
    assert optimizer.rollback() == 6 or optimizer.rollback() == 3


def test_a_snapshot_can_be_used_twice() -> None:
    optimizer, params = build("reference")
    recorder = optimizer.record(5, snapshot_bits=32)
    give(params, 1)
    optimizer.step()
    recorder.take()
    good = held(optimizer, params)
    for attempt in range(3):
        for step in range(2, 5):
            give(params, step + 10 * attempt)
            optimizer.step()
        optimizer.state.clear() if attempt == 1 else None  # a state that must be made anew
        assert recorder.rollback() == 1
        assert same(held(optimizer, params), good)


@pytest.mark.parametrize(("bits", "divisor"), [(8, 510), (16, 510 * 254)])
@pytest.mark.parametrize("engine", ENGINES)
def test_error_of_a_coded_snapshot_is_bounded(engine: str, bits: int, divisor: float) -> None:
    optimizer, params = build(engine, shapes=[(40, 32), (700,), (3, 5, 7), ()])
    with torch.no_grad():
        params[0][3] *= 100  # an outlier block
        params[1] += 5  # does not contain 0
    recorder = optimizer.record(5, snapshot_bits=bits)
    give(params, 1)
    optimizer.step()
    recorder.take()
    good = held(optimizer, params)
    give(params, 2, gain=1e3)
    optimizer.step()
    recorder.rollback()
    assert same(optimizer.state_dict(), good[1])  # the state is exact
    worst = 0.0
    for p, was in zip(params, good[0], strict=True):
        flat, old = p.detach().reshape(-1), was.reshape(-1)
        for x, y in zip(flat.split(256), old.split(256), strict=True):
            width = float(y.max().clamp(min=0) - y.min().clamp(max=0))
            error = float((x - y).abs().max())
            assert error <= width / divisor + 1e-6 * width
            worst = max(worst, error / width)
    assert worst > 0.5 / divisor  # and the bound is no idle one


def test_an_eight_bit_snapshot_is_a_quarter() -> None:
    optimizer, params = build("reference", shapes=[(256, 256)])
    recorder = optimizer.record(snapshot_bits=8)
    recorder.take()
    assert recorder.snapshot is not None
    assert recorder.snapshot.nbytes() <= 1.03 * 256 * 256


@pytest.mark.parametrize("engine", ENGINES)
def test_weights_that_are_not_finite_are_not_rolled_back_to(engine: str) -> None:
    optimizer, params = build(engine)
    recorder = optimizer.record()
    give(params, 1)
    optimizer.step()
    kept = params[0].detach().clone()
    with torch.no_grad():
        params[0][5, 5] = float("nan")
    recorder.take()
    with torch.no_grad():
        params[0].copy_(kept)
    before = held(optimizer, params)
    with pytest.raises(RuntimeError, match="not finite: nothing was changed. Load"):
        optimizer.rollback()
    assert same(held(optimizer, params), before)


def test_refusals() -> None:
    optimizer, params = build("reference")
    with pytest.raises(RuntimeError, match="nothing is recorded"):
        optimizer.rollback()
    recorder = optimizer.record(7)
    for options in (
        {"steps": 0},
        {"steps": 2.5},
        {"steps": True},
        {"snapshot_every": -1},
        {"snapshot_every": True},
        {"snapshot_bits": 4},
        {"snapshot_bits": 8.0},
    ):
        with pytest.raises(ValueError, match=f"{next(iter(options))}=.* is not allowed"):
            optimizer.record(**options)
    with pytest.raises(
        TypeError, match="record has no option 'snapshot_evry'. Did you mean 'snapshot_every'"
    ):
        optimizer.record(snapshot_evry=3)
    with pytest.raises(
        TypeError, match=r"has no option 'record': it is a method.*call optimizer\.record\(\.\.\.\)"
    ):
        A.Automagic_CameAMP(params, record=50)
    assert optimizer.flight is recorder  # the one that was there records on
    give(params, 1)
    optimizer.step()
    assert [row["step"] for row in recorder.read()] == [1]
    recorder.close()
    recorder = optimizer.record()
    with pytest.raises(RuntimeError, match="there is no snapshot"):
        recorder.rollback()
    recorder.take()
    optimizer.add_param_group({"params": [("more", torch.nn.Parameter(torch.zeros(3)))]})
    with pytest.raises(RuntimeError, match="take a new one after adding a group"):
        recorder.rollback()
