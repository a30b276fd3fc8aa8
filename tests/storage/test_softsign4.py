"""Four bits of momentum: unbiased, 0 exact, the largest of a block kept, slow means followed."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from automagic_cameamp.state.random_bits import parameter_key, random_bits
from automagic_cameamp.storage import Softsign4
from automagic_cameamp.types import Layout

LAYOUT = Layout.of((40, 33))  # 1,320 elements: a short last block
VALUES = [k / (14 - abs(k)) for k in range(-7, 8)]


def noise(step: int, shape: torch.Size) -> Tensor:
    keys = torch.tensor([parameter_key(0, i) for i in range(shape[0])], dtype=torch.int32)
    return random_bits(keys, torch.full((shape[0],), float(step)), shape.numel() // shape[0]).view(shape)


@pytest.mark.parametrize("scale", [1.0, 2.0**-120, 1.5 * 2.0**100])
def test_fifteen_values_are_held_exactly_whatever_the_bits(scale: float) -> None:
    layout = Layout.of((15,))
    coder = Softsign4(layout, 64)
    x = (torch.tensor(VALUES) * scale).view(1, 1, 1, 15)
    packed, found = coder.encode(x)
    assert packed.shape == (1, 8) and packed.dtype == torch.uint8
    assert found.dtype == torch.bfloat16 and float(found) == scale
    torch.testing.assert_close(coder.decode((packed, found)), x, rtol=1e-6, atol=0.0)
    again = coder.decode((packed, found))
    for bits in (None, *(noise(step, x.shape) for step in range(20))):
        assert torch.equal(coder.encode(again, bits)[0], packed)


@pytest.mark.parametrize("shape", [(40, 33), (7,), (3, 5, 7), ()], ids=str)
def test_planes_are_what_it_writes(shape: tuple[int, ...]) -> None:
    layout = Layout.of(shape)
    coder = Softsign4(layout, 64)
    planes, parts = coder.planes(layout), coder.encode(torch.randn(2, *layout.view))
    assert [(2, *plane.shape) for plane in planes] == [tuple(part.shape) for part in parts]
    assert [plane.dtype for plane in planes] == [part.dtype for part in parts]


def test_rounds_to_a_neighbour_and_without_bias() -> None:
    coder = Softsign4(LAYOUT, 256)
    x = torch.randn(2, *LAYOUT.view)
    x[0, 0, 5] = 0.0
    values = torch.tensor(VALUES, dtype=torch.float64)
    scale = coder.encode(x)[1].double().repeat_interleave(256, 1)[:, : LAYOUT.numel].reshape(x.shape)
    v = x.double() / scale
    assert float(v.abs().max()) <= 1 and float(v.abs().max()) > 0.99
    upper = torch.bucketize(v, values).clamp(1, 14)
    below, above = values[upper - 1], values[upper]
    total, square = torch.zeros_like(v), torch.zeros_like(v)
    for step in range(400):
        back = coder.decode(coder.encode(x, noise(step, x.shape))).double() / scale
        near = ((back - below).abs() < 1e-6) | ((back - above).abs() < 1e-6)
        assert bool((near | ((back - v).abs() < 1e-6)).all())
        total += back
        square += back.square()
    assert bool((total[0, 0, 5] == 0).all())
    assert bool(((total / 400 - v).abs() < 6 * (above - below) / 2 / math.sqrt(400)).all())
    assert abs(float(((total / 400 - v) / (above - below)).mean())) < 6 * 0.5 / math.sqrt(400 * v.numel())
    nearest = coder.decode(coder.encode(x)).double() / scale
    best = (v.unsqueeze(-1) - values).abs().amin(-1)
    assert bool(((nearest - v).abs() <= best + 1e-6).all())


def test_blocks_of_zeros_and_of_one_element() -> None:
    coder = Softsign4(LAYOUT, 64)
    x = torch.zeros(2, *LAYOUT.view)
    assert torch.equal(coder.decode(coder.encode(x, noise(1, x.shape))), x)
    x[0, 0, 3, 3] = -1e-30
    back = coder.decode(coder.encode(x, noise(2, x.shape)))
    assert float(back[0, 0, 3, 3]) == pytest.approx(-1e-30, rel=0.26)
    back[0, 0, 3, 3] = 0
    assert not back.any()


def test_follows_a_mean_that_nearest_rounding_would_freeze() -> None:
    coder = Softsign4(LAYOUT, 256)
    size = torch.linspace(0.02, 1, LAYOUT.numel).view(1, *LAYOUT.view)
    held = frozen = torch.cat([-size, size])
    goal = held.clone()
    goal[..., ::2] *= -1  # the scale of a block that moves as a whole would follow it
    total = torch.zeros_like(held)
    for step in range(1000):
        held = coder.decode(coder.encode(torch.lerp(goal, held, 0.99), noise(step, held.shape)))
        frozen = coder.decode(coder.encode(torch.lerp(goal, frozen, 0.99)))
        total += held if step >= 600 else 0
    assert float((total / 400 - goal).norm() / goal.norm()) < 0.12
    frozen, goal = frozen[..., ::2], goal[..., ::2]
    assert float((frozen - goal).norm() / goal.norm()) > 0.5


def test_stacked_is_looped() -> None:
    coder = Softsign4(LAYOUT, 64)
    x = torch.randn(5, *LAYOUT.view)
    bits = noise(3, x.shape)
    together = coder.encode(x, bits)
    for i in range(5):
        for a, b in zip(coder.encode(x[i : i + 1], bits[i : i + 1]), together, strict=True):
            assert torch.equal(a[0], b[i])
    assert torch.equal(coder.decode(together)[2], coder.decode(tuple(q[2:3] for q in together))[0])
