"""What trainers expect of an optimizer, one section per contract.

Each was found in the code of a program that people train with. A program that cannot run here is
represented by the few lines of it that touch the optimizer, restated.
"""

from __future__ import annotations

import copy
import gc
import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler

from automagic_cameamp import OPTIMIZERS, Automagic_CameAMP, Automagic_CameAMP8bit
from engine.helpers import (
    CLASSES,
    EVERY,
    OPTIONS,
    build,
    differences,
    disk,
    draw,
    parameters,
    same_bits,
    snapshot,
    train,
    twin_of,
)

KINDS = pytest.mark.parametrize("kind", CLASSES)
SMALL = [(40, 32), (8,), (3, 5, 7)]


def everywhere(position: int, step: int) -> bool:
    return False


def network() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(32, 40), nn.Tanh(), nn.Linear(40, 8))


def loss_of(model: nn.Module, step: int) -> Tensor:
    x, y = draw(11, step, shape=(16, 32)), draw(12, step, shape=(16, 8))
    dtype = next(model.parameters()).dtype
    return (model(x.to(dtype)).float() - y).square().mean()


def fit(model: nn.Module, optimizer: Any, steps: range) -> None:
    for t in steps:
        optimizer.zero_grad()
        loss_of(model, t).backward()
        optimizer.step()


# ---------------------------------------------------------------- 1: lr belongs to the scheduler


@EVERY
def test_1_nothing_adapted_is_written_into_lr(kind: str, options: dict[str, Any]) -> None:
    params = parameters(shapes=SMALL)
    optimizer = build(kind, params, **options)
    train(optimizer, params, range(1, 10), everywhere)
    assert optimizer.param_groups[0]["lr"] == 5e-4
    optimizer.param_groups[0]["lr"] = 7e-5  # what a trainer does after a load
    train(optimizer, params, range(10, 12), everywhere)
    assert optimizer.param_groups[0]["lr"] == 7e-5


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
@pytest.mark.parametrize("factor", [0.5, 0.125, 2.0])
def test_1_what_is_applied_is_proportional_to_lr(options: dict[str, Any], factor: float) -> None:
    """Same state, another scheduled lr: every element moves in exactly that proportion."""
    if options.get("hard_min_lr"):
        options = {k: v for k, v in options.items() if k != "hard_min_lr"}
    if options.get("lr_mask_rule") == "additive" and factor > 1:
        pytest.skip("bumps of a fixed size are relative to the larger of the two rates")
    params = [p.double().detach().requires_grad_() for p in parameters(shapes=SMALL)]
    optimizer = build("32bit", params, **options)
    train(optimizer, params, range(1, 5), everywhere)
    twin, twins = copy.deepcopy((optimizer, params))
    twin.param_groups[0]["lr"] = factor * 5e-4
    before = [p.detach().clone() for p in params]
    train(optimizer, params, range(5, 6), everywhere)
    train(twin, twins, range(5, 6), everywhere)
    for start, a, b in zip(before, params, twins, strict=True):
        torch.testing.assert_close((b - start).detach(), factor * (a - start).detach(), rtol=1e-6, atol=1e-15)
    assert twin.get_learning_rates()[0] == pytest.approx(factor * optimizer.get_learning_rates()[0])


def schedulers() -> dict[str, Callable[[Any], Any]]:
    s = lr_scheduler
    return {
        "LambdaLR": lambda o: s.LambdaLR(o, lambda t: 1 / (1 + t)),
        "MultiplicativeLR": lambda o: s.MultiplicativeLR(o, lambda t: 0.8),
        "StepLR": lambda o: s.StepLR(o, 2),
        "ExponentialLR": lambda o: s.ExponentialLR(o, 0.7),
        "CosineAnnealingLR": lambda o: s.CosineAnnealingLR(o, 6),
        "CosineAnnealingWarmRestarts": lambda o: s.CosineAnnealingWarmRestarts(o, 3),
        "PolynomialLR": lambda o: s.PolynomialLR(o, 8),
        "OneCycleLR": lambda o: s.OneCycleLR(o, 4e-4, total_steps=12),
        "CyclicLR": lambda o: s.CyclicLR(o, 1e-5, 4e-4, step_size_up=3, cycle_momentum=False),
        "ReduceLROnPlateau": lambda o: s.ReduceLROnPlateau(o, patience=1),
        "SequentialLR": lambda o: s.SequentialLR(
            o, [s.LinearLR(o, 0.1, total_iters=3), s.ExponentialLR(o, 0.9)], [3]
        ),
    }


