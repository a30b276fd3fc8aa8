"""Gradient release equals the plain step bit for bit, also where the step runs on the host; or is refused."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler
from torch.utils.checkpoint import checkpoint

from automagic_cameamp import Automagic_CameAMP, accumulate_in_fp32, release_gradients
from engine.helpers import disk
from loops.helpers import NAMES, build, groups_of, loss_of, model, plain, same, told, twins

EACH = pytest.mark.parametrize("name", NAMES)
FORMS: dict[str, tuple[torch.dtype, dict[str, Any]]] = {
    "fp32": (torch.float32, {}),
    "bf16": (torch.bfloat16, {}),
    "24 bits": (torch.bfloat16, {"master_weight_bits": 24}),
    "reference": (torch.bfloat16, {"engine": "reference"}),
    "auto": (torch.bfloat16, {"lr_level": "auto"}),
}
# Every number that is pooled over the model.
POOLED: dict[str, dict[str, Any]] = {
    "group mask": {"lr_mask_granularity": "group"},
    "distance": {"lr_level": "distance"},
    "vote": {"lr_level": "vote"},
    "auto": {"lr_level": "auto"},
}


def both(name: str, where: str, steps: int = 8, **options: Any) -> None:
    (net, optimizer), (other, released) = twins(name, where=where, **options)
    with release_gradients(other, released):
        for t in range(1, steps + 1):
            loss_of(net, t).backward()
            optimizer.step(loss=told(name, t))
            optimizer.zero_grad()
            loss_of(other, t).backward()
            assert all(p.grad is None for p in other.parameters())
            released.step(loss=told(name, t))
            released.zero_grad()
            assert same(optimizer, released) == [], f"step {t}"


# On the host every class in every form; on the device the forms of state once per recipe.
CASES = [(name, form, "cpu") for name in NAMES for form in FORMS]
CASES += [(name, form, "none") for name in NAMES for form in ("fp32", "bf16")]
CASES += [(name, form, "none") for name in NAMES if name.endswith("8bit") for form in FORMS if form != "bf16"]
CASES += [("Automagic_CameAMP_Improved_8Bit", form, "none") for form in ("24 bits", "reference", "auto")]


@pytest.mark.parametrize(("name", "form", "where"), dict.fromkeys(CASES), indirect=["where"])
def test_equals_the_plain_step(name: str, form: str, where: str) -> None:
    dtype, options = FORMS[form]
    both(name, where, dtype=dtype, **options)


@pytest.mark.parametrize("options", POOLED.values(), ids=POOLED.keys())
@pytest.mark.parametrize("name", ["Automagic_CameAMP", "Automagic_CameAMP_COptim8bit"])
def test_numbers_pooled_over_the_model_are_those_of_the_plain_step(
    name: str, options: Any, where: str
) -> None:
    both(name, where, **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@EACH
def test_accumulation_acts_at_the_last_backward(name: str, dtype: torch.dtype, where: str) -> None:
    (net, optimizer), (other, released) = twins(name, dtype, where=where)
    with release_gradients(other, released, accumulation=3):
        for t in range(1, 5):
            plain(net, optimizer, range(t, t + 1), accumulation=3)
            for micro in range(3):
                loss_of(other, t, micro).backward()
                held = sum(p.grad is not None for p in other.parameters())
                assert held == (0 if micro == 2 or where == "cpu" else 14)  # or they add up on the host
            released.step()
            released.zero_grad()
            assert same(optimizer, released) == []


@pytest.mark.skipif(
    not hasattr(torch.Tensor, "grad_dtype"), reason="this torch has no fp32 gradients of bf16"
)
def test_gradients_of_fp32_add_up(where: str) -> None:
    (net, optimizer), (other, released) = twins("Automagic_CameAMP8bit", torch.bfloat16, where=where)
    accumulate_in_fp32(net)
    accumulate_in_fp32(other)
    with release_gradients(other, released, accumulation=3):
        for t in range(1, 4):
            plain(net, optimizer, range(t, t + 1), accumulation=3)
            for micro in range(3):
                loss_of(other, t, micro).backward()
            released.step()
            assert same(optimizer, released) == []


def test_an_incomplete_accumulation_is_updated_by_step_and_a_dropped_one_is_not(where: str) -> None:
    """The last batches of an epoch, and a layer that sees only some micro-batches."""
    (net, optimizer), (other, released) = twins("Automagic_CameAMP_COptim", where=where)

    def micro_batches(m: Any, count: int) -> None:
        for micro in range(count):
            loss = loss_of(m, 1, micro)
            if micro == 0:
                loss = loss + m.unused(torch.ones(7)).sum()
            loss.backward()

    with release_gradients(other, released, accumulation=4) as handle:
        for count in (4, 2, 4):
            for m, o in ((net, optimizer), (other, released)):
                micro_batches(m, count)
                o.step()
                o.zero_grad()
            assert same(optimizer, released) == []
        micro_batches(other, 3)
        released.zero_grad()
        handle.step()
        optimizer.step()
        assert same(optimizer, released) == []


@pytest.mark.parametrize("frozen", [False, True], ids=["all", "some frozen"])
@pytest.mark.parametrize("name", ["Automagic_CameAMP8bit", "Automagic_CameAMP_COptim"])
def test_parameters_without_hooks_are_updated_by_step(name: str, frozen: bool, where: str) -> None:
    (net, optimizer), (other, released) = twins(name, where=where)
    for m in (net, other):
        m.conv.requires_grad_(not frozen)
    with release_gradients(other.layers, released):
        for t in range(1, 6):
            plain(net, optimizer, range(t, t + 1))
            loss_of(other, t).backward()
            assert other.head.weight.grad is not None and other.layers[0].weight.grad is None
            released.step()
            released.zero_grad()
            assert same(optimizer, released) == []


@EACH
def test_with_a_scheduler_a_closure_and_a_non_finite_gradient(name: str, where: str) -> None:
    (net, optimizer), (other, released) = twins(name, where=where)
    schedules = [lr_scheduler.OneCycleLR(o, 3e-3, 8, cycle_momentum=False) for o in (optimizer, released)]

    def closure(m: Any, t: int) -> Any:
        def run() -> torch.Tensor:
            m.zero_grad()
            loss = loss_of(m, t)
            if t == 3:  # one parameter only
                loss = loss + m.gain * float("nan")
            loss.backward()
            return loss

        return run

    with release_gradients(other, released):
        for t in range(1, 6):
            optimizer.step(closure(net, t))
            released.step(closure(other, t))
            for schedule in schedules:
                schedule.step()
            assert same(optimizer, released) == []
    assert sum(released.health()["parameters"].values()) > 0


@EACH
def test_clipping_in_two_passes_equals_clip_grad_norm(name: str, where: str) -> None:
    (net, optimizer), (other, released) = twins(name, where=where)
    with release_gradients(other, released, max_norm=0.05) as handle:
        for t in range(1, 4):
            loss_of(net, t).backward()
            norm = nn.utils.clip_grad_norm_(net.parameters(), 0.05)
            optimizer.step()
            optimizer.zero_grad()
            measured = handle.backward(loss_of(other, t))
            assert measured is not None and torch.equal(norm, measured) and norm > 0.05
            handle.step()
            assert same(optimizer, released) == []


def test_the_handles_backward_without_a_norm_is_the_plain_one() -> None:
    (net, optimizer), (other, released) = twins("Automagic_CameAMP")
    with release_gradients(other, released) as handle:
        for t in range(1, 4):
            loss_of(net, t).backward()
            optimizer.step()
            optimizer.zero_grad()
            assert handle.backward(loss_of(other, t)) is None
            handle.step()
            assert same(optimizer, released) == []


class Tied(nn.Module):
    """A weight used twice: its gradient is complete only when both uses have given their part."""

    def __init__(self, checkpoints: bool) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.block = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8))
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.embed.weight
        self.checkpoints = checkpoints

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        def run(part: nn.Module, x: torch.Tensor) -> torch.Tensor:
            return checkpoint(part, x, use_reentrant=False) if self.checkpoints else part(x)

        x = self.embed(x)
        for _ in range(3):  # the same weights in three checkpoints
            x = x + run(self.block, x)
        return run(self.head, x.mean(1))


@pytest.mark.parametrize("checkpoints", [False, True], ids=["kept", "checkpoints"])
@EACH
def test_weights_used_twice_get_one_update(name: str, checkpoints: bool, where: str) -> None:
    first = Tied(checkpoints)
    nets: list[Any] = [first, copy.deepcopy(first)]
    optimizers: list[Any] = [
        build(name, m.parameters(), offload=place) for m, place in zip(nets, ("none", where), strict=True)
    ]
    tokens = torch.arange(8).view(2, 4)
    with release_gradients(nets[1], optimizers[1]):
        for _ in range(4):
            for m, o in zip(nets, optimizers, strict=True):
                m(tokens).square().sum().backward()
                o.step()
                o.zero_grad()
            assert same(*optimizers) == []


@EACH
def test_resume_and_copy_between_steps(name: str, where: str) -> None:
    (net, optimizer), (other, released) = twins(name, where=where)
    with release_gradients(other, released):
        for t in range(1, 3):
            plain(net, optimizer, range(t, t + 1))
            loss_of(other, t).backward()
            released.step()
        saved = disk(released.state_dict())
    fresh = build(name, groups_of(other), offload=where)
    fresh.load_state_dict(saved)
    twin = copy.deepcopy(released)
    if where == "none":
        twin = pickle.loads(pickle.dumps(twin))
    assert twin.state_dict()["param_groups"] == saved["param_groups"]
    with release_gradients(other, fresh):
        for t in range(3, 5):
            plain(net, optimizer, range(t, t + 1))
            loss_of(other, t).backward()
            fresh.step()
    found = [line for line in same(optimizer, fresh) if not line.startswith("health")]
    assert found == []  # health counts the steps of one object


# ---------------------------------------------------------------- protocol of the trainers


def hook_all(optimizer: Any, method: str) -> list[Any]:
    """What trainers do: capture the groups once, update in the hook, drop the gradient."""
    hooks = []
    for group in optimizer.param_groups:
        for i, p in enumerate(group["params"]):

            def arrived(q: Any, group: Any = group, i: int = i) -> None:
                arguments = (q, group, i) if method == "step_parameter" else (q, group)
                getattr(optimizer, method)(*arguments)
                q.grad = None

            hooks.append(p.register_post_accumulate_grad_hook(arrived))
    return hooks


@pytest.mark.parametrize("method", ["step_parameter", "step_param"])
@pytest.mark.parametrize("calls_step", [True, False], ids=["step", "no step"])
@EACH
def test_trainers_that_hook_themselves(name: str, method: str, calls_step: bool) -> None:
    """With ``step()`` at the end, and without: then the next backward pass ends the step."""
    (net, optimizer), (other, released) = twins(name)
    hook_all(released, method)
    for t in range(1, 6):
        plain(net, optimizer, range(t, t + 1))
        loss_of(other, t).backward()
        if calls_step:
            released.step()
            released.zero_grad()
            assert same(optimizer, released) == []
    # A checkpoint between two steps holds the last one as a whole.
    assert disk(released.state_dict())["param_groups"] == disk(optimizer.state_dict())["param_groups"]
    assert same(optimizer, released) == []


def test_groups_captured_before_loading_still_work() -> None:
    (net, optimizer), (other, released) = twins("Automagic_CameAMP")
    hook_all(released, "step_parameter")
    released.load_state_dict(disk(released.state_dict()))
    for group in released.param_groups:
        group["lr"] = 5e-4  # the group that counts, not the captured copy
    for group in optimizer.param_groups:
        group["lr"] = 5e-4
    plain(net, optimizer, range(1, 4))
    for t in range(1, 4):
        loss_of(other, t).backward()
        released.step()
    assert same(optimizer, released) == []


def test_one_optimizer_per_parameter_equals_one_optimizer() -> None:
    """As far as numbers over the model allow: without the mask, whose mean is over all parameters."""
    options: dict[str, Any] = {"lr": 1e-3, "warmup_steps": 6, "lr_mask_rule": "none"}
    net = model()
    other = copy.deepcopy(net)
    one = Automagic_CameAMP(net.parameters(), **options)
    many = {p: Automagic_CameAMP([p], **options) for p in other.parameters()}

    def arrived(p: Any) -> None:
        many[p].step()
        many[p].zero_grad()

    for p in other.parameters():
        p.register_post_accumulate_grad_hook(arrived)
    for t in range(1, 9):
        plain(net, one, range(t, t + 1))
        loss_of(other, t).backward()
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), other.parameters(), strict=True))


# ---------------------------------------------------------------- memory


@EACH
def test_one_gradient_lives_at_a_time(name: str) -> None:
    net = model()
    optimizer = build(name, groups_of(net))
    most, largest = [0], max(p.numel() for p in net.parameters())

    def count(p: Any) -> None:
        most[0] = max(most[0], sum(q.grad.numel() for q in net.parameters() if q.grad is not None))

    for p in net.parameters():
        p.register_post_accumulate_grad_hook(count)  # before the handle's hook frees it
    loss_of(net, 1).backward()
    everything = sum(p.grad.numel() for p in net.parameters() if p.grad is not None)
    assert most[0] == everything
    optimizer.zero_grad()
    most[0] = 0
    with release_gradients(net, optimizer):
        loss_of(net, 2).backward()
    assert most[0] == largest < everything / 3
