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


def shape_of_one_cycle() -> list[float]:
    plain = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    cycle = lr_scheduler.OneCycleLR(plain, 1.0, STEPS + 1, cycle_momentum=False)
    shape: list[float] = []
    for _ in range(STEPS + 1):
        shape.append(plain.param_groups[0]["lr"])
        plain.step()
        cycle.step() if len(shape) <= STEPS else None
    return shape


@pytest.mark.parametrize("engine", ["auto", "reference"])
@pytest.mark.parametrize("given", [{}, {"lr": 1.0, "lr_level": "auto"}, {"lr": 1e-5, "lr_level": "auto"}])
@pytest.mark.parametrize("top", [1e-5, 1e-3, 0.05])
def test_one_cycle_counts_relative_to_its_highest_rate(
    given: dict[str, Any], top: float, engine: str
) -> None:
    optimizer, p = made(engine=engine, **given)
    rates = run(optimizer, p, lr_scheduler.OneCycleLR(optimizer, top, STEPS + 1, cycle_momentum=False))
    shape = shape_of_one_cycle()
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
        "cycles": lambda o: lr_scheduler.CyclicLR(o, 1e-5, 5e-5, 5, cycle_momentum=False),
    }[kind](optimizer)
    with pytest.warns(UserWarning, match=r"lr is .* now.*multiplied too.*eta_min") as said:
        run(optimizer, p, schedule)
    assert len([w for w in said if "first value" in str(w.message)]) == 1
    assert float((p.detach() - draw(1000)).abs().max()) > 1e-4


@pytest.mark.parametrize("engine", ["auto", "reference"])
def test_a_second_cycle_counts_relative_to_its_highest_rate(engine: str) -> None:
    """Relative to the first rate it multiplied what was found by a thousand."""
    optimizer, p = made(engine=engine)
    run(optimizer, p, lr_scheduler.LambdaLR(optimizer, lambda t: 1.0))
    rates = run(optimizer, p, lr_scheduler.OneCycleLR(optimizer, 1e-3, STEPS + 1, cycle_momentum=False))
    assert optimizer.param_groups[0]["base_lr"] == 1e-3
    other, q = made(engine=engine, lr=1.0, lr_level="auto")
    run(other, q, lr_scheduler.LambdaLR(other, lambda t: 1.0))
    shape = shape_of_one_cycle()
    expected = run(other, q, lr_scheduler.LambdaLR(other, lambda t: shape[t]))
    assert rates == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("engine", ["auto", "reference"])
@pytest.mark.parametrize("before", [0, 3])
def test_what_would_end_in_infinity_is_refused(before: int, engine: str) -> None:
    """As a program does that writes its own rate back after it has loaded a checkpoint."""
    optimizer, p = made(engine=engine, lr=1e-4, lr_level="auto")
    run(optimizer, p, lr_scheduler.LambdaLR(optimizer, lambda t: 1.0), before)
    optimizer.param_groups[0]["lr"] = 1.0
    held, p.grad = p.detach().clone(), draw(1)
    for _ in range(2):
        with pytest.raises(
            ValueError, match=r"lr is 1 now.*first value was 0.0001.*leave lr as it was loaded"
        ):
            optimizer.step()
        assert torch.equal(held, p.detach())
    optimizer.param_groups[0]["lr"] = 1e-4
    optimizer.step()
    assert not torch.equal(held, p.detach())


@pytest.mark.parametrize(
    ("given", "left_out"), [(4.0, 1.0), (0.5, 1.0), (1.0, 1.0), (1e-4, 1e-4), (1e-8, 1e-8), (0.0, 1e-6)]
)
def test_a_group_without_a_rate_beside_one_that_has_it(given: float, left_out: float) -> None:
    """Its factor is 1, not a millionth of the others'."""
    for swap in (False, True):
        groups: list[dict[str, Any]] = [
            {"params": [torch.nn.Parameter(draw(1))], "lr": given},
            {"params": [torch.nn.Parameter(draw(2))]},
        ]
        optimizer = Automagic_CameAMP8bit(groups[::-1] if swap else groups, lr_level="auto")
        found = [(g["lr"], g["base_lr"]) for g in optimizer.param_groups]
        assert found[swap] == (given, given) and found[not swap] == (left_out, left_out)
        optimizer.add_param_group({"params": [torch.nn.Parameter(draw(3))]})
        late = optimizer.param_groups[2]
        assert (late["lr"], late["base_lr"]) == (left_out, left_out)
    both = Automagic_CameAMP8bit([{"params": [torch.nn.Parameter(draw(1))], "lr": 1e-3}])
    both.add_param_group({"params": [torch.nn.Parameter(draw(2))]})
    assert [g["lr_level"] for g in both.param_groups] == ["fixed", "auto"]
    assert both.param_groups[1]["lr"] == 1e-6


@pytest.mark.parametrize("engine", ["auto", "reference"])
def test_a_group_that_comes_during_a_cycle_gets_the_rate_that_was_found(engine: str) -> None:
    optimizer, p = made(engine=engine)
    cycle = lr_scheduler.OneCycleLR(optimizer, 1e-3, 2 * STEPS, cycle_momentum=False)
    run(optimizer, p, cycle)
    late = torch.nn.Parameter(draw(3))
    optimizer.add_param_group({"params": [late]})
    p.grad, late.grad = draw(4), draw(5)
    optimizer.step()
    assert optimizer.param_groups[1]["base_lr"] == 1e-3
    one, other = optimizer.get_learning_rates()
    assert 0.2 < one / other < 5


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