@pytest.mark.parametrize("name", schedulers())
@pytest.mark.parametrize("tensor", [False, True], ids=["float", "tensor"])
@pytest.mark.filterwarnings("ignore:The epoch parameter in `scheduler.step:UserWarning")
def test_1_schedulers(name: str, tensor: bool) -> None:
    """The rate that is applied follows get_last_lr, whatever the scheduler and the form of lr."""
    params = parameters(shapes=SMALL)
    lr = torch.tensor(4e-4) if tensor else 4e-4
    options = dict(lr_mask_rule="none", full_finetune=True, lr=lr)
    optimizer = build("dynamic", params, **options)
    scheduler = schedulers()[name](optimizer)
    base = optimizer.param_groups[0]["base_lr"]
    seen = []
    for t in range(1, 9):
        scheduled = float(optimizer.param_groups[0]["lr"])
        before = params[0].detach().clone()
        train(optimizer, params, range(t, t + 1), everywhere)
        assert float(optimizer.param_groups[0]["lr"]) == scheduled
        assert optimizer.get_learning_rates() == pytest.approx([scheduled], rel=1e-6)
        moved = (params[0].detach() - before).square().mean().sqrt().item()
        assert moved <= 1.2 * scheduled + 1e-12  # the update's root mean square is clipped to 1
        assert torch.is_tensor(optimizer.param_groups[0]["lr"]) is tensor
        scheduler.step(1.0) if name == "ReduceLROnPlateau" else scheduler.step()
        seen.append(scheduled)
    assert len(set(seen)) > 1 and optimizer.param_groups[0]["base_lr"] == base
    assert all(bool(p.isfinite().all()) for p in params)


def test_1_scheduler_and_optimizer_resume_together() -> None:
    def pair(params: list[Tensor]) -> tuple[Any, Any]:
        optimizer = build("dynamic", params)
        return optimizer, lr_scheduler.CosineAnnealingLR(optimizer, 10)

    def go(optimizer: Any, scheduler: Any, params: list[Tensor], steps: range) -> None:
        for t in steps:
            train(optimizer, params, range(t, t + 1))
            scheduler.step()

    params = parameters(torch.bfloat16)
    whole, schedule = pair(params)
    go(whole, schedule, params, range(1, 5))
    saved = disk(whole.state_dict()), disk(schedule.state_dict())
    weights = [twin_of(p) for p in params]
    go(whole, schedule, params, range(5, 9))
    again, second = pair(weights)
    again.load_state_dict(saved[0])
    second.load_state_dict(saved[1])
    go(again, second, weights, range(5, 9))
    assert differences(snapshot(whole), snapshot(again)) == []


# ---------------------------------------------------------------- 2: groups are the user's


@KINDS
def test_2_groups_are_never_added_or_split(kind: str) -> None:
    params = parameters()
    groups = [{"params": params[:2], "lr": 1e-4}, {"params": params[2:5]}, {"params": params[5:]}]
    optimizer = build(kind, groups)
    kept = optimizer.param_groups
    train(optimizer, params, range(1, 5))
    optimizer.load_state_dict(disk(optimizer.state_dict()))
    assert len(optimizer.param_groups) == 3
    assert [len(g["params"]) for g in optimizer.param_groups] == [2, 3, 4]
    assert len(optimizer.get_learning_rates()) == 3
    for before, after in zip(kept, optimizer.param_groups, strict=True):
        assert all(a is b for a, b in zip(before["params"], after["params"], strict=True))


