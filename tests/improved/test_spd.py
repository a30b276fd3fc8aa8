"""A11: Selective Projection Decay, anchored at 0."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from automagic_cameamp import techniques as T
from reference import draws

strengths = st.sampled_from([0.0, 5e-4, 0.3, 1.0])
dtypes = st.sampled_from([torch.float32, torch.float64])


def inputs(shape, seed, scale=1.0, dtype=torch.float64):
    """Weights, a displacement and a gradient, and the weights after the step."""
    p, d, g = (draws.stack(shape, seed + i, 3, s, dtype) for i, s in enumerate((1.0, scale, 1.0)))
    return p, p - d, g, d


def norm(x: torch.Tensor) -> torch.Tensor:
    return x.flatten(1).norm(dim=1)


@given(draws.shapes, draws.seeds, strengths, st.sampled_from([0.01, 1.0, 30.0]))
def test_closed_form(shape, seed, strength, scale):
    """From three inner products of the weights and the displacement, in plain Python."""
    p, new, g, d = inputs(shape, seed, scale)
    out = T.spd(p, new, g, strength)
    for i in range(3):
        pp, pd, dd, gp = (
            math.fsum((a[i].flatten() * b[i].flatten()).tolist()) for a, b in ((p, p), (p, d), (d, d), (g, p))
        )
        before, after = math.sqrt(pp), math.sqrt(max(pp - 2 * pd + dd, 0.0))
        ratio = min(max((after - before) / after, 0.0), 1.0) if after else 0.0
        factor = 1 - strength * ratio if -gp < 0 else 1.0
        torch.testing.assert_close(out[i], factor * new[i], rtol=1e-9, atol=1e-12)


@given(draws.shapes, draws.seeds, strengths, dtypes)
def test_the_norm_ends_between_before_and_after(shape, seed, strength, dtype):
    p, new, g, _ = inputs(shape, seed, 1.0, dtype)
    out = T.spd(p, new, g, strength)
    assert bool((norm(out) <= norm(new) * (1 + 1e-6)).all())
    grown = norm(new) > norm(p)
    assert bool((norm(out)[grown] >= norm(p)[grown] * (1 - 1e-5)).all())


@given(draws.shapes, draws.seeds, strengths, dtypes)
def test_a_step_that_shrinks_the_weights_is_left_alone(shape, seed, strength, dtype):
    p, _, g, _ = inputs(shape, seed, 1.0, dtype)
    assert torch.equal(T.spd(p, p * 0.5, g, strength), p * 0.5)


@given(draws.shapes, draws.seeds, strengths, dtypes)
def test_a_gradient_that_wants_growth_is_left_alone(shape, seed, strength, dtype):
    """c = -<g, p> >= 0: descent itself makes the weights grow."""
    p, new, g, _ = inputs(shape, seed, 1.0, dtype)
    opposed = -p * g.abs()
    assert torch.equal(T.spd(p, new, opposed, strength), new)
    assert torch.equal(T.spd(p, new, g * 0, strength), new)


@given(draws.shapes, draws.seeds, strengths)
def test_a_matrix_of_zeros_is_left_alone(shape, seed, strength):
    """B of a fresh LoRA."""
    _, new, g, _ = inputs(shape, seed)
    zero = torch.zeros_like(new)
    assert torch.equal(T.spd(zero, new, g, strength), new)
    assert torch.equal(T.spd(new, zero, g, strength), zero)


@given(draws.shapes, draws.seeds, st.sampled_from([2.5, 50.0]))
def test_no_strength_turns_a_weight_around(shape, seed, strength):
    """weight_decay has no upper limit; the weights end between 0 and where the step put them."""
    p, new, g, _ = inputs(shape, seed, 30.0)
    out = T.spd(p, new, g, strength)
    assert bool((out * new >= 0).all()) and bool((out.abs() <= new.abs()).all())


def test_it_pulls_where_both_conditions_hold():
    p = torch.full((1, 1, 2, 2), 1.0)
    out = T.spd(p, 3 * p, p, 0.6)
    torch.testing.assert_close(out, 3 * p * (1 - 0.6 * (1 - 1 / 3)))


@pytest.mark.parametrize("scale", [2.0**-30, 2.0**20])
def test_the_scale_of_the_gradient_does_not_matter(scale):
    p, new, g, _ = inputs((5, 7), 3)
    assert torch.equal(T.spd(p, new, g, 0.5), T.spd(p, new, g * scale, 0.5))
