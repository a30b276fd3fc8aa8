"""The ring in orders of its lines that are drawn: always the plain step bit for bit, and never a deadlock.

The thread of the program, that of the ring, and the device take turns; before any line of ring, stepper and
release another may be drawn (``offload.order``). ``pytest -m slow`` draws 1,000 orders.
"""

from __future__ import annotations

import random
from typing import Any

import pytest

from automagic_cameamp import host
from automagic_cameamp.state import crossing
from automagic_cameamp.training import release, ring
from automagic_cameamp.training.ring import Ring
from loops.helpers import same
from offload.order import Deadlock, Drawn, Order, drawn
from offload.test_ring_faults import run_small

WATCHED = (ring, host, release)
KINDS = [(name, n) for name in ("Automagic_CameAMP8bit", "Automagic_CameAMP_COptim") for n in (1, 2)]
SHARES = (0.02, 0.1, 0.5)  # of the lines: long stretches of one, and hardly two lines of the same


@pytest.fixture(scope="module")
def ends() -> dict[tuple[str, int], Any]:
    """What every kind of run comes to without ring."""
    return {kind: run_small(kind[0], "none", kind[1])[1] for kind in KINDS}


def draw(monkeypatch: pytest.MonkeyPatch, seed: int, ends: dict[tuple[str, int], Any]) -> int:
    """One order, with a ring that holds everything or hardly one load; how often threads took turns."""
    dice = random.Random(seed)
    monkeypatch.setattr(crossing, "SLOTS", dice.choice([1, 2, 4, 100]))
    monkeypatch.setattr(crossing, "AHEAD", dice.choice([0.0, 0.5, 10.0]))
    monkeypatch.setattr(host, "LARGE", dice.choice([1, 10, 1000]))
    kind = dice.choice(KINDS)
    with drawn(monkeypatch, seed, dice.choice(SHARES), WATCHED) as order:

        def run() -> None:
            net, optimizer = run_small(kind[0], "cpu", kind[1])
            assert net is not None and same(ends[kind], optimizer) == []

        order.run(run)
    return order.switches


@pytest.mark.parametrize("first", range(0, 100, 25))
def test_drawn_orders(first: int, monkeypatch: pytest.MonkeyPatch, ends: Any) -> None:
    switches = [draw(monkeypatch, seed, ends) for seed in range(first, first + 25)]
    assert min(switches) > 30  # they did meet


@pytest.mark.slow
@pytest.mark.parametrize("first", range(100, 1000, 100))
def test_drawn_orders_up_to_a_thousand(first: int, monkeypatch: pytest.MonkeyPatch, ends: Any) -> None:
    for seed in range(first, first + 100):
        draw(monkeypatch, seed, ends)


def no_arrivals(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Drawn, "mark", lambda device: [])


def no_departures(patch: pytest.MonkeyPatch) -> None:
    put = Drawn.put
    patch.setattr(Drawn, "put", lambda device, *copy: put(device, *copy) and None)


def no_room(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Ring, "_wait", lambda ring, true: None)


def no_news(patch: pytest.MonkeyPatch) -> None:
    usual = Order.threading

    def silent(order: Order) -> Any:
        threads = usual(order)
        threads.Condition.notify_all = lambda condition: None
        return threads

    patch.setattr(Order, "threading", silent)


@pytest.mark.parametrize("fault", [no_arrivals, no_departures, no_room, no_news])
def test_a_planted_fault_is_found(fault: Any, monkeypatch: pytest.MonkeyPatch, ends: Any) -> None:
    """Not to wait for what arrives, for what leaves, or for room; and not to say that there is some."""
    fault(monkeypatch)
    with pytest.raises(Deadlock if fault is no_news else Exception):
        for seed in range(50):
            draw(monkeypatch, seed, ends)


def test_two_programs_share_the_ring(monkeypatch: pytest.MonkeyPatch, ends: Any) -> None:
    """Backward in two threads, an optimizer each."""
    for seed in range(10):
        monkeypatch.setattr(crossing, "SLOTS", 1 + seed % 3)
        with drawn(monkeypatch, seed, SHARES[seed % 3], WATCHED) as order:

            def run(kind: Any) -> None:
                net, optimizer = run_small(kind[0], "cpu", kind[1])
                assert net is not None and same(ends[kind], optimizer) == []

            def both(order: Order = order) -> None:
                other = order.thread(lambda: run(KINDS[2]), "other")
                run(KINDS[1])
                order.until(lambda: other.done)

            order.run(both)


def test_who_waits_for_each_other_is_dead() -> None:
    """Two locks, taken in two orders."""

    def meet(seed: int) -> None:
        order = Order(seed, 0.5, ())
        threads = order.threading()
        first, second = threads.Lock(), threads.Lock()

        def cross(a: Any, b: Any) -> None:
            with a:
                order.line()
                with b:
                    pass

        def run() -> None:
            other = order.thread(lambda: cross(second, first), "other")
            cross(first, second)
            order.until(lambda: other.done)

        order.run(run)

    dead = []
    for seed in range(20):
        try:
            meet(seed)
        except Deadlock as error:
            dead.append(str(error))
    assert 0 < len(dead) < 20 and set(dead) == {"main, other"}