@KINDS
@pytest.mark.parametrize("position", [0, 1, 2])
def test_2_empty_groups(kind: str, position: int) -> None:
    """HF Trainer with PEFT always passes a second group without parameters."""
    params, plain = parameters(), parameters()
    groups = [{"params": params[:3]}, {"params": params[3:]}]
    groups.insert(position, {"params": [], "weight_decay": 0.0})
    optimizer, reference = build(kind, groups), build(kind, [{"params": plain[:3]}, {"params": plain[3:]}])
    train(optimizer, params, range(1, 5))
    train(reference, plain, range(1, 5))
    assert all(same_bits(a, b) for a, b in zip(params, plain, strict=True))
    again = build(kind, [{"params": []}, *({"params": [p]} for p in parameters(shapes=SMALL))])
    again.load_state_dict(disk(again.state_dict()))
    assert len(again.param_groups) == 4
    optimizer.load_state_dict(disk(optimizer.state_dict()))


# ---------------------------------------------------------------- 3: forms of params and options


def test_3_every_form_of_params() -> None:
    model = network()
    pairs = list(model.named_parameters())
    only = [p for _, p in pairs]
    forms: dict[str, Any] = {
        "generator": (p for p in only),
        "filter": filter(lambda p: p.requires_grad, only),
        "model.parameters()": model.parameters(),
        "tuple": tuple(only),
        "dict values in a group": [{"params": dict(pairs).values()}],
        "generator in a group": [{"params": (p for p in only)}],
        "generator of groups": ({"params": [p]} for p in only),
        "named": model.named_parameters(),
        "named in a group": [{"params": pairs}],
    }
    for name, form in forms.items():
        optimizer = Automagic_CameAMP8bit(form, lr=1e-4)
        held = [p for g in optimizer.param_groups for p in g["params"]]
        assert all(a is b for a, b in zip(held, only, strict=True)), name
        if name.startswith("named"):
            assert optimizer.param_groups[0]["param_names"] == [n for n, _ in pairs]
    single = Automagic_CameAMP([{"params": only[0]}])
    assert single.param_groups[0]["params"][0] is only[0]


def test_3_options_the_way_configuration_files_give_them() -> None:
    a, b = parameters(), parameters()
    one = Automagic_CameAMP(a, lr=1e-3, betas=[0.9, 0.99], weight_decay=0, eps=1e-8, warmup_steps=5)
    other = Automagic_CameAMP(b, lr=1e-3, betas=(0.9, 0.99, 0.999), weight_decay=0.0, warmup_steps=5.0)
    train(one, a, range(1, 4))
    train(other, b, range(1, 4))
    assert differences(snapshot(one), snapshot(other)) == []


# ---------------------------------------------------------------- 4: nothing is held before it is needed


@KINDS
def test_4_no_list_of_parameters_and_no_hooks(kind: str) -> None:
    params = parameters()
    optimizer = build(kind, params)
    for p in params:
        assert not p._backward_hooks and not getattr(p, "_post_accumulate_grad_hooks", None)
    own = {k: v for k, v in vars(optimizer).items() if k not in ("param_groups", "state")}
    reached = list(own.values())
    for _ in range(6):
        inner = [r for value in reached for r in gc.get_referents(value)]
        reached += [r for r in inner if isinstance(r, dict | list | tuple)]
        reached = list({id(r): r for r in reached}.values())
    held = {id(x) for r in reached if isinstance(r, list | tuple) for x in r}
    held |= {id(x) for r in reached if isinstance(r, dict) for x in [*r, *r.values()]}
    assert not held & {id(p) for p in params}


@KINDS
def test_4_conversion_after_construction_then_prepare(kind: str) -> None:
    """The order of sd-scripts with --full_bf16: optimizer, network.to(bf16), prepare, train."""
    model, native = network(), network().to(torch.bfloat16)
    optimizer = build(kind, model.parameters())
    model.to(torch.bfloat16)
    optimizer.load_state_dict(optimizer.state_dict())  # what accelerate.prepare does
    reference = build(kind, native.parameters())
    fit(model, optimizer, range(5))
    fit(native, reference, range(5))
    assert differences(snapshot(reference), snapshot(optimizer)) == []


