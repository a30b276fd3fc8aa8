"""The controller by itself: bounds, rates, monotony, start-up, edge cases, reports."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from automagic_cameamp.control import ContextualController
from automagic_cameamp.control.signals import Memory, Seen, Signals, advance

LN2 = math.log(2)
BOUNDS = (0.5, 2.0)


def numbers(**values: float) -> Signals:
    """Signals in the middle of a run; what is not named is neutral."""
    start = dict.fromkeys(Signals._fields, 0.0) | {
        "steps": 50.0,
        "losses": 50.0,
        "cosines": 50.0,
        "norms": 50.0,
    }
    return Signals(**{k: torch.tensor(float(v)) for k, v in {**start, **values}.items()})


def seen(
    cosine: float | None = None, loss: float | None = None, log_norm: float | None = None, bad: bool = False
) -> Seen:
    def value(x: float | None) -> Tensor:
        return torch.tensor(0.0 if x is None else float(x))

    return Seen(
        value(cosine), torch.tensor(cosine is not None), value(log_norm), torch.tensor(log_norm is not None),
        value(loss), torch.tensor(loss is not None), torch.tensor(bad),
    )  # fmt: skip


def run(
    observations: list[Seen], threshold: float = 0.95, rate: float = 0.1, window: int = 100
) -> list[Signals]:
    s, result = numbers(steps=0, losses=0, cosines=0, norms=0), []
    for x in observations:
        s = advance(s, x, window, threshold, rate, BOUNDS)
        result.append(s)
    return result


def multipliers(history: list[Signals]) -> list[float]:
    return [math.exp(float(s.log_multiplier)) for s in history]


# ------------------------------------------------------------------ any input

finite = st.floats(-1e6, 1e6)
extreme = st.one_of(st.floats(-1e30, 1e30), st.sampled_from([0.0, 1e-38, -1e-38, 3e38]))
observation = st.builds(
    seen,
    cosine=st.one_of(st.none(), st.floats(-1, 1)),
    loss=st.one_of(st.none(), extreme),
    log_norm=st.one_of(st.none(), st.floats(-90, 90)),
    bad=st.booleans(),
)


@settings(max_examples=60)
@given(
    st.lists(observation, min_size=1, max_size=30),
    st.floats(0.01, 0.99),
    st.floats(0, 1),
    st.integers(2, 200),
)
def test_bounds_and_speed_whatever_comes(
    observations: list[Seen], threshold: float, rate: float, window: int
) -> None:
    before = 0.0
    for s in run(observations, threshold, rate, window):
        assert all(math.isfinite(float(x)) for x in s)
        log = float(s.log_multiplier)
        assert math.log(0.5) - 1e-6 <= log <= math.log(2) + 1e-6
        assert abs(log - before) <= rate * math.log(4) + 1e-6
        before = log


@settings(max_examples=60)
@given(st.floats(-1, 1), st.floats(-1, 1), finite, finite, st.floats(0.01, 0.99), st.floats(0, 1))
def test_a_more_consistent_gradient_never_lowers_m(
    a: float, b: float, loss: float, slow: float, threshold: float, rate: float
) -> None:
    result = [
        advance(numbers(kappa=k, loss_fast=loss, loss_slow=slow), seen(), 100, threshold, rate, BOUNDS)
        for k in sorted((a, b))
    ]
    assert float(result[0].log_multiplier) <= float(result[1].log_multiplier) + 1e-6


@settings(max_examples=60)
@given(st.floats(-5, 5), st.floats(-5, 5), st.floats(-1, 1), st.floats(0.01, 0.99), st.floats(0, 1))
def test_a_steeper_rise_of_the_loss_never_raises_m(
    a: float, b: float, kappa: float, threshold: float, rate: float
) -> None:
    result = [
        advance(numbers(kappa=kappa, loss_fast=1 + t, loss_slow=1), seen(), 100, threshold, rate, BOUNDS)
        for t in sorted((a, b))
    ]
    assert float(result[1].log_multiplier) <= float(result[0].log_multiplier) + 1e-6


@settings(max_examples=100)
@given(
    st.floats(-1, 1),
    st.floats(-3, 3),
    st.floats(-3, 3),
    st.booleans(),
    st.floats(0.01, 0.99),
    st.floats(0.01, 0.99),
)
def test_fewer_edge_cases_the_lower_the_threshold(
    kappa: float, rise: float, swell: float, bad: bool, a: float, b: float
) -> None:
    s = numbers(kappa=kappa, loss_fast=1 + rise, loss_slow=1, norm_fast=swell, bad=bad)
    low, high = sorted((a, b))
    assert bool(s.edge(low, 100)) <= bool(s.edge(high, 100))


def test_scale_of_the_loss_does_not_matter() -> None:
    losses = [1 + 0.3 * math.sin(t) + 0.02 * t for t in range(60)]
    for factor in (1e-6, 1e6):
        one = multipliers(run([seen(0.1, x) for x in losses]))
        two = multipliers(run([seen(0.1, x * factor) for x in losses]))
        assert one == pytest.approx(two, rel=1e-4)


def test_a_loss_around_zero_has_a_finite_trend() -> None:
    history = run([seen(0.0, (-1) ** t * 1e-3) for t in range(200)])
    assert all(abs(float(s.trend())) < 10 for s in history)
    assert float(run([seen(0.0, 0.0)] * 30)[-1].trend()) == 0.0


# ------------------------------------------------------------------ where it settles


def test_no_information_brings_m_to_one() -> None:
    far = [seen(1.0)] * 80 + [seen(0.0)] * 200
    m = multipliers(run(far))
    assert m[79] > 1.8
    assert m[-1] == pytest.approx(1, abs=1e-3)
    assert multipliers(run([seen()] * 30)) == [1.0] * 30


@pytest.mark.parametrize(("kappa", "expected"), [(1.0, 2.0), (0.5, 2**0.5), (-0.04, 2**-0.04), (-1.0, 0.5)])
def test_consistency_alone(kappa: float, expected: float) -> None:
    assert multipliers(run([seen(kappa)] * 300))[-1] == pytest.approx(expected, rel=1e-3)


def test_an_edge_case_is_a_ceiling_not_a_target() -> None:
    """Overshoot that is worse than the ceiling goes below it."""
    assert multipliers(run([seen(-0.3)] * 300))[-1] == pytest.approx(0.7, rel=1e-3)
    assert multipliers(run([seen(-0.8)] * 300))[-1] == pytest.approx(2**-0.8, rel=1e-3)


def test_rate_zero_keeps_m_at_exactly_one() -> None:
    assert multipliers(run([seen(0.9, 1.0 + t) for t in range(50)], rate=0.0)) == [1.0] * 50


@pytest.mark.parametrize("window", [2, 5, 100])
def test_nothing_is_an_edge_case_at_the_start(window: int) -> None:
    history = run([seen(-1.0, float(t), float(t), bad=True) for t in range(30)], window=window)
    edges = [bool(s.edge(0.95, window)) for s in history]
    assert edges.index(True) + 1 == min(10, window) and all(edges[min(10, window) - 1 :])
    assert float(history[0].log_multiplier) < 0  # M moves from the first observation
    assert float(history[-1].edge_case_count) == edges.count(True)
    assert float(history[-1].stable_steps) == 0


def test_start_up_is_a_plain_mean() -> None:
    """One unlucky first value does not linger."""
    xs = [0.9, -0.3, 0.1, 0.5]
    history = run([seen(x, 2 + x, x) for x in xs])
    for n, s in enumerate(history, 1):
        assert float(s.kappa) == pytest.approx(sum(xs[:n]) / n, abs=1e-6)
        assert float(s.loss_fast) == pytest.approx(float(s.loss_slow), rel=1e-6)
        assert float(s.norm_fast) == pytest.approx(float(s.norm_slow), abs=1e-6)


@pytest.mark.parametrize("window", [2, 3, 10, 18, 100])
@pytest.mark.parametrize("rate", [0.0, 0.01, 0.1, 1.0])
def test_a_falling_loss_is_never_taken_for_a_rise(window: int, rate: float) -> None:
    """Not even where the window is shorter than the fast mean."""
    history = run([seen(0.0, 3 - 0.01 * t) for t in range(120)], rate=rate, window=window)
    assert all(float(s.trend()) <= 1e-6 for s in history)
    assert float(history[-1].trend()) < -1e-4


def test_a_missing_value_changes_only_the_count_of_steps() -> None:
    before = run([seen(0.2, 1.0, 0.5)] * 20)[-1]
    after = advance(before, seen(), 100, 0.95, 0.1, BOUNDS)
    same = ("kappa", "loss_fast", "loss_slow", "norm_fast", "norm_slow", "losses", "cosines", "norms")
    assert all(torch.equal(getattr(before, k), getattr(after, k)) for k in same)


# ------------------------------------------------------------------ the scenarios of the design


def updates(rho: float, steps: int) -> Iterator[Tensor]:
    """Vectors whose successive cosines are exactly rho, otherwise random."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(4096, generator=g)
    for _ in range(steps):
        yield x
        e = torch.randn(4096, generator=g)
        e = e - (e @ x) / (x @ x) * x
        x = rho * x + math.sqrt(1 - rho**2) * e / e.norm() * x.norm()


