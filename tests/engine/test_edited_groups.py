"""Groups that a program edits by hand, as it may with AdamW: parameters keep their state and their kind."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from automagic_cameamp import (
    Automagic_CameAMP,
    Automagic_CameAMP8bit,
    Automagic_CameAMP_COptim8bit,
    Automagic_CameAMP_Improved_8Bit,
)
from engine.helpers import parameters
from engine.helpers import train as trained

Groups = list[dict[str, Any]]


class Pair(nn.Module):
    """What shapes alone say is a LoRA."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(64, 4, bias=False), nn.Linear(4, 64, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.up(self.down(x))


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(Pair(), Pair(), nn.Linear(64, 64), nn.LayerNorm(64))


def groups_of(net: nn.Sequential) -> Groups:
    return [
        {"params": list(net[:2].parameters())},
        {"params": list(net[2:3].parameters())},
        {"params": list(net[3:].parameters())},
    ]


def train(net: nn.Module, optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
    for step in range(first, last):
        x = torch.randn(16, 64, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        (net(x) - 1).square().mean().backward()
        optimizer.step()


def forget(optimizer: Any, group: dict[str, Any]) -> None:
    for p in group["params"]:
        optimizer.state.pop(p, None)


def drop_last(optimizer: Any) -> None:
    forget(optimizer, optimizer.param_groups.pop())


def drop_first(optimizer: Any) -> None:
    forget(optimizer, optimizer.param_groups.pop(0))


def drop_and_add(optimizer: Any) -> None:
    group = optimizer.param_groups.pop(1)
    forget(optimizer, group)
    optimizer.add_param_group({"params": group["params"]})


def start_over(optimizer: Any) -> None:
    groups = list(optimizer.param_groups)
    optimizer.param_groups.clear()
    optimizer.state.clear()
    for group in groups:
        optimizer.add_param_group({"params": group["params"]})


def merge(optimizer: Any) -> None:
    first = optimizer.param_groups[0]
    optimizer.param_groups = [{**first, "params": [p for g in optimizer.param_groups for p in g["params"]]}]


def split(optimizer: Any) -> None:
    group = optimizer.param_groups[1]
    optimizer.param_groups.append({**group, "params": [group["params"].pop()]})


def drop_weight(optimizer: Any) -> None:
    optimizer.state.pop(optimizer.param_groups[0]["params"].pop(0), None)


EDITS = [drop_last, drop_first, drop_and_add, start_over, merge, split, drop_weight]
CLASSES = [Automagic_CameAMP, Automagic_CameAMP_COptim8bit, Automagic_CameAMP_Improved_8Bit]


@pytest.mark.parametrize("edit", EDITS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("before", [0, 3])
def test_training_and_reports_go_on(cls: Any, before: int, edit: Callable[[Any], None]) -> None:
    net = model()
    optimizer: Any = cls(groups_of(net), engine="reference" if before else "auto")
    train(net, optimizer, 0, before)
    edit(optimizer)
    left = [p for group in optimizer.param_groups for p in group["params"]]
    at = [p.detach().clone() for p in left]
    train(net, optimizer, before, before + 3)
    assert all(p.isfinite().all() and not torch.equal(p, old) for p, old in zip(left, at, strict=True))
    assert optimizer.lora_report().parameters == len(left)
    assert optimizer.get_memory_stats() and optimizer.planned_memory() and optimizer.engine_report()
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(net, optimizer, before + 3, before + 4)


@pytest.mark.parametrize("engine", ["reference", "native"])
def test_the_order_of_groups_changes_nothing(engine: str) -> None:
    """State goes with a parameter; so does what its shape once said."""
    nets = [model(), model()]
    for net, turn in zip(nets, (False, True), strict=True):
        optimizer: Any = Automagic_CameAMP(groups_of(net), lr=1e-3, engine=engine)
        train(net, optimizer, 0, 3)
        assert optimizer.lora_report().by_shape == 4
        if turn:
            optimizer.param_groups.reverse()
            optimizer.param_groups[-1]["params"].reverse()
        train(net, optimizer, 3, 8)
        assert optimizer.lora_report().by_shape == 4
    for one, other in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_what_is_left_of_a_lora_stays_one() -> None:
    net = model()
    optimizer: Any = Automagic_CameAMP(groups_of(net), lr=1e-3)
    train(net, optimizer, 0, 2)
    drop_weight(optimizer)
    train(net, optimizer, 2, 4)
    assert optimizer.lora_report().by_shape == 3


def test_a_copy_knows_its_lora_wherever_it_is_moved() -> None:
    net = model()
    optimizer: Any = Automagic_CameAMP(groups_of(net), lr=1e-3)
    train(net, optimizer, 0, 2)
    twin = copy.deepcopy(optimizer)
    lora = set(map(id, twin.param_groups[0]["params"]))
    twin.lora_report()
    twin.param_groups.reverse()
    kinds = twin.adapters.kinds(twin.param_groups, True)
    found = {
        id(p)
        for g, of in zip(twin.param_groups, kinds, strict=True)
        for p, kind in zip(g["params"], of, strict=True)
        if kind
    }
    assert found == lora


@pytest.mark.parametrize("given", [{"lr": 1e-3}, {}])
@pytest.mark.parametrize("cls", [Automagic_CameAMP8bit, Automagic_CameAMP_Improved_8Bit])
def test_what_was_taken_out_has_no_part_in_the_others_rates(cls: Any, given: dict[str, float]) -> None:
    """Its state is still there, as with AdamW; the kernels went on counting its mask."""
    ends = {}
    for engine in ("native", "reference"):
        net = model()
        optimizer = cls(groups_of(net), engine=engine, **given)
        train(net, optimizer, 0, 3)
        net[:2].requires_grad_(False)
        optimizer.param_groups.pop(0)
        train(net, optimizer, 3, 40)
        ends[engine] = optimizer.get_learning_rates()
    assert ends["native"] == pytest.approx(ends["reference"], rel=2e-3)


@pytest.mark.parametrize("engine", ["auto", "reference"])
def test_a_rate_that_rises_above_its_cap_is_told_once(engine: str) -> None:
    """A schedule, or a program, may go where the constructor's check did not see it."""
    params = parameters()
    optimizer = Automagic_CameAMP8bit(params, lr=1e-3, max_lr=1e-2, engine=engine)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for step, lr in enumerate([1e-3, 1e-2], 1):
            optimizer.param_groups[0]["lr"] = lr
            trained(optimizer, params, range(step, step + 1))
    optimizer.param_groups[0]["lr"] = 0.5
    with pytest.warns(UserWarning, match=r"lr is 0\.5 now, above max_lr=0\.01: no rate is above 0\.01\."):
        trained(optimizer, params, range(3, 4))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.param_groups[0]["lr"] = 0.6
        trained(optimizer, params, range(4, 5))
