"""The look at many tensors in one call says what Python says of each; and nothing that moves stays unseen."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from automagic_cameamp import OPTIMIZERS
from automagic_cameamp.executors import said
from automagic_cameamp.executors.native import given as given_
from automagic_cameamp.executors.native import looks, searches
from automagic_cameamp.executors.native.given import Gradients
from native import lockstep

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int8, torch.uint8, torch.bool]
DIMS = 4


@st.composite
def tensors(draw: Any) -> torch.Tensor:
    """Any dense tensor of up to four dimensions: permuted, sliced, expanded, empty, with the other sign."""
    shape = draw(st.lists(st.integers(0, 5), max_size=DIMS))
    x = torch.zeros(shape, dtype=draw(st.sampled_from(DTYPES)))
    x = x.permute(draw(st.permutations(range(len(shape)))))
    if shape and x.shape[0] and draw(st.booleans()):
        x = x[draw(st.integers(0, x.shape[0] - 1)) :]
    if shape and x.shape[-1] == 1 and draw(st.booleans()):
        x = x.expand(*x.shape[:-1], 3)
    if x.is_floating_point() and draw(st.booleans()):
        x = torch.nn.Parameter(x) if draw(st.booleans()) else torch._neg_view(x)  # type: ignore[attr-defined]
    return x


def look(some: list[torch.Tensor], dims: int | None = DIMS) -> Any:
    found = looks.Look(len(some), dims or 0)
    found.rows[:] = -7
    found.name(some)
    return found.rows if found.take(some) else None


@given(st.lists(tensors(), max_size=12))
@settings(max_examples=150, deadline=None)
def test_rows_say_what_python_says(some: list[torch.Tensor]) -> None:
    rows = look(some)
    assert rows is not None
    for row, x in zip(rows.tolist(), some, strict=True):
        rest = [0] * (DIMS - x.dim())
        start = [x.data_ptr(), looks.kind(x.dtype, x.dim()), x.numel()]
        assert row == [*start, *x.shape, *rest, *x.stride(), *rest]
    assert np.array_equal(look(some, None), rows[:, : looks.BRIEF])


@given(st.lists(tensors(), min_size=1, max_size=6))
@settings(max_examples=50, deadline=None)
def test_without_the_interface_the_rows_are_the_same_but_for_the_numbers_of_types(some: Any) -> None:
    rows = look(some)
    there = np.zeros_like(rows)
    assert all(map(looks._describe, some, there))
    here_types, there_types = rows[:, looks.KIND] % looks.DIMS, there[:, looks.KIND] % looks.DIMS
    pairs = set(zip(here_types.tolist(), there_types.tolist(), strict=True))
    assert len({a for a, _ in pairs}) == len({b for _, b in pairs}) == len(pairs)
    rows[:, looks.KIND] //= looks.DIMS
    there[:, looks.KIND] //= looks.DIMS
    assert np.array_equal(rows, there)


@pytest.mark.parametrize(
    "odd",
    [
        torch.zeros(3, 3).to_sparse(),
        torch.zeros((1,) * (DIMS + 1)),
    ],
    ids=["sparse", "too many dimensions"],
)
def test_what_has_no_row_is_refused(odd: torch.Tensor) -> None:
    assert look([torch.zeros(2), odd, torch.zeros(2)]) is None
    assert not looks._describe(odd, np.zeros(looks.width(DIMS), dtype=np.int64))


def test_zeros_without_memory_have_no_address() -> None:
    rows = look([torch._efficientzerotensor((2, 3))])  # type: ignore[attr-defined]
    assert rows is not None and rows[0, looks.PLACE] == 0


@given(st.data(), st.lists(st.integers(0, 4), max_size=6))
@settings(max_examples=100, deadline=None)
def test_dictionaries_are_compared_by_identity(data: Any, sizes: list[int]) -> None:
    entries = [{f"{i}": object() for i in range(n)} for n in sizes]
    values = [v for entry in entries for v in entry.values()]

    record = looks.Entries(entries)
    assert record.same()
    if not values:
        return
    entry = data.draw(st.sampled_from([e for e in entries if e]))
    name = data.draw(st.sampled_from(sorted(entry)))
    change = data.draw(st.sampled_from(["replace", "remove", "add", "order"]))
    if change == "replace":
        entry[name] = object()
    elif change == "remove":
        del entry[name]
    elif change == "add":
        entry["new"] = object()
    else:
        entry[name] = entry.pop(name)
    now = [v for e in entries for v in e.values()]
    same = len(now) == len(values) and all(a is b for a, b in zip(now, values, strict=True))
    assert record.same() == same


def other_type(t: torch.Tensor) -> torch.dtype:
    return torch.int8 if t.dtype is torch.uint8 else torch.uint8


MOVES: dict[str, Callable[[torch.Tensor], Any]] = {
    "other memory": lambda t: setattr(t, "data", t.data.clone()),
    "other type at the same place": lambda t: setattr(t, "data", t.data.view(-1).view(other_type(t))),
    "fewer elements at the same place": lambda t: setattr(t, "data", t.data.view(-1)[: t.numel() // 2]),
    "resized": lambda t: t.resize_(t.numel() - 1),
}


@pytest.mark.parametrize("move", MOVES)
@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_state_that_moved_is_seen(name: str, move: str) -> None:
    optimizer, params = lockstep.make(name, [(16, 64), (64, 16)], torch.float32, "native")
    for step in range(2):
        lockstep.take(optimizer, params, step)
    plan = optimizer.stepper.plans.current
    assert plan.holds(optimizer.model)
    for key, value in optimizer.state[params[1]].items():
        if value.numel() > 1:
            before = value.data
            MOVES[move](value)
            assert not plan.holds(optimizer.model), key
            value.data = before
    assert plan.holds(optimizer.model)


def test_state_cannot_be_swapped_behind_a_plan() -> None:
    optimizer, params = lockstep.make("Automagic_CameAMP", [(16, 64)], torch.float32, "native")
    for step in range(2):
        lockstep.take(optimizer, params, step)
    value = optimizer.state[params[0]]["exp_avg"]
    with pytest.raises(RuntimeError, match="weakref"):
        torch.utils.swap_tensors(value, torch.zeros_like(value))
    optimizer.stepper.forget()
    gc.collect()
    torch.utils.swap_tensors(value, torch.zeros_like(value))


def test_gradients_that_were_refused_leave_those_of_before_as_they_were() -> None:
    params = [torch.zeros(4, 6), torch.zeros(6, 4)]
    grads = Gradients(params)
    straight = [torch.ones_like(p) for p in params]
    assert grads.take(straight) and grads.odd() == [] and grads.types.tolist() == [0, 0]
    assert not grads.take([g.double() for g in straight])
    assert not grads.take([g.t() for g in straight])
    assert not grads.take([straight[0], torch._efficientzerotensor((6, 4))])  # type: ignore[attr-defined]
    assert grads.take(straight) and grads.odd() == [] and grads.types.tolist() == [0, 0]
    mixed = [torch.ones(6, 4).t(), straight[1].bfloat16()]
    assert grads.take(mixed) and grads.odd() == [0] and grads.types.tolist() == [0, 1]
    assert grads.places.tolist() == [g.data_ptr() for g in mixed]
    negative = torch._neg_view(torch.ones(4, 6))  # type: ignore[attr-defined]
    assert grads.take([negative, straight[1]]) and grads.odd() == [0]


def test_what_is_not_stepped_costs_no_plan() -> None:
    """Frozen parameters may lie anywhere: a plan made anew at every step takes seven times as long."""
    optimizer, params = lockstep.make("Automagic_CameAMP", [(16, 64)], torch.float32, "native")
    frozen = torch.nn.Parameter(torch.zeros(3, 3, device="meta"), requires_grad=False)
    optimizer.add_param_group({"params": [frozen]})
    plans = []
    for step in range(3):
        lockstep.take(optimizer, params, step)
        plans.append(optimizer.stepper.plans.current)
    assert plans[0] is not None and plans[0] is plans[1] is plans[2]
    rows = look([frozen, torch.zeros(3, 3)])
    assert rows[0, looks.KIND] != rows[1, looks.KIND], "a device is part of the kind"
    assert not Gradients([frozen]).take([torch.zeros(3, 3, device="meta")])


def test_a_gradient_that_cannot_be_read_after_all_stops_the_update(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the question who steps a parameter and its update, in the middle of a backward pass."""
    optimizer, params = lockstep.make("Automagic_CameAMP", [(16, 64)], torch.float32, "native")
    before = params[0].detach().clone()
    params[0].grad = torch.ones(16, 64)
    monkeypatch.setattr(Gradients, "take", lambda self, grads: False)
    with pytest.raises(RuntimeError, match="memory"):
        optimizer.step_parameter(params[0])
    assert torch.equal(before, params[0])