@KINDS
def test_4_parameters_replaced_the_fsdp2_way(kind: str) -> None:
    """accelerate puts new parameters into param_groups, by a map from the old ones' data pointers."""
    model = network()
    optimizer = build(kind, model.parameters())
    new = {p.data_ptr(): nn.Parameter(p.detach().clone()) for p in model.parameters()}
    for group in optimizer.param_groups:
        group["params"] = [new[p.data_ptr()] for p in group["params"]]
    replaced = optimizer.param_groups[0]["params"]
    train(optimizer, replaced, range(1, 4), everywhere)
    assert set(optimizer.state) == set(replaced)


# ---------------------------------------------------------------- 5: checkpoints without pickled objects


@EVERY
def test_5_weights_only(kind: str, options: dict[str, Any]) -> None:
    params = parameters(torch.bfloat16)
    optimizer = build(kind, params, **options)
    train(optimizer, params, range(1, 4))
    again = disk(optimizer.state_dict())
    assert again["state"].keys() == optimizer.state_dict()["state"].keys()


@KINDS
def test_5_a_fresh_optimizer_loads_its_own_empty_state(kind: str) -> None:
    model = network()
    optimizer = build(kind, model.parameters())
    optimizer.load_state_dict(optimizer.state_dict())
    optimizer.load_state_dict(disk(optimizer.state_dict()))
    fit(model, optimizer, range(2))


# ---------------------------------------------------------------- 6: the dummy step of DCP


@EVERY
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_6_a_step_at_lr_zero_changes_no_weight(
    kind: str, dtype: torch.dtype, options: dict[str, Any]
) -> None:
    """Weight decay, floors of the rate and learned levels included; before and in the middle of a run."""
    options = {**options, "weight_decay": 1.0, "hard_min_lr": True}
    params = parameters(dtype, SMALL)
    optimizer = build(kind, params, **options)
    for zero in (0.0, torch.tensor(0.0)):
        for t in (1, 2, 3):
            optimizer.param_groups[0]["lr"] = zero
            before = [p.detach().clone() for p in params]
            for p in params:
                p.grad = torch.zeros_like(p) if t == 1 else torch.randn_like(p)
            optimizer.step(closure=None)
            assert all(same_bits(a, p) for a, p in zip(before, params, strict=True))
        optimizer.param_groups[0]["lr"] = 5e-4
        train(optimizer, params, range(1, 4), everywhere)
    for state in optimizer.state.values():
        assert all(bool(v.isfinite().all()) for v in state.values())


def distributed_state() -> Any:
    import torch.distributed.checkpoint.state_dict as module

    return module


@KINDS
@pytest.mark.parametrize("flat", [False, True], ids=["nested", "flat"])
def test_6_dcp_round_trip_on_a_fresh_optimizer(kind: str, flat: bool) -> None:
    dcp = distributed_state()
    options = dcp.StateDictOptions(flatten_optimizer_state_dict=flat)
    model = network().to(torch.bfloat16)
    optimizer = build(kind, model.parameters())
    fit(model, optimizer, range(4))
    saved = dcp.get_optimizer_state_dict(model, optimizer, options=options)

    twin = copy.deepcopy(model)
    fresh = build(kind, twin.parameters())
    before = [p.detach().clone() for p in twin.parameters()]
    empty = dcp.get_optimizer_state_dict(twin, fresh, options=options)  # runs the dummy step
    assert all(same_bits(a, p) for a, p in zip(before, twin.parameters(), strict=True))
    assert empty.keys() == saved.keys()
    dcp.set_optimizer_state_dict(twin, fresh, saved, options=options)
    assert all(same_bits(a, p) for a, p in zip(before, twin.parameters(), strict=True))
    assert differences(snapshot(optimizer), snapshot(fresh)) == []
    fit(model, optimizer, range(4, 7))
    fit(twin, fresh, range(4, 7))
    assert differences(snapshot(optimizer), snapshot(fresh)) == []


