"""A12 edges and A13 frequencies: what a neighbourhood does to a gradient."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from automagic_cameamp import techniques as T
from automagic_cameamp.types import Layout
from reference import draws

sizes = st.tuples(st.integers(1, 12), st.integers(1, 12))
penalties = st.sampled_from([0.0, 0.05, 0.08, 0.5, 1.0])
thresholds = st.sampled_from([0.05, 0.3, 0.6, 0.95])
dtypes = st.sampled_from([torch.float32, torch.float64])
scales = st.sampled_from([1e-12, 1e-4, 1.0, 37.0, 1e6])
shapes = st.sampled_from(
    [s for s in draws.SHAPES if len(s) > 1 and max(s[-2:]) > 1] + [(33, 65), (2, 9, 4), (4, 2, 5, 5)]
)


def image(height: int, width: int, seed: int = 0, batch: int = 1) -> Tensor:
    return draws.normal((batch, 1, height, width), seed)


def hits(x: Tensor, threshold: float = 0.6) -> Tensor:
    return T.edge_hits(x, x, threshold)


def reference_laplacian(x: list[list[float]]) -> list[list[float]]:
    """Five points, the border repeated, one element at a time."""
    m, n = len(x), len(x[0])

    def at(i: int, j: int) -> float:
        return x[min(max(i, 0), m - 1)][min(max(j, 0), n - 1)]

    return [
        [at(i - 1, j) + at(i + 1, j) + at(i, j - 1) + at(i, j + 1) - 4 * x[i][j] for j in range(n)]
        for i in range(m)
    ]


def reference_hits(x: list[list[float]], threshold: float) -> list[list[float]]:
    edges = [[abs(v) for v in row] for row in reference_laplacian(x)]
    count = len(x) * len(x[0])
    size = math.sqrt(math.fsum(v * v for row in edges for v in row) / count)
    share = [[v / (v + size) if v + size else 0.0 for v in row] for row in edges]
    return [[e if e > threshold else 0.0 for e in row] for row in share]


# ------------------------------------------------------------------ A12


@given(sizes, st.integers(0, 1000), thresholds)
def test_edges_equal_a_plain_reference(size, seed, threshold):
    x = image(size[0], size[1], seed)
    draws.close(hits(x, threshold), [sum(reference_hits(x[0, 0].tolist(), threshold), [])], 1e-12)


@given(shapes, draws.seeds, thresholds, dtypes, scales)
def test_hits_lie_in_the_unit_interval(shape, seed, threshold, dtype, scale):
    """So a gain 1 - edge_penalty * h lies in [1 - edge_penalty, 1]."""
    layout = Layout.of(shape)
    g = draws.stack(shape, seed, 2, scale, dtype)
    view = T.picture(g, layout, "all")
    assert view is not None
    found = T.edge_hits(view, g, threshold)
    assert found.shape == g.shape
    assert bool(((found >= 0) & (found < 1)).all())
    assert bool(((found == 0) | (found > threshold)).all())


@given(sizes, draws.seeds, st.sampled_from([2.0**-40, 0.5, 3.7, 1e5]), dtypes)
def test_edges_do_not_know_the_scale_of_the_gradient(size, seed, scale, dtype):
    x = image(size[0], size[1], seed).to(dtype)
    one, other = hits(x), hits(x * scale)
    # A hit that lies on the threshold may fall on either side of it.
    edge = T.laplacian(x).abs()
    share = edge / (edge + T.rms(edge) + 1e-38)
    safe = (share - 0.6).abs() > 1e-5
    torch.testing.assert_close(one[safe], other[safe], rtol=1e-5, atol=1e-6)


@given(sizes, st.sampled_from([0.0, 1.0, 0.1, -3.3e-7, 1e8]), dtypes)
def test_a_constant_has_no_edge(size, value, dtype):
    x = torch.full((2, 1, *size), value, dtype=dtype)
    assert int(torch.count_nonzero(hits(x, 0.05))) == 0


@given(st.integers(3, 12), st.integers(3, 12), st.sampled_from([(1.0, 0.0), (0.0, -2.0), (3.0, 5.0)]))
def test_a_ramp_has_no_edge_inside(height, width, slope):
    x = torch.arange(height).double()[:, None] * slope[0] + torch.arange(width).double()[None] * slope[1]
    found = hits(x[None, None], 0.05)[0, 0]
    assert int(torch.count_nonzero(found[1:-1, 1:-1])) == 0


def test_the_threshold_of_six_tenths_fires_on_an_eighth_of_white_noise():
    """.6 means |L| > 1.5 RMS(L): 13% of a normal distribution, whatever the scale."""
    for scale in (1e-9, 1.0, 1e9):
        fired = float((hits(image(512, 512, 3) * scale) > 0).double().mean())
        assert fired == pytest.approx(math.erfc(1.5 / math.sqrt(2)), abs=0.004)


@given(sizes, draws.seeds)
def test_a_higher_threshold_fires_less(size, seed):
    x = image(size[0], size[1], seed)
    low, high = hits(x, 0.3), hits(x, 0.7)
    assert bool(((high == 0) | (high == low)).all())


@pytest.mark.parametrize("shape", [(), (1,), (9,)])
def test_a_vector_is_no_picture(shape):
    assert T.picture(draws.stack(shape, 0), Layout.of(shape), "all") is None


@pytest.mark.parametrize(
    ("shape", "everything", "kernels"),
    [
        ((5, 7), (1, 5, 7), None),
        ((2, 5, 7), (2, 5, 7), None),
        ((4, 3, 3, 3), (12, 3, 3), (12, 3, 3)),
        ((4, 3, 3, 5), (12, 3, 5), (12, 3, 5)),
        ((4, 3, 1, 3), (12, 1, 3), None),
        ((4, 3, 1, 1), None, None),  # nothing has a neighbour
        ((1, 1), None, None),
        ((4, 3, 2, 2), (12, 2, 2), None),
        ((2, 3, 3, 4, 4), (18, 4, 4), (18, 4, 4)),
    ],
)
def test_what_counts_as_a_picture(shape, everything, kernels):
    x, layout = draws.stack(shape, 0), Layout.of(shape)
    for mode, expected in (("all", everything), ("conv", kernels)):
        view = T.picture(x, layout, mode)
        assert (view is None) == (expected is None)
        if view is not None:
            assert tuple(view.shape) == (2, *expected)
            # A picture is one kernel: its elements are neighbours in the parameter itself.
            assert torch.equal(view[1].flatten(), x[1].flatten())


# ------------------------------------------------------------------ A13


@pytest.mark.parametrize("size", [(12, 9), (3, 3), (3, 8), (1, 5), (2, 7), (16, 16), (5, 31)])
@pytest.mark.parametrize("penalty", [0.05, 1.0])
def test_dct_modes_are_its_eigenvectors(size, penalty):
    m, n = size
    for j in range(m):
        for k in range(n):
            mode = torch.outer(
                torch.cos(math.pi * (torch.arange(m).double() + 0.5) * j / m),
                torch.cos(math.pi * (torch.arange(n).double() + 0.5) * k / n),
            )
            gain = 1 - penalty * (1 - math.cos(math.pi * j / 2 / m) ** 2 * math.cos(math.pi * k / 2 / n) ** 2)
            out = T.frequency_filter(mode[None, None], penalty)[0, 0]
            torch.testing.assert_close(out, gain * mode, rtol=0, atol=1e-14)


@given(sizes, st.sampled_from([0.0, 1.0, -0.1, 1e-20, 1e20]), penalties, dtypes)
def test_constants_are_kept(size, value, penalty, dtype):
    x = torch.full((1, 2, *size), value, dtype=dtype)
    assert torch.equal(T.frequency_filter(x, penalty), x)


@given(sizes, draws.seeds, penalties)
def test_the_sum_is_kept_and_the_norm_never_grows(size, seed, penalty):
    x = image(size[0], size[1], seed, batch=2)
    out = T.frequency_filter(x, penalty)
    torch.testing.assert_close(out.sum((1, 2, 3)), x.sum((1, 2, 3)), rtol=0, atol=1e-12)
    assert bool((out.flatten(1).norm(dim=1) <= x.flatten(1).norm(dim=1) * (1 + 1e-12)).all())


@given(sizes, draws.seeds, penalties, st.floats(-3, 3), st.floats(-3, 3))
def test_the_filter_is_linear(size, seed, penalty, a, b):
    x, y = image(size[0], size[1], seed), image(size[0], size[1], seed + 1)
    out = T.frequency_filter(a * x + b * y, penalty)
    torch.testing.assert_close(
        out, a * T.frequency_filter(x, penalty) + b * T.frequency_filter(y, penalty), rtol=0, atol=1e-13
    )


@pytest.mark.parametrize("pattern", ["checkerboard", "rows", "columns"])
@pytest.mark.parametrize("penalty", [0.05, 0.3, 1.0])
def test_the_highest_frequency_is_damped_by_the_whole_penalty(pattern, penalty):
    i, j = torch.arange(9).double()[:, None], torch.arange(8).double()[None]
    step = {"checkerboard": i + j, "rows": i + 0 * j, "columns": j + 0 * i}[pattern]
    x = (1 - 2 * (step % 2))[None, None]
    out = T.frequency_filter(x, penalty)
    torch.testing.assert_close(out[..., 1:-1, 1:-1], (1 - penalty) * x[..., 1:-1, 1:-1], rtol=0, atol=1e-15)


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (2, 1), (2, 2)])
def test_pictures_below_three_by_three_are_left_alone(size):
    x = image(*size)
    assert torch.equal(T.frequency_filter(x, 1.0), x)


@given(shapes, draws.seeds, dtypes)
def test_penalty_zero_is_the_identity(shape, seed, dtype):
    view = T.picture(draws.stack(shape, seed, 2, 1.0, dtype), Layout.of(shape), "all")
    assert view is not None and torch.equal(T.frequency_filter(view, 0.0), view)


@given(draws.seeds)
def test_pictures_do_not_see_each_other(seed):
    """Two kernels of one convolution, two matrices of a batch: neighbours in memory, not in space."""
    x = draws.normal((1, 3, 4, 5), seed)
    y = x.clone()
    y[0, 1] *= -2.0
    for out, other in (
        (T.frequency_filter(x, 1.0), T.frequency_filter(y, 1.0)),
        (T.laplacian(x), T.laplacian(y)),
    ):
        assert torch.equal(out[0, 0], other[0, 0]) and torch.equal(out[0, 2], other[0, 2])
        assert not torch.equal(out[0, 1], other[0, 1])
