"""The checks of torch's TestOptimRenewed about saving, loading, hooks and averages, restated."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.optim.swa_utils import SWALR, AveragedModel, update_bn

from contracts.torch_infos import QUICK
from contracts.torch_loops import EACH, closure, inputs, linear, some
from engine.helpers import disk

# ---------------------------------------------------------------- saving and loading


def named(params: list[Any], names: bool) -> list[Any]:
    return [(f"name{i}", p) for i, p in enumerate(params)] if names else params


def without_names(state_dict: dict[str, Any]) -> dict[str, Any]:
    groups = [{k: v for k, v in g.items() if k != "param_names"} for g in state_dict["param_groups"]]
    return {**state_dict, "param_groups": groups}


def equal(a: Any, b: Any) -> bool:
    """Of nested state dicts, bit for bit."""
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))
    return type(a) is type(b) and a == b


@EACH
@pytest.mark.parametrize("names", [(a, b) for a in (False, True) for b in (False, True)], ids=str)
def test_state_dict_is_deterministic_at_every_step(info: Any, names: tuple[bool, bool]) -> None:
    for kwargs in inputs(info) if names == (False, False) else list(inputs(info))[:1]:
        weight, bias, x = linear()
        optimizer = info.optim_cls(named([weight, bias], names[0]), **kwargs)
        for _ in range(3):
            closure(optimizer, weight, bias, x)
            optimizer.step()
        twins = [nn.Parameter(p.detach().clone()) for p in (weight, bias)]
        second = info.optim_cls(named(twins, names[1]), **kwargs)
        saved = copy.deepcopy(optimizer.state_dict())
        second.load_state_dict(saved)
        assert equal(saved, optimizer.state_dict())  # loading wrote nothing into it
        for _ in range(4):
            closure(optimizer, weight, bias, x)
            closure(second, twins[0], twins[1], x)
            optimizer.step()
            second.step()
            second.load_state_dict(disk(second.state_dict()))
            assert torch.equal(weight, twins[0]) and torch.equal(bias, twins[1])
            assert equal(without_names(optimizer.state_dict()), without_names(second.state_dict()))
        second.param_groups.extend(second.param_groups)
        assert equal(
            without_names(optimizer.state_dict())["param_groups"][-1],
            without_names(second.state_dict())["param_groups"][-1],
        )


@EACH
def test_older_state_dict(info: Any) -> None:
    """Options that an older version did not have are missing: they start at their defaults."""
    for kwargs in some(info):
        net = nn.Sequential(nn.Conv2d(4, 2, 1, stride=2), nn.BatchNorm2d(2))
        optimizer = info.optim_cls(net.parameters(), **kwargs)

        def go(net: Any = net, optimizer: Any = optimizer) -> None:
            optimizer.zero_grad()
            net(torch.rand(1, 4, 16, 16)).sum().backward()
            optimizer.step()

        go()
        old = copy.deepcopy(optimizer.state_dict())
        for flag in ("hard_min_lr", "lr_level", "confidence_1d", "tam_granularity"):
            del old["param_groups"][0][flag]
        optimizer.load_state_dict(old)
        assert optimizer.param_groups[0]["lr_level"] == "fixed"
        go()


@EACH
def test_a_step_that_is_a_number_is_refused(info: Any) -> None:
    """torch's own optimizers once saved it so; ours never did."""
    weight, bias, x = linear()
    optimizer = info.optim_cls([weight, bias], **QUICK)
    closure(optimizer, weight, bias, x)
    optimizer.step()
    saved = copy.deepcopy(optimizer.state_dict())
    saved["state"][0]["step"] = saved["state"][0]["step"].item()
    with pytest.raises(ValueError, match="step"):
        optimizer.load_state_dict(saved)


@EACH
def test_files_are_equal_to_what_was_saved(info: Any) -> None:
    for kwargs in some(info):
        weight, bias, x = linear()
        optimizer = info.optim_cls(named([weight, bias], True), **kwargs)
        closure(optimizer, weight, bias, x)
        optimizer.step()
        assert equal(disk(optimizer.state_dict()), optimizer.state_dict())


