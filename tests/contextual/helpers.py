"""The two classes on the small model of every shape."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from automagic_cameamp import Automagic_CameAMP_COptim, Automagic_CameAMP_COptim8bit
from engine.helpers import differences, give_gradients, snapshot, twin_of

CLASSES = [Automagic_CameAMP_COptim, Automagic_CameAMP_COptim8bit]
both = pytest.mark.parametrize("cls", CLASSES, ids=["32bit", "8bit"])
KEY = "c_optim"


def build(cls: Any, params: Any, **options: Any) -> Any:
    return cls(params, **{"lr": 5e-4, "warmup_steps": 7, "weight_decay": 0.1, **options})


def copies(params: list[Tensor]) -> list[Tensor]:
    return [twin_of(p) for p in params]


def go(optimizer: Any, params: list[Tensor], steps: range, losses: bool = True) -> None:
    for t in steps:
        give_gradients(params, t)
        optimizer.step(loss=2.0 + math.sin(t) if losses and t % 3 else None)


def same_run(a: Any, b: Any) -> None:
    assert differences(snapshot(a), snapshot(b)) == []
    assert torch.equal(a.c_optim.memory, b.c_optim.memory)
