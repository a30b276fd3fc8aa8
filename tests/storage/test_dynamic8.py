"""The dynamic code against bitsandbytes and against a search for the nearest value in fp64.

bitsandbytes has three encoders. Its CUDA kernel and its device-neutral one compare with midpoints
rounded to fp32, as we do. Its generic CPU path (any type but the usual three) takes the smallest
fp32 distance. Its fp32 CPU kernel looks up 64k cells and is not always nearest. They can only
differ where a value is a midpoint of the map, or (for the last) lies in the cell of one.
"""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor

from automagic_cameamp.storage import Dynamic8, dynamic_map

MAP = dynamic_map()
MIDDLES = (MAP[:-1] + MAP[1:]) / 2
WHOLE = 1 << 20  # larger than any block used here


@pytest.fixture(scope="module")
def bnb():  # type: ignore[no-untyped-def]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import bitsandbytes
        import bitsandbytes.functional  # noqa: F401

    return bitsandbytes


def encode(x: Tensor, block: int) -> tuple[Tensor, Tensor]:
    codes, scale = Dynamic8(block).encode(x.reshape(1, 1, 1, -1))
    return codes.flatten(), scale.flatten()


def beside_midpoints(ulps: int) -> Tensor:
    """Every midpoint of the map and its neighbours in fp32."""
    up = down = MIDDLES
    found = [MIDDLES]
    for _ in range(ulps):
        up, down = torch.nextafter(up, torch.tensor(9.0)), torch.nextafter(down, torch.tensor(-9.0))
        found += [up, down]
    return torch.cat(found)


def test_map_is_bitsandbytes_map(bnb) -> None:
    theirs = bnb.functional.create_dynamic_map(signed=True)
    assert MAP.dtype == torch.float32 and MAP.shape == (256,)
    assert torch.equal(MAP, theirs)
    assert 0.0 in MAP.tolist() and MAP[-1] == 1.0 and bool((MAP.diff() > 0).all())


def test_all_codes_survive_a_round_trip() -> None:
    codes = torch.arange(256, dtype=torch.uint8).view(1, 1, 1, 256)
    for scale in (1.0, 3.7, 1e-20, 1e20, 2.0**-126):
        coder = Dynamic8(256)
        values = coder.decode((codes, torch.tensor([[scale]])))
        assert torch.equal(values.flatten(), MAP * scale)
        again, found = coder.encode(values)
        assert torch.equal(again, codes), f"scale {scale}"
        assert found.item() == torch.tensor(scale).item()


@pytest.mark.parametrize("count", [256, 4096, 1000, 4097])
@pytest.mark.parametrize("block", [64, 256, 4096])
def test_codes_and_scales_equal_bitsandbytes(bnb, count: int, block: int) -> None:
    for spread in (0.0, 1.0, 6.0):  # standard deviation of the logarithm: flat to seven decades
        x = torch.randn(count) * torch.exp(spread * torch.randn(count))
        ours, scale = encode(x, block)
        theirs, absmax = torch.ops.bitsandbytes.quantize_blockwise(x.double(), MAP, min(block, count))
        assert torch.equal(scale, absmax)
        assert torch.equal(ours, theirs)
        decoded = Dynamic8(block).decode((ours.view(1, 1, 1, -1), scale.view(1, -1))).flatten()
        reference = torch.ops.bitsandbytes.dequantize_blockwise(
            theirs, absmax, MAP, min(block, count), torch.float32
        )
        assert torch.equal(decoded, reference)


def test_differs_from_the_exact_search_only_on_midpoints(bnb) -> None:
    values = torch.cat([torch.ones(1), beside_midpoints(16)])
    ours = encode(values, WHOLE)[0]
    theirs, _ = torch.ops.bitsandbytes.quantize_blockwise(values.double(), MAP, values.numel())
    different = ours != theirs
    assert bool(torch.isin(values[different], MIDDLES).all())
    assert bool(((ours.int() - theirs.int()).abs() <= 1).all())


def test_nearest_value_wins_and_a_tie_goes_down() -> None:
    values = torch.cat([torch.ones(1), beside_midpoints(16), torch.rand(200_000) * 2 - 1])
    ours = encode(values, WHOLE)[0].long()
    distance = (values.double() - MAP[ours].double()).abs()
    table = MAP.double()
    best = torch.stack([(values.double() - table[i]).abs() for i in range(256)]).amin(0)
    # A midpoint rounded to fp32 lies up to half a unit in the last place off the true one, which
    # counts twice in a difference of two distances.
    assert bool((distance - best <= 2.0**-23 * values.double().abs()).all())
    ties = encode(torch.cat([torch.ones(1), MIDDLES]), WHOLE)[0][1:].long()
    assert torch.equal(ties, torch.arange(255))
    next_up = torch.nextafter(MIDDLES, torch.tensor(2.0))
    above = encode(torch.cat([torch.ones(1), next_up]), WHOLE)[0][1:].long()
    assert torch.equal(above, torch.arange(1, 256))