def scenario(
    rho: float, loss: Callable[[int, float], float], threshold: float, steps: int = 400
) -> tuple[float, float]:
    """Share of edge cases and final M."""
    c = ContextualController(edge_threshold=threshold)
    noise = torch.randn(steps, generator=torch.Generator().manual_seed(1)).tolist()
    for t, u in enumerate(updates(rho, steps)):
        c.update_context(u, loss(t, noise[t]), 1e-3)
    return c.edge_case_count / steps, c.compute_contextual_lr_multiplier()


@pytest.mark.parametrize(("threshold", "most"), [(0.95, 0.01), (0.9, 0.0)])
def test_noise_leaves_the_rate_alone(threshold: float, most: float) -> None:
    rate, m = scenario(0.0, lambda t, e: 1 + 0.1 * e, threshold)
    assert rate <= most
    assert m == pytest.approx(1, abs=0.08)


def test_steady_descent_goes_faster() -> None:
    rate, m = scenario(0.3, lambda t, e: (2 * math.exp(-t / 500) + 0.2) * (1 + 0.02 * e), 0.95)
    assert rate == 0
    assert 1.2 < m < 1.4


@pytest.mark.parametrize("threshold", [0.95, 0.9])
def test_oscillation_goes_slower(threshold: float) -> None:
    rate, m = scenario(-0.5, lambda t, e: 1 + 0.1 * e, threshold)
    assert rate > 0.97
    assert m == pytest.approx(0.7, abs=0.03)


