"""Percentile clipping, and mask bumps of size d_coef."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from automagic_cameamp import Automagic_CameAMP_Improved, Automagic_CameAMP_Improved_8Bit, schedule
from automagic_cameamp import techniques as T
from automagic_cameamp.recipes import improved
from automagic_cameamp.types import Layout, Phase
from improved import drive
from reference import draws

LENGTH = 100


def nearest_rank(seen: list[float], percent: int) -> float:
    """The smallest norm that at least ``percent`` per cent of the norms do not exceed."""
    ordered = sorted(seen)
    return ordered[max(1, math.ceil(percent * len(ordered) / 100)) - 1]


def clipped(norms: list[float], percent: int, dtype: torch.dtype = torch.float64) -> list[float]:
    """Norms that the recipe goes on with, for a tensor of one row and these norms."""
    layout = Layout.of((1, 3))
    hp = drive.hyper(layout, percentile_clipping=percent, warmup_steps=0)
    p = draws.stack((1, 3), 0, 1, dtype=dtype)
    state = drive.fresh(p, hp, layout)
    direction = draws.stack((1, 3), 1, 1, dtype=dtype)
    direction = direction / direction.norm()
    found = []
    for t, size in enumerate(norms, start=1):
        k = schedule.scalars(torch.full((1, 1, 1, 1), float(t), dtype=dtype), 0.8, 1.0, 0)
        g, state = T.alone(improved._clip_percentile(direction * size, state, k, hp))
        found.append(float(g.norm()))
    return found


def expected(norms: list[float], percent: int) -> list[float]:
    return [
        min(size, nearest_rank(norms[max(0, t + 1 - LENGTH) : t + 1], percent))
        for t, size in enumerate(norms)
    ]


@settings(max_examples=40)
@given(
    st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=130),
    st.sampled_from([1, 5, 16, 41, 47, 50, 75, 90, 99]),
)
def test_clipping_equals_a_plain_nearest_rank(norms, percent):
    assert clipped(norms, percent) == pytest.approx(expected(norms, percent), rel=1e-6)


@pytest.mark.parametrize("percent", range(1, 100))
def test_every_rank_of_every_length(percent):
    """Rising norms: every one is clipped, and the limit walks through all ranks."""
    norms = [float(i) for i in range(1, 121)]
    assert clipped(norms, percent, torch.float32) == pytest.approx(expected(norms, percent), rel=1e-6)


def test_the_first_gradient_and_those_below_the_limit_are_untouched():
    assert clipped([5.0, 4.0, 3.0], 50) == pytest.approx([5.0, 4.0, 3.0], rel=1e-6)


def test_a_gradient_of_zero_stays_zero():
    assert clipped([1.0, 0.0, 0.0, 1.0], 50) == [1.0, 0.0, 0.0, 0.0]


def test_a_hundred_means_off_and_keeps_no_history():
    layout = Layout.of((5, 7))
    names = [spec.name for spec in improved.specs(layout, drive.hyper(layout, percentile_clipping=100))]
    assert "gnorm_history" not in names
    names = [spec.name for spec in improved.specs(layout, drive.hyper(layout, percentile_clipping=99))]
    assert "gnorm_history" in names


def test_an_outlier_is_clipped_in_the_whole_optimizer():
    """The same run twice, an outlier once at its size and once at the size of its neighbours."""
    results = []
    for size in (1e4, 1.0):
        p = torch.nn.Parameter(draws.normal((5, 7), 0, dtype=torch.float32))
        optimizer = Automagic_CameAMP_Improved_8Bit(
            [p], lr=1e-3, percentile_clipping=50, lora_rank_penalty=False
        )
        for t in range(6):
            g = draws.normal((5, 7), 50 + t, dtype=torch.float32)
            p.grad = g / g.norm() * (size if t == 5 else 1.0)
            optimizer.step()
        results.append(p.detach().clone())
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=1e-7)


# ------------------------------------------------------------------ d_coef


def counters(optimizer, p) -> torch.Tensor:
    return T.split_word(optimizer.state[p]["lr_mask"], T.GEOMETRIC)[0].int()


def run_mask(d_coef: int, align: float, steps: int, warmup: int) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Counters after each step; the gradient is ``align`` times the weights, so its sign is known."""
    p = torch.nn.Parameter(draws.normal((4, 6), 0, dtype=torch.float32))
    optimizer = Automagic_CameAMP_Improved(
        [p], lr=1e-6, d_coef=d_coef, warmup_steps=warmup, lora_rank_penalty=False
    )
    seen = []
    for t in range(steps):
        noise = draws.normal((4, 6), 100 + t, dtype=torch.float32)
        p.grad = align * p.detach() + 0.5 * noise * (noise * p.detach() * align > 0)
        optimizer.step()
        seen.append(counters(optimizer, p))
    return seen, p


