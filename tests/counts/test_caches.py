"""What is kept from step to step (a plan, counts on the host) never shows, whatever a program does."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from collections import Counter
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from automagic_cameamp import Automagic_CameAMP8bit, convert_state
from automagic_cameamp.executors.native import searches
from automagic_cameamp.state import counts, pairs
from automagic_cameamp.state.model import Model
from counts.helpers import BAD, ENGINES, GOOD, NONE, SHAPES, build, give, held, kinds, weights
from engine.helpers import disk
from faults.recorded import same

EVERY = pytest.mark.parametrize("engine", ENGINES)
Run = tuple[Any, list[Any]]  # the optimizer and its parameters
ALL, SOME = (GOOD,) * len(SHAPES), (GOOD, NONE, GOOD, NONE, GOOD)
ONE_BAD = (GOOD, BAD, GOOD, GOOD, GOOD)


def load(run: Run) -> Run:
    run[0].load_state_dict(disk(run[0].state_dict()))
    return run


def convert(run: Run) -> Run:
    run[0].load_state_dict(convert_state(disk(run[0].state_dict()), run[0]))
    return run


def go_back(run: Run) -> Run:
    """Load what the state was some updates ago, into the tensors that hold it now."""
    optimizer, params = run
    saved, weights = disk(optimizer.state_dict()), [p.detach().clone() for p in params]
    for step in range(2):
        give(params, 50 + step, ALL)
        optimizer.step()
    optimizer.load_state_dict(saved)
    for p, w in zip(params, weights, strict=True):
        p.data.copy_(w)
    return run


def deep(run: Run) -> Run:
    return copy.deepcopy(run)


def pickled(run: Run) -> Run:
    return pickle.loads(pickle.dumps(run))


def released(run: Run) -> Run:
    optimizer, params = run
    for step in range(4):
        give(params, 70 + step, SOME)
        for p in params[::2]:
            optimizer.step_parameter(p)
            p.grad = None
        optimizer.step()
    return run


def moved(run: Run) -> Run:
    for state in run[0].state.values():
        state.update({k: v.clone() for k, v in state.items() if isinstance(v, torch.Tensor)})
    return run


def restored(run: Run) -> Run:
    run[0].__setstate__(copy.copy(run[0].__getstate__()))
    return run


def more_often(run: Run) -> Run:
    run[0].param_groups[0]["sync_frequency"] = 2
    return run


def verified(run: Run) -> Run:
    assert run[0].verify_resume(2)
    return run


def recorded(run: Run) -> Run:
    """Back to a snapshot, which writes the state in its place."""
    optimizer, params = run
    recorder = optimizer.record(4, snapshot_every=1, snapshot_bits=32)
    for step in range(2):
        give(params, 90 + step, ALL)
        optimizer.step()
    optimizer.rollback()
    recorder.close()
    return run


BETWEEN = [
    load, convert, go_back, deep, pickled, released, moved, restored, more_often, verified, recorded
]  # fmt: skip
steps = st.tuples(st.just("step"), st.tuples(*[kinds] * len(SHAPES)))
whole = st.just(("step", ALL))
programs = st.lists(st.one_of(whole, whole, steps, st.sampled_from(BETWEEN)), min_size=8, max_size=20)


def play(engine: str, program: list[Any], forget: bool, name: str, **options: Any) -> list[Any]:
    params = weights()
    run: Run = (build(name, params, engine, use_lr_mask=True, **options), params)
    for number, part in enumerate(program):
        if callable(part):
            run = cast(Run, part(run))
            continue
        if forget:
            run[0].stepper.forget()
            run[0].kept.searches.clear()
        give(run[1], number, part[1])
        run[0].step()
    return held(*run)


@EVERY
@settings(max_examples=24)
@example([*[("step", ALL)] * 5, go_back, *[("step", ALL)] * 4])
@example([*[("step", ALL)] * 2, released, *[("step", ALL)] * 4])
@example([("step", ALL), *[("step", ONE_BAD)] * 3, *[("step", ALL)] * 6])
@example([*[("step", ALL)] * 5, more_often, *[("step", ALL)] * 4])
@given(programs)
def test_nothing_that_is_kept_shows(engine: str, program: list[Any]) -> None:
    plain = play(engine, program, True, "Automagic_CameAMP_Improved")
    assert same(play(engine, program, False, "Automagic_CameAMP_Improved"), plain)


def as_on_a_device(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts on the host, though reading would cost nothing; and how many numbers were read each time."""
    read, asked = counts.read, []

    def counted(steps: list[torch.Tensor]) -> list[int]:
        asked.append(len(steps))
        return read(steps)

    monkeypatch.setattr(counts, "waits", lambda device: True)
    for module in (counts, searches):
        monkeypatch.setattr(module, "read", counted)
    return asked


