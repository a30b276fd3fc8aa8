"""Loading needs no second copy of the state, and leaves it where steps find it in one piece."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from benchmarks.meters import OpMeter
from torch import Tensor

from automagic_cameamp.state import stacks as arena
from engine.helpers import (
    CLASSES,
    bits,
    build,
    differences,
    disk,
    held_bytes,
    parameters,
    snapshot,
    state_bytes,
    train,
    twin_of,
)

# Many of a shape, so that a stack is much larger than any tensor.
SHAPES = [(64, 48)] * 24 + [(96, 128)] + [(48,)] * 12
SLACK = 4096  # bytes for numbers that are compared


def never(position: int, step: int) -> bool:
    return False


def trained(kind: str, shapes: Any = SHAPES, **options: Any) -> tuple[Any, list[Tensor]]:
    params = parameters(shapes=shapes)
    optimizer = build(kind, params, **options)
    train(optimizer, params, range(1, 4), never)
    return optimizer, params


def largest(optimizer: Any) -> int:
    """Bytes of the largest tensor, of a state or decoded to fp32."""
    held = max(v.nbytes for s in optimizer.state.values() for v in s.values())
    return max(held, 4 * max(p.numel() for p in optimizer.state))


def peak_of_load(optimizer: Any, saved: dict[str, Any]) -> int:
    """Most bytes allocated at once while loading, the caller's own copy not counted."""
    with OpMeter() as meter:
        optimizer.load_state_dict(saved)
    return meter.peak


@pytest.mark.parametrize("kind", CLASSES)
def test_a_fresh_optimizer_needs_its_state_and_no_more(kind: str) -> None:
    whole, params = trained(kind)
    saved = disk(whole.state_dict())
    again = build(kind, [twin_of(p) for p in params])
    assert peak_of_load(again, saved) <= state_bytes(whole) + largest(whole) + SLACK
    assert held_bytes(again) == state_bytes(again) == state_bytes(whole)


@pytest.mark.parametrize("kind", CLASSES)
def test_an_optimizer_that_has_stepped_needs_nothing(kind: str) -> None:
    """What distributed checkpoints do: one step to make the state, then a load into it."""
    whole, params = trained(kind)
    saved = disk(whole.state_dict())
    train(whole, params, range(4, 6), never)
    assert peak_of_load(whole, saved) <= largest(whole) + SLACK
    again = build(kind, parameters(shapes=SHAPES))
    again.load_state_dict(saved)
    assert [d for d in differences(snapshot(whole), snapshot(again)) if not d.startswith("parameter")] == []


@pytest.mark.parametrize("options", [{}, {"lr_mask_granularity": "group"}], ids=str)
@pytest.mark.parametrize(
    ("old", "new"), [("32bit", "dynamic"), ("softsign", "32bit"), ("dynamic", "softsign")]
)
def test_a_conversion_holds_one_parameter_twice(old: str, new: str, options: dict[str, Any]) -> None:
    whole, params = trained(old, [(64, 48)] * 120)
    saved = disk(whole.state_dict())
    again = build(new, [twin_of(p) for p in params], **options)
    peak = peak_of_load(again, saved)
    # Decoding, carrying and encoding one tensor takes some fp32 copies of it.
    assert peak <= state_bytes(again) + 16 * largest(again)
    assert peak < 1.5 * state_bytes(again), "the state was held twice"
    assert held_bytes(again) == state_bytes(again)


def copies_of_a_step(optimizer: Any, params: list[Tensor], monkeypatch: pytest.MonkeyPatch) -> int:
    """Stacks of state that a step had to copy together."""
    whole, made = arena.stacked, []

    def watched(rows: list[Tensor], shape: tuple[int, ...]) -> tuple[Tensor, bool]:
        stack, in_place = whole(rows, shape)
        made.append(in_place)
        return stack, in_place

    with monkeypatch.context() as patch:
        patch.setattr(arena, "stacked", watched)
        train(optimizer, params, range(4, 5), never)
    assert len(made) > 10
    return made.count(False)


