"""The logarithmic code of denominators: error bounded, never 0, a floor that only shrinks updates."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from automagic_cameamp.storage import Log8

# A logarithm of at most 88 is held, scaled and raised again in fp32: a few units of its last place.
ROUNDING = 88 * 2.0**-23 * 4
OCTAVE = math.log(2)  # the planes hold natural logarithms


def positive(octaves: float, count: int = 4096) -> Tensor:
    """Positive numbers that spread evenly over this many octaves below 1."""
    x = 2.0 ** (-octaves * torch.rand(count))
    x[0], x[1] = 1.0, 2.0**-octaves
    return x.view(1, 1, 1, count)


def test_all_codes_survive_a_round_trip() -> None:
    codes = torch.arange(256, dtype=torch.uint8).view(1, 1, 1, 256)
    coder = Log8(256)
    for low, step in ((-20.0, 0.076), (-87.0, 0.07), (-5.0, 1e-3), (60.0, 0.0625), (3.0, 1 / 256)):
        scale = torch.tensor([[[low, step]]])
        again, found = coder.encode(coder.decode((codes, scale)))
        assert torch.equal(again, codes), (low, step)
        assert (found - scale).abs().max() <= 2e-5


@pytest.mark.parametrize("octaves", [0.01, 1.0, 8.0, 20.0, 27.9])
@pytest.mark.parametrize("size", [1e-28, 1.0, 1e30])
def test_relative_error_is_half_a_step(octaves: float, size: float) -> None:
    x = positive(octaves) * size
    coder = Log8(4096)
    planes = coder.encode(x)
    step = planes[1][..., 1].item() / OCTAVE
    assert step <= octaves / 255 * 1.001 + ROUNDING
    error = (coder.decode(planes).double() / x.double()).log2().abs().max().item()
    assert error <= step / 2 + ROUNDING
    # The ends of the range are held as they are.
    back = coder.decode(planes).flatten()
    for i in (0, 1):
        assert abs(back[i].double() / x.flatten()[i].double() - 1) <= ROUNDING


def test_a_full_range_costs_at_most_four_percent() -> None:
    x = positive(28.0)
    coder = Log8(4096)
    back = coder.decode(coder.encode(x))
    assert ((back - x).abs() / x).max() < 0.039  # half of 28 / 255 octaves
    assert ((back / x).rsqrt() - 1).abs().max() < 0.02  # what it does to an update


@pytest.mark.parametrize("x", [0.0, 1e-45, 1e-39, 2.0**-126, 1e-30, 1.0, 3e38])
def test_never_zero_and_constants_are_kept(x: float) -> None:
    coder = Log8(64)
    back = coder.decode(coder.encode(torch.full((2, 1, 1, 100), x)))
    assert bool((back > 0).all()) and bool(back.isfinite().all())
    assert ((back / max(x, 2.0**-126)).log2().abs() <= ROUNDING).all()


def test_the_floor_only_shrinks_updates() -> None:
    """Below 28 octaves an element is raised, so that x ** -1/2 can only get smaller."""
    x = positive(80.0)
    coder = Log8(4096)
    planes = coder.encode(x)
    back = coder.decode(planes)
    low = planes[1][..., 0].item()
    assert low == pytest.approx(-28 * OCTAVE, abs=1e-5)
    below = x < 2.0**-28
    assert bool(below.any())
    assert bool((back[below] >= x[below]).all())
    # At the floor itself, where rounding could still go down, by no more than half a step.
    assert (back / x).log2().min() >= -28 / 255 / 2 - ROUNDING


def test_zeros_among_others() -> None:
    x = positive(8.0)
    x[..., ::2] = 0.0
    x[..., 0] = 1.0
    coder = Log8(4096)
    back = coder.decode(coder.encode(x))
    assert bool((back[x == 0] > 0).all())
    assert bool((back[x == 0] <= 2.0**-27.9).all())


def test_the_short_last_block_has_its_own_range() -> None:
    """A filling of zeros would stretch the last block to 28 octaves."""
    x = torch.cat([positive(20.0, 64).flatten(), 0.5 + 0.5 * torch.rand(9)]).view(1, 1, 1, 73)
    coder = Log8(64)
    codes, scale = coder.encode(x)
    assert scale.shape == (1, 2, 2)
    assert scale[0, 1, 1] <= 1 / 255
    assert ((coder.decode((codes, scale)) / x - 1).abs()[..., 64:] < 0.0014).all()