@pytest.mark.parametrize("every", [1, 3, 4])
@settings(max_examples=12)
@example([("step", ALL), *[("step", ONE_BAD)] * 4, *[("step", ALL)] * 6])
@example([*[("step", ALL)] * 3, ("step", ONE_BAD), *[("step", ALL)] * 4])
@example([*[("step", ONE_BAD)] * 5, more_often, *[("step", ALL)] * 4])
@example([*[("step", ALL)] * 5, go_back, *[("step", ALL)] * 4])
@given(program=programs)
def test_counts_of_the_host_are_those_of_the_state(every: int, program: list[Any]) -> None:
    plain = play("reference", program, True, "Automagic_CameAMP_Improved", sync_frequency=every)
    with pytest.MonkeyPatch.context() as patch:
        as_on_a_device(patch)
        found = play("reference", program, False, "Automagic_CameAMP_Improved", sync_frequency=every)
    assert same(found, plain)


def test_a_device_is_asked_twice_for_a_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """When it may be due, and at the step after: whether the update was made."""
    asked = as_on_a_device(monkeypatch)
    params = weights()
    optimizer = build("Automagic_CameAMP_Improved", params, "reference", sync_frequency=10, warmup_steps=0)
    for step in range(40):
        give(params, step, ALL)
        optimizer.step()
        expected = 2 * (step // 10) + (2 if step % 10 else 1)
        assert sum(asked) == 4 * expected, step


@pytest.mark.skipif("native" not in ENGINES, reason="not built")
def test_a_plan_asks_only_who_may_be_due(monkeypatch: pytest.MonkeyPatch) -> None:
    params = weights()
    optimizer = build("Automagic_CameAMP_Improved", params, "native", sync_frequency=10)
    give(params, 0, ALL)
    optimizer.step()
    plan, asked = optimizer.stepper.plans.current, as_on_a_device(monkeypatch)
    assert plan is not None
    for step in range(1, 31):
        give(params, step, (GOOD, BAD if step == 4 else GOOD, GOOD, GOOD, GOOD))
        optimizer.step()
        assert optimizer.stepper.plans.current is plan
    # Three at steps 10, 20 and 30, the one that missed an update one step later each time.
    assert asked == [3, 1, 3, 1, 3]


@EVERY
@pytest.mark.parametrize("change", [load, convert, go_back, deep, pickled, verified])
@pytest.mark.parametrize("name", ["Automagic_CameAMP_8Bit", "Automagic_CameAMP_Improved_8Bit"])
def test_resume_is_bitwise(name: str, change: Callable[[Run], Run], engine: str) -> None:
    """A run in which parameters have had different numbers of updates goes on as if nothing had been."""
    pattern = [
        (GOOD, BAD if t == 4 else GOOD, NONE if t % 3 else GOOD, NONE if t < 5 else GOOD, GOOD)
        for t in range(12)
    ]
    program: list[Any] = [("step", kinds) for kinds in pattern]
    whole = play(engine, program, False, name)
    for at in (4, 6, 7):
        cut = [*program[:at], ("pause", change), *program[at:]]
        assert same(paused(engine, cut, name), whole), at


def paused(engine: str, program: list[Any], name: str) -> list[Any]:
    params = weights()
    run: Run = (build(name, params, engine, use_lr_mask=True), params)
    number = 0
    for kind, what in program:
        if kind == "pause":
            run = what(run)
            continue
        give(run[1], number, what)
        run[0].step()
        number += 1
    return held(*run)


@pytest.mark.parametrize("engine", ENGINES)
def test_offload_is_no_other_run(engine: str) -> None:
    results = []
    for offload in ("none", "cpu"):
        params = weights()
        optimizer = build("Automagic_CameAMP_Improved_8Bit", params, engine, offload=offload)
        for step in range(14):
            give(params, step, ALL if step % 2 else (GOOD, NONE, BAD, NONE, GOOD))
            optimizer.step()
            if step == 6:
                load((optimizer, params))
        results.append(held(optimizer, params))
    assert same(*results)


@pytest.mark.skipif("native" not in ENGINES, reason="not built")
def test_plans_of_a_program_that_alternates_are_kept() -> None:
    params = weights()
    optimizer = build("Automagic_CameAMP_Improved", params, "native")
    turns = [SOME, (NONE, GOOD, NONE, GOOD, NONE), ALL]
    found = []
    for step in range(12):
        give(params, step, turns[step % 3])
        optimizer.step()
        found.append(optimizer.stepper.plans.current)
    # The first round makes the states, the second the plans.
    assert found[6:9] == found[9:] == found[3:6] and len(set(map(id, found[3:]))) == 3


@pytest.mark.skipif("native" not in ENGINES, reason="not built")
def test_kept_plans_keep_no_state_that_is_gone() -> None:
    params = weights()
    optimizer = build("Automagic_CameAMP8bit", params, "native")
    for step in range(6):
        give(params, step, ALL if step % 2 else SOME)
        optimizer.step()
    old = [weakref.ref(v) for state in optimizer.state.values() for v in state.values()]
    optimizer.state.clear()
    for pattern in (SOME, ALL, (NONE, GOOD, NONE, GOOD, NONE)):
        give(params, 7, pattern)
        optimizer.step()
    gc.collect()
    assert all(ref() is None for ref in old)


@pytest.mark.skipif("native" not in ENGINES, reason="not built")
def test_a_program_may_keep_things_in_the_state() -> None:
    """They may change at every step: no new plan."""
    params = weights()
    optimizer = build("Automagic_CameAMP_COptim", params, "native")
    plans = set()
    for step in range(8):
        optimizer.state["trainer"] = {"step": step}
        give(params, step, ALL)
        optimizer.step()
        optimizer.state[params[2]]["seen"] = step
        if step > 2:
            plans.add(id(optimizer.stepper.plans.current))
    assert len(plans) == 1 and optimizer.stepper.plans.current is not None


def test_a_group_per_parameter_costs_no_more_than_a_look_at_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """Construction, the search for pairs and the level looked at all groups again for each of them."""
    calls: Counter[str] = Counter()

    def counted(owner: Any, name: str) -> None:
        usual = getattr(owner, name)

        def run(*args: Any, **options: Any) -> Any:
            calls[name] += 1
            return usual(*args, **options)

        monkeypatch.setattr(owner, name, run)

    counted(pairs, "Counter")
    counted(Model, "share")
    counted(Model, "course")
    params = [torch.nn.Parameter(torch.ones(4, 4)) for _ in range(40)]
    optimizer = Automagic_CameAMP8bit([{"params": [p]} for p in params])
    assert calls["share"] == 40
    for _ in range(3):
        calls.clear()
        for p in params:
            p.grad = torch.ones_like(p)
        optimizer.step()
    if "native" in ENGINES:
        assert calls["course"] == 1
    calls.clear()
    pairs.low_rank([[((8, 4), True), ((4, 8), True), ((9, 9), True)] for _ in range(40)])
    assert calls["Counter"] < 4 * 40
