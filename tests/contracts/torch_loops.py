"""The small problem on which torch's suite drives its optimizers."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from automagic_cameamp.configs import engine_options
from contracts.torch_infos import OPTIM_DB

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from torch.testing._internal.common_optimizers import _get_optim_inputs_including_global_cliquey_kwargs

CLIQUES = ("foreach", "fused", "differentiable")
EACH = pytest.mark.parametrize("info", OPTIM_DB, ids=lambda info: info.name)


def inputs(info: Any) -> Iterator[dict[str, Any]]:
    """Arguments of each configuration, with the implementations that the entry names (there are none)."""
    for found in _get_optim_inputs_including_global_cliquey_kwargs("cpu", torch.float32, info):
        yield dict(found.kwargs)


def some(info: Any) -> list[dict[str, Any]]:
    """The first and the last of ``inputs``: for checks that hardly depend on the arguments."""
    every = list(inputs(info))
    return [every[0], every[-1]]


def linear(contiguous: bool = True) -> tuple[nn.Parameter, nn.Parameter, Tensor]:
    generator = torch.Generator().manual_seed(2)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float32)

    if contiguous:
        weight, bias = draw(10, 5), draw(10)
    else:
        weight = draw(10, 5, 2)[..., 0]
        bias = draw(10, 2)[..., 0]
        assert not weight.is_contiguous() and not bias.is_contiguous()
    return nn.Parameter(weight), nn.Parameter(bias), draw(5)


def closure(optimizer: Any, weight: Tensor, bias: Tensor, x: Tensor) -> Tensor:
    optimizer.zero_grad()
    loss = (weight.mv(x) + bias).square().sum()
    loss.backward()
    return loss


def apart(info: Any, kwargs: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options of the optimizer as a whole, and options of a group."""
    whole = engine_options(info.optim_cls.config_class)
    return {k: v for k, v in kwargs.items() if k in whole}, {
        k: v for k, v in kwargs.items() if k not in whole
    }


def advance(schedulers: list[Any], loss: Tensor) -> None:
    for scheduler in schedulers:
        scheduler.step(loss) if isinstance(scheduler, ReduceLROnPlateau) else scheduler.step()