def test_bitsandbytes_cpu_kernel_differs_only_near_midpoints(bnb) -> None:
    x = torch.cat([torch.ones(1), torch.rand(300_000) * 2 - 1])
    ours, _ = encode(x, WHOLE)
    theirs, _ = torch.ops.bitsandbytes.quantize_blockwise(x, MAP, x.numel())
    different = (ours != theirs).nonzero().flatten()
    assert 0 < different.numel() < 0.01 * x.numel(), "the coarse table should show, and rarely"
    # Its cells are about 2**-15 wide; a table of this width cannot tell what lies nearer to a midpoint.
    gap = (x[different].unsqueeze(1) - MIDDLES.unsqueeze(0)).abs().amin(1)
    assert gap.max() <= 2.0**-15
    # Ours is never farther from the value than theirs.
    mine, other = (x - MAP[ours.long()]).abs(), (x - MAP[theirs.long()]).abs()
    assert bool((mine[different] <= other[different]).all())
    wide = (x.abs() > 0.01) & (ours != theirs)
    assert bool(((ours.int() - theirs.int()).abs()[wide] == 1).all())


def test_block_maximum_and_zero_are_exact() -> None:
    x = torch.randn(1, 1, 64, 256)
    x[0, 0, :, 7] = 0.0
    coder = Dynamic8(256)
    back = coder.decode(coder.encode(x))
    rows = x[0, 0].abs().argmax(-1, keepdim=True)
    peak, held = x[0, 0].gather(-1, rows), back[0, 0].gather(-1, rows)
    assert torch.equal(peak[peak > 0], held[peak > 0])  # -1 is not in the map, +1 is
    assert bool(((peak - held).abs() <= 0.0071 * peak.abs()).all())
    assert torch.equal(back[0, 0, :, 7], torch.zeros(64))


def test_relative_error_by_decade() -> None:
    """Each decade below the maximum has half the codes of the one above: 64 in the first."""
    x = 10.0 ** (-6 * torch.rand(4096)) * torch.randn(4096).sign()
    x[0] = 1.0
    coder = Dynamic8(4096)
    back = coder.decode(coder.encode(x.view(1, 1, 1, -1))).flatten()
    relative = (back - x).abs() / x.abs()
    for decade in range(6):
        inside = (x.abs() <= 10.0**-decade) & (x.abs() > 10.0 ** -(decade + 1))
        bound = 4.5 / 2 ** (6 - decade)  # half a step of 0.9 / codes, at the low end of the decade
        assert inside.any() and relative[inside].max() < 1.01 * bound, f"decade {decade}"
        assert relative[inside].mean() < 0.25 * bound, f"decade {decade}"


@pytest.mark.parametrize("scale", [1e-30, 1.2e-38, 3e-39, 1e-41, 1.4e-45])
def test_tiny_blocks_stay_finite_and_bounded(scale: float) -> None:
    x = torch.randn(1, 1, 1, 256) * scale
    x[..., 3] = 0.0
    coder = Dynamic8(64)
    back = coder.decode(coder.encode(x))
    assert bool(back.isfinite().all()) and back[..., 3] == 0
    assert bool((back.abs() <= x.abs().max()).all())
    assert bool((back * x >= 0).all()), "a sign was turned"


def test_zeros_and_constants() -> None:
    coder = Dynamic8(64)
    zero = torch.zeros(2, 1, 1, 100)
    assert torch.equal(coder.decode(coder.encode(zero)), zero)
    positive = torch.full((2, 1, 1, 100), 0.3)
    assert torch.equal(coder.decode(coder.encode(positive)), positive)
    huge = torch.full((1, 1, 1, 100), torch.finfo(torch.float32).max)
    assert torch.equal(coder.decode(coder.encode(huge)), huge)


def test_sign_of_the_map_is_not_symmetric_and_stays_so() -> None:
    """-1 has no code of its own in bitsandbytes' map; its nearest value is held, as there."""
    coder = Dynamic8(64)
    back = coder.decode(coder.encode(-torch.ones(1, 1, 1, 64)))
    assert torch.equal(back.flatten(), MAP[0].expand(64))
    assert -1 < MAP[0] < -0.99