@pytest.mark.parametrize(("threshold", "fires"), [(0.95, True), (0.9, True), (0.6, False)])
def test_a_step_of_the_loss(threshold: float, fires: bool) -> None:
    rate, m = scenario(0.0, lambda t, e: 1.0 if t < 150 else 1.3, threshold)
    assert (rate > 0) is fires
    assert rate < 0.25  # it passes
    assert m == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize(("threshold", "fires"), [(0.95, True), (0.6, False)])
def test_a_swelling_gradient(threshold: float, fires: bool) -> None:
    c = ContextualController(edge_threshold=threshold)
    for t, u in enumerate(updates(0.0, 60)):
        c.update_context(u * (1 if t < 50 else 4))
    assert c.detect_edge_case() is fires
    assert c.compute_gradient_consistency() == pytest.approx(0, abs=0.02)  # its size is not a direction


# ------------------------------------------------------------------ reports and input


def test_before_anything_was_seen() -> None:
    c = ContextualController()
    assert c.detect_edge_case() is False
    assert c.compute_contextual_lr_multiplier() == 1.0
    assert c.compute_gradient_consistency() == 1.0
    assert c.compute_loss_stability() == 1.0
    assert c.gradient_history == c.loss_history == c.lr_history == c.performance_history == []
    assert c.convergence_rate == 0.0 and c.stable_steps == 0 and c.edge_case_count == 0


def test_histories_and_reports() -> None:
    c = ContextualController(context_window=4)
    us = list(updates(0.5, 7))
    for t, u in enumerate(us):
        c.update_context(u, 3.0 - 0.25 * t if t != 2 else None, 0.5**t)
    assert c.loss_history == [2.25, 2.0, 1.75, 1.5]
    assert c.lr_history == [0.5**t for t in range(3, 7)]
    assert len(c.performance_history) == 4
    assert c.performance_history[-1] == pytest.approx(c.convergence_rate) and c.convergence_rate > 0
    assert len(c.gradient_history) == 2 and all(q.shape == (4096,) for q in c.gradient_history)
    assert c.compute_gradient_consistency() == pytest.approx(0.5, abs=1e-3)
    assert 0 < c.compute_loss_stability() < 1
    assert c.stable_steps == 7
    again = [c.detect_edge_case(), c.compute_contextual_lr_multiplier(), c.compute_loss_stability()]
    assert again == [c.detect_edge_case(), c.compute_contextual_lr_multiplier(), c.compute_loss_stability()]


