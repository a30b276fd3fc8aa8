"""Released gradients stepped on the host give the plain step bit for bit, however late copies come."""

from __future__ import annotations

import copy
import logging
from typing import Any

import pytest
import torch
from benchmarks.meters import OpMeter
from benchmarks.release_memory import Deep
from torch import nn
from torch.optim import lr_scheduler
from torch.utils.checkpoint import checkpoint

from automagic_cameamp import Automagic_CameAMP, accumulate_in_fp32, release_gradients
from automagic_cameamp.training import ring
from engine.helpers import disk
from loops.helpers import NAMES, build, groups_of, loss_of, model, plain, same, told
from loops.test_release import POOLED, hook_all
from offload.wild import Wild

EACH = pytest.mark.parametrize("name", NAMES)
FORMS: dict[str, tuple[torch.dtype, dict[str, Any]]] = {
    "fp32": (torch.float32, {}),
    "bf16": (torch.bfloat16, {}),
    "24 bits": (torch.bfloat16, {"master_weight_bits": 24}),
    "reference": (torch.bfloat16, {"engine": "reference"}),
    "auto": (torch.bfloat16, {"lr_level": "auto"}),
}


def twins(name: str, dtype: torch.dtype = torch.float32, **options: Any) -> list[tuple[Any, Any]]:
    """Two equal models; the optimizer of the second is on the host."""
    first = model(dtype)
    second = copy.deepcopy(first)
    return [
        (net, build(name, groups_of(net), offload=where, **options))
        for net, where in ((first, "none"), (second, "cpu"))
    ]


def both(name: str, steps: int = 7, **options: Any) -> None:
    (net, optimizer), (other, far) = twins(name, **options)
    with release_gradients(other, far):
        for t in range(1, steps + 1):
            loss_of(net, t).backward()
            optimizer.step(loss=told(name, t))
            optimizer.zero_grad()
            loss_of(other, t).backward()
            assert all(p.grad is None for p in other.parameters())
            far.step(loss=told(name, t))
            far.zero_grad()
            assert same(optimizer, far) == [], f"step {t}"


@pytest.mark.parametrize("form", FORMS)
@EACH
def test_equals_the_plain_step(name: str, form: str, wild: Wild) -> None:
    dtype, options = FORMS[form]
    both(name, dtype=dtype, **options)
    assert wild.fetched == 2 * wild.put_back > 0  # a weight and a gradient come, a weight goes


