"""Running means, torque-aware momentum, and the schedule of the momentum coefficient."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from automagic_cameamp import schedule
from automagic_cameamp import techniques as T
from automagic_cameamp.types import Scalars
from reference import draws, single


def at(t: float, beta1: float = 0.8, decay: float = 0.9995, warmup: int = 0) -> Scalars:
    return schedule.scalars(torch.full((1, 1, 1, 1), t, dtype=torch.float64), beta1, decay, warmup)


@given(draws.shapes, draws.seeds, st.floats(0, 1))
def test_ema_is_the_formula_and_keeps_a_fixed_point(shape, seed, beta):
    old, new = draws.stack(shape, seed), draws.stack(shape, seed + 1)
    torch.testing.assert_close(T.ema(old, new, beta), beta * old + (1 - beta) * new, rtol=1e-12, atol=1e-14)
    assert torch.equal(T.ema(old, old, beta), old)


@pytest.mark.parametrize("beta", [0.0, 1.0])
def test_ema_ends(beta):
    old, new = draws.stack((5, 7), 0), draws.stack((5, 7), 1)
    assert torch.equal(T.ema(old, new, beta), old if beta else new)


@given(draws.shapes, draws.seeds, draws.scales, st.floats(-1, 1))
def test_torque_is_the_formula(shape, seed, scale, s):
    m, u = draws.stack(shape, seed, scale=scale), draws.stack(shape, seed + 1)
    old = torch.full((2, 1, 1, 1), s, dtype=torch.float64)
    new, damping = T.torque(old, m, u)
    pairs = zip(draws.lists(m), draws.lists(u), strict=True)
    # Absolute, because the two terms of s may cancel.
    for i, (expected_s, expected_damping) in enumerate(single.torque(s, a, b) for a, b in pairs):
        assert abs(float(new[i]) - expected_s) < 1e-13
        assert abs(float(damping[i]) - expected_damping) < 1e-13


@given(draws.shapes, draws.seeds, draws.scales, st.booleans())
def test_torque_factor_lies_between_0_and_2(shape, seed, scale, per_row):
    m, u = draws.heavy(shape, seed, dtype=torch.float32), draws.heavy(shape, seed + 1, dtype=torch.float32)
    rows = m.shape[:-1] if per_row else (2, 1, 1)
    for s in (torch.full((*rows, 1), -1.0), torch.full((*rows, 1), 1.0)):
        for _ in range(3):
            s, damping = T.torque(s, m * scale, u, per_row=per_row)
            assert s.shape == (*rows, 1)
            assert bool(((damping >= 0) & (damping <= 2)).all())


@given(draws.shapes, draws.seeds, st.floats(-5, 5))
def test_torque_ignores_the_scale_of_either_argument(shape, seed, exponent):
    m, u, c = draws.stack(shape, seed), draws.stack(shape, seed + 1), 10.0**exponent
    s = torch.zeros(2, 1, 1, 1, dtype=torch.float64)
    for a, b in ((m * c, u), (m, u * c)):
        torch.testing.assert_close(T.torque(s, a, b)[0], T.torque(s, m, u)[0], rtol=1e-12, atol=1e-15)


def test_torque_of_a_zero_norm_is_zero():
    zero, u = torch.zeros(1, 1, 3, 4), torch.ones(1, 1, 3, 4)
    s = torch.full((1, 1, 1, 1), 0.5)
    for a, b in ((zero, u), (u, zero), (zero, zero)):
        assert float(T.torque(s, a, b)[0]) == pytest.approx(0.45)


def run_torque(updates, beta1=0.8):
    """Momentum with torque, and the plain running mean, over a list of updates."""
    m = plain = torch.zeros_like(updates[0])
    s = damping = torch.zeros(updates[0].shape[0], 1, 1, 1, dtype=updates[0].dtype)
    for u in updates:
        s, damping = T.torque(s, m, u)
        m, plain = T.ema(m, u * damping, beta1), T.ema(plain, u, beta1)
    return m, plain, s, damping


def test_torque_of_a_steady_direction_counts_twice():
    m, plain, s, damping = run_torque([draws.stack((5, 7), 0)] * 200)
    assert float((s - 1).abs().max()) < 1e-6
    assert float((damping - 2).abs().max()) < 1e-6
    assert draws.relative(m, 2 * plain) < 1e-6


def test_torque_of_an_alternating_direction_damps_by_more_than_half():
    u = draws.stack((5, 7), 0)
    assert float(run_torque([u, -u] * 50)[3].max()) < 0.5


def test_torque_per_row_sees_only_its_row():
    m, u = draws.stack((5, 7), 0, batch=1), draws.stack((5, 7), 1, batch=1)
    s = torch.zeros(1, 1, 5, 1, dtype=torch.float64)
    rows = T.torque(s, m, u, per_row=True)[0]
    for i in range(5):
        alone = T.torque(s[:, :, :1], m[:, :, i : i + 1], u[:, :, i : i + 1])[0]
        assert float(rows[0, 0, i, 0]) == pytest.approx(float(alone), rel=1e-12)


@given(st.floats(0, 0.99), st.floats(0.9, 1.0), st.integers(1, 5000))
def test_consistency_momentum_has_unit_gain(beta1, decay, start):
    """A constant update is a fixed point under any coefficient of the schedule."""
    u = draws.stack((3, 4), 0, batch=1)
    m = torch.zeros_like(u)
    for t in range(start, start + 60):
        m = T.ema(m, u, at(t, beta1, decay).beta1)
    coefficients = [float(at(t, beta1, decay).beta1) for t in range(start, start + 60)]
    assert draws.relative(m, u) == pytest.approx(math.prod(coefficients), abs=1e-12)
    assert torch.equal(T.ema(u, u, at(start, beta1, decay).beta1), u)


def test_consistency_momentum_reaches_its_floor_when_the_text_says():
    first = next(t for t in range(1, 3000) if float(at(t).beta1) == 0.4)
    assert first == math.ceil(math.log(0.5) / math.log(0.9995)) == 1386
    assert float(at(first - 1).beta1) > 0.4
    assert float(at(10**6).beta1) == 0.4


def test_a_decay_of_one_is_the_plain_mean_for_ever():
    assert all(float(at(t, 0.8, 1.0).beta1) == 0.8 for t in (1, 10, 10**5))
    assert all(float(at(t, 0.8, 1.0).grams_mix) == 1.0 for t in (1, 10, 10**5))


def test_a_coefficient_below_the_floor_is_never_raised():
    assert all(float(at(t, 0.3, 0.99).beta1) <= 0.3 for t in (1, 2, 100, 10**4))
    assert float(at(5, 0.0).beta1) == 0.0


RATES = st.floats(0, 1e3)


@given(st.floats(0, 0.99), RATES, RATES, st.booleans())
def test_the_lowest_coefficient_is_the_formula_for_numbers_and_tensors(beta1, lr, base_lr, follows):
    low = min(0.4, beta1)
    left = min(1.0, lr / base_lr) if base_lr > 1e-30 else 1.0
    base_lr = base_lr if base_lr > 1e-30 else 0.0
    expected = max(low, beta1 * left) if follows else low
    assert schedule.lowest_beta1(beta1, lr, base_lr, follows) == pytest.approx(expected, rel=1e-12)
    wide = torch.tensor(lr, dtype=torch.float64)
    for base in (base_lr, torch.tensor(base_lr, dtype=torch.float64)):
        found = schedule.lowest_beta1(beta1, wide, base, follows)
        assert float(found) == pytest.approx(expected, rel=1e-12)


@given(st.floats(0.4, 0.99), st.integers(1, 5000), st.floats(0, 1))
def test_momentum_stays_at_a_constant_rate_and_goes_with_a_falling_one(beta1, t, left):
    def beta(lr: float, follows: bool = True) -> float:
        lowest = schedule.lowest_beta1(beta1, lr, 2e-3, follows)
        now = torch.full((1, 1, 1, 1), float(t), dtype=torch.float64)
        return float(schedule.scalars(now, beta1, 0.9995, 0, lowest=lowest).beta1)

    documented = beta(2e-3 * left, follows=False)
    assert beta(2e-3) == beta(3e-3) == pytest.approx(beta1, rel=1e-12)
    assert documented - 1e-12 <= beta(2e-3 * left) <= beta1 + 1e-12
    assert beta(0.0) == pytest.approx(documented, rel=1e-12)


@given(st.integers(1, 3000), st.integers(0, 1200))
def test_the_coefficient_decays_only_after_the_first_half_of_the_warm_up(t, warmup):
    value = float(at(t, 0.8, 0.9995, warmup).beta1)
    expected = 0.8 if t < warmup / 2 else max(0.8 * 0.9995**t, 0.4)
    assert value == pytest.approx(expected, rel=1e-12)
