"""The sixteen-bit logarithmic code of vectors: zero, bounds, bias, slow means, wide ranges."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from automagic_cameamp.state.random_bits import parameter_key, random_bits
from automagic_cameamp.storage import Log16, StateSpec
from automagic_cameamp.types import Layout
from reference import draws

LAYOUT = Layout.of((64, 16))
CODE = Log16(StateSpec("exp_avg_sq_row", "row", "vector"), LAYOUT)


def noise(shape: torch.Size | tuple[int, ...], step: int) -> Tensor:
    keys = torch.tensor([parameter_key(0, i) for i in range(shape[0])], dtype=torch.int32)
    count = math.prod(shape) // shape[0]
    return random_bits(keys, torch.full((shape[0],), float(step)), count).view(shape)


def coded(x: Tensor, bits: Tensor | None = None) -> Tensor:
    planes = CODE.encode(x, bits)
    for plane, stored in zip(CODE.planes(LAYOUT), planes, strict=True):
        assert stored.dtype == plane.dtype
    return CODE.decode(planes)


def spread(x: Tensor) -> Tensor:
    """ln(max / min) of the live elements of each vector: [B,1,1,1]."""
    log = x.double().log()
    return log.amax((1, 2, 3), keepdim=True) - log.amin((1, 2, 3), keepdim=True)


@settings(max_examples=40)
@given(draws.seeds, st.sampled_from([0.01, 1.0, 6.0, 20.0]), st.sampled_from([1e-20, 1e-6, 1.0, 1e15]))
def test_the_error_is_at_most_a_step_of_its_own_range(seed: int, octaves: float, scale: float) -> None:
    x = (torch.exp(octaves * draws.normal((2, 1, 64, 1), seed)) * scale).clamp(2.0**-126, 2.0**127).float()
    # Low end and step are rounded to their grids; the rest is fp32's own error in ln and exp.
    step = (spread(x) + 1 / 16) / 65534 + 2.0**-19
    fp32 = 4 * 2.0**-24 * (x.double().log().abs().amax() + 1)
    for back, part in ((coded(x), 0.5), (coded(x, noise(x.shape, seed)), 1.0)):
        error = (back.double() - x.double()).abs() / x.double()
        assert bool((error <= torch.expm1(part * step + fp32)).all())


def test_nearest_is_the_nearest_of_all_codes() -> None:
    """Against every value that the grid has."""
    x = torch.exp(3 * draws.normal((1, 1, 64, 1), 5)).float()
    codes, scale = CODE.encode(x)
    low, step = scale.double().flatten()
    grid = low + step * torch.arange(65535, dtype=torch.float64)
    best = (x.double().log().view(-1, 1) - grid).abs().amin(-1)
    found = (x.double().log() - (low + step * (codes.double() + 32767))).abs().flatten()
    assert bool((found <= best + 4e-6).all())
    assert int(codes.max()) > 32767 - 65534 // 8, "most of the codes must be in use"


def test_zero_and_what_is_too_small_are_exactly_zero() -> None:
    zero = torch.zeros(3, 1, 64, 1)
    assert torch.equal(coded(zero, noise(zero.shape, 1)), zero)
    x = zero.clone()
    x[0, 0, 3], x[1, 0, 0], x[1, 0, 1], x[2] = 5.5e-9, 2.0**-127, 2.0**127, 2.0**-126
    for bits in (None, noise(x.shape, 2)):
        back = coded(x, bits)
        assert torch.equal(back > 0, x >= 2.0**-126)
        assert bool(back.isfinite().all())
        live = x >= 2.0**-126
        assert bool(((back - x)[live].abs() <= 0.003 * x[live]).all())


def test_the_largest_of_fp32_stays_finite() -> None:
    x = torch.full((1, 1, 64, 1), torch.finfo(torch.float32).max)
    x[0, 0, 0] = 2.0**-126
    for step in range(20):
        back = coded(x, noise(x.shape, step))
        assert bool(back.isfinite().all()) and float(back[0, 0, 0, 0]) > 0


@pytest.mark.parametrize("octaves", [0.0, 1.0, 10.0])
def test_unbiased(octaves: float) -> None:
    x = torch.exp(octaves * draws.normal((1, 1, 64, 1), 3)).float() * 1e-6
    total = torch.zeros(1, 1, 64, 1, dtype=torch.float64)
    for step in range(400):
        total += coded(x, noise(x.shape, step)).double().log()
    size = (spread(x) + 1 / 16) / 65534 + 2.0**-19
    deviation = (total / 400 - x.double().log()).abs()
    assert bool((deviation < 4 * 0.5 * size / math.sqrt(400) + size / 256 + 4e-6).all())


def test_follows_a_slow_mean_of_b_999() -> None:
    """The worst average of the optimizer: its steps are a thousandth."""
    exact = torch.exp(2 * draws.normal((1, 1, 64, 1), 7)).float()
    held, goal = exact.clone(), torch.exp(2 * draws.normal((1, 1, 64, 1), 8)).float()
    for t in range(1500):
        exact = torch.lerp(goal, exact, 0.999)
        held = coded(torch.lerp(goal, held, 0.999), noise(exact.shape, t))
    assert draws.relative(held, exact) < 0.006
    ratio = (held.double() / exact.double()).log()
    assert float(ratio.mean().abs()) < 0.001 and float(ratio.abs().max()) < 0.02


def test_a_constant_mean_does_not_drift() -> None:
    x = torch.exp(5 * draws.normal((1, 1, 64, 1), 9)).float() * 1e-8
    held = coded(x, noise(x.shape, 0))
    for t in range(1, 1000):
        held = coded(torch.lerp(x, held, 0.999), noise(x.shape, t))
    assert float((held / x).log().abs().max()) < 0.004


def test_every_vector_of_a_stack_has_its_own_grid() -> None:
    x = torch.exp(draws.normal((5, 1, 64, 1), 11)).float() * torch.tensor([1e-20, 1e-9, 1.0, 1e9, 1e20]).view(
        5, 1, 1, 1
    )
    bits = noise(x.shape, 4)
    together = CODE.encode(x, bits)
    for i in range(5):
        alone = CODE.encode(x[i : i + 1], bits[i : i + 1])
        for a, b in zip(alone, together, strict=True):
            assert torch.equal(a[0], b[i])
