"""The checks of torch's TestOptimRenewed that live only in its repository, restated for all seven classes.

docs/evidence/torch-suite.md lists every check of torch's suite; test_torch_table.py keeps the list in step.
"""

from __future__ import annotations

import copy
import functools
from typing import Any

import pytest
import torch
from torch import nn

from automagic_cameamp.state import chunks as buckets
from contracts.torch_infos import QUICK, OptimizerErrorEnum
from contracts.torch_loops import CLIQUES, EACH, advance, apart, closure, inputs, linear, some
from engine.helpers import differences, disk, snapshot

# ---------------------------------------------------------------- construction


@EACH
def test_infos_name_no_implementation(info: Any) -> None:
    for found in info.optim_inputs_func(device="cpu"):
        assert not set(found.kwargs) & set(CLIQUES)
    assert len(list(inputs(info))) == len(info.optim_inputs_func(device="cpu"))


@EACH
def test_errors(info: Any) -> None:
    found = info.optim_error_inputs_func(device="cpu", dtype=torch.float32)
    assert len(found) >= 13  # six of torch's for every optimizer, seven of ours
    for wrong in found:
        given = wrong.optimizer_error_input
        at_step = wrong.error_on == OptimizerErrorEnum.STEP_ERROR
        optimizer = info.optim_cls(given.params, **given.kwargs) if at_step else None
        raised = (
            pytest.warns(wrong.error_type, match=wrong.error_regex)
            if issubclass(wrong.error_type, Warning)
            else pytest.raises(wrong.error_type, match=wrong.error_regex)
        )
        with raised:
            optimizer.step() if optimizer is not None else info.optim_cls(given.params, **given.kwargs)


@EACH
@pytest.mark.parametrize("flag", ["foreach", "fused", "capturable", "differentiable", "maximize"])
def test_flags_of_torch_are_refused_by_name(info: Any, flag: str) -> None:
    with pytest.raises(TypeError, match=flag):
        info.optim_cls([nn.Parameter(torch.ones(2))], **{flag: True})


# ---------------------------------------------------------------- direction


@EACH
@pytest.mark.parametrize("scheduled", [False, True], ids=["constant", "scheduled"])
@pytest.mark.parametrize("contiguous", [True, False], ids=["contiguous", "strided"])
def test_loss_goes_down(info: Any, scheduled: bool, contiguous: bool) -> None:
    for makers in info.scheduler_inputs if scheduled else [[]]:
        for kwargs in inputs(info) if contiguous and not scheduled else list(inputs(info))[:1]:
            weight, bias, x = linear(contiguous)
            optimizer = info.optim_cls([weight, bias], **kwargs)
            schedulers = [make(optimizer) for make in makers]
            first = closure(optimizer, weight, bias, x).item()
            for _ in range(20):
                loss = closure(optimizer, weight, bias, x)
                optimizer.step()
                advance(schedulers, loss.detach())
            assert closure(optimizer, weight, bias, x).item() < first


@EACH
def test_groups_with_a_scheduler_go_down(info: Any) -> None:
    for makers in info.scheduler_inputs:
        weight, bias, x = linear()
        groups = [{"params": [weight]}, {"params": [bias], "lr": 0.01}]
        optimizer = info.optim_cls(groups, **QUICK)
        schedulers = [make(optimizer) for make in makers]
        first = closure(optimizer, weight, bias, x).item()
        for _ in range(20):
            loss = optimizer.step(functools.partial(closure, optimizer, weight, bias, x))
            advance(schedulers, loss.detach())
        assert closure(optimizer, weight, bias, x).item() < first


@EACH
def test_groups_with_other_decay_go_down(info: Any) -> None:
    for kwargs in some(info):
        weight, bias, x = linear()
        own, of_group = apart(info, kwargs)
        groups = [{"params": [weight], **of_group}, {"params": [bias], **of_group, "weight_decay": 0.0}]
        optimizer = info.optim_cls(groups, **own)
        first = closure(optimizer, weight, bias, x).item()
        for _ in range(20):
            optimizer.step(functools.partial(closure, optimizer, weight, bias, x))
        assert closure(optimizer, weight, bias, x).item() < first


@EACH
def test_a_group_with_almost_no_rate_stays(info: Any) -> None:
    for kwargs in some(info):
        weight, bias, x = linear()
        still = nn.Parameter(torch.randn(2))
        before = still.detach().clone()
        own, of_group = apart(info, kwargs)
        groups = [{"params": [weight, bias], **of_group}, {"params": [still]}]
        optimizer = info.optim_cls(groups, lr=1e-28, min_lr=0.0, **own)
        first = closure(optimizer, weight, bias, x).item()
        for _ in range(20):
            closure(optimizer, weight, bias, x)
            still.grad = torch.rand_like(still)
            optimizer.step()
        assert closure(optimizer, weight, bias, x).item() < first
        assert torch.equal(still, before)


