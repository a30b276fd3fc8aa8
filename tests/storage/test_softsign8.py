"""The companded int8 code of the momentum."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from automagic_cameamp.storage import Softsign8

CODES = torch.arange(-127, 128, dtype=torch.int8)


def compand(x: Tensor, scale: Tensor) -> Tensor:
    """The coordinate in which the code is uniform, in fp64: 127 * 2v / (1 + |v|)."""
    v = x.double() / scale.double()
    return 254 * v / (1 + v.abs())


@pytest.mark.parametrize("scale", [1.0, 3.7, 1e-20, 1e20, 2.0**-126, 3.3e38, 1e-3, 0.77])
def test_encoding_what_was_decoded_changes_nothing(scale: float) -> None:
    coder = Softsign8(256)
    codes = CODES.view(1, 1, 1, -1)
    values = coder.decode((codes, torch.tensor([[scale]])))
    again, found = coder.encode(values)
    assert torch.equal(again, codes)
    assert found.item() == torch.tensor(scale).item()
    assert torch.equal(coder.decode((again, found)), values)


def test_decoding_is_odd_and_increasing() -> None:
    values = Softsign8(256).decode((CODES.view(1, 1, 1, -1), torch.tensor([[2.5]]))).flatten()
    assert torch.equal(values, -values.flip(0))
    assert bool((values.diff() > 0).all())
    assert values[127] == 0 and values[-1] == 2.5


@pytest.mark.parametrize("spread", [0.0, 1.0, 4.0])
def test_error_is_half_a_code_in_the_companded_coordinate(spread: float) -> None:
    x = (torch.randn(8, 256) * torch.exp(spread * torch.randn(8, 256))).view(1, 1, 8, 256)
    coder = Softsign8(256)
    codes, scale = coder.encode(x)
    exact = compand(x[0, 0], scale[0].unsqueeze(-1))
    assert (codes[0, 0].double() - exact).abs().max() <= 0.5 + 1e-4
    # In the value itself that is at most 1/127 of the maximum, and 1/508 of it near 0.
    back = coder.decode((codes, scale))[0, 0]
    v = x[0, 0] / scale[0].unsqueeze(-1)
    step = (1 + v.abs()).square() / 254  # dv / dy
    assert bool(((back / scale[0].unsqueeze(-1) - v).abs() <= 0.5 * step * 1.01 + 1e-6).all())


def test_zero_and_block_maximum_are_exact() -> None:
    x = torch.randn(1, 1, 64, 256)
    x[0, 0, :, 9] = 0.0
    coder = Softsign8(256)
    back = coder.decode(coder.encode(x))
    peak = x[0, 0].abs().argmax(-1, keepdim=True)
    assert torch.equal(back[0, 0].gather(-1, peak), x[0, 0].gather(-1, peak))
    assert torch.equal(back[0, 0, :, 9], torch.zeros(64))


@pytest.mark.parametrize("scale", [1e-30, 1e-38, 3e-39, 1e-41, 1.4e-45])
def test_denormals(scale: float) -> None:
    x = torch.randn(1, 1, 1, 256) * scale
    coder = Softsign8(64)
    back = coder.decode(coder.encode(x))
    assert bool(back.isfinite().all())
    peaks = x.view(4, 64).abs().amax(-1, keepdim=True)
    assert bool(((back - x).view(4, 64).abs() <= peaks / 100 + 1.4e-45).all())


def test_zeros_constants_and_huge_values() -> None:
    coder = Softsign8(64)
    biggest = torch.finfo(torch.float32).max
    for value in (0.0, 0.3, -0.3, biggest, -biggest, 2.0**-126):
        x = torch.full((2, 1, 1, 100), value)
        assert torch.equal(coder.decode(coder.encode(x)), x), value


def test_ties_go_to_even_and_the_sign_is_kept() -> None:
    x = torch.randn(1, 1, 1, 4096)
    coder = Softsign8(4096)
    codes, scale = coder.encode(x)
    mirrored, _ = coder.encode(-x)
    assert torch.equal(mirrored, -codes)
    assert codes.min() >= -127
    assert bool((coder.decode((codes, scale)) * x >= 0).all())
