"""Codes without a block scale: four bits of [0, 1] (vectors: tests/improved)."""

from __future__ import annotations

import torch
from torch import Tensor

from automagic_cameamp.state.random_bits import parameter_key, random_bits
from automagic_cameamp.storage import Unit4
from automagic_cameamp.types import Layout

LAYOUT = Layout.of((40, 33))


def noise(step: int, shape: torch.Size) -> Tensor:
    keys = torch.tensor([parameter_key(0, i) for i in range(shape[0])], dtype=torch.int32)
    steps = torch.full((shape[0],), float(step))
    return random_bits(keys, steps, shape.numel() // shape[0]).view(shape)


def test_four_bits_hold_sixteen_values_exactly() -> None:
    layout = Layout.of((16,))
    coder = Unit4(layout)
    x = (torch.arange(16.0) / 15).view(1, 1, 1, 16)
    (packed,) = coder.encode(x)
    assert packed.shape == (1, 8) and packed.dtype == torch.uint8
    torch.testing.assert_close(coder.decode((packed,)), x, rtol=1e-6, atol=0.0)
    assert torch.equal(coder.encode(coder.decode((packed,)))[0], packed)


def test_four_bits_round_to_the_nearest_or_without_bias() -> None:
    coder = Unit4(LAYOUT)
    x = torch.rand(2, *LAYOUT.view)
    assert ((coder.decode(coder.encode(x)) - x).abs() <= 0.5 / 15 + 1e-6).all()
    total = torch.zeros_like(x)
    for step in range(400):
        value = coder.decode(coder.encode(x, noise(step, x.shape)))
        assert ((value - x).abs() <= 1 / 15 + 1e-6).all()
        assert bool(((value >= 0) & (value <= 1)).all())
        total += value
    assert ((total / 400 - x).abs() < 6 * 0.5 / 15 / 20).all()


def test_a_slow_mean_in_four_bits_does_not_freeze() -> None:
    coder = Unit4(LAYOUT)
    held = coder.encode(torch.zeros(1, *LAYOUT.view))
    for step in range(400):
        mean = torch.lerp(torch.ones(()), coder.decode(held), 0.98)
        held = coder.encode(mean, noise(step, mean.shape))
    assert abs(coder.decode(held).mean() - 1) < 0.02
