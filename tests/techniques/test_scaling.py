"""CAME's second moments: scale invariance, exactness where the square is rank one, clipping."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from automagic_cameamp import techniques as T
from reference import came, draws

thresholds = st.sampled_from([0.1, 1.0, 3.0])


def moments(g, beta=0.9, eps=1e-30, steps=1):
    """Row and column moments after some steps of the same gradient."""
    row, col, level = torch.zeros_like(g[..., :1]), torch.zeros_like(g[..., :1, :]), g
    for _ in range(steps):
        row, col, level = T.factored_moment(row, col, g.square(), beta, eps)
    return row, col, level


@given(draws.matrix_shapes, draws.seeds, draws.scales)
def test_factored_update_is_the_papers(shape, seed, scale):
    g = draws.stack(shape, seed, scale=scale)
    out = T.factored_rsqrt(g, *moments(g, steps=3))
    for x, y in zip(g.numpy(), out.numpy(), strict=True):
        oracle = came.Factored(x.shape)
        for _ in range(3):
            oracle.add(x**2 + 1e-30, 0.9)
        np.testing.assert_allclose(y, x / np.sqrt(oracle.value()), rtol=1e-12)


@given(draws.matrix_shapes, draws.seeds, st.floats(-5, 5))
def test_normalised_update_ignores_the_scale_of_the_gradient(shape, seed, exponent):
    g = draws.stack(shape, seed)
    c = 10.0**exponent
    a = T.rms_clip(T.factored_rsqrt(g, *moments(g)), 1.0)
    b = T.rms_clip(T.factored_rsqrt(c * g, *moments(c * g)), 1.0)
    assert draws.relative(b, a) < 1e-13


@given(draws.matrix_shapes, draws.seeds)
def test_factored_is_exact_where_the_square_has_rank_one(shape, seed):
    a, b = draws.stack(shape, seed)[..., :1], draws.stack(shape, seed + 1)[..., :1, :]
    g = a * b  # g^2 = a^2 b^2 has rank one
    full = T.ema(torch.zeros_like(g), g.square(), 0.9)
    out = T.factored_rsqrt(g, *moments(g, eps=0.0))
    torch.testing.assert_close(out, g * full.rsqrt(), rtol=1e-12, atol=0.0)


@given(draws.matrix_shapes, draws.seeds)
def test_the_two_moments_have_the_same_mean(shape, seed):
    row, col, _ = moments(draws.heavy(shape, seed), steps=4)
    torch.testing.assert_close(row.mean(-2), col.mean(-1), rtol=1e-12, atol=0.0)


def test_dead_rows_and_columns_give_zero_not_nan():
    g = draws.stack((5, 7), 0, dtype=torch.float32)
    g[:, :, 2, :] = 0.0
    g[:, :, :, 3] = 0.0
    out = T.factored_rsqrt(g, *moments(g, beta=0.999))
    assert draws.finite(out)
    assert not out[:, :, 2, :].any() and not out[:, :, :, 3].any()
    zero = torch.zeros(1, 1, 5, 7)
    assert torch.equal(T.factored_rsqrt(zero, *moments(zero, beta=0.999)), zero)


@given(draws.shapes, draws.seeds, draws.scales, thresholds)
def test_rms_clip_bounds_and_leaves_small_updates_alone(shape, seed, scale, threshold):
    x = draws.stack(shape, seed, scale=scale)
    out = T.rms_clip(x, threshold)
    assert bool((T.rms(out) <= threshold * (1 + 1e-12)).all())
    small = T.rms(x) <= threshold
    assert torch.equal(torch.where(small, out, 0.0), torch.where(small, x, 0.0))
    gain = T.rms_gain(x, threshold)
    assert gain.shape == (2, 1, 1, 1)
    assert bool(((gain > 0) & (gain <= 1)).all())
    torch.testing.assert_close(out, x * gain, rtol=0.0, atol=0.0)


def test_rms_clip_without_a_limit_is_the_identity():
    x = draws.stack((5, 7), 0, scale=1e6)
    assert T.rms_clip(x, math.inf) is x


@given(draws.shapes, draws.seeds)
def test_belief_residual(shape, seed):
    u, m = draws.stack(shape, seed), draws.stack(shape, seed + 1)
    out = T.belief_residual(u, m)
    assert bool((out >= 0).all())
    assert not T.belief_residual(u, u).any()
    torch.testing.assert_close(out, u * u - 2 * u * m + m * m, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("eps", [0.0, 1e-30, 1e-3])
def test_the_floor_is_inside_the_average(eps):
    row, col, _ = moments(torch.zeros(1, 1, 2, 3, dtype=torch.float64), beta=0.75, eps=eps)
    assert float(row[0, 0, 0, 0]) == pytest.approx(0.25 * eps)
    assert float(col[0, 0, 0, 0]) == pytest.approx(0.25 * eps)