@pytest.fixture
def _anew() -> Iterator[None]:
    for cached in (looks._interface, looks._code, given_._types):
        cached.cache_clear()
    yield
    for cached in (looks._interface, looks._code, given_._types):
        cached.cache_clear()


@pytest.mark.usefixtures("_anew")
@pytest.mark.parametrize("wrong", ["missing", "another order"])
def test_without_the_interface_steps_are_the_same_and_it_is_said_once(wrong: str, monkeypatch: Any) -> None:
    def run() -> list[torch.Tensor]:
        optimizer, params = lockstep.make("Automagic_CameAMP8bit", [(16, 64), (9,)], torch.float32, "native")
        for step in range(4):
            lockstep.take(optimizer, params, step)
        assert optimizer.stepper.plans.current.holds(optimizer.model)
        return params

    usual = run()
    looks._interface.cache_clear()
    looks._code.cache_clear()
    given_._types.cache_clear()
    monkeypatch.setattr(said, "SAID", set())
    if wrong == "missing":
        monkeypatch.setattr(looks, "LIBRARIES", ("there_is_none.so",))
    else:
        swapped = tuple({"dim": "numel", "numel": "dim"}.get(name, name) for name in looks.ASKED)
        monkeypatch.setattr(looks, "ASKED", swapped)
    with pytest.warns(UserWarning, match="C interface") as warned:
        others = run()
    assert len(warned) == 1
    assert all(map(torch.equal, usual, others))


@pytest.mark.parametrize("numel", [searches.SMALL - 1, searches.SMALL])
def test_small_products_are_made_by_one_thread_and_the_others_come_back(numel: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(KeyError), searches._alone(numel):
            assert torch.get_num_threads() == (1 if numel < searches.SMALL else 2)
            raise KeyError
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_search_is_the_same_on_two_threads() -> None:
    results = []
    before = torch.get_num_threads()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        try:
            optimizer, params = lockstep.make(
                "Automagic_CameAMP_Improved", [(48, 600), (600, 48)], torch.float32, "native", rank_keep=8
            )
            for step in range(2):
                lockstep.take(optimizer, params, step)
            assert torch.get_num_threads() == threads
        finally:
            torch.set_num_threads(before)
        state = [v for p in params for v in optimizer.state[p].values()]
        assert any(name.startswith("lowrank") for name in optimizer.state[params[0]])
        results.append([*params, *state])
    assert all(map(torch.equal, *results))
