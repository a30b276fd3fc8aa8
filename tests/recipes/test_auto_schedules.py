"""Schedules where the rate is found: relative to the first rate, or to the highest of a scheduler's own."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler

from automagic_cameamp import OPTIMIZERS, Automagic_CameAMP, Automagic_CameAMP8bit

STEPS = 40


def draw(seed: int) -> torch.Tensor:
    return torch.randn(6, 5, generator=torch.Generator().manual_seed(seed))


def run(optimizer: Any, p: torch.nn.Parameter, schedule: Any, steps: int = STEPS) -> list[float]:
    rates = []
    for t in range(steps):
        p.grad = p.detach() + 0.1 * draw(t)
        optimizer.step()
        rates.append(optimizer.get_learning_rates()[0])
        schedule.step()
    return rates


def made(**options: Any) -> tuple[Any, torch.nn.Parameter]:
    p = torch.nn.Parameter(draw(1000))
    return Automagic_CameAMP8bit([p], warmup_steps=10, **options), p


@pytest.mark.parametrize("engine", ["auto", "reference"])
@pytest.mark.parametrize("given", [{}, {"lr": 1.0, "lr_level": "auto"}, {"lr": 1e-5, "lr_level": "auto"}])
@pytest.mark.parametrize("top", [1e-5, 1e-3, 0.05])
def test_one_cycle_counts_relative_to_its_highest_rate(
    given: dict[str, Any], top: float, engine: str
) -> None:
    optimizer, p = made(engine=engine, **given)
    rates = run(optimizer, p, lr_scheduler.OneCycleLR(optimizer, top, STEPS + 1, cycle_momentum=False))
    plain = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    cycle = lr_scheduler.OneCycleLR(plain, 1.0, STEPS + 1, cycle_momentum=False)
    shape = []
    for _ in range(STEPS + 1):
        shape.append(plain.param_groups[0]["lr"])
        plain.step()
        cycle.step() if len(shape) <= STEPS else None
    other, q = made(engine=engine, lr=top, lr_level="auto")
    expected = run(other, q, lr_scheduler.LambdaLR(other, lambda t: shape[t]))
    assert rates == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-7)
    again, r = made(engine=engine, **given)
    again.load_state_dict(optimizer.state_dict())
    assert again.param_groups[0]["base_lr"] == top


@pytest.mark.parametrize("engine", ["auto", "reference"])
def test_a_scheduler_that_comes_later_changes_nothing(engine: str) -> None:
    optimizer, p = made(engine=engine)
    run(optimizer, p, lr_scheduler.LambdaLR(optimizer, lambda t: 1.0), 3)
    optimizer.param_groups[0]["max_lr"] = 1e-3
    run(optimizer, p, lr_scheduler.LambdaLR(optimizer, lambda t: 1.0), 3)
    assert optimizer.param_groups[0]["base_lr"] == 1e-6


@pytest.mark.parametrize("engine", ["auto", "reference"])
@pytest.mark.parametrize("kind", ["an absolute end", "cycles"])
def test_a_schedule_above_its_start_is_said_once(kind: str, engine: str) -> None:
    optimizer, p = made(engine=engine)
    schedule = {
        "an absolute end": lambda o: lr_scheduler.CosineAnnealingLR(o, STEPS, eta_min=1e-5),
        "cycles": lambda o: lr_scheduler.CyclicLR(o, 1e-5, 1e-3, 5, cycle_momentum=False),
    }[kind](optimizer)
    with pytest.warns(UserWarning, match=r"a scheduler has set lr.*multiplied too.*eta_min") as said:
        run(optimizer, p, schedule)
    assert len([w for w in said if "first value" in str(w.message)]) == 1
    assert float((p.detach() - draw(1000)).abs().max()) > 1e-4


@pytest.mark.parametrize("engine", ["auto", "reference"])
def test_a_group_that_stood_still_starts_at_what_the_others_found(engine: str) -> None:
    p, other = torch.nn.Parameter(draw(1000)), torch.nn.Parameter(draw(1000))
    groups = [{"params": [p], "lr": 0.0}, {"params": [other], "lr": 1.0}]
    optimizer = Automagic_CameAMP(groups, lr_level="auto", engine=engine)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for step in range(24):
            optimizer.param_groups[0]["lr"] = 0.0 if step < 12 else 0.5
            for q in (p, other):
                q.grad = torch.sign(q.detach())
            optimizer.step()
            if step == 11:
                assert torch.equal(p.detach(), draw(1000))
    rates = optimizer.get_learning_rates()
    assert rates[0] == pytest.approx(0.5 * rates[1], rel=1e-5)


@pytest.mark.parametrize("given", [{}, {"lr": 1.0, "lr_level": "auto"}, {"lr": 1e-3}])
def test_schedules_that_multiply_are_silent(given: dict[str, Any]) -> None:
    for schedule in (
        lambda o: lr_scheduler.CosineAnnealingLR(o, STEPS),
        lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 10),
        lambda o: lr_scheduler.LinearLR(o, 0.1, 1.0, 10),
        lambda o: lr_scheduler.OneCycleLR(o, 1e-3, STEPS + 1, cycle_momentum=False),
    ):
        p = torch.nn.Parameter(draw(1000))
        optimizer = Automagic_CameAMP([p], warmup_steps=10, **given)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            run(optimizer, p, schedule(optimizer))


@pytest.mark.parametrize("cls", [Automagic_CameAMP, Automagic_CameAMP8bit])
def test_a_run_of_an_older_version_keeps_the_momentum_that_it_had(cls: Any) -> None:
    """Before `beta1_follows_lr` beta1 always decayed to 0.4."""

    def stepped(state: Any = None, **options: Any) -> tuple[Any, torch.Tensor]:
        options = {"lr_level": "auto", **options}
        draw = torch.Generator().manual_seed(0)
        p = torch.nn.Parameter(torch.randn(8, 5, generator=draw))
        optimizer = cls([p], lr=1e-3, warmup_steps=2, beta1_decay=0.5, **options)
        if state is not None:
            optimizer.load_state_dict(state)
        for _ in range(4):
            p.grad = torch.randn(8, 5, generator=draw)
            optimizer.step()
        return optimizer, p.detach()

    old = stepped(beta1_follows_lr=False)[0].state_dict()
    documented, p = stepped(old, beta1_follows_lr=False)
    del old["param_groups"][0]["beta1_follows_lr"]
    resumed, q = stepped(old)
    assert resumed.param_groups[0]["beta1_follows_lr"] is False and torch.equal(p, q)
    again = stepped(documented.state_dict())[0]
    assert again.param_groups[0]["beta1_follows_lr"] is False


@pytest.mark.parametrize("engine", ["auto", "reference"])
@pytest.mark.parametrize("given", [{}, {"lr": 1e-3, "lr_level": "auto"}, {"lr": 1e-3}])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_momentum_follows_by_default_where_the_rate_is_found(name: str, given: Any, engine: str) -> None:
    def weights(**options: Any) -> torch.Tensor:
        p = torch.nn.Parameter(draw(1000))
        options = {"warmup_steps": 2, "beta1_decay": 0.5, "engine": engine, **given, **options}
        optimizer = OPTIMIZERS[name]([p], **options)
        run(optimizer, p, lr_scheduler.LambdaLR(optimizer, lambda t: 1 / (1 + t)), 6)
        return p.detach()

    plain, follows, documented = (weights(beta1_follows_lr=x) for x in (None, True, False))
    found = "lr" not in given or "lr_level" in given
    assert torch.equal(plain, follows if found else documented)
    assert not torch.equal(follows, documented)
