"""What cannot be correct with released gradients is refused, by name."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from automagic_cameamp import release_gradients
from loops.helpers import build, groups_of, loss_of, model


def test_a_second_backward_without_step_is_refused() -> None:
    net = model()
    optimizer = build("Automagic_CameAMP", net.named_parameters())
    with release_gradients(net, optimizer):
        loss_of(net, 1).backward()
        with pytest.raises(
            RuntimeError, match=r"parameter .+ has a gradient for the 2\. time.*accumulation=1"
        ):
            loss_of(net, 2).backward()


@pytest.mark.parametrize(
    "wrong", [{"max_norm": "much"}, {"max_norm": True}, {"max_norm": 0}, {"accumulation": 0}]
)
def test_arguments_are_checked_where_they_are_given(wrong: dict[str, Any]) -> None:
    net = model()
    optimizer = build("Automagic_CameAMP", net.named_parameters())
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}=.* is not allowed"):
        release_gradients(net, optimizer, **wrong)
    from_yaml: Any = "1.0"
    with release_gradients(net, optimizer, max_norm=from_yaml) as handle:
        handle.backward(loss_of(net, 1))
        optimizer.step()


def test_the_parameter_that_comes_twice_is_named() -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    optimizer = build("Automagic_CameAMP", net.named_parameters())
    with release_gradients(net, optimizer):
        net(torch.ones(1, 3)).sum().backward()
        with pytest.raises(RuntimeError, match=r"parameter 1\.bias has a gradient for the 2\. time"):
            net[1].bias.sum().backward()


def test_a_gradient_after_the_update_is_refused() -> None:
    net = model()
    optimizer = build("Automagic_CameAMP", net.named_parameters())
    loss_of(net, 1).backward()
    optimizer.step_parameter(net.gain)
    net.gain.grad.add_(1)  # type: ignore[union-attr]
    with pytest.raises(RuntimeError, match="gain was updated in this step and has another gradient"):
        optimizer.step()


def test_a_scaler_is_refused_unless_its_gradients_are_unscaled() -> None:
    net = model()
    optimizer = build("Automagic_CameAMP", groups_of(net))
    scaler = torch.amp.GradScaler("cpu")
    with release_gradients(net, optimizer), pytest.raises(RuntimeError, match="GradScaler"):
        scaler.scale(loss_of(net, 1)).backward()
    assert not optimizer.state
    with release_gradients(net, optimizer, unscaled=True):
        net.zero_grad()
        loss_of(net, 1).backward()
        optimizer.step()
    del scaler


def test_max_norm_needs_its_own_backward() -> None:
    net = model()
    optimizer = build("Automagic_CameAMP", groups_of(net))
    with release_gradients(net, optimizer, max_norm=1.0) as handle:
        with pytest.raises(RuntimeError, match=r"handle\.backward"):
            loss_of(net, 1).backward()
        net.zero_grad()
        assert not optimizer.state
        handle.backward(loss_of(net, 1))
        handle.step()
        with pytest.raises(RuntimeError, match="reached no parameter"):
            handle.backward(torch.ones((), requires_grad=True) * 2)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"accumulation": 0}, "accumulation=0"),
        ({"accumulation": True}, "accumulation=True"),
        ({"max_norm": -1.0}, "max_norm=-1.0"),
        ({"max_norm": float("nan")}, "max_norm=nan"),
        ({"max_norm": 1.0, "accumulation": 2}, "clip_grad_norm_"),
    ],
    ids=str,
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    net = model()
    optimizer = build("Automagic_CameAMP", groups_of(net))
    with pytest.raises(ValueError, match=message):
        optimizer.release_gradients(net, **options)
    assert not any(p._post_accumulate_grad_hooks for p in net.parameters())  # type: ignore[attr-defined]


def test_refused_combinations(monkeypatch: pytest.MonkeyPatch) -> None:
    net = model()
    optimizer = build("Automagic_CameAMP", groups_of(net))

    class DistributedDataParallel(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = net

    with pytest.raises(ValueError, match="DistributedDataParallel"):
        release_gradients(DistributedDataParallel(), optimizer)
    with pytest.raises(ValueError, match="holds and trains"):
        release_gradients(nn.Linear(2, 2), optimizer)
    with release_gradients(net, optimizer), pytest.raises(ValueError, match="released already"):
        release_gradients(net, optimizer)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    with pytest.raises(ValueError, match="several processes"):
        release_gradients(net, optimizer)


def test_nothing_is_saved_in_the_middle_of_a_step() -> None:
    net = model()
    optimizer = build("Automagic_CameAMP", groups_of(net))
    with release_gradients(net, optimizer):
        loss_of(net, 1).backward()
        more = {"params": [("more", nn.Parameter(torch.ones(2)))]}
        for use in (
            optimizer.state_dict,
            lambda: copy.deepcopy(optimizer),
            lambda: optimizer.add_param_group(more),
        ):
            with pytest.raises(RuntimeError, match="in the middle of a step"):
                use()
        optimizer.step()
        optimizer.state_dict()


def test_wrong_arguments_of_step_parameter() -> None:
    net = model()
    optimizer = build("Automagic_CameAMP", groups_of(net))
    group = optimizer.param_groups[0]
    p, stranger = group["params"][0], nn.Parameter(torch.ones(2))
    optimizer.step_parameter(p, group, 0)  # no gradient: nothing
    assert not optimizer.state
    p.grad, stranger.grad = torch.ones_like(p), torch.ones(2)
    with pytest.raises(ValueError, match="i=1 is not allowed"):
        optimizer.step_parameter(p, group, 1)
    with pytest.raises(ValueError, match="i=99 is not allowed"):
        optimizer.step_parameter(p, group, 99)
    with pytest.raises(ValueError, match="in none of its groups"):
        optimizer.step_parameter(stranger)
    assert not optimizer.state and optimizer.health()["steps"] == 0
    p.grad = torch.ones_like(p).to_sparse()
    with pytest.raises(RuntimeError, match="only dense"):
        optimizer.step_parameter(p)
    assert not optimizer.state


def test_an_empty_parameter_is_passed_over_unless_it_is_a_stranger() -> None:
    empty, other, stranger = (nn.Parameter(torch.ones(shape)) for shape in ((0, 4), (3,), (0, 4)))
    optimizer = build("Automagic_CameAMP", [empty, other])
    for p in (empty, other, stranger):
        p.grad = torch.ones_like(p)
    optimizer.step_parameter(empty)
    optimizer.step_parameter(other)
    with pytest.raises(ValueError, match="in none of its groups"):
        optimizer.step_parameter(stranger)
    optimizer.step()
    assert float(optimizer.state[other]["step"]) == 1 and bool((other < 1).all())


def test_another_librarys_optimizer_is_named() -> None:
    net = model()
    with pytest.raises(TypeError, match="AdamW.*automagic_cameamp"):
        release_gradients(net, torch.optim.AdamW(net.parameters()))  # type: ignore[arg-type]


@pytest.mark.parametrize("name, value", [("weight_decay", float("nan")), ("eps", (1e-30, -1.0)), ("eta", 0)])
def test_an_option_that_cannot_be_is_refused_before_anything_moves(name: str, value: Any, where: str) -> None:
    net = model()
    optimizer = build("Automagic_CameAMP", net.named_parameters(), offload=where)
    with release_gradients(net, optimizer):
        loss_of(net, 1).backward()
        optimizer.step()
        before = [p.detach().clone() for p in net.parameters()]
        optimizer.param_groups[0][name] = value
        with pytest.raises(ValueError, match=name):
            loss_of(net, 2).backward()
            optimizer.step()
        assert all(map(torch.equal, before, net.parameters()))