@EACH
def test_copies_and_pickles(info: Any) -> None:
    def public(o: Any) -> set[str]:
        return {k for k in o.__dict__ if not k.startswith("_")}

    for kwargs in some(info):
        weight, bias, x = linear()
        optimizer = info.optim_cls([weight, bias], **kwargs)
        for _ in range(3):
            closure(optimizer, weight, bias, x)
            optimizer.step()
        for twin in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
            assert public(twin) == public(optimizer) and type(twin) is type(optimizer)
            assert equal(twin.state_dict(), optimizer.state_dict())
            p, q = twin.param_groups[0]["params"]
            closure(twin, p, q, x)
            twin.step()


# ---------------------------------------------------------------- hooks


@EACH
def test_hooks_of_step_in_order(info: Any) -> None:
    params = [torch.tensor([1.0, 1.0])]
    optimizer, other = info.optim_cls(params), SGD(params)
    seen: list[int] = []

    def note(number: int) -> Any:
        return lambda *_: seen.append(number)

    handles = [register_optimizer_step_pre_hook(note(0)), register_optimizer_step_post_hook(note(5))]
    for each in (optimizer, other):
        handles += [each.register_step_pre_hook(note(1)), each.register_step_post_hook(note(2))]
    try:
        optimizer.step()
        assert seen == [0, 1, 2, 5]
        other.step()
        optimizer.step()
        assert seen == [0, 1, 2, 5] * 3
    finally:
        for handle in handles:
            handle.remove()
    optimizer.step()
    assert len(seen) == 12


@EACH
def test_hooks_of_state_dict(info: Any) -> None:
    optimizer = info.optim_cls([torch.rand(2, 3, requires_grad=True)])

    def before(o: Any) -> None:
        o.state["test"] = 1

    def after(o: Any, state_dict: dict[str, Any]) -> dict[str, Any]:
        return {**state_dict, "saw": state_dict["state"].pop("test", None)}

    handle = optimizer.register_state_dict_pre_hook(before)
    assert optimizer.state_dict()["state"]["test"] == 1
    optimizer.register_state_dict_post_hook(after)
    assert optimizer.state_dict()["saw"] == 1
    handle.remove()
    optimizer.state.pop("test")
    assert optimizer.state_dict()["saw"] is None


@EACH
def test_hooks_of_load_state_dict(info: Any) -> None:
    optimizer = info.optim_cls([torch.rand(2, 3, requires_grad=True)])
    saved = optimizer.state_dict()

    def first(o: Any, state_dict: dict[str, Any]) -> None:
        state_dict["param_groups"][0]["lr"] = 0.0002

    def second(o: Any, state_dict: dict[str, Any]) -> dict[str, Any]:
        mine = copy.deepcopy(state_dict)
        mine["param_groups"][0]["lr"] = 0.0003
        return mine

    def after(o: Any) -> None:
        o.state["seen"] = o.param_groups[0]["lr"]

    optimizer.register_load_state_dict_pre_hook(first)
    optimizer.load_state_dict(saved)
    assert optimizer.param_groups[0]["lr"] == 0.0002
    handle = optimizer.register_load_state_dict_pre_hook(second, prepend=True)
    optimizer.load_state_dict(saved)
    assert optimizer.param_groups[0]["lr"] == 0.0002  # the prepended one came first and was overruled
    handle.remove()
    optimizer.register_load_state_dict_pre_hook(second)
    optimizer.register_load_state_dict_post_hook(after)
    optimizer.load_state_dict(saved)
    assert optimizer.state["seen"] == 0.0003


# ---------------------------------------------------------------- averages


@EACH
def test_averaged_model_and_swalr(info: Any) -> None:
    """swa_utils reads lr and writes it: the weights' average is the plain mean of what was visited."""
    torch.manual_seed(3)
    net: Any = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 1))
    optimizer = info.optim_cls(net.parameters(), **QUICK)
    averaged: Any = AveragedModel(net)
    schedule = SWALR(optimizer, swa_lr=1e-3, anneal_epochs=3)
    visited, rates = [], []
    for _ in range(5):
        optimizer.zero_grad()
        net(torch.randn(8, 4)).square().mean().backward()
        optimizer.step()
        averaged.update_parameters(net)
        rates.append(optimizer.param_groups[0]["lr"])
        schedule.step()
        visited.append(net[0].weight.detach().clone())
    torch.testing.assert_close(averaged.module[0].weight.detach(), torch.stack(visited).mean(0))
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1e-3) and len(set(rates)) > 2
    update_bn([torch.randn(8, 4) for _ in range(2)], averaged)
