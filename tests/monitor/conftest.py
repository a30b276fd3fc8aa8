"""A small model under each optimizer that has something to show."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import automagic_cameamp

Make = Callable[..., Any]


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(96, 64), nn.SiLU(), nn.Linear(64, 10))


def loss_of(model: nn.Module, salt: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(salt)
    x = torch.randn(16, 96, generator=generator)
    return (model(x) - x[:, :10]).square().mean()


def train(model: nn.Module, optimizer: Any, steps: int, start: int = 0) -> list[float]:
    losses = []
    for step in range(start, start + steps):
        optimizer.zero_grad()
        loss = loss_of(model, step)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


@pytest.fixture
def model() -> nn.Module:
    return network()


@pytest.fixture
def make(model: nn.Module) -> Make:
    """make("Automagic_CameAMP_8Bit", steps=3, **options) -> that optimizer on `model`, after some steps."""

    def build(name: str = "Automagic_CameAMP_8Bit", steps: int = 0, **options: Any) -> Any:
        values = {"lr": 1e-3, "max_lr": 1e-2, "warmup_steps": 20, **options}
        optimizer = getattr(automagic_cameamp, name)(model.named_parameters(), **values)
        train(model, optimizer, steps)
        return optimizer

    return build
