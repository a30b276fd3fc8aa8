"""The ring under delays, faults and interrupts: no deadlock, nothing half updated, errors with a name."""

from __future__ import annotations

import copy
import gc
import os
import random
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

from automagic_cameamp import host, release_gradients
from automagic_cameamp.executors import choose
from automagic_cameamp.executors.native.again import Again
from automagic_cameamp.executors.native.searches import Search
from automagic_cameamp.host import HostStepper
from automagic_cameamp.state import crossing
from automagic_cameamp.training import offload, ring
from engine.helpers import differences, disk, draw, snapshot
from loops.helpers import build, groups_of, loss_of, model, plain, same
from offload.wild import Wild

SECONDS = float(os.environ.get("INTERLEAVINGS_SECONDS", "4"))  # docs/evidence/log.md: 30
ACTIONS = {
    ring.Ring: ("load", "drain", "_room", "_let_go", "_wait", "_wake", "_batch", "_run", "_free"),
    HostStepper: ("_update", "_load", "_end", "update", "add", "_try"),
}


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Iterator[random.Random]:
    """A random delay before and after every action of the ring and of its user."""
    dice = random.Random(0)

    def delayed(action: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **options: Any) -> Any:
            if dice.random() < 0.3:
                time.sleep(dice.random() * 2e-4)
            found = action(*args, **options)
            if dice.random() < 0.3:
                time.sleep(dice.random() * 2e-4)
            return found

        return run

    for owner, names in ACTIONS.items():
        for name in names:
            monkeypatch.setattr(owner, name, delayed(getattr(owner, name)))
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield dice
    sys.setswitchinterval(before)


def within(seconds: float, run: Callable[[], None]) -> None:
    """Run in a thread; what hangs is a failure with the stacks of all threads."""
    failed: list[BaseException] = []

    def caught() -> None:
        try:
            run()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=caught, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        import faulthandler

        faulthandler.dump_traceback()
        raise AssertionError("deadlock")
    if failed:
        raise failed[0]