def test_6_dcp_with_a_parameter_that_never_had_a_gradient() -> None:
    dcp = distributed_state()
    model = network()
    model[0].bias.requires_grad_(False)
    optimizer = build("dynamic", model.parameters())
    fit(model, optimizer, range(3))
    saved = dcp.get_optimizer_state_dict(model, optimizer)
    twin = copy.deepcopy(model)
    fresh = build("dynamic", twin.parameters())
    dcp.set_optimizer_state_dict(twin, fresh, saved)
    fit(model, optimizer, range(3, 5))
    fit(twin, fresh, range(3, 5))
    assert differences(snapshot(optimizer), snapshot(fresh)) == []


# ---------------------------------------------------------------- 7: types survive


def test_7_torchs_own_loading_would_cast() -> None:
    """The trap this contract is about, and the proof that we are not in it."""
    params = parameters(torch.bfloat16, SMALL)
    optimizer = build("dynamic", params)
    train(optimizer, params, range(1, 4), everywhere)
    saved = disk(optimizer.state_dict())
    before = snapshot(optimizer)
    torch.optim.Optimizer.load_state_dict(optimizer, saved)
    assert differences(before, snapshot(optimizer)) != [], "torch no longer casts: simplify the engine"
    optimizer.load_state_dict(saved)
    assert differences(before, snapshot(optimizer)) == []


# ---------------------------------------------------------------- 8: closures


@KINDS
def test_8_closure(kind: str) -> None:
    """Lightning always passes one; gradients are None when step() is entered."""
    model, twin = network(), network()
    optimizer, reference = build(kind, model.parameters()), build(kind, twin.parameters())
    for t in range(4):

        def closure(t: int = t) -> Tensor:
            assert torch.is_grad_enabled()
            optimizer.zero_grad()
            loss = loss_of(model, t)
            loss.backward()
            return loss

        optimizer.zero_grad()
        expected = loss_of(twin, t).item()
        assert optimizer.step(closure).item() == expected
        fit(twin, reference, range(t, t + 1))
    assert differences(snapshot(reference), snapshot(optimizer)) == []


def test_8_step_returns_the_loss_it_is_given() -> None:
    model = network()
    optimizer = build("32bit", model.parameters())
    assert optimizer.step() is None
    loss = loss_of(model, 0)
    loss.backward()
    assert optimizer.step(loss=loss) is loss
    assert optimizer.step(lambda: 3.5) == 3.5
    with pytest.raises(TypeError):
        optimizer.step(None, loss)


# ---------------------------------------------------------------- 9: a plain method of a plain class


