"""A14 background and A15 spatial: gains of whole rows."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from automagic_cameamp import techniques as T
from reference import draws

rows = st.integers(1, 40)
dtypes = st.sampled_from([torch.float32, torch.float64])
details = st.sampled_from([0.0, 0.2, 0.8, 1.0])


def positive(count: int, seed: int, spread: float = 2.0, batch: int = 2) -> torch.Tensor:
    return draws.normal((batch, 3, count, 1), seed, spread).exp()


@given(rows, draws.seeds)
def test_background_equals_a_plain_reference(count, seed):
    energy = positive(count, seed)
    found = T.background_gain(energy)
    for b in range(2):
        for k in range(3):
            values = energy[b, k, :, 0].tolist()
            mean = math.fsum(values) / count
            expected = [min(max(math.sqrt(x / mean / 0.1), 0.5), 1.0) for x in values]
            assert found[b, k, :, 0].tolist() == pytest.approx(expected, abs=1e-12)


@given(rows, draws.seeds, dtypes, st.sampled_from([1e-30, 1e-8, 1.0, 1e12]))
def test_background_range_and_scale(count, seed, dtype, scale):
    energy = positive(count, seed).to(dtype)
    gain = T.background_gain(energy)
    assert bool(((gain >= 0.5) & (gain <= 1)).all())
    torch.testing.assert_close(T.background_gain(energy * scale), gain, rtol=1e-5, atol=1e-6)


@given(rows, st.sampled_from([1e-30, 0.1, 1.0, 3e7]), dtypes)
def test_equal_rows_are_no_background(count, value, dtype):
    assert bool((T.background_gain(torch.full((2, 3, count, 1), value, dtype=dtype)) == 1).all())


def test_an_almost_empty_row_is_halved_and_no_other():
    energy = torch.ones(1, 1, 8, 1, dtype=torch.float64)
    energy[0, 0, 3] = 1e-9
    gain = T.background_gain(energy).flatten()
    assert gain[3] == 0.5
    assert bool((gain[[0, 1, 2, 4, 5, 6, 7]] == 1).all())


@given(draws.shapes, draws.seeds)
def test_row_variance_is_the_variance(shape, seed):
    u = draws.stack(shape, seed)
    least = 1e-4 * u.square().mean(-1, keepdim=True)
    expected = torch.maximum(u.var(-1, keepdim=True, correction=0), least)
    torch.testing.assert_close(T.row_variance(u), expected, rtol=0, atol=1e-12)


@given(rows, st.integers(2, 200), st.sampled_from([1e-12, 0.3, 1.0, 3e7]), draws.seeds)
def test_rounding_is_no_detail(count, n, size, seed):
    """Rows whose elements differ in their last bits only move as they are, whatever those bits are."""
    signs = draws.normal((1, 1, count, 1), seed).sign()
    u = (size * signs * (1 + 1e-6 * draws.normal((1, 1, count, n), seed + 1))).float()
    gain = T.spatial_gain(T.row_variance(u), 0.8)
    torch.testing.assert_close(gain, torch.ones_like(gain), rtol=0, atol=1e-5)


@given(rows, draws.seeds, details)
def test_spatial_equals_a_plain_reference(count, seed, detail):
    variance = positive(count, seed)
    found = T.spatial_gain(variance, detail)
    for b in range(2):
        values = variance[b, 1, :, 0].tolist()
        mean = math.fsum(values) / count
        expected = [min(max(1 + detail * (x / mean - 1), 0.5), 1.5) for x in values]
        assert found[b, 1, :, 0].tolist() == pytest.approx(expected, abs=1e-12)


@given(rows, draws.seeds, details, dtypes, st.sampled_from([1e-20, 1e-6, 1e6]))
def test_spatial_range_and_scale(count, seed, detail, dtype, scale):
    variance = positive(count, seed).to(dtype)
    gain = T.spatial_gain(variance, detail)
    assert bool(((gain >= 0.5) & (gain <= 1.5)).all())
    torch.testing.assert_close(T.spatial_gain(variance * scale, detail), gain, rtol=1e-5, atol=1e-5)


@given(rows, st.sampled_from([0.0, 1e-30, 0.1, 1.0, 3e7]), details, dtypes)
def test_homogeneous_rows_move_as_they_are(count, value, detail, dtype):
    gain = T.spatial_gain(torch.full((2, 3, count, 1), value, dtype=dtype), detail)
    torch.testing.assert_close(
        gain, torch.ones_like(gain), rtol=0, atol=2e-7 if dtype == torch.float32 else 1e-15
    )


@given(rows, draws.seeds)
def test_no_detail_no_gain(count, seed):
    assert bool((T.spatial_gain(positive(count, seed), 0.0) == 1).all())


@given(rows, draws.seeds)
def test_spatial_gain_is_neutral_on_average_where_nothing_is_clamped(count, seed):
    variance = 1 + 0.1 * draws.normal((1, 1, count, 1), seed).clamp(-3, 3)
    assert float(T.spatial_gain(variance, 0.8).mean()) == pytest.approx(1.0, abs=1e-12)