class Small(nn.Module):
    """Four parameters, one of them used three times."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 5), nn.Linear(5, 5)
        with torch.no_grad():
            for i, p in enumerate(self.parameters()):
                p.copy_(draw(3, i, shape=tuple(p.shape)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.a(torch.tanh(self.a(self.b(self.a(x))))).square().mean()


def run_small(name: str, where: str, passes: int) -> Any:
    """Two steps."""
    net = Small()
    optimizer = build(name, net.parameters(), offload=where)
    handle = release_gradients(net, optimizer, accumulation=passes, unscaled=True) if where == "cpu" else None
    for t in range(2 * passes):
        net(draw(4, t, shape=(3, 5))).backward()
        if t % passes == passes - 1:
            optimizer.step()
            optimizer.zero_grad()
    if handle is not None:
        handle.remove()
    return net, optimizer


def test_random_interleavings(slow: random.Random, monkeypatch: pytest.MonkeyPatch) -> None:
    """Devices of all moods, rings that hold everything or hardly one load, one or several passes per step."""
    kinds = [(name, n) for name in ("Automagic_CameAMP8bit", "Automagic_CameAMP_COptim") for n in (1, 2)]
    ends = {kind: run_small(kind[0], "none", kind[1]) for kind in kinds}
    start, count = time.monotonic(), 0
    while time.monotonic() - start < SECONDS:
        slow.seed(count)
        device = Wild(count, delay=slow.choice([0.0, 1e-5, 1e-4]))
        monkeypatch.setattr(offload, "transfer_for", lambda _, device=device: device)
        monkeypatch.setattr(ring, "_SHARED", [])
        monkeypatch.setattr(crossing, "SLOTS", slow.choice([1, 2, 4, 100]))
        monkeypatch.setattr(crossing, "AHEAD", slow.choice([0.0, 0.5, 10.0]))
        monkeypatch.setattr(host, "LARGE", slow.choice([1, 10, 1000]))
        kind = slow.choice(kinds)

        def run(kind: tuple[str, int] = kind) -> None:
            net, optimizer = run_small(kind[0], "cpu", kind[1])
            assert net is not None and same(ends[kind][1], optimizer) == []

        within(60, run)
        count += 1
    print(f"{count} interleavings in {SECONDS:g} s")
    assert count >= 5


def nets(name: str, **options: Any) -> tuple[Any, Any, Any, Any]:
    first = model()
    second = copy.deepcopy(first)
    return (
        first,
        build(name, groups_of(first), **options),
        second,
        build(name, groups_of(second), offload="cpu", **options),
    )


@pytest.mark.parametrize(("engine", "again"), [("auto", False), ("auto", True), ("reference", False)])
def test_an_error_in_the_thread_names_the_parameter_and_leaves_it_whole(
    engine: str, again: bool, wild: Wild, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, "LARGE", 1 if again else 1 << 30)
    net, optimizer, other, far = nets("Automagic_CameAMP8bit", engine=engine)
    names = [name for name, _ in far.model.named()]
    bad = next(p for n, p in far.model.named() if p is other.layers[1].weight)
    with release_gradients(other, far):
        plain(net, optimizer, range(1, 3))
        for t in (1, 2):
            loss_of(other, t).backward()
            far.step()
        before, usual, run = snapshot(far), choose.shares, Again.run

        def run_again(self: Again, group: Any, shared: Any, p: Any) -> Any:
            if p.shape == bad.shape and torch.equal(p, bad):
                raise MemoryError("no room")
            return run(self, group, shared, p)

        def shares(engine: str, works: list[Any], *rest: Any) -> Any:
            indices = [i for work in works for i in work.chunk.indices]
            if indices and indices[0] <= index < 1 + indices[-1] and index in indices:
                raise MemoryError("no room")
            return usual(engine, works, *rest)

        index = next(i for i, p in enumerate(far.model.params()) if p is bad)
        monkeypatch.setattr(choose, "shares", shares)
        monkeypatch.setattr(Again, "run", run_again)
        loss_of(other, 3).backward()
        with pytest.raises(RuntimeError, match=rf"parameter {names[index]} could not .*MemoryError: no room"):
            far.step()
        monkeypatch.setattr(choose, "shares", usual)
        monkeypatch.setattr(Again, "run", run)
        loss_of(net, 3).backward()
        net.layers[1].weight.grad = None
        optimizer.step()
        optimizer.zero_grad()
        assert same(optimizer, far) == []  # as if that one had had no gradient
        after = snapshot(far)
        assert torch.equal(after[0][index], before[0][index])
        assert all(torch.equal(after[1][index][k], v) for k, v in before[1][index].items())
        disk(far.state_dict())
        plain(net, optimizer, range(4, 6))
        for t in (4, 5):
            loss_of(other, t).backward()
            far.step()
        assert same(optimizer, far) == []


def mark_lora_of(net: Any) -> Any:
    for p in net.layers.parameters():
        p._is_lora_layer = True
    return net


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_an_update_that_stops_half_way_is_undone(
    dtype: torch.dtype, wild: Wild, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A search for directions comes after the kernels have written weights and state."""
    net = mark_lora_of(model(dtype))
    options = {"rank_keep": 2, "rank_penalty_strength": 1.0}
    far = build("Automagic_CameAMP_Improved", groups_of(net), offload="cpu", **options)
    with release_gradients(net, far):
        for t in (1, 2, 3):
            loss_of(net, t).backward()
            far.step()
        before = snapshot(far)

        def finish(self: Search) -> None:
            raise RuntimeError("no convergence")

        monkeypatch.setattr(Search, "finish", finish)
        loss_of(net, 4).backward()
        with pytest.raises(RuntimeError, match=r"parameter .* and \d+ more could not .*no convergence"):
            far.step()
    after = snapshot(far)
    searching = [i for i, s in enumerate(before[1]) if s and "lowrank_rate" in s]
    assert searching
    for i in searching:
        assert torch.equal(before[0][i], after[0][i])
        assert all(torch.equal(after[1][i][k], v) for k, v in before[1][i].items())
    assert differences(before, after) != []


