"""Released gradients stepped on the host, however late copies come: what is not so on the device.

That it equals the plain step, in every form, is in loops/test_release.py.
"""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from benchmarks.meters import OpMeter
from benchmarks.release_memory import Deep
from torch import nn

from automagic_cameamp import Automagic_CameAMP, release_gradients
from automagic_cameamp.training import ring
from engine.helpers import disk
from loops.helpers import NAMES, build, groups_of, loss_of, model, plain, same, twins
from loops.test_release import hook_all
from offload.wild import Wild


def test_every_weight_and_gradient_comes_and_every_weight_goes_back(wild: Wild) -> None:
    net = model()
    far = build("Automagic_CameAMP", groups_of(net), offload="cpu")
    with release_gradients(net, far):
        for t in range(1, 3):
            loss_of(net, t).backward()
            assert all(p.grad is None for p in net.parameters())
            far.step()
    moved = sum("unused" not in name for name, _ in net.named_parameters())
    assert wild.fetched == 2 * wild.put_back == 4 * moved


@pytest.mark.parametrize("delay", [0.0, 0.05])
def test_a_pass_that_needs_the_old_weight_later_is_refused_however_late_the_new_one_comes(
    delay: float, wild: Wild
) -> None:
    """A detached use is no part of the gradient: the weight is done while its value is still needed."""
    wild.delay = delay
    weight, early = nn.Parameter(torch.ones(3, 3)), nn.Parameter(torch.ones(3))
    optimizer = Automagic_CameAMP([weight, early], lr=1e-3, offload="cpu")
    hidden = (early * 1.0) @ weight.detach()  # its backward needs the value, and runs last
    loss = (weight * hidden.detach()).sum() + hidden.exp().sum()
    order: list[str] = []
    weight.register_post_accumulate_grad_hook(lambda p: order.append("weight"))
    hidden.register_hook(lambda g: order.append("hidden"))
    with release_gradients([weight, early], optimizer):
        try:
            loss.backward()
        except RuntimeError as error:
            assert "modified by an inplace operation" in str(error) and order == ["weight", "hidden"]
        else:
            assert order == ["hidden", "weight"]
            pytest.skip("autograd took the other order")


@pytest.mark.parametrize("name", NAMES)
def test_change_of_sides_between_steps(name: str, wild: Wild) -> None:
    (net, optimizer), (other, far) = twins(name, where="cpu")
    with release_gradients(other, far):
        for t in range(1, 3):
            plain(net, optimizer, range(t, t + 1))
            loss_of(other, t).backward()
            far.step()
    plain(other, far, range(3, 4))  # without release: copies of all parameters
    plain(net, optimizer, range(3, 4))
    with release_gradients(other, far):
        plain(net, optimizer, range(4, 5))
        loss_of(other, 4).backward()
        far.step()
    assert same(optimizer, far) == []
    home = build(name, groups_of(other))
    home.load_state_dict(disk(far.state_dict()))
    plain(net, optimizer, range(5, 6))
    plain(other, home, range(5, 6))
    found = [line for line in same(optimizer, home) if not line.startswith("health")]
    assert found == []  # health counts the steps of one object


def test_accelerate_as_diffusers_scripts_use_it(wild: Wild) -> None:
    accelerate = pytest.importorskip("accelerate")
    (net, optimizer), (other, far) = twins("Automagic_CameAMP8bit", where="cpu")
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    prepared, wrapped = accelerator.prepare(other, far)
    with release_gradients(prepared, wrapped.optimizer, accumulation=2):
        for t in range(1, 4):
            for micro in range(2):
                (loss_of(net, t, micro) / 2).backward()
                with accelerator.accumulate(prepared):
                    accelerator.backward(loss_of(prepared, t, micro))
                    wrapped.step()
                    wrapped.zero_grad()
            optimizer.step()
            optimizer.zero_grad()
            assert same(optimizer, far) == []


@pytest.mark.parametrize("method", ["step_parameter", "step_param"])
@pytest.mark.parametrize("calls_step", [True, False])
def test_hooks_of_trainers(method: str, calls_step: bool, wild: Wild) -> None:
    """OneTrainer and musubi-tuner call step() as well; sd-scripts does not."""
    (net, optimizer), (other, far) = twins("Automagic_CameAMP_COptim8bit", where="cpu")
    hook_all(far, method)
    for t in range(1, 6):
        plain(net, optimizer, range(t, t + 1))
        loss_of(other, t).backward()
        if calls_step:
            far.step()
            far.zero_grad()
        for p, q in zip(net.parameters(), other.parameters(), strict=True):
            assert torch.equal(p, q), "the weights are back where backward() returns"
    far.state_dict()  # ends the last step
    assert same(optimizer, far) == []


def test_steps_of_groups_inside_backward(wild: Wild) -> None:
    """fused_optimizer_groups of sd-scripts: an optimizer per group, stepped at its last gradient."""
    (net, _), (other, _) = twins("Automagic_CameAMP8bit", where="cpu")
    runs: list[list[Any]] = []
    for m, where in ((net, "none"), (other, "cpu")):
        params = [p for name, p in m.named_parameters() if "unused" not in name]
        runs.append([build("Automagic_CameAMP8bit", params[i::3], offload=where) for i in range(3)])
        if where == "cpu":
            for optimizer in runs[-1]:
                group_hooks(optimizer)
    for t in range(1, 6):
        loss_of(net, t).backward()
        for optimizer in runs[0]:
            optimizer.step()
            optimizer.zero_grad()
        loss_of(other, t).backward()
        for a, b in zip(*runs, strict=True):
            assert same(a, b) == []
    rings = [optimizer.planned_memory().crossing.ring for optimizer in runs[1]]
    assert wild.bytes <= sum(rings) and ring.shared().memory.nbytes == max(rings)  # one for all of them


def group_hooks(optimizer: Any) -> None:
    params = optimizer.param_groups[0]["params"]
    left = [len(params)]

    def arrived(p: Any) -> None:
        left[0] -= 1
        if left[0] == 0:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            left[0] = len(params)

    for p in params:
        p.register_post_accumulate_grad_hook(arrived)


def test_the_device_holds_weights_and_one_gradient(wild: Wild) -> None:
    """Of a model of 256 layers, counted by allocation, while copies are late."""
    net = Deep(256, 64)
    far = build("Automagic_CameAMP8bit", net.parameters(), offload="cpu")
    with release_gradients(net, far):
        for _ in range(2):
            loss = net(torch.randn(2, 64))
            with OpMeter() as meter:  # of this thread: the other works on the host
                loss.backward()
                far.step()
                far.zero_grad()
    weights = sum(p.numel() * p.element_size() for p in net.parameters())
    assert weights + meter.peak <= 1.02 * (weights + weights / 256)


def test_what_memory_it_takes_is_said_and_is_all_it_takes(
    wild: Wild, caplog: pytest.LogCaptureFixture
) -> None:
    net = model()
    far = build("Automagic_CameAMP8bit", groups_of(net), offload="cpu")
    with caplog.at_level(logging.INFO, "automagic_cameamp"), release_gradients(net, far):
        for t in range(1, 4):
            loss_of(net, t).backward()
            far.step()
    largest = [2 * 4 * n for n in sorted(p.numel() for p in net.parameters())[-3:]]
    assert wild.bytes == far.planned_memory().crossing.ring == sum(largest)
    assert f"{wild.bytes} for what crosses, {far.planned_memory().state} for state" in caplog.text
    assert caplog.text.count("host memory") == 1
    assert all(v.device.type == "cpu" for s in far.state.values() for v in s.values())
