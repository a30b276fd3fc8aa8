"""AdaDecay: a strength around 1 that knows no scale."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from automagic_cameamp import techniques as T
from reference import draws, single


@given(draws.shapes, draws.seeds, draws.scales, st.sampled_from([0.0, 1.0, 4.0]))
def test_adaptive_decay_is_the_formula(shape, seed, scale, alpha):
    g = draws.stack(shape, seed, scale=scale)
    draws.close(T.adaptive_decay(g, alpha), [single.adadecay(x, alpha) for x in draws.lists(g)], 1e-12)


@given(draws.shapes, draws.seeds)
def test_alpha_zero_is_adamws_decay(shape, seed):
    g = draws.heavy(shape, seed, dtype=torch.float32)
    assert torch.equal(T.adaptive_decay(g, 0.0), torch.ones_like(g))


@given(draws.shapes, draws.seeds, draws.scales)
def test_strength_lies_between_0_and_2(shape, seed, scale):
    theta = T.adaptive_decay(draws.heavy(shape, seed) * scale)
    assert draws.finite(theta)
    assert bool(((theta > 0) & (theta <= 2)).all())


@given(draws.shapes, draws.seeds, st.floats(-5, 5))
def test_strength_ignores_the_scale_of_the_gradient(shape, seed, exponent):
    g = draws.stack(shape, seed)
    torch.testing.assert_close(
        T.adaptive_decay(10.0**exponent * g), T.adaptive_decay(g), rtol=1e-12, atol=0.0
    )


@given(draws.shapes, st.sampled_from([1e-12, 1e-3, 0.1, 0.7, 1e6]))
def test_equal_magnitudes_decay_plainly(shape, scale):
    """A standard deviation of 0, or of nothing but rounding, must not decide anything."""
    g = draws.stack(shape, 0, dtype=torch.float32).sign() * scale
    torch.testing.assert_close(T.adaptive_decay(g), torch.ones_like(g), rtol=0.02, atol=0.0)
    zero = torch.zeros_like(g)
    assert torch.equal(T.adaptive_decay(zero), torch.ones_like(zero))


def test_order_follows_the_gradient_and_the_mean_is_below_one():
    g = draws.stack((128, 256), 0, batch=1)
    theta = T.adaptive_decay(g).flatten()
    order = g.abs().flatten().argsort()
    assert bool((theta[order].diff() >= 0).all())
    assert float(theta.mean()) == pytest.approx(0.88, abs=0.01)
