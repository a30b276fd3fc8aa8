"""Adaptive gradient regularisation: the identities of its definition."""

from __future__ import annotations

import torch
from hypothesis import given

from automagic_cameamp import techniques as T
from reference import draws, single


@given(draws.shapes, draws.seeds, draws.scales)
def test_agr_is_the_formula(shape, seed, scale):
    g = draws.stack(shape, seed, scale=scale)
    draws.close(T.agr(g), [single.agr(x) for x in draws.lists(g)], 1e-14)


@given(draws.shapes, draws.seeds, draws.scales)
def test_agr_keeps_signs_and_never_grows(shape, seed, scale):
    g = draws.heavy(shape, seed) * scale
    out = T.agr(g)
    assert torch.equal(out.sign(), g.sign())
    assert bool((out.abs() <= g.abs()).all())


@given(draws.shapes, draws.seeds)
def test_agr_is_homogeneous(shape, seed):
    g = draws.stack(shape, seed)
    assert torch.equal(T.agr(8.0 * g), 8.0 * T.agr(g))
    assert draws.relative(T.agr(0.37 * g), 0.37 * T.agr(g)) < 1e-15


@given(draws.seeds)
def test_agr_l1_norm_shrinks_by_the_squared_shares(seed):
    g = draws.stack((16, 31), seed)  # no share reaches one half
    share = g.abs() / T.tensor_sum(g.abs())
    assert float((T.tensor_sum(share) - 1).abs().max()) < 1e-14
    expected = T.tensor_sum(g.abs()) * (1 - T.tensor_sum(share.square()))
    torch.testing.assert_close(T.tensor_sum(T.agr(g).abs()), expected, rtol=1e-14, atol=0.0)


def test_agr_one_element_and_one_dominant_element_still_learn():
    one = torch.full((2, 1, 1, 1), 3.0)
    assert torch.equal(T.agr(one), one)
    spike = torch.zeros(1, 1, 3, 4)
    spike[..., 0, 0] = 5.0
    assert float(T.agr(spike)[..., 0, 0]) == 2.5


def test_agr_of_zero_and_of_tiny_gradients_is_finite():
    assert torch.equal(T.agr(torch.zeros(2, 1, 3, 4)), torch.zeros(2, 1, 3, 4))
    tiny = torch.full((1, 1, 3, 4), 1e-41)
    assert draws.finite(T.agr(tiny))


def test_agr_effect_is_small_for_large_tensors():
    g = draws.stack((128, 256), 0, dtype=torch.float32)
    assert draws.relative(T.agr(g), g) < 1e-4