def test_an_error_without_step_surfaces_where_the_step_ends(
    wild: Wild, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = model()
    far = build("Automagic_CameAMP", groups_of(net), offload="cpu")
    usual = choose.shares
    with release_gradients(net, far) as handle:
        monkeypatch.setattr(choose, "shares", lambda *_: (_ for _ in ()).throw(OSError("gone")))
        loss_of(net, 1).backward()
        monkeypatch.setattr(choose, "shares", usual)
        handle.remove()
        with pytest.raises(RuntimeError, match="and 13 more could not be updated.*OSError: gone"):
            far.state_dict()
        far.state_dict()


def test_an_error_of_a_copy_is_told_too(wild: Wild, monkeypatch: pytest.MonkeyPatch) -> None:
    net = model()
    far = build("Automagic_CameAMP", groups_of(net), offload="cpu")

    def reach(ticket: Any) -> None:
        if "host step" in threading.current_thread().name:
            raise RuntimeError("device lost")

    monkeypatch.setattr(wild, "reach", reach)
    with release_gradients(net, far):
        within(20, loss_of(net, 1).backward)
        with pytest.raises(RuntimeError, match="device lost"):
            far.step()


@pytest.mark.parametrize("seed", range(6))
def test_an_interrupt_leaves_what_can_be_saved_or_says_why_not(seed: int, wild: Wild) -> None:
    net, optimizer, other, far = nets("Automagic_CameAMP8bit")
    wild.delay = 1e-3
    plain(net, optimizer, range(1, 2))
    with release_gradients(other, far):
        loss_of(other, 1).backward()
        far.step()
        before = snapshot(far)
        delay = 0.002 + 0.006 * seed
        timer = threading.Timer(delay, lambda: os.kill(os.getpid(), signal.SIGINT))
        loss = loss_of(other, 2)
        interrupted = False
        try:
            timer.start()
            loss.backward()
            timer.join()
            time.sleep(0.01)
        except KeyboardInterrupt:
            interrupted = True
        timer.join()
        if interrupted and far.stepper.open is not None:
            with pytest.raises(RuntimeError, match="in the middle of a step"):
                far.state_dict()
        within(20, far.step)
        far.zero_grad()
        saved = disk(far.state_dict())
    # Every parameter is the old one or the new one, whole.
    plain(net, optimizer, range(2, 3))
    old, new, found = before, snapshot(optimizer), snapshot(far)
    for i in range(len(found[0])):
        whole = [
            torch.equal(found[0][i], x[0][i])
            and (x[1][i] is None or all(torch.equal(found[1][i][k], v) for k, v in x[1][i].items()))
            for x in (old, new)
        ]
        assert any(whole), i
    again = build("Automagic_CameAMP8bit", groups_of(other), offload="cpu")
    again.load_state_dict(saved)
    with release_gradients(other, again):
        loss_of(other, 3).backward()
        again.step()


@pytest.mark.parametrize("known", [True, False])
def test_weights_that_are_moved_after_their_hook(
    known: bool, wild: Wild, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks that are swapped: seen before a step, every hook waits; else the parameter is named."""
    net, optimizer, other, far = nets("Automagic_CameAMP")
    monkeypatch.setattr(host, "_are_swapped", lambda params: known)
    wild.delay = 2e-3
    with release_gradients(other, far):
        weight = other.layers[1].weight

        def swap(p: Any) -> None:
            p.data = p.data.clone()

        weight.register_post_accumulate_grad_hook(swap)
        for t in (1, 2):
            plain(net, optimizer, range(t, t + 1))
            loss_of(other, t).backward()
            if not known:
                with pytest.raises(RuntimeError, match="could not be updated.*moved the weight"):
                    far.step()
                break
            far.step()
    assert (same(optimizer, far) == []) is known


def test_a_gradient_written_after_it_was_sent_is_refused(wild: Wild) -> None:
    net = model()
    far = build("Automagic_CameAMP", net.named_parameters(), offload="cpu")
    loss_of(net, 1).backward()
    far.step_parameter(net.gain)
    net.gain.grad.add_(1)  # type: ignore[union-attr]
    with pytest.raises(RuntimeError, match="gain was updated in this step and has another gradient"):
        far.step()


def test_sharded_and_sparse_are_refused_before_anything_travels(
    wild: Wild, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = nn.Embedding(5, 3, sparse=True)
    optimizer = build("Automagic_CameAMP", list(table.parameters()), offload="cpu")
    with release_gradients(table, optimizer), pytest.raises(RuntimeError, match="only dense"):
        table(torch.tensor([1, 2])).sum().backward()
    net = model()
    far = build("Automagic_CameAMP", groups_of(net), offload="cpu")
    monkeypatch.setattr(offload, "is_distributed", lambda p: True)
    with release_gradients(net, far), pytest.raises(ValueError, match="sharded parameters"):
        loss_of(net, 1).backward()
    assert wild.fetched == wild.bytes == 0 and not any(far.state.values())


def test_the_thread_ends_and_nothing_is_kept_alive(wild: Wild, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ring, "IDLE", 0.01)
    net = model()
    far = build("Automagic_CameAMP", groups_of(net), offload="cpu")
    with release_gradients(net, far) as handle:
        loss_of(net, 1).backward()
        far.step()
    held = weakref.ref(ring.shared())
    gone = [weakref.ref(far), weakref.ref(net.head.weight)]
    del far, net, handle

    def left() -> list[object]:
        """Threads of the tests before wait for more work a moment longer."""
        threads = [t for t in threading.enumerate() if "host step" in t.name]
        return [found for ref in (*gone, held) if (found := ref()) is not None] + threads

    deadline = time.monotonic() + 5
    while time.monotonic() < deadline and left():
        gc.collect()
        time.sleep(0.01)
    assert not left()