@pytest.mark.parametrize("d_coef", [1, 2, 5])
def test_bumps_are_d_coef_large_where_descent_makes_the_weights_grow_early(d_coef):
    steps, warmup = 8, 8
    grown, _ = run_mask(d_coef, -1.0, steps, warmup)  # <g, p> < 0
    shrunk, _ = run_mask(d_coef, +1.0, steps, warmup)
    previous = torch.zeros(4, 6, dtype=torch.int32)
    for t, k in enumerate(grown, start=1):
        early, live = t < warmup / 2, 1 < t < warmup
        size = (d_coef if early else 1) * live
        assert bool(((k - previous).abs() == size).all()), f"t={t}"
        previous = k
    for t, k in enumerate(shrunk, start=1):
        assert int(k.abs().max()) == min(max(t - 1, 0), warmup - 2)


@pytest.mark.parametrize("granularity", ["row", "tensor"])
def test_coarser_masks_are_boosted_too(granularity):
    p = torch.nn.Parameter(torch.ones(4, 6))
    optimizer = Automagic_CameAMP_Improved(
        [p], lr=1e-6, d_coef=3, warmup_steps=20, lr_mask_granularity=granularity, lora_rank_penalty=False
    )
    for _ in range(4):
        p.grad = -torch.ones(4, 6)
        optimizer.step()
    assert bool((optimizer.state[p]["lr_mask"] == 9).all())


def test_the_largest_bump_saturates_and_does_not_wrap():
    p = torch.nn.Parameter(torch.ones(4, 6))
    optimizer = Automagic_CameAMP_Improved([p], lr=1e-6, d_coef=40, warmup_steps=40, lora_rank_penalty=False)
    highest = []
    for t in range(12):
        g = -torch.ones(4, 6) * (1 if t < 5 else (-1) ** t)
        g[0, 0] = -50.0
        p.grad = g
        optimizer.step()
        highest.append(int(counters(optimizer, p)[1, 1]))
    assert highest[1:5] == [40, 42, 42, 42]
    assert min(highest) >= T.GEOMETRIC.low and max(highest) <= T.GEOMETRIC.high
    assert highest[-1] == T.GEOMETRIC.low


def test_phases_of_a_stack_are_told_apart():
    """A stack of an early and a late tensor: only the early one is boosted."""
    layout = Layout.of((4, 6))
    hp = drive.hyper(layout, d_coef=4, warmup_steps=8, lora_rank_penalty=False)
    p = torch.ones(2, 1, 4, 6)
    state = drive.fresh(p, hp, layout)
    state = state._replace(step=torch.tensor([2.0, 5.0]).view(2, 1, 1, 1))
    word = torch.full((2, 1, 4, 6), T.GEOMETRIC.start + 1, dtype=torch.uint8)  # last sign: -
    state = state._replace(lr_mask=word)
    result = T.alone(improved.update(p, -p, state, drive.shared(hp, 2), hp, Phase.MIXED, layout))
    assert result.state.lr_mask is not None
    moved = T.split_word(result.state.lr_mask, T.GEOMETRIC)[0]
    assert moved[0].unique().tolist() == [4] and moved[1].unique().tolist() == [1]
