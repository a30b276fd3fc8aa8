"""A state dict that does not fit is refused in one clear error, and nothing has changed then."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from automagic_cameamp import Automagic_CameAMP, Automagic_CameAMP8bit, CheckpointError
from engine.helpers import build, differences, disk, parameters, snapshot, train

Edit = Callable[[dict[str, Any]], Any]


def saved(kind: str = "dynamic", **options: Any) -> dict[str, Any]:
    params = parameters()
    optimizer = build(kind, params, **options)
    train(optimizer, params, range(1, 6))
    return disk(optimizer.state_dict())


def in_state(position: int, key: str, change: Callable[[torch.Tensor], Any]) -> Edit:
    def edit(state_dict: dict[str, Any]) -> dict[str, Any]:
        state_dict["state"][position][key] = change(state_dict["state"][position][key])
        return state_dict

    return edit


def without(position: int, key: str) -> Edit:
    def edit(state_dict: dict[str, Any]) -> dict[str, Any]:
        del state_dict["state"][position][key]
        return state_dict

    return edit


def option(name: str, value: Any) -> Edit:
    def edit(state_dict: dict[str, Any]) -> dict[str, Any]:
        state_dict["param_groups"][0][name] = value
        return state_dict

    return edit


def adamw(state_dict: dict[str, Any]) -> dict[str, Any]:
    params = parameters()
    optimizer = torch.optim.AdamW(params)
    train(optimizer, params, range(1, 3))
    return disk(optimizer.state_dict())


def fewer_groups(state_dict: dict[str, Any]) -> dict[str, Any]:
    state_dict["param_groups"] = []
    return state_dict


def shorter_group(state_dict: dict[str, Any]) -> dict[str, Any]:
    state_dict["param_groups"][0]["params"].pop()
    return state_dict


def exchanged(state_dict: dict[str, Any]) -> dict[str, Any]:
    state = state_dict["state"]
    state[0], state[1] = state[1], state[0]
    return state_dict


def cast_by_torch(state_dict: dict[str, Any]) -> dict[str, Any]:
    """What torch.optim.Optimizer.load_state_dict makes of it on bf16 weights."""
    for state in state_dict["state"].values():
        for key, value in state.items():
            if key != "step":
                state[key] = value.bfloat16()
    return state_dict


def put(position: int, key: str, value: Any) -> Edit:
    def edit(state_dict: dict[str, Any]) -> dict[str, Any]:
        state_dict["state"][position][key] = value
        return state_dict

    return edit


BAD: dict[str, Edit] = {
    "state of AdamW": adamw,
    "a missing key": without(0, "exp_avg_q_scale"),
    "a missing counter": without(1, "step"),
    "a wrong shape": in_state(0, "exp_avg_q", lambda x: x[:-1]),
    "a transposed state": in_state(0, "exp_avg_q", lambda x: x.t()),
    "a counter that is a vector": in_state(0, "step", lambda x: x.reshape(1)),
    "codes cast to float": in_state(0, "exp_avg_q", lambda x: x.float()),
    "scales cast to bf16": in_state(0, "exp_avg_q_scale", lambda x: x.bfloat16()),
    "a cast of everything": cast_by_torch,
    "a number in place of a tensor": put(0, "step", 5),
    "None in place of a tensor": put(0, "exp_avg_q", None),
    "a state that is no dict": lambda s: s | {"state": {**s["state"], 0: torch.zeros(3)}},
    "parameters in another order": exchanged,
    "no group": fewer_groups,
    "another number of parameters": shorter_group,
    "no groups key": lambda s: {"state": s["state"]},
    "no state key": lambda s: {"param_groups": s["param_groups"]},
    "an empty dict": lambda s: {},
    "a group without parameters": lambda s: s | {"param_groups": [{"lr": 1.0}]},
    "a bad option": option("weight_decay", -1.0),
    "a bad choice": option("lr_mask_rule", "magic"),
    "options that exclude each other": option("lr_floor", 1.0),
}


@pytest.mark.parametrize("edit", BAD.values(), ids=BAD.keys())
@pytest.mark.parametrize("stepped", [False, True], ids=["fresh", "stepped"])
def test_refused_and_nothing_changed(edit: Edit, stepped: bool) -> None:
    params = parameters()
    optimizer = build("dynamic", params)
    if stepped:
        train(optimizer, params, range(1, 4), salt=5)
    before = snapshot(optimizer)
    bad = edit(saved())
    with pytest.raises(CheckpointError) as caught:
        optimizer.load_state_dict(bad)
    assert differences(before, snapshot(optimizer)) == []
    assert len(str(caught.value)) > 40

    twin_params = parameters()
    twin = build("dynamic", twin_params)
    if stepped:
        train(twin, twin_params, range(1, 4), salt=5)
    train(optimizer, params, range(4, 6))
    train(twin, twin_params, range(4, 6))
    assert differences(snapshot(twin), snapshot(optimizer)) == []


@pytest.mark.parametrize("nothing", [None, [], "optimizer.pt"], ids=repr)
def test_what_is_no_state_dict_at_all(nothing: Any) -> None:
    optimizer = build("dynamic", parameters())
    with pytest.raises((CheckpointError, TypeError)):
        optimizer.load_state_dict(nothing)


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (without(0, "exp_avg_q_scale"), ["parameter 0", "exp_avg_q_scale"]),
        (
            lambda s: put(0, "momentum_buffer", 1.0)(without(0, "lr_mask")(s)),
            ["missing ['lr_mask']", "unknown ['momentum_buffer']"],
        ),
        (in_state(2, "exp_avg_q", lambda x: x[:-1]), ["parameter 2", "exp_avg_q", "(39, 32)", "(40, 32)"]),
        (in_state(0, "exp_avg_q_scale", lambda x: x.bfloat16()), ["exp_avg_q_scale", "bfloat16", "float32"]),
        (shorter_group, ["group 0", "8", "9"]),
        (option("weight_decay", -1.0), ["weight_decay", "-1.0", "[0, inf"]),
    ],
)
def test_the_message_says_what_and_where(edit: Edit, words: list[str]) -> None:
    with pytest.raises(CheckpointError) as caught:
        build("dynamic", parameters()).load_state_dict(edit(saved()))
    for word in words:
        assert word in str(caught.value)


def test_names_of_parameters_appear_where_they_are_known() -> None:
    module = torch.nn.Linear(4, 4)
    optimizer = Automagic_CameAMP(module.named_parameters())
    module(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    bad = disk(optimizer.state_dict())
    del bad["state"][0]["exp_avg"]
    with pytest.raises(CheckpointError, match="weight"):
        optimizer.load_state_dict(bad)


def test_other_keys_at_the_top_are_none_of_our_business() -> None:
    """OneTrainer stores its own beside ours."""
    extended = saved() | {"param_group_mapping": ["unet"], "trainer": {"step": 3}}
    a, b = build("dynamic", parameters()), build("dynamic", parameters())
    a.load_state_dict(extended)
    b.load_state_dict(saved())
    assert differences(snapshot(a), snapshot(b)) == []


def test_a_top_level_version_is_not_required() -> None:
    """torch's distributed checkpoints keep `state` and `param_groups` only."""
    plain = {k: v for k, v in saved().items() if k in ("state", "param_groups")}
    build("dynamic", parameters()).load_state_dict(plain)


