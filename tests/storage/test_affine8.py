"""The affine code, and the plane that corrects its rounding error (or that of softsign)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from automagic_cameamp.storage import Affine8, ErrorCorrected, Softsign8
from automagic_cameamp.storage.residual import pack_nibbles, unpack_nibbles
from automagic_cameamp.types import Layout

CODES = torch.arange(256, dtype=torch.uint8).view(1, 1, 1, 256)
BOTH = pytest.mark.parametrize("code", [Affine8, Softsign8])


def spread(*shape: int, deviation: float = 1.0) -> Tensor:
    return torch.randn(shape) * torch.exp(deviation * torch.randn(shape))


@pytest.mark.parametrize("zero", [0, 1, 100, 128, 255])
@pytest.mark.parametrize("scale", [1.0, 0.37, 1e-20, 1e20])
def test_all_codes_survive_a_round_trip(zero: int, scale: float) -> None:
    planes = CODES, torch.tensor([[scale]]), torch.tensor([[zero]], dtype=torch.uint8)
    coder = Affine8(256)
    values = coder.decode(planes)
    assert values.flatten()[zero] == 0
    again = coder.encode(values)
    assert torch.equal(again[0], CODES) and torch.equal(again[2], planes[2])
    torch.testing.assert_close(coder.decode(again), values, rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("shift", [0.0, 1.0, -3.0, 100.0])
@pytest.mark.parametrize("block", [64, 256])
def test_error_is_half_a_step_and_zero_is_exact(shift: float, block: int) -> None:
    x = (spread(1, 8, 130) + shift).unsqueeze(0)
    x[..., 5] = 0.0
    coder = Affine8(block)
    planes = coder.encode(x)
    back = coder.decode(planes)
    assert bool(((back - x).abs() <= coder.half_step(planes) * (1 + 1e-4)).all())
    assert bool((back[x == 0] == 0).all())


def test_zeros_constants_and_extremes() -> None:
    coder = Affine8(64)
    for value in (0.0, 0.3, -0.3, 1e38, -1e38, 2.0**-120, 1e-44):
        x = torch.full((2, 1, 1, 100), value)
        back = coder.decode(coder.encode(x))
        assert bool(back.isfinite().all())
        assert bool(((back - x).abs() <= abs(value) / 255 + 1e-44).all()), value


def test_blocks_of_a_stack_do_not_see_each_other() -> None:
    x = spread(4, 1, 9, 31)
    x[1] *= 1e10
    for coder in (Affine8(64), ErrorCorrected(Affine8(64), 4), ErrorCorrected(Softsign8(64), 8)):
        together = coder.encode(x)
        for i in range(4):
            alone = coder.encode(x[i : i + 1])
            assert all(torch.equal(a, b[i : i + 1]) for a, b in zip(alone, together, strict=True))
            assert torch.equal(coder.decode(alone), coder.decode(together)[i : i + 1])


@BOTH
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("deviation", [0.0, 2.0])
def test_correction_leaves_a_fraction_of_the_error(code: type, bits: int, deviation: float) -> None:
    x = spread(2, 1, 33, 31, deviation=deviation)
    coder = ErrorCorrected(code(256), bits)
    planes = coder.encode(x)
    half = coder.code.half_step(planes[:-1])
    assert bool(((coder.decode(planes) - x).abs() <= half / (2 * coder.levels) * 1.01 + 1e-6 * x.abs()).all())
    assert bool((coder.error(planes).abs() <= half * (1 + 1e-6)).all())
    # The first planes alone are the plain code of the same values.
    plain = code(256).encode(x)
    assert all(torch.equal(a, b) for a, b in zip(planes[:-1], plain, strict=True))
    with_error = (coder.decode(planes) - x).norm()
    assert with_error < (coder.code.decode(plain) - x).norm() / (10 if bits == 4 else 100)


@BOTH
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("shape", [(7,), (9, 31), (3, 8, 5)], ids=str)
def test_planes_are_what_encode_gives(code: type, bits: int, shape: tuple[int, ...]) -> None:
    layout, coder = Layout.of(shape), ErrorCorrected(code(64), bits)
    stored = coder.encode(spread(2, *layout.view))
    for plane, tensor in zip(coder.planes(layout), stored, strict=True):
        assert tensor.shape == (2, *plane.shape) and tensor.dtype == plane.dtype
    assert stored[-1].shape[1] == (-(-layout.numel // 2) if bits == 4 else layout.numel)


@BOTH
def test_a_zero_state_stays_zero(code: type) -> None:
    zero = torch.zeros(2, 1, 1, 100)
    coder = ErrorCorrected(code(64), 4)
    assert torch.equal(coder.decode(coder.encode(zero)), zero)


@BOTH
@pytest.mark.parametrize(("bits", "bound"), [(0, 0.08), (4, 0.006), (8, 0.0005)])
def test_in_a_slow_mean_the_error_does_not_accumulate(code: type, bits: int, bound: float) -> None:
    """A mean with decay .99 requantised 1,500 times; relative error of the mean."""
    coder = ErrorCorrected(code(256), bits) if bits else code(256)
    exact = torch.randn(1, 1, 4, 256)
    held = coder.encode(exact)
    for _ in range(1500):
        new = torch.randn(exact.shape)
        exact = torch.lerp(new, exact, 0.99)
        held = coder.encode(torch.lerp(new, coder.decode(held), 0.99))
    assert (coder.decode(held) - exact).norm() / exact.norm() < bound


@pytest.mark.parametrize("count", [1, 2, 7, 256])
def test_nibbles(count: int) -> None:
    x = torch.randint(0, 16, (3, count), dtype=torch.uint8)
    packed = pack_nibbles(x)
    assert packed.shape == (3, -(-count // 2))
    assert torch.equal(unpack_nibbles(packed, count), x)
    if count > 1:
        assert int(packed[0, 0]) == int(x[0, 0]) + 16 * int(x[0, 1]), "the first is the low half"
