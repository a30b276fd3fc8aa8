"""What a program keeps beside our state, and its hooks, come through saving and loading."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch

from automagic_cameamp import OPTIMIZERS, CheckpointError, convert_state
from engine.helpers import differences, disk, draw, snapshot

SHAPES = [(14, 40), (14, 40), (5,)]


def build(name: str, engine: str = "auto") -> tuple[Any, list[Any]]:
    params = [torch.nn.Parameter(draw(0, i, shape=s)) for i, s in enumerate(SHAPES)]
    return OPTIMIZERS[name](params, lr=1e-3, engine=engine), params


def step(optimizer: Any, params: list[Any], number: int) -> None:
    for i, p in enumerate(params):
        p.grad = draw(1, i, number, shape=SHAPES[i])
    optimizer.step()


def mark(optimizer: Any, params: list[Any]) -> None:
    optimizer.state[params[0]]["ema"] = torch.full((3,), 2.5, dtype=torch.float64)
    optimizer.state[params[0]]["note"] = "frozen"
    optimizer.state[params[2]]["seen"] = 7
    optimizer.state["trainer"] = {"epoch": 3}


def check(optimizer: Any) -> None:
    first, _, last = (optimizer.state[p] for p in optimizer.param_groups[0]["params"])
    assert first["ema"].dtype == torch.float64 and first["ema"].tolist() == [2.5] * 3
    assert first["note"] == "frozen" and last["seen"] == 7 and optimizer.state["trainer"] == {"epoch": 3}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_entries_survive(name: str) -> None:
    plain, theirs = build(name)
    optimizer, params = build(name)
    for number in range(4):
        step(plain, theirs, number)
        step(optimizer, params, number)
        if number == 1:
            mark(optimizer, params)
    check(optimizer)
    saved = disk(optimizer.state_dict())
    again, copies = build(name)
    again.load_state_dict(saved)
    check(again)
    again.state[copies[0]]["ema"].zero_()
    assert saved["state"][0]["ema"].any(), "the saved tensor is another"
    optimizer.load_state_dict(convert_state(saved, optimizer))
    check(optimizer)
    assert optimizer.verify_resume(1)
    check(copy.deepcopy(optimizer))
    check(pickle.loads(pickle.dumps(optimizer)))
    optimizer.state.pop("trainer")
    for p in params:
        for key in ("ema", "note", "seen"):
            optimizer.state[p].pop(key, None)
    step(plain, theirs, 4)
    step(optimizer, params, 4)
    assert differences(snapshot(plain), snapshot(optimizer)) == []


def test_what_cannot_be_told_apart_is_refused() -> None:
    """A strange name where one of ours is missing may be another optimizer's."""
    optimizer, params = build("Automagic_CameAMP")
    step(optimizer, params, 0)
    mark(optimizer, params)
    other, _ = build("Automagic_CameAMP_Improved")
    with pytest.raises(CheckpointError, match="unknown .'ema', 'note'."):
        other.load_state_dict(disk(optimizer.state_dict()))


def test_hooks() -> None:
    optimizer, params = build("Automagic_CameAMP_COptim")
    step(optimizer, params, 0)
    calls: list[str] = []
    optimizer.register_state_dict_pre_hook(lambda o: calls.append("pre"))
    optimizer.register_state_dict_post_hook(lambda o, d: {**d, "epoch": 4})
    saved = disk(optimizer.state_dict())
    assert calls == ["pre"] and saved["epoch"] == 4 and "magic_version" in saved
    again, _ = build("Automagic_CameAMP_COptim")
    again.register_load_state_dict_pre_hook(lambda o, d: calls.append(str(d["epoch"])))
    again.register_load_state_dict_post_hook(lambda o: calls.append("loaded"))
    again.load_state_dict(saved)
    assert calls == ["pre", "4", "loaded"]
    assert [len(again.state[p]) for p in again.param_groups[0]["params"]] == [
        len(optimizer.state[p]) for p in params
    ]


def test_a_step_says_nothing_of_tensors_that_it_does_not_write() -> None:
    """A tensor that a program keeps there may be needed by a backward pass after the step."""
    optimizer, params = build("Automagic_CameAMP8bit")
    step(optimizer, params, 0)
    mine = torch.ones(3, requires_grad=True) * 2
    optimizer.state[params[0]]["mine"] = mine
    for number in range(1, 3):
        version = mine._version
        step(optimizer, params, number)
        assert mine._version == version
