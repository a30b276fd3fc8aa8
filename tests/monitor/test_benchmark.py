"""benchmark_optimizer: a time, and nothing left behind."""

from __future__ import annotations

import copy
import io
import time
from typing import Any

import pytest
import torch
from torch import nn

from automagic_cameamp.monitor import benchmark_optimizer

from .conftest import loss_of, train


def snapshot(model: nn.Module, optimizer: Any) -> Any:
    return copy.deepcopy((model.state_dict(), optimizer.state_dict(), [p.grad for p in model.parameters()]))


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.mark.parametrize("steps", [0, 3])
@pytest.mark.parametrize("name", ["Automagic_CameAMP_8Bit", "Automagic_CameAMP_Improved_8Bit"])
def test_everything_is_put_back(make: Any, model: nn.Module, name: str, steps: int) -> None:
    optimizer = make(name, steps=steps)
    before = snapshot(model, optimizer)
    generator = torch.get_rng_state()
    out = io.StringIO()
    seconds = benchmark_optimizer(model, optimizer, 2, file=out)
    assert seconds > 0 and f"{seconds * 1000:.2f} ms" in out.getvalue()
    assert same(snapshot(model, optimizer), before)
    assert torch.equal(torch.get_rng_state(), generator)
    train(model, optimizer, 1, start=steps)  # and it goes on


def test_put_back_after_an_error_too(make: Any, model: nn.Module) -> None:
    optimizer = make(steps=2)
    before = snapshot(model, optimizer)
    calls = []

    def fails_later(m: nn.Module) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 5:
            raise RuntimeError("out of memory")
        return loss_of(m)

    with pytest.raises(RuntimeError, match="out of memory"):
        benchmark_optimizer(model, optimizer, 10, loss_fn=fails_later)
    assert same(snapshot(model, optimizer), before)


def test_it_times_the_steps_asked_for(make: Any, model: nn.Module) -> None:
    calls = []

    def slow(m: nn.Module) -> torch.Tensor:
        calls.append(1)
        time.sleep(0.02)
        return loss_of(m)

    seconds = benchmark_optimizer(model, make(), 4, loss_fn=slow, file=io.StringIO())
    assert len(calls) == 3 + 4 and seconds >= 0.02


def test_other_optimizers_can_be_timed(model: nn.Module) -> None:
    optimizer = torch.optim.AdamW(model.parameters())
    before = copy.deepcopy(model.state_dict())
    assert benchmark_optimizer(model, optimizer, 1, file=io.StringIO()) > 0
    assert same(model.state_dict(), before)


def test_buffers_are_put_back_and_the_mode_kept() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8))
    before = copy.deepcopy(model.state_dict())
    benchmark_optimizer(model, torch.optim.SGD(model.parameters(), 0.1), 1, file=io.StringIO())
    assert same(model.state_dict(), before) and model.training


def test_bad_input(make: Any, model: nn.Module) -> None:
    with pytest.raises(ValueError, match="num_steps=0"):
        benchmark_optimizer(model, make(), 0)
    odd = nn.Sequential(nn.Linear(8, 8), nn.Flatten(0))
    with pytest.raises(ValueError, match="pass a loss_fn"):
        benchmark_optimizer(odd, torch.optim.SGD(odd.parameters(), 0.1))
