"""The checks of PyTorch's own optimizer test-suite (TestOptimRenewed), restated; a first part."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from engine.helpers import (
    CLASSES,
    EVERY,
    OPTIONS,
    build,
    differences,
    disk,
    draw,
    give_gradients,
    parameters,
    same_bits,
    snapshot,
    train,
    twin_of,
)

KINDS = pytest.mark.parametrize("kind", CLASSES)
EACH = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())


def everywhere(position: int, step: int) -> bool:
    return False


def descend(optimizer: Any, weight: Any, bias: Any, steps: int, scheduler: Any = None) -> tuple[float, float]:
    """A small linear problem; the loss at the start and at the end."""
    x, target = draw(5, shape=(5,)), draw(6, shape=(40,))

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = (weight.mv(x.to(weight.dtype)) + bias - target.to(weight.dtype)).square().sum()
        loss.backward()
        return loss

    first = closure().item()
    for _ in range(steps):
        optimizer.step(closure)
        if scheduler is not None:
            scheduler.step()
    return first, closure().item()


def linear() -> tuple[nn.Parameter, nn.Parameter]:
    return nn.Parameter(draw(3, shape=(40, 5))), nn.Parameter(draw(4, shape=(40,)))


@EVERY
@pytest.mark.parametrize("tensor_lr", [False, True], ids=["float", "tensor"])
def test_goes_in_the_right_direction(kind: str, tensor_lr: bool, options: dict[str, Any]) -> None:
    weight, bias = linear()
    lr = torch.tensor(5e-3) if tensor_lr else 5e-3
    optimizer = build(kind, [weight, bias], **{"lr": lr, "max_lr": 0.1, "lr_bump": 1e-4, **options})
    first, last = descend(optimizer, weight, bias, 30)
    assert last < 0.98 * first


@KINDS
@pytest.mark.parametrize("name", ["StepLR", "ExponentialLR", "CosineAnnealingLR"])
def test_goes_in_the_right_direction_with_groups_and_scheduler(kind: str, name: str) -> None:
    weight, bias = linear()
    groups = [{"params": [weight]}, {"params": [bias], "lr": 2e-3, "weight_decay": 0.0}]
    optimizer = build(kind, groups, lr=5e-3, max_lr=0.1)
    makers = {
        "StepLR": lambda: lr_scheduler.StepLR(optimizer, 10, 0.9),
        "ExponentialLR": lambda: lr_scheduler.ExponentialLR(optimizer, 0.99),
        "CosineAnnealingLR": lambda: lr_scheduler.CosineAnnealingLR(optimizer, 100),
    }
    first, last = descend(optimizer, weight, bias, 30, makers[name]())
    assert last < 0.98 * first


@KINDS
def test_rates_and_decay_of_groups(kind: str) -> None:
    """A group with lr 0 stays; one with decay shrinks under zero gradients; another does not."""
    params = parameters(shapes=[(8, 8)] * 3)
    groups = [
        {"params": [params[0]], "lr": 0.0},
        {"params": [params[1]], "weight_decay": 0.5},
        {"params": [params[2]], "weight_decay": 0.0},
    ]
    optimizer = build(kind, groups, lr=1e-3)
    before = [p.detach().clone() for p in params]
    for p in params:
        p.grad = torch.zeros_like(p)
    optimizer.step()
    assert same_bits(before[0], params[0]) and same_bits(before[2], params[2])
    assert bool((params[1].abs() < before[1].abs()).all())


@EVERY
def test_zero_gradients_move_nothing_without_decay(kind: str, options: dict[str, Any]) -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        params = parameters(dtype)
        optimizer = build(kind, params, **{**options, "weight_decay": 0.0})
        before = [p.detach().clone() for p in params]
        for p in params:
            p.grad = torch.zeros_like(p)
        for _ in range(9):  # every phase
            optimizer.step()
        assert all(torch.equal(a, p) for a, p in zip(before, params, strict=True))
        assert all(bool(v.isfinite().all()) for s in optimizer.state.values() for v in s.values())


@EVERY
def test_parameters_without_gradients_are_left_alone(kind: str, options: dict[str, Any]) -> None:
    params = parameters()
    optimizer = build(kind, params, **options)
    before = snapshot(optimizer)
    give_gradients(params, 1, lambda i, t: True)
    optimizer.step()
    after = snapshot(optimizer)
    assert differences((before[0], before[1], []), (after[0], after[1], [])) == []
    train(optimizer, params, range(1, 4))
    before = snapshot(optimizer)
    optimizer.zero_grad(set_to_none=True)
    optimizer.step()
    after = snapshot(optimizer)
    assert differences((before[0], before[1], []), (after[0], after[1], [])) == []


@EVERY
def test_gradients_are_never_written(kind: str, options: dict[str, Any]) -> None:
    params = parameters()
    optimizer = build(kind, params, **options)
    for t in range(1, 10):
        give_gradients(params, t, everywhere)
        versions = [p.grad._version for p in params]
        kept = [p.grad.clone() for p in params]
        optimizer.step()
        assert versions == [p.grad._version for p in params]
        assert all(same_bits(a, p.grad) for a, p in zip(kept, params, strict=True))


@EVERY
def test_two_runs_are_the_same(kind: str, options: dict[str, Any]) -> None:
    states = []
    for _ in range(2):
        params = parameters(torch.bfloat16)
        optimizer = build(kind, params, **options)
        train(optimizer, params, range(1, 6))
        states.append(snapshot(optimizer))
    assert differences(*states) == []


@KINDS
def test_state_dict_is_deterministic(kind: str) -> None:
    """Load it into a second optimizer over copies: both stay equal, and the dict keeps its values."""
    params = parameters()
    optimizer = build(kind, params)
    train(optimizer, params, range(1, 4))
    saved = optimizer.state_dict()
    frozen = disk(saved)
    copies = [twin_of(p) for p in params]
    second = build(kind, copies)
    second.load_state_dict(saved)
    for t in range(4, 8):
        train(optimizer, params, range(t, t + 1))
        train(second, copies, range(t, t + 1))
        assert differences(snapshot(optimizer), snapshot(second)) == []
    third = build(kind, parameters())
    third.load_state_dict(frozen)
    assert third.state_dict()["param_groups"] == frozen["param_groups"]


@KINDS
def test_names_may_be_saved_and_loaded(kind: str) -> None:
    """From named to unnamed optimizers and back."""
    model = nn.Sequential(nn.Linear(32, 40), nn.Linear(40, 2))
    named, plain = build(kind, model.named_parameters()), build(kind, model.parameters())
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    named.step()
    saved = disk(named.state_dict())
    assert saved["param_groups"][0]["param_names"][0] == "0.weight"
    plain.load_state_dict(saved)
    back = build(kind, model.named_parameters())
    without_names = disk(saved)
    del without_names["param_groups"][0]["param_names"]
    back.load_state_dict(without_names)
    assert back.param_groups[0]["param_names"][0] == "0.weight"
    assert differences(snapshot(named)[:2] + ([],), snapshot(back)[:2] + ([],)) == []


@KINDS
def test_deepcopy_copies_public_attributes(kind: str) -> None:
    params = parameters()
    optimizer = build(kind, params)
    train(optimizer, params, range(1, 3))

    def public(o: Any) -> set[str]:
        return {k for k in o.__dict__ if not k.startswith("_")}

    twin = copy.deepcopy(optimizer)
    assert public(twin) == public(optimizer)
    assert twin.config == optimizer.config and twin.config is not optimizer.config
    assert type(twin) is type(optimizer)


@EVERY
def test_can_be_printed(kind: str, options: dict[str, Any]) -> None:
    optimizer = build(kind, parameters(), **options)
    text = repr(optimizer)
    assert type(optimizer).__name__ in text and "Parameter Group 0" in text and "lr: 0.0005" in text


@KINDS
def test_state_dict_hooks(kind: str) -> None:
    params = parameters()
    optimizer = build(kind, params)
    train(optimizer, params, range(1, 3))
    calls: list[str] = []

    def before(o: Any) -> None:
        calls.append("before")
        assert o is optimizer

    def after(o: Any, state_dict: dict[str, Any]) -> dict[str, Any]:
        calls.append("after")
        return {**state_dict, "mine": 1}

    handles = [optimizer.register_state_dict_pre_hook(before), optimizer.register_state_dict_post_hook(after)]
    found = optimizer.state_dict()
    assert calls == ["before", "after"] and found["mine"] == 1
    for handle in handles:
        handle.remove()
    assert "mine" not in optimizer.state_dict() and len(calls) == 2


@KINDS
def test_load_state_dict_hooks(kind: str) -> None:
    params = parameters()
    optimizer = build(kind, params)
    train(optimizer, params, range(1, 3))
    wrapped = {"inside": disk(optimizer.state_dict())}
    target = build(kind, parameters())
    calls: list[str] = []

    def unwrap(o: Any, state_dict: dict[str, Any]) -> dict[str, Any]:
        calls.append("before")
        return state_dict["inside"]

    def after(o: Any) -> None:
        calls.append("after")
        o.param_groups[0]["lr"] = 1e-5

    target.register_load_state_dict_pre_hook(unwrap)
    target.register_load_state_dict_post_hook(after)
    target.load_state_dict(wrapped)
    assert calls == ["before", "after"]
    assert target.param_groups[0]["lr"] == 1e-5
    assert set(wrapped) == {"inside"}
    assert differences(([], snapshot(optimizer)[1], []), ([], snapshot(target)[1], [])) == []


@KINDS
def test_step_hooks(kind: str) -> None:
    params = parameters()
    optimizer = build(kind, params)
    calls: list[str] = []
    optimizer.register_step_pre_hook(lambda o, args, kwargs: calls.append("before"))
    optimizer.register_step_post_hook(lambda o, args, kwargs: calls.append("after"))
    train(optimizer, params, range(1, 3))
    assert calls == ["before", "after"] * 2
    twin = copy.deepcopy(optimizer)
    assert len(twin.param_groups) == 1


@EVERY
def test_state_is_not_empty_and_counts_steps(kind: str, options: dict[str, Any]) -> None:
    params = parameters()
    optimizer = build(kind, params, **options)
    train(optimizer, params, range(1, 5), everywhere)
    for p in params:
        assert optimizer.state[p]["step"].item() == 4


def test_the_counter_may_be_looked_up_but_not_replaced_by_a_number() -> None:
    """torch's old optimizers kept `step` as a number; ours never did, and a number is refused."""
    from automagic_cameamp import CheckpointError

    params = parameters()
    optimizer = build("32bit", params)
    train(optimizer, params, range(1, 3))
    saved = disk(optimizer.state_dict())
    saved["state"][0]["step"] = 2.0
    with pytest.raises(CheckpointError, match="step"):
        optimizer.load_state_dict(saved)


@KINDS
def test_a_cpu_state_is_loaded_by_value(kind: str) -> None:
    """Changing the dict after loading changes nothing."""
    params = parameters()
    optimizer = build(kind, params)
    train(optimizer, params, range(1, 3))
    saved = disk(optimizer.state_dict())
    target = build(kind, parameters())
    target.load_state_dict(saved)
    before = snapshot(target)
    for state in saved["state"].values():
        for value in state.values():
            value.zero_()
    saved["param_groups"][0]["lr"] = 9.0
    assert differences(before, snapshot(target)) == []


@KINDS
def test_zero_grad(kind: str) -> None:
    params = parameters()
    optimizer = build(kind, params)
    give_gradients(params, 1, everywhere)
    optimizer.zero_grad(set_to_none=False)
    assert all(p.grad is not None and not p.grad.any() for p in params)
    optimizer.zero_grad()
    assert all(p.grad is None for p in params)