@pytest.mark.parametrize("kind", CLASSES)
def test_steps_after_a_load_copy_nothing(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, params = trained(kind, engine="reference")
    saved = disk(whole.state_dict())
    assert copies_of_a_step(whole, params, monkeypatch) == 0
    again = build(kind, params, engine="reference")
    again.load_state_dict(saved)
    assert copies_of_a_step(again, params, monkeypatch) == 0
    again.load_state_dict(saved)  # into what it has
    assert copies_of_a_step(again, params, monkeypatch) == 0
    other = build("32bit" if kind != "32bit" else "softsign", params, engine="reference")
    other.load_state_dict(saved)  # converted
    assert copies_of_a_step(other, params, monkeypatch) == 0


def test_the_callers_dict_is_not_touched() -> None:
    whole, params = trained("32bit")
    saved = disk(whole.state_dict())
    kept = copy.deepcopy(saved)
    for kind in CLASSES:
        again = build(kind, params, lr_mask_granularity="group")
        again.load_state_dict(saved)
        train(again, params, range(4, 6), never)
    for i, state in kept["state"].items():
        assert state.keys() == saved["state"][i].keys()
        assert all(torch.equal(bits(v), bits(saved["state"][i][k])) for k, v in state.items())


@pytest.mark.parametrize("kind", CLASSES)
def test_a_dict_that_is_the_optimizers_own_state(kind: str) -> None:
    """As it is, and with two parameters exchanged, which written in place would become one."""
    whole, _ = trained(kind)
    before = snapshot(whole)
    whole.load_state_dict(whole.state_dict())
    assert differences(before, snapshot(whole)) == []
    mixed = whole.state_dict()
    mixed["state"][0], mixed["state"][1] = mixed["state"][1], mixed["state"][0]
    expected = copy.deepcopy(mixed["state"])
    whole.load_state_dict(mixed)
    for i, state in whole.state_dict()["state"].items():
        assert all(torch.equal(bits(v), bits(expected[i][k])) for k, v in state.items()), i


@pytest.mark.parametrize("kind", ["32bit", "dynamic"])
def test_what_is_the_optimizers_own_stays_where_it_is_unless_it_is_read_in_another_way(kind: str) -> None:
    whole, params = trained(kind, [(48, 48)] * 3)
    places = [{k: v.data_ptr() for k, v in whole.state[p].items()} for p in params]
    assert peak_of_load(whole, whole.state_dict()) <= SLACK
    assert places == [{k: v.data_ptr() for k, v in whole.state[p].items()} for p in params]
    key = "exp_avg" if kind == "32bit" else "exp_avg_q"
    turned = whole.state_dict()
    turned["state"][1] = {**turned["state"][1], key: turned["state"][1][key].t()}
    expected = turned["state"][1][key].clone()
    assert not torch.equal(expected, whole.state[params[1]][key])
    whole.load_state_dict(turned)
    assert torch.equal(whole.state[params[1]][key], expected)


def test_no_memory_for_the_new_rows_leaves_the_optimizer_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    from automagic_cameamp.checkpoints import load

    whole, params = trained("32bit")
    saved = disk(whole.state_dict())
    for state in saved["state"].values():
        state["exp_avg"] += 1e-3
    whole.state = type(whole.state)(
        dict, {p: {k: v.clone() for k, v in s.items()} for p, s in whole.state.items()}
    )
    before, made = snapshot(whole), []
    rows = load.new_rows

    def short(*args: Any) -> Any:
        made.append(1)
        if len(made) > 1:
            raise torch.OutOfMemoryError("no memory")
        return rows(*args)

    monkeypatch.setattr(load, "new_rows", short)
    with pytest.raises(torch.OutOfMemoryError):
        whole.load_state_dict(saved)
    assert differences(before, snapshot(whole)) == []
