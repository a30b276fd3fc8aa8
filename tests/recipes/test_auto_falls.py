"""What a rate that is found does where a schedule falls, is set lower, begins again, or cannot begin."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler

from automagic_cameamp import Automagic_CameAMP, Automagic_CameAMP8bit
from automagic_cameamp import techniques as T

ENGINES = pytest.mark.parametrize("engine", ["auto", "reference"])
TARGET = torch.randn(32, 32, generator=torch.Generator().manual_seed(5)) / 6


def network() -> torch.nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return torch.nn.Sequential(torch.nn.Linear(32, 64), torch.nn.GELU(), torch.nn.Linear(64, 32))


def trained(optimizer: Any, net: torch.nn.Module, steps: range, schedule: Any = None) -> list[list[float]]:
    """What was applied, step by step: of each group."""
    rates = []
    for t in steps:
        x = torch.randn(32, 32, generator=torch.Generator().manual_seed(t))
        optimizer.zero_grad()
        (net(x) - torch.tanh(x @ TARGET)).square().mean().backward()
        optimizer.step()
        rates.append([float(group["d"]) * float(group["lr"]) for group in optimizer.param_groups])
        if schedule is not None:
            schedule.step()
    return rates


def two_groups(net: Any) -> list[dict[str, Any]]:
    return [{"params": list(layer.parameters())} for layer in (net[0], net[2])]


@ENGINES
@pytest.mark.parametrize("factor", [0.9, 0.5, 0.1])
def test_what_is_set_lower_is_applied_lower(factor: float, engine: str) -> None:
    net = network()
    optimizer = Automagic_CameAMP8bit(net.parameters(), engine=engine)
    before = trained(optimizer, net, range(120))[-1][0]
    optimizer.param_groups[0]["lr"] *= factor
    now = trained(optimizer, net, range(120, 121))[0][0]
    assert now == pytest.approx(factor * before, rel=0.04)  # a step of the level on top
    optimizer.param_groups[0]["lr"] /= factor
    assert trained(optimizer, net, range(121, 122))[0][0] == pytest.approx(before, rel=0.08)


@ENGINES
def test_groups_keep_the_ratio_that_their_schedules_have(engine: str) -> None:
    net = network()
    optimizer = Automagic_CameAMP8bit(two_groups(net), engine=engine)
    factors: list[Callable[[int], float]] = [lambda t: 1 - t / 100, lambda t: 0.1 * (1 - t / 100)]
    for one, other in trained(optimizer, net, range(80), lr_scheduler.LambdaLR(optimizer, factors)):
        assert other == pytest.approx(0.1 * one, rel=1e-5)


@pytest.mark.parametrize("length", [20, 30, 45, 60])
def test_a_schedule_that_begins_again_in_the_take_off_hides_no_growth(length: int) -> None:
    """At the bottom of a cycle the level grew 1.2-fold per step, unseen, and all of it acted at its top."""
    rates = {}
    for name, made in (
        ("constant", lambda o: lr_scheduler.LambdaLR(o, lambda t: 1.0)),
        ("cycles", lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, length)),
    ):
        net = network()
        optimizer = Automagic_CameAMP8bit(net.parameters())
        rates[name] = max(trained(optimizer, net, range(150), made(optimizer)))[0]
    # Twice from what a fall adds.
    assert 0.3 * rates["constant"] < rates["cycles"] < 2.5 * rates["constant"]


def begun(**others: float) -> T.Level:
    return T.Level(500.0, 1e-3, 0.0, 0.0, 400.0, 0.1, -1.0, 1.0)._replace(**others)


def after(level: T.Level, *schedule: float) -> tuple[T.Level, float]:
    """The level after these steps, in which nothing was seen, and what is applied in the last."""
    for s in schedule:
        level = T.steer(level, (0.0, 0.0, 0.0), s)
    return level, float(T.lifted(level, schedule[-1]) * schedule[-1])


def test_a_fall_in_small_steps_is_lifted_and_a_jump_is_not() -> None:
    fall = [1 - t / 100 for t in range(91)]
    applied = [after(begun(), *fall[: n + 1])[1] for n in range(len(fall))]
    assert max(applied) == pytest.approx(49 / 24 * 1e-3, rel=1e-3)  # at 7 / 12
    assert applied[90] == pytest.approx(applied[82] * fall[90] / fall[82], rel=1e-3)  # steps are large there
    for factor in (0.94, 0.5, 0.01):
        assert after(begun(), 1.0, factor)[1] == pytest.approx(factor * 1e-3)
        half, was = after(begun(), *fall[:41])
        assert after(half, factor * fall[40])[1] == pytest.approx(factor * was)
    # Twice set lower, and back.
    level, _ = after(begun(), 0.5, 0.25)
    assert float(level.top) == 0.25
    assert after(level, 1.0)[1] == pytest.approx(1e-3)


def test_a_level_of_an_older_version_knows_no_schedule_of_its_last_step() -> None:
    """Where the last schedule stands there was a 1 once the take-off had ended, a 0 before."""
    assert float(after(begun(minus=1.0), 0.5)[0].top) == 1.0
    assert float(after(begun(minus=0.0, since=0.0), 0.5)[0].top) == 1.0
    assert after(begun(minus=1.0), 0.5)[1] == pytest.approx(2e-3)


def test_growth_slows_with_the_schedule_in_the_take_off() -> None:
    flying = T.Level(20.0, 1e-4, 1.0, 1.0, 0.0, 1.0, -1.0, 1.0)
    for s in (1.0, 0.97, 1.3, 0.0):
        grown = T.steer(flying, (1.0, 1.0, 1.0), s)
        assert float(grown.value) == pytest.approx(1e-4 * (1.2 if s else 1.0))
    # Set lower, it is the new 1; in the large steps of a cycle's bottom it is not.
    assert float(T.steer(flying, (1.0, 1.0, 1.0), 0.5).value) == pytest.approx(1.2e-4)
    fallen = flying._replace(minus=-0.2)
    assert float(T.steer(fallen, (1.0, 1.0, 1.0), 0.1).value) == pytest.approx(1e-4 * 1.2**0.2)


@ENGINES
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_rounds_to_nothing_at_first_grows_until_it_moves(dtype: torch.dtype, engine: str) -> None:
    size = 100.0 if dtype == torch.float32 else 1.0
    p = torch.nn.Parameter(torch.full((16, 16), size, dtype=dtype))
    optimizer = Automagic_CameAMP([p], stochastic_rounding=False, engine=engine)
    for _ in range(80):
        p.grad = (p.detach() - 0.9 * size).to(dtype)
        optimizer.step()
    assert float(p.detach().float().mean()) < 0.9999 * size
    assert float(optimizer.param_groups[0]["d"]) * 1e-6 > 1e-4


def test_what_has_no_rate_does_not_grow() -> None:
    for s in (0.0, 1.0):
        level = T.Level(20.0, 1e-4, 0.0, 0.0, 0.0, 0.0, 0.0, s)  # the last step had no rate
        assert float(T.steer(level, (0.0, 1.0, 0.0), s).value) == 1e-4
    level = T.Level(20.0, 1e-4, 0.0, 0.0, 0.0, 0.0, -1.0, 1.0)
    assert float(T.steer(level, (0.0, 0.0, 0.0), 1.0).value) == 1e-4, "no gradient"
    assert float(T.steer(level, (0.0, 1.0, 0.0), 1.0).value) == pytest.approx(1.2e-4)


@ENGINES
@pytest.mark.parametrize("first, late", [(1.0, 10.0), (1.0, 0.1), (0.2, 1.0)])
def test_a_group_that_joins_leaves_the_others_what_they_found(first: float, late: float, engine: str) -> None:
    net = network()
    found = {"lr_level": "auto", "engine": engine}
    optimizer = Automagic_CameAMP8bit(net[0].parameters(), lr=first, **found)
    before = trained(optimizer, net, range(60))[-1][0]
    optimizer.add_param_group({"params": list(net[2].parameters()), "lr": late, "lr_level": "auto"})
    one, other = trained(optimizer, net, range(60, 61))[0]
    assert one == pytest.approx(before, rel=0.07)
    assert other == pytest.approx(one * late / first, rel=1e-5)


def test_a_group_that_was_never_updated_reports_the_rate_that_it_will_have() -> None:
    net = network()
    optimizer = Automagic_CameAMP8bit(net[0].parameters(), lr=1.0, lr_level="auto")
    assert optimizer.get_learning_rates() == pytest.approx([1e-6])
    trained(optimizer, net, range(60))
    optimizer.add_param_group({"params": list(net[2].parameters()), "lr": 0.5, "lr_level": "auto"})
    group = optimizer.param_groups[1]
    assert optimizer.get_learning_rates()[1] == pytest.approx(float(group["d"]) * 0.5)