def test_the_threshold_may_be_changed_at_any_time() -> None:
    c = ContextualController()
    for t in range(20):
        c.update_context(torch.ones(8), 1.0 + 0.02 * t)
    c.edge_threshold = 0.99
    assert c.detect_edge_case()
    c.edge_threshold = 0.5
    assert not c.detect_edge_case()


def test_not_finite_is_an_edge_case_and_teaches_nothing() -> None:
    c = ContextualController()
    for u in updates(0.4, 20):
        c.update_context(u, 1.0)
    before = c.compute_gradient_consistency()
    c.update_context(torch.full((4096,), math.nan), 1.0)
    assert c.detect_edge_case() and c.compute_gradient_consistency() == before
    c.update_context(torch.ones(4096) * 2, math.inf)
    assert c.detect_edge_case() and c.loss_history[-1] == 1.0
    c.update_context(torch.zeros(4096), 1.0)  # nothing moved, nothing wrong
    assert not c.detect_edge_case()
    assert all(bool(q.isfinite().all()) for q in c.gradient_history)


def test_several_recorded_losses_are_averaged() -> None:
    c = ContextualController()
    c.record_loss(1.0)
    c.record_loss(torch.tensor([3.0], requires_grad=True))
    c.update_context(torch.ones(3))
    assert c.loss_history == [2.0]
    c.record_loss(7.0)
    c.update_context(torch.ones(3), loss=torch.tensor(5.0, dtype=torch.float64))  # the named one wins
    assert c.loss_history == [2.0, 5.0]
    c.update_context(torch.ones(3))
    assert c.loss_history == [2.0, 5.0]


def test_a_recorded_loss_is_a_copy() -> None:
    c = ContextualController()
    loss = torch.tensor(4.0)
    c.record_loss(loss)
    loss.zero_()
    c.update_context(torch.ones(3))
    assert c.loss_history == [4.0]


@pytest.mark.parametrize("bad", [torch.ones(2), "high", [1.0]], ids=["vector", "text", "list"])
def test_a_loss_that_is_no_number_is_refused(bad: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="loss"):
        ContextualController().record_loss(bad)


def test_it_is_deterministic() -> None:
    memories = []
    for _ in range(2):
        c = ContextualController()
        for t, u in enumerate(updates(0.2, 15)):
            c.update_context([u, u[:100].view(4, 25)], 1 / (t + 1), 1e-3)
        memories.append(c.memory)
    assert memories[0] is not None and memories[1] is not None and torch.equal(*memories)


class NoReading(TorchDispatchMode):
    """Every way from a tensor back to Python goes through one of these."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func)
        assert "_local_scalar_dense" not in name and "nonzero" not in name, f"{name} waits for the device"
        return func(*args, **(kwargs or {}))


def test_observing_reads_nothing_back() -> None:
    c = ContextualController()
    with NoReading():
        for t, u in enumerate(updates(0.2, 4)):
            c.record_loss(torch.ones(()) if t % 2 else 1.0)
            c.update_context([u, u * float("nan")] if t == 2 else [u, u], lr=torch.ones(()))
            c.multiplier(torch.empty(()))
    with pytest.raises(AssertionError, match="waits"), NoReading():
        c.compute_contextual_lr_multiplier()


def test_memory_survives_packing() -> None:
    c = ContextualController(context_window=6)
    for t, u in enumerate(updates(0.2, 9)):
        c.update_context(u, float(t), 1e-3)
    assert c.memory is not None and c.memory.shape == (Memory.size(6),)
    assert torch.equal(Memory.unpack(c.memory).pack(), c.memory)
    other = ContextualController(context_window=10)  # the window may change; histories keep their length
    other.load(c.memory)
    assert other.loss_history == [float(t) for t in range(3, 9)]
    assert other.compute_contextual_lr_multiplier() == c.compute_contextual_lr_multiplier()
    other.update_context(torch.ones(4096), 9.0)
    assert other.loss_history == [float(t) for t in range(4, 10)] and len(c.loss_history) == 6