@pytest.mark.parametrize("cls", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
def test_9_a_real_optimizer(cls: Any) -> None:
    assert isinstance(cls, type) and issubclass(cls, torch.optim.Optimizer)
    assert type(cls) is type and "__slots__" not in cls.__dict__
    optimizer = cls([nn.Parameter(torch.ones(2))])
    assert inspect.ismethod(optimizer.step) and optimizer.step.__self__ is optimizer
    assert not hasattr(optimizer, "_step_supports_amp_scaling")


class Wrapper(torch.optim.Optimizer):
    """What Lightning's optimizer wrapper does: take over the dict and become a subclass of both."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.__dict__ = {k: v for k, v in optimizer.__dict__.items() if k not in ("step", "__del__")}
        self.__class__ = type("Wrapped" + type(optimizer).__name__, (type(self), type(optimizer)), {})
        self._optimizer = optimizer

    def step(self, closure: Any = None, **kwargs: Any) -> Any:
        return self._optimizer.step(closure, **kwargs)


@KINDS
def test_9_wrapped_like_lightning(kind: str) -> None:
    model, twin = network(), network()
    reference = build(kind, twin.parameters())
    inner = build(kind, model.parameters())
    wrapped = Wrapper(inner)
    assert isinstance(wrapped, CLASSES[kind][0])
    fit(model, wrapped, range(3))
    fit(twin, reference, range(3))
    assert differences(snapshot(reference), snapshot(inner)) == []
    assert wrapped.state_dict()["state"].keys() == inner.state_dict()["state"].keys()


def test_9_step_may_be_wrapped_on_the_instance() -> None:
    """LRScheduler and accelerate's fp16 scaler replace the method of one optimizer."""
    model = network()
    optimizer = build("32bit", model.parameters())
    scheduler = lr_scheduler.LambdaLR(optimizer, lambda t: 1.0)
    original, calls = optimizer.step, []

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return original(*args, **kwargs)

    optimizer.step = counted
    fit(model, optimizer, range(2))
    optimizer.step = original
    scheduler.step()
    fit(model, optimizer, range(2, 3))
    assert len(calls) == 2 and optimizer.health()["steps"] == 3


def test_9_a_users_subclass() -> None:
    class Mine(Automagic_CameAMP8bit):
        def __init__(self, params: Any, lr: float = 1e-4) -> None:
            super().__init__(params, lr=lr, weight_decay=0.0)

    optimizer = Mine(network().parameters())
    assert optimizer.param_groups[0]["weight_decay"] == 0.0
    assert "Mine" in repr(optimizer)


# ---------------------------------------------------------------- 10: train and eval


@pytest.mark.parametrize("cls", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
def test_10_train_and_eval_come_together_or_not_at_all(cls: Any) -> None:
    assert hasattr(cls, "train") is hasattr(cls, "eval")
    if hasattr(cls, "train"):
        params = parameters(shapes=SMALL)
        optimizer = cls(params, lr=1e-4)
        before = snapshot(optimizer)
        optimizer.eval()
        optimizer.train()
        assert differences(before, snapshot(optimizer)) == []


# ---------------------------------------------------------------- one optimizer for each parameter


@pytest.mark.parametrize("mask", ["none", "additive", "row majority"])
@KINDS
def test_one_optimizer_per_parameter(kind: str, mask: str) -> None:
    """diffusion-pipe's gradient release makes an instance per parameter and steps it in a hook.

    Equal to one optimizer as long as nothing is shared between parameters: the geometric mask is
    divided by its mean over all of them, so it is left out here. fp32, because the noise of
    stochastic rounding is keyed by the position of a parameter in its optimizer.
    """
    options = {
        "none": {"lr_mask_rule": "none"},
        "additive": {"lr_mask_rule": "additive"},
        "row majority": {"lr_mask_rule": "additive", "lr_mask_granularity": "row"},
    }[mask]
    released, together = network(), network()
    reference = build(kind, together.parameters(), **options)
    owners = {p: build(kind, [p], **options) for p in released.parameters()}

    def hook(p: Tensor) -> None:
        owners[p].step()
        owners[p].zero_grad()

    for p in released.parameters():
        p.register_post_accumulate_grad_hook(hook)
    for t in range(10):
        loss_of(released, t).backward()
        assert all(p.grad is None for p in released.parameters())
    fit(together, reference, range(10))
    for (name, a), b in zip(together.named_parameters(), released.parameters(), strict=True):
        assert same_bits(a, b), name
        for key, value in reference.state[a].items():
            assert same_bits(value, owners[b].state[b][key]), (name, key)


def test_gradient_accumulation_and_clipping() -> None:
    """Gradients stay where PyTorch puts them until step(), so both work as usual."""
    model, twin = network(), network()
    optimizer, reference = build("dynamic", model.parameters()), build("dynamic", twin.parameters())
    for t in range(3):
        optimizer.zero_grad()
        reference.zero_grad()
        for part in range(4):
            (loss_of(model, 4 * t + part) / 4).backward()
        (sum(loss_of(twin, 4 * t + part) for part in range(4)) / 4).backward()
        a = nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        b = nn.utils.clip_grad_norm_(twin.parameters(), 0.1)
        torch.testing.assert_close(a, b)
        optimizer.step()
        reference.step()
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
