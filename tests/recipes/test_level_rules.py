"""Rules that find the level of the rate: growth, balance, and what they leave alone."""

from __future__ import annotations

import pytest
import torch

from automagic_cameamp import Automagic_CameAMP
from reference import drive
from reference.draws import normal


def level(optimizer, p):
    return float(optimizer.state[p]["lr_level"])


def quadratic(level_rule, lr, steps, seed=0, noise=0.0, **options):
    """Minimise a badly scaled quadratic, lr falling to 0 over the second half; losses and levels."""
    p = torch.nn.Parameter(torch.zeros(16, 24))
    target = normal((16, 24), seed).float()
    curvature = normal((16, 24), seed + 1).exp().float()
    options = {"full_finetune": True, "warmup_steps": 50, "max_lr": 10.0, "min_lr": 1e-12, **options}
    optimizer = Automagic_CameAMP([p], lr=lr, lr_level=level_rule, **options)
    losses, levels = [], []
    for t in range(steps):
        error = p.detach() - target
        losses.append(float((curvature * error.square()).sum()))
        p.grad = curvature * error + noise * normal((16, 24), 1000 + t).float()
        optimizer.param_groups[0]["lr"] = lr * min(1.0, 2 - 2 * t / steps)
        optimizer.step()
        levels.append(level(optimizer, p) if level_rule != "fixed" else 1.0)
    return losses, levels


@pytest.mark.parametrize("lr", [1e-6, 1e-5, 1e-4])
def test_distance_grows_from_any_small_start_and_solves_a_quadratic(lr):
    losses, levels = quadratic("distance", lr, 500)
    assert losses[-1] < 1e-4 * losses[0]
    # Within a small factor of the true distance per element, whatever the start was.
    assert 0.1 < levels[-1] * lr < 10
    fixed, _ = quadratic("fixed", lr, 500)
    assert losses[-1] < 0.1 * fixed[-1], "a fixed small rate gets nowhere"


def test_distance_never_falls():
    for noise in (0.0, 3.0):
        _, levels = quadratic("distance", 1e-4, 200, noise=noise)
        assert levels[0] == 1.0
        assert all(b >= a for a, b in zip(levels, levels[1:], strict=False))


def test_distance_starts_at_a_quarter_of_the_rate():
    p = torch.nn.Parameter(torch.zeros(5, 7))
    options = {"lr": 1e-3, "full_finetune": True, "weight_decay": 0.0, "warmup_steps": 0}
    optimizer = Automagic_CameAMP([p], lr_level="distance", **options)
    p.grad = normal((5, 7), 0).float()
    optimizer.step()
    assert optimizer.get_learning_rates() == pytest.approx([0.25e-3], rel=1e-5)


def test_distance_under_pure_noise_stays_small():
    p = torch.nn.Parameter(torch.zeros(40, 40))
    optimizer = Automagic_CameAMP([p], lr=1e-6, lr_level="distance", full_finetune=True, warmup_steps=0)
    for t in range(300):
        p.grad = normal((40, 40), t).float()
        optimizer.step()
    assert level(optimizer, p) * 1e-6 < 1e-4


def test_distance_keeps_the_ratios_of_the_groups():
    params = drive.parameters([(8, 8), (8, 8), (8, 8)])
    groups = [{"params": [p], "lr": lr} for p, lr in zip(params, (1e-6, 3e-6, 1e-7), strict=True)]
    options = {
        "lr_level": "distance",
        "max_lr": 1.0,
        "min_lr": 0.0,
        "full_finetune": True,
        "lr_mask_rule": "none",
    }
    optimizer = Automagic_CameAMP(groups, **options)
    target = normal((8, 8), 7).float()
    for _ in range(60):
        for p in params:
            p.grad = p.detach() - target
        optimizer.step()
    a, b, c = optimizer.get_learning_rates()
    assert b / a == pytest.approx(3, rel=1e-4) and a / c == pytest.approx(10, rel=1e-4)
    assert a > 1e-6, "the level never grew, so its ratios say nothing"
    assert len({level(optimizer, p) for p in params}) == 1


def test_distance_is_one_number_even_where_gradients_come_late():
    """A parameter that joins late starts from the level that the others have found."""
    params = drive.parameters([(8, 8), (8, 8)])
    optimizer = Automagic_CameAMP(params, lr=1e-5, lr_level="distance", max_lr=1.0, full_finetune=True)
    for t in range(60):
        for p in params[: 1 if t < 50 else 2]:
            p.grad = p.detach() - 1.0
        optimizer.step()
    assert level(optimizer, params[0]) > 10
    assert level(optimizer, params[1]) == level(optimizer, params[0])


