"""`max_norm` of released gradients is `clip_grad_norm_`: all parameters, what was there, nobody else's."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from automagic_cameamp import Automagic_CameAMP8bit, release_gradients

NORM = 0.05
CASES = ["plain", "some there before", "unfrozen later", "part released", "unreached"]


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 4), nn.Linear(4, 3))


def batch(t: int) -> torch.Tensor:
    return torch.randn(8, 16, generator=torch.Generator().manual_seed(t))


def pair(**options: Any) -> list[tuple[nn.Sequential, Any]]:
    made = [net(), net()]
    return [(m, Automagic_CameAMP8bit(m.parameters(), lr=1e-3, warmup_steps=4, **options)) for m in made]


def weights(m: nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in m.parameters()]


@pytest.mark.parametrize("where", ["none", "cpu"])
@pytest.mark.parametrize("case", CASES)
def test_it_is_clip_grad_norm(case: str, where: str) -> None:
    (m, plain), (n, released) = pair(offload=where)
    if case == "unfrozen later":
        m[2].requires_grad_(False)
        n[2].requires_grad_(False)
    handle = release_gradients(n[:2] if case == "part released" else n, released, max_norm=NORM)
    m.requires_grad_(True), n.requires_grad_(True)
    for t in range(4):
        if case == "some there before":
            m(batch(100 + t)).sum().backward()
            for p, q in zip(m.parameters(), n.parameters(), strict=True):
                assert p.grad is not None
                q.grad = p.grad.clone()
        elif case == "unreached" and t:
            m[3].weight.grad = torch.ones(3, 4)
            n[3].weight.grad = torch.ones(3, 4)
        last = 3 if case == "unreached" else 4
        m[:last](batch(t)).square().mean().backward()
        expected = torch.nn.utils.clip_grad_norm_(m.parameters(), NORM)
        found = handle.backward(n[:last](batch(t)).square().mean())
        assert found is not None and float(found) == pytest.approx(float(expected), rel=1e-6)
        plain.step()
        handle.step()
        plain.zero_grad()
        released.zero_grad()
        for p, q in zip(m.parameters(), n.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=0, atol=1e-7)


@pytest.mark.parametrize("where", ["none", "cpu"])
def test_leaves_of_others_get_the_gradient_once(where: str) -> None:
    _, (n, released) = pair(offload=where)
    other, x = nn.Linear(3, 2), batch(0).requires_grad_(True)
    handle = release_gradients(n, released, max_norm=NORM)
    expected = torch.autograd.grad(other(n(x)).square().mean(), [*other.parameters(), x])
    handle.backward(other(n(x)).square().mean())
    handle.step()
    for p, g in zip([*other.parameters(), x], expected, strict=True):
        torch.testing.assert_close(p.grad, g)


@pytest.mark.parametrize("where", ["none", "cpu"])
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoints_of_either_kind(reentrant: bool, where: str) -> None:
    (m, plain), (n, released) = pair(offload=where)
    handle = release_gradients(n, released, max_norm=NORM)
    others = [nn.Linear(3, 2), nn.Linear(3, 2)]
    others[1].load_state_dict(others[0].state_dict())

    def loss(net: nn.Sequential, other: nn.Module, t: int) -> torch.Tensor:
        inside = checkpoint(net[1:3], net[0](batch(t)), use_reentrant=reentrant)
        return other(net[3](inside)).square().mean()

    for t in range(3):
        loss(m, others[0], t).backward()
        expected = torch.nn.utils.clip_grad_norm_(m.parameters(), NORM)
        found = handle.backward(loss(n, others[1], t))
        assert found is not None and float(found) == pytest.approx(float(expected), rel=1e-6)
        plain.step()
        handle.step()
        plain.zero_grad()
        released.zero_grad()
        for p, q in zip(others[0].parameters(), others[1].parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad)
        for p, q in zip(m.parameters(), n.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=0, atol=1e-7)


@pytest.mark.parametrize("where", ["none", "cpu"])
def test_a_first_pass_that_raises_gives_the_gradients_back(where: str) -> None:
    _, (n, released) = pair(offload=where)
    handle = release_gradients(n, released, max_norm=NORM)
    held = torch.ones(3, 4)
    n[3].weight.grad = held
    before = weights(n)
    with pytest.raises(RuntimeError, match="does not require grad"):
        handle.backward(torch.zeros(()))
    assert n[3].weight.grad is held and all(map(torch.equal, before, weights(n)))
    handle.backward(n(batch(0)).square().mean())
    handle.step()
    assert not any(map(torch.equal, before, weights(n)))


@pytest.mark.parametrize("where", ["none", "cpu"])
@pytest.mark.parametrize("removed", [False, True])
def test_a_model_whose_handle_nobody_keeps_is_freed(removed: bool, where: str) -> None:
    _, (n, released) = pair(offload=where)
    released.release_gradients(n)
    gc.collect()
    n(batch(0)).square().mean().backward()
    assert all(p.grad is None for p in n.parameters()), "the optimizer holds the handle"
    released.step()
    if removed:
        released.stepper.handle.remove()
    seen = weakref.ref(n[0].weight)
    del n, released, _
    gc.collect()
    assert seen() is None
