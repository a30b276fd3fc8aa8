"""The applied rates for loggers."""

from __future__ import annotations

import doctest
import types
from typing import Any

import pytest
import torch

import automagic_cameamp
from automagic_cameamp import Automagic_CameAMP
from automagic_cameamp.integrations import rates
from automagic_cameamp.integrations.rates import applied_rates


def test_the_example() -> None:
    found = {"torch": torch, "automagic_cameamp": automagic_cameamp}
    assert doctest.testmod(rates, extraglobs=found).failed == 0


def stepped(**options: Any) -> Automagic_CameAMP:
    torch.manual_seed(0)
    groups = [{"params": [torch.nn.Parameter(torch.randn(8, 8))], "lr": lr} for lr in (1e-4, 3e-4)]
    groups[1]["name"] = "text encoder"
    optimizer = Automagic_CameAMP(groups, **options)
    for group in groups:
        group["params"][0].grad = torch.randn(8, 8)
    optimizer.step()
    return optimizer


def test_scheduled_and_applied_of_every_group() -> None:
    optimizer = stepped(lr=1e-4)
    told = applied_rates(types.SimpleNamespace(optimizer=optimizer), "lr")  # in accelerate's wrapper
    assert told["lr/scheduled"] == pytest.approx(2e-4)
    rates = optimizer.get_learning_rates()
    assert told["lr/applied"] == pytest.approx(sum(rates) / 2)
    assert (told["lr/applied/0"], told["lr/applied/text encoder"]) == pytest.approx(tuple(rates))
    assert told["lr/applied/text encoder"] > told["lr/applied/0"] > 0


def test_other_optimizers_have_none() -> None:
    assert applied_rates(torch.optim.SGD([torch.nn.Parameter(torch.zeros(2))], lr=1.0)) == {}
