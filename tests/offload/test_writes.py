"""Whatever a program does to gradients and parameters between two steps, the host's step is the plain one."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from automagic_cameamp import release_gradients
from automagic_cameamp.optimizers import OPTIMIZERS
from automagic_cameamp.training import offload
from offload.test_offload import Late, equal

CLASSES = list(OPTIMIZERS)
pytestmark = pytest.mark.filterwarnings("ignore:.*changed its type")


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Late:
    late = Late()
    monkeypatch.setattr(offload, "transfer_for", lambda _: late)
    return late


def pair(name: str, dtype: torch.dtype = torch.float32) -> list[tuple[nn.Module, Any]]:
    """The same network twice, once with its state elsewhere."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(24, 16), nn.GELU(), nn.Linear(16, 8)).to(dtype)
    cls: Any = OPTIMIZERS[name]
    nets = [net, copy.deepcopy(net)]
    return [
        (n, cls(n.parameters(), lr=1e-3, warmup_steps=5, offload=where))
        for n, where in zip(nets, ("none", "cpu"), strict=True)
    ]


def loss_of(net: nn.Module, step: int) -> Tensor:
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(6, 24, generator=generator)
    return net(x.to(next(net.parameters()).dtype)).float().square().mean()


def unscaled(net: nn.Module, optimizer: Any, scaler: Any) -> None:
    scaler.unscale_(optimizer)


def scaled(net: nn.Module, optimizer: Any, scaler: Any) -> None:
    """The scaler's own step unscales."""


def clipped(net: nn.Module, optimizer: Any, scaler: Any) -> None:
    scaler.unscale_(optimizer)
    nn.utils.clip_grad_norm_(net.parameters(), 0.01)


@pytest.mark.parametrize("between", [unscaled, scaled, clipped])
@pytest.mark.parametrize("name", CLASSES)
def test_a_scaler_unscales_what_was_copied(name: str, between: Callable[..., None], device: Late) -> None:
    """Its kernel writes without a word to autograd's count of writes."""
    runs = pair(name)
    for net, optimizer in runs:
        scaler = torch.amp.GradScaler("cpu", init_scale=65536.0, growth_interval=3)
        for step in range(8):
            optimizer.zero_grad()
            scaler.scale(loss_of(net, step)).backward()
            between(net, optimizer, scaler)
            scaler.step(optimizer)
            scaler.update()
    assert equal(runs[0][1], runs[1][1]) == []


def behind_the_count(p: Tensor, step: int) -> None:
    assert p.grad is not None
    p.grad.data.mul_(0.5)


def one_element(p: Tensor, step: int) -> None:
    assert p.grad is not None
    p.grad.data.view(-1)[step % p.numel()] += 1.0


def infinite(p: Tensor, step: int) -> None:
    if step == 3 and p.grad is not None:
        p.grad.data.view(-1)[-1] = float("inf")


def replaced(p: Tensor, step: int) -> None:
    assert p.grad is not None
    p.grad = p.grad.sign()


def through_numpy(p: Tensor, step: int) -> None:
    assert p.grad is not None
    p.grad.view(torch.uint8).numpy()[..., step % 2 :: 2] = 0  # bytes: numpy has no bfloat16


def of_another_object(p: Tensor, step: int) -> None:
    if step % 2 and p.grad is not None:
        p.grad.set_(p.grad.clone() * 2)  # type: ignore[call-overload]


WRITES = [behind_the_count, one_element, infinite, replaced, through_numpy, of_another_object]


@pytest.mark.filterwarnings("ignore:.*not finite")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("write", WRITES)
def test_gradients_written_after_backward_count(write: Any, dtype: torch.dtype, device: Late) -> None:
    runs = pair("Automagic_CameAMP8bit", dtype)
    for net, optimizer in runs:
        for step in range(6):
            optimizer.zero_grad()
            loss_of(net, step).backward()
            for p in net.parameters():
                write(p, step)
            optimizer.step()
    assert equal(runs[0][1], runs[1][1]) == []


def test_what_nobody_wrote_is_copied_once(device: Late) -> None:
    _, (net, optimizer) = pair("Automagic_CameAMP")
    for step in range(4):
        optimizer.zero_grad()
        loss_of(net, step).backward()
        optimizer.step()
    assert device.fetched == 2 * device.sent == 2 * 4 * 4  # weights and gradients of four parameters


@pytest.fixture
def swapping() -> Iterator[None]:
    """What torch does for some programs, and will for all."""
    torch.__future__.set_swap_module_params_on_conversion(True)
    yield
    torch.__future__.set_swap_module_params_on_conversion(False)


def loaded(net: nn.Module) -> None:
    net.load_state_dict({k: v * 0.5 for k, v in net.state_dict().items()})


def converted(net: nn.Module) -> None:
    net.to(torch.bfloat16)


def swapped(net: nn.Module) -> None:
    for p in net.parameters():
        torch.utils.swap_tensors(p, nn.Parameter(p.detach() * 0.5))


@pytest.mark.usefixtures("swapping")
@pytest.mark.parametrize("release", [False, True])
@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("change", [loaded, converted, swapped])
def test_parameters_that_torch_swaps(change: Any, name: str, release: bool) -> None:
    """Nothing of ours refers to a parameter weakly, which torch would not allow; hooks go with what was."""
    runs = pair(name)
    for net, optimizer in runs:
        handles = [release_gradients(net, optimizer)] if release else []
        for step in range(6):
            if step == 3:
                optimizer.zero_grad()
                change(net)
                for handle in handles:
                    handle.remove()
                handles = [release_gradients(net, optimizer)] if release else []
            loss_of(net, step).backward()
            optimizer.step()
            optimizer.zero_grad()
    assert equal(runs[0][1], runs[1][1]) == []


@pytest.mark.usefixtures("swapping")
@pytest.mark.parametrize("where", ["none", "cpu"])
def test_after_a_swap_gradients_are_released_again(where: str) -> None:
    """The pass after it keeps them, for nobody tells; from the step on they are released."""
    net, optimizer = pair("Automagic_CameAMP")[where == "cpu"]
    handle = release_gradients(net, optimizer)
    for step in range(5):
        if step == 2:
            loaded(net)
        loss_of(net, step).backward()
        assert all((p.grad is not None) == (step == 2) for p in net.parameters())
        optimizer.step()
        optimizer.zero_grad()
    handle.remove()
    loss_of(net, 5).backward()
    assert all(p.grad is not None for p in net.parameters())


@pytest.mark.usefixtures("swapping")
def test_after_a_swap_gradients_arrive_early_again(device: Late) -> None:
    _, (net, optimizer) = pair("Automagic_CameAMP")
    for step in range(4):
        if step == 2:
            swapped(net)
        optimizer.zero_grad()
        loss_of(net, step).backward()
        before = device.fetched
        optimizer.step()
        late = device.fetched - before
        assert late == (8 if step in (0, 2) else 0)


def test_what_left_the_groups_is_forgotten() -> None:
    _, (net, optimizer) = pair("Automagic_CameAMP")
    first, last = net[0], net[2]  # type: ignore[index]
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(4))]})
    for step in range(2):
        loss_of(net, step).backward()
        optimizer.step()
    optimizer.param_groups[0]["params"] = list(last.parameters())
    held = optimizer.stepper._copies.twins
    loss_of(net, 2).backward()
    optimizer.step()
    assert all(held.get(p) is None for p in first.parameters())
    assert all(held.get(p) is not None for p in last.parameters())