@EACH
def test_rosenbrock(info: Any) -> None:
    """torch's check has sparse gradients, which are refused; the dense half applies."""
    for scheduled in (False, True):
        p = nn.Parameter(torch.tensor([1.5, 1.5], dtype=torch.float64))
        optimizer = info.optim_cls([p], **{**QUICK, "weight_decay": 0.0})
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.999) if scheduled else None
        first = loss = torch.zeros(())
        for t in range(200):
            optimizer.zero_grad()
            loss = (1 - p[0]) ** 2 + 100 * (p[1] - p[0] ** 2) ** 2
            first = loss.detach() if t == 0 else first
            loss.backward()
            optimizer.step()
            if scheduler is not None:
                scheduler.step()
        assert loss < 0.1 * first  # down into the valley


# ---------------------------------------------------------------- forms of the learning rate and the weights


@EACH
@pytest.mark.parametrize("dims", [0, 1, 2])
def test_tensor_lr_equals_float_lr(info: Any, dims: int) -> None:
    for kwargs in inputs(info):
        kwargs["lr"] = 5e-3
        weight, bias, x = linear()
        first = info.optim_cls([weight, bias], **kwargs)
        kwargs["lr"] = torch.tensor(5e-3).reshape((1,) * dims)
        twins = [nn.Parameter(p.detach().clone()) for p in (weight, bias)]
        second = info.optim_cls(twins, **kwargs)
        for _ in range(5):
            closure(first, weight, bias, x)
            closure(second, twins[0], twins[1], x)
            first.step()
            second.step()
        torch.testing.assert_close(twins[0], weight, rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(twins[1], bias, rtol=1e-6, atol=1e-7)


@EACH
def test_complex_weights_are_refused_and_view_as_real_works(info: Any) -> None:
    z = torch.randn(5, 5, dtype=torch.complex64)
    with pytest.raises(ValueError, match="view_as_real"):
        info.optim_cls([nn.Parameter(z)])
    p = nn.Parameter(torch.view_as_real(z).clone())
    optimizer = info.optim_cls([p], **QUICK)
    first = torch.view_as_complex(p.detach()).abs().square().sum()
    for _ in range(10):
        optimizer.zero_grad()
        torch.view_as_complex(p).abs().square().sum().backward()
        optimizer.step()
    assert torch.view_as_complex(p.detach()).abs().square().sum() < first


@EACH
def test_memory_format_does_not_matter(info: Any) -> None:
    """channels_last and strided weights get the update of contiguous ones, and keep their form."""
    start = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(1))
    made = [nn.Parameter(start.clone()), nn.Parameter(start.contiguous(memory_format=torch.channels_last))]
    made.append(nn.Parameter(start.permute(3, 1, 2, 0).contiguous().permute(3, 1, 2, 0)))
    strides = [p.stride() for p in made]
    # The CPU kernels leave strided weights to the reference, which sums in another order.
    optimizers = [info.optim_cls([p], engine="reference", **QUICK) for p in made]
    for t in range(10):
        g = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(10 + t))
        for p, optimizer in zip(made, optimizers, strict=True):
            p.grad = torch.empty_like(p).copy_(g)
            optimizer.step()
    assert [p.stride() for p in made] == strides and len(set(strides)) == 3
    assert torch.equal(made[0], made[1]) and torch.equal(made[0], made[2])


@EACH
def test_tensors_of_one_and_of_no_element(info: Any) -> None:
    shapes: list[tuple[int, ...]] = [(), (1,), (1, 1), (1, 1, 1, 1), (0,), (0, 3), (3, 1), (1, 3)]
    for kwargs in inputs(info):
        params = [nn.Parameter(torch.full(s, 0.5)) for s in shapes]
        optimizer = info.optim_cls(params, **kwargs)
        for _ in range(10):
            optimizer.zero_grad()
            torch.stack([p.square().sum() for p in params]).sum().backward()
            optimizer.step()
        for p in params:
            assert bool(((p < 0.5) & p.isfinite()).all())
        disk(optimizer.state_dict())