def test_the_given_dict_is_not_changed() -> None:
    given = saved()
    kept = disk(given)
    build("dynamic", parameters()).load_state_dict(given)
    assert repr(given) == repr(kept)
    assert given["param_groups"][0].keys() == kept["param_groups"][0].keys()


PLAIN = (int, float, bool, str, type(None))


def foreign_types(value: Any, path: str = "") -> list[str]:
    if type(value) is dict:
        pairs = [x for k, v in value.items() for x in ((k, path), (v, f"{path}/{k}"))]
        return [bad for x, where in pairs for bad in foreign_types(x, where)]
    if type(value) in (list, tuple):
        return [bad for i, v in enumerate(value) for bad in foreign_types(v, f"{path}/{i}")]
    return [] if type(value) in (*PLAIN, torch.Tensor) else [f"{path}: {type(value).__name__}"]


@pytest.mark.parametrize("cls", [Automagic_CameAMP, Automagic_CameAMP8bit])
@pytest.mark.parametrize("level", ["fixed", "distance", "vote"])
def test_only_plain_tensors_and_numbers(cls: type, level: str) -> None:
    params = parameters(torch.bfloat16)
    optimizer = cls(params, lr=1e-4, lr_level=level, betas=[0.9, 0.99], eps=1e-8)
    assert foreign_types(optimizer.state_dict()) == []
    train(optimizer, params, range(1, 4))
    assert foreign_types(optimizer.state_dict()) == []
    for state in optimizer.state_dict()["state"].values():
        assert not any(v.requires_grad for v in state.values())


def test_state_dict_is_the_same_every_time() -> None:
    optimizers = []
    for _ in range(2):
        params = parameters()
        optimizers.append(build("dynamic", params))
        train(optimizers[-1], params, range(1, 4))
    first, second = (repr(o.state_dict()) for o in optimizers)
    assert first == second == repr(optimizers[0].state_dict())