@pytest.mark.parametrize("options", [*POOLED.values(), {"lr_level": "auto"}], ids=[*POOLED, "auto"])
@pytest.mark.parametrize("name", ["Automagic_CameAMP", "Automagic_CameAMP_COptim8bit"])
def test_numbers_pooled_over_the_model(name: str, options: Any, wild: Wild) -> None:
    both(name, **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@EACH
def test_gradients_add_up_on_the_host(name: str, dtype: torch.dtype, wild: Wild) -> None:
    (net, optimizer), (other, far) = twins(name, dtype)
    with release_gradients(other, far, accumulation=3):
        for t in range(1, 5):
            plain(net, optimizer, range(t, t + 1), accumulation=3)
            for micro in range(3):
                loss_of(other, t, micro).backward()
                assert all(p.grad is None for p in other.parameters())
            far.step()
            far.zero_grad()
            assert same(optimizer, far) == []


@pytest.mark.skipif(
    not hasattr(torch.Tensor, "grad_dtype"), reason="this torch has no fp32 gradients of bf16"
)
def test_gradients_of_fp32_add_up_on_the_host(wild: Wild) -> None:
    (net, optimizer), (other, far) = twins("Automagic_CameAMP8bit", torch.bfloat16)
    accumulate_in_fp32(net)
    accumulate_in_fp32(other)
    with release_gradients(other, far, accumulation=3):
        for t in range(1, 4):
            plain(net, optimizer, range(t, t + 1), accumulation=3)
            for micro in range(3):
                loss_of(other, t, micro).backward()
            far.step()
            assert same(optimizer, far) == []


def test_an_incomplete_accumulation_is_updated_by_step_and_a_dropped_one_is_not(wild: Wild) -> None:
    (net, optimizer), (other, far) = twins("Automagic_CameAMP_COptim")

    def micro_batches(m: Any, count: int) -> None:
        for micro in range(count):
            loss = loss_of(m, 1, micro)
            if micro == 0:
                loss = loss + m.unused(torch.ones(7)).sum()
            loss.backward()

    with release_gradients(other, far, accumulation=4) as handle:
        for count in (4, 2, 4):
            for m, o in ((net, optimizer), (other, far)):
                micro_batches(m, count)
                o.step()
                o.zero_grad()
            assert same(optimizer, far) == []
        micro_batches(other, 3)
        far.zero_grad()
        handle.step()
        optimizer.step()
        assert same(optimizer, far) == []


@pytest.mark.parametrize("name", ["Automagic_CameAMP8bit", "Automagic_CameAMP_COptim"])
def test_parameters_without_hooks_and_frozen_ones(name: str, wild: Wild) -> None:
    (net, optimizer), (other, far) = twins(name)
    for m in (net, other):
        m.conv.requires_grad_(False)
    with release_gradients(other.layers, far):
        for t in range(1, 6):
            plain(net, optimizer, range(t, t + 1))
            loss_of(other, t).backward()
            assert other.head.weight.grad is not None and other.layers[0].weight.grad is None
            far.step()
            far.zero_grad()
            assert same(optimizer, far) == []


@EACH
def test_with_a_scheduler_a_closure_and_a_non_finite_gradient(name: str, wild: Wild) -> None:
    (net, optimizer), (other, far) = twins(name)
    schedules = [lr_scheduler.OneCycleLR(o, 3e-3, 8, cycle_momentum=False) for o in (optimizer, far)]

    def closure(m: Any, t: int) -> Any:
        def run() -> torch.Tensor:
            m.zero_grad()
            loss = loss_of(m, t)
            if t == 3:  # one parameter only
                loss = loss + m.gain * float("nan")
            loss.backward()
            return loss

        return run

    with release_gradients(other, far):
        for t in range(1, 6):
            optimizer.step(closure(net, t))
            far.step(closure(other, t))
            for schedule in schedules:
                schedule.step()
            assert same(optimizer, far) == []
    assert sum(far.health()["parameters"].values()) > 0


def test_clipping_in_two_passes(wild: Wild) -> None:
    (net, optimizer), (other, far) = twins("Automagic_CameAMP")
    with release_gradients(other, far, max_norm=0.05) as handle:
        for t in range(1, 5):
            loss_of(net, t).backward()
            norm = nn.utils.clip_grad_norm_(net.parameters(), 0.05)
            optimizer.step()
            optimizer.zero_grad()
            measured = handle.backward(loss_of(other, t))
            assert measured is not None and torch.equal(norm, measured) and norm > 0.05
            handle.step()
            assert same(optimizer, far) == []


class Tied(nn.Module):
    """A weight used twice, inside checkpoints and outside."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.block = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8))
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        for _ in range(3):  # the same weights in three checkpoints
            x = x + checkpoint(self.block, x, use_reentrant=False)
        return checkpoint(self.head, x.mean(1), use_reentrant=False)


def test_shared_weights_and_checkpointed_activations(wild: Wild) -> None:
    first = Tied()
    nets: list[Any] = [first, copy.deepcopy(first)]
    optimizers: list[Any] = [
        Automagic_CameAMP(m.parameters(), lr=1e-3, warmup_steps=4, offload=where)
        for m, where in zip(nets, ("none", "cpu"), strict=True)
    ]
    tokens = torch.arange(8).view(2, 4)
    with release_gradients(nets[1], optimizers[1]):
        for _ in range(4):
            for m, o in zip(nets, optimizers, strict=True):
                m(tokens).square().sum().backward()
                o.step()
                o.zero_grad()
            assert same(*optimizers) == []


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
def test_resume_change_of_sides_and_copy(name: str, wild: Wild) -> None:
    (net, optimizer), (other, far) = twins(name)
    with release_gradients(other, far):
        for t in range(1, 3):
            plain(net, optimizer, range(t, t + 1))
            loss_of(other, t).backward()
            far.step()
        saved = disk(far.state_dict())
    fresh = build(name, groups_of(other), offload="cpu")
    fresh.load_state_dict(saved)
    twin = copy.deepcopy(far)
    assert twin.state_dict()["param_groups"] == saved["param_groups"]
    with release_gradients(other, fresh):
        for t in range(3, 5):
            plain(net, optimizer, range(t, t + 1))
            loss_of(other, t).backward()
            fresh.step()
    plain(other, fresh, range(5, 6))  # without release: copies of all parameters
    plain(net, optimizer, range(5, 6))
    with release_gradients(other, fresh):
        plain(net, optimizer, range(6, 7))
        loss_of(other, 6).backward()
        fresh.step()
    found = [line for line in same(optimizer, fresh) if not line.startswith("health")]
    assert found == []  # health counts the steps of one object
    home = build(name, groups_of(other))
    home.load_state_dict(disk(fresh.state_dict()))
    plain(net, optimizer, range(7, 8))
    plain(other, home, range(7, 8))
    assert [line for line in same(optimizer, home) if not line.startswith("health")] == []


def test_accelerate_as_diffusers_scripts_use_it(wild: Wild) -> None:
    accelerate = pytest.importorskip("accelerate")
    (net, optimizer), (other, far) = twins("Automagic_CameAMP8bit")
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
    (net, optimizer), (other, far) = twins("Automagic_CameAMP_COptim8bit")
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
    (net, _), (other, _) = twins("Automagic_CameAMP8bit")
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