@EACH
def test_mixed_types(info: Any) -> None:
    types = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
    params = [nn.Parameter(torch.rand(2, 3).to(t)) for t in types for _ in range(2)]
    params.append(nn.Parameter(torch.ones(2, 3, dtype=torch.int64), requires_grad=False))
    together = copy.deepcopy(params)
    options = {**QUICK, "use_lr_mask": False, "stochastic_rounding": False}
    if "COptim" in info.name:
        options["adaptation_rate"] = 0.0  # else its controller is one number over all of the model
    one = info.optim_cls(params, **options)
    alone = [info.optim_cls([p], **options) for p in together]
    for t in range(7):
        for p, q in zip(params[:-1], together[:-1], strict=True):
            p.grad = torch.rand(2, 3, generator=torch.Generator().manual_seed(t)).to(p.dtype)
            q.grad = p.grad.clone()
        one.step()
        for optimizer in alone:
            optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(params, together, strict=True))


@EACH
@pytest.mark.parametrize("default", [torch.float64, torch.float16], ids=str)
def test_the_default_type_changes_nothing(info: Any, default: torch.dtype) -> None:
    def run() -> Any:
        weight, bias = (nn.Parameter(p.detach().float()) for p in linear()[:2])
        optimizer = info.optim_cls([weight, bias], **QUICK)
        for t in range(4):
            for p in (weight, bias):
                p.grad = torch.full_like(p, 0.1 + t)
            optimizer.step()
        return snapshot(optimizer)

    expected = run()
    torch.set_default_dtype(default)  # the fixture of all tests puts it back
    assert differences(expected, run()) == []


@EACH
def test_stacks_equal_one_by_one(info: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch compares foreach with forloop; ours is stacked or not. A layer is frozen for a while."""

    def run(limit: int) -> list[Any]:
        monkeypatch.setattr(buckets, "CPU_CHUNK_ELEMENTS", limit)
        seen = []
        for kwargs in inputs(info):
            torch.manual_seed(1)
            net = nn.Sequential(nn.Linear(6, 6), nn.Sigmoid(), nn.Linear(6, 6), nn.Sigmoid(), nn.Linear(6, 1))
            scalar = nn.Parameter(torch.ones(()))
            if "COptim" in info.name:  # the controller's sums depend on the stacks, the rest may not
                kwargs["adaptation_rate"] = 0.0
            optimizer = info.optim_cls([*net.parameters(), scalar], **kwargs)
            for t in range(7):
                optimizer.zero_grad()
                if t in (3, 5):
                    net[2].requires_grad_(t == 5)
                if t != 2:
                    (net(torch.linspace(0.1, 1.8, 18).reshape(3, 6)).sum() * scalar).backward()
                optimizer.step()
                seen.append(snapshot(optimizer))
        return seen

    for a, b in zip(run(1 << 20), run(1), strict=True):
        found = [line for line in differences(a, b) if "'c_optim'" not in line]
        assert found == []


# ---------------------------------------------------------------- no gradients, zero gradients


@EACH
def test_nothing_to_do(info: Any) -> None:
    params = [torch.randn(2, 3) for _ in range(2)]
    for kwargs in some(info):
        optimizer = info.optim_cls(params, **kwargs)
        before = [p.clone() for p in params]
        assert optimizer.step(lambda: torch.tensor([1.0])) == 1
        assert all(torch.equal(p, q) for p, q in zip(params, before, strict=True)) and not optimizer.state


@EACH
def test_zero_gradients_without_decay(info: Any) -> None:
    for kwargs in some(info):
        p = torch.randn(5, 1, requires_grad=True)
        before = p.detach().clone()
        optimizer = info.optim_cls([p], **{**kwargs, "weight_decay": 0.0})
        p.grad = torch.zeros_like(p)
        optimizer.step(lambda: torch.tensor([1.0]))
        assert torch.equal(p, before)


@EACH
def test_gradients_are_only_read(info: Any) -> None:
    for kwargs in some(info):
        weight, bias, x = linear()
        optimizer = info.optim_cls([weight, bias], **kwargs)
        for _ in range(4):
            closure(optimizer, weight, bias, x)
            versions = [p.grad._version for p in (weight, bias)]  # type: ignore[union-attr]
            optimizer.step()
            assert [p.grad._version for p in (weight, bias)] == versions  # type: ignore[union-attr]


@EACH
def test_state_is_not_empty(info: Any) -> None:
    for kwargs in some(info):
        net = nn.Linear(5, 5)
        optimizer = info.optim_cls(net.parameters(), **kwargs)
        net(torch.rand(2, 5)).sum().backward()
        optimizer.step()
        assert len(optimizer.state) == 2 and all(optimizer.state.values())