VOTE = {"lr_level": "vote", "max_lr": 1e9, "min_lr": 0.0, "full_finetune": True, "warmup_steps": 0}


def vote_run(gradient, steps, count=1, lr=1e-3):
    params = [torch.nn.Parameter(torch.zeros(40, 40)) for _ in range(count)]
    optimizer = Automagic_CameAMP(params, lr=lr, **VOTE)
    levels = []
    for t in range(1, steps + 1):
        for i, p in enumerate(params):
            p.grad = gradient(t, i)
        optimizer.step()
        levels.append([level(optimizer, p) for p in params])
    return optimizer, params, levels


def test_vote_has_no_drift_under_noise():
    """200 steps of 1600 elements: each vote has a spread of about .004, the walk one of .06."""
    _, _, levels = vote_run(lambda t, i: normal((40, 40), 31 * t).float(), 300)
    assert abs(levels[-1][0]) < 0.25
    assert any(levels[-1])


def test_vote_rises_with_agreement_and_falls_with_alternation():
    g = normal((40, 40), 0).float()
    _, _, up = vote_run(lambda t, i: g, 30)
    _, _, down = vote_run(lambda t, i: g * (-1.0) ** t, 30)
    # Eight signs are needed, and a vote counts one step later; then it is one per step.
    assert [x[0] for x in up] == pytest.approx([0.0] * 8 + list(range(1, 23)))
    assert [x[0] for x in down] == pytest.approx([0.0] * 8 + list(range(-1, -23, -1)))


def test_vote_of_one_group_leaves_the_other_alone():
    g = normal((40, 40), 0).float()
    a, b = (torch.nn.Parameter(torch.zeros(40, 40)) for _ in range(2))
    optimizer = Automagic_CameAMP([{"params": [a]}, {"params": [b]}], lr=1e-3, **VOTE)
    for t in range(20):
        a.grad, b.grad = g, g * (-1.0) ** t
        optimizer.step()
    assert level(optimizer, a) > 5 and level(optimizer, b) < -5


def test_vote_goes_on_where_a_parameter_stops():
    """The level of a parameter that gets no gradients any more must not hold up the others."""
    g = normal((40, 40), 0).float()

    def alternate(t, i):
        return None if i == 1 and t > 15 else g * (-1.0) ** t

    _, _, levels = vote_run(alternate, 60, count=2)
    assert levels[-1][0] == pytest.approx(-52)


def test_vote_is_joined_by_a_late_parameter():
    g = normal((40, 40), 0).float()
    params = [torch.nn.Parameter(torch.zeros(40, 40)) for _ in range(2)]
    optimizer = Automagic_CameAMP(params, lr=1e-3, **VOTE)
    for t in range(1, 61):
        params[0].grad = g * (-1.0) ** t
        params[1].grad = g * (-1.0) ** t if t > 30 else None
        optimizer.step()
    assert level(optimizer, params[0]) == level(optimizer, params[1]) < -40


def test_a_bad_gradient_does_not_stop_the_vote():
    g = normal((40, 40), 0).float()

    def broken(t, i):
        return g * float("nan") if i == 1 and t == 20 else g * (-1.0) ** t

    _, _, levels = vote_run(broken, 40, count=2)
    assert levels[-1][0] < -25 and levels[-1][0] == levels[-1][1]


@pytest.mark.parametrize("given", [{}, {"max_lr": 1e-2}])
@pytest.mark.parametrize("rule", ["vote", "distance"])
def test_a_level_at_the_cap_still_obeys_the_schedule(rule, given):
    """What grew on behind the cap hid a schedule to 0, and let nothing fall for as long as it had grown."""
    p = torch.nn.Parameter(torch.zeros(40, 40))
    optimizer = Automagic_CameAMP([p], lr=1e-5, lr_level=rule, warmup_steps=0, full_finetune=True, **given)
    cap = given.get("max_lr", 1e-3)
    g, applied = normal((40, 40), 0).float(), []
    for t in range(200):
        optimizer.param_groups[0]["lr"] = 1e-5 * (1 - t / 200)
        p.grad = g
        optimizer.step()
        applied.append(optimizer.get_avg_learning_rate())
    assert max(applied) <= cap * (1 + 1e-6)
    assert max(applied) > 0.5 * cap, "it gets there"
    assert applied[-1] == pytest.approx(0.005 * cap, rel=0.05)
