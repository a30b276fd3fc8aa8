"""The native codecs against the reference's, bit for bit, in every instruction set this machine has.

The reference is itself held to bitsandbytes, to fp64 and to its own invariants by tests/storage; here
only equality matters, so inputs are chosen where an encoder could decide otherwise: midpoints and
their neighbours, ties, ends of ranges, subnormal blocks, short last blocks.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from automagic_cameamp.storage import Dynamic8, dynamic_map
from automagic_cameamp.types import Layout
from native import codec_library as native
from native.codec_library import beside, stack

pytestmark = pytest.mark.skipif(native.compiler() is None, reason="no C++ compiler: nothing to build")
EXACT = [name for name in native.NUMBERS if name != "log"]
BLOCKS = [64, 256, 4096]


def layout(count: int) -> Layout:
    return Layout.of((count,))


def reference(name: str, x: Tensor, block: int) -> list[Tensor]:
    """Planes of the reference, flat."""
    return [plane.reshape(-1).clone() for plane in native.codec(name, block).encode(stack(x))]


def ours(lib: native.Codecs, name: str, x: Tensor, block: int, like: list[Tensor]) -> list[Tensor]:
    planes = [torch.full_like(plane, 77) for plane in like]
    return lib.encode(native.NUMBERS.index(name), x.contiguous(), planes, min(block, x.numel()))


def decoded(name: str, planes: list[Tensor], count: int, block: int) -> Tensor:
    """What the reference decodes."""
    code = native.codec(name, block)
    shaped = [plane.view(1, *p.shape) for plane, p in zip(planes, code.planes(layout(count)), strict=True)]
    return code.decode(tuple(shaped)).flatten()


def same(a: Tensor, b: Tensor) -> bool:
    """Equal bits, except that -0 is 0."""
    return torch.equal(torch.nan_to_num(a.float(), 9.75), torch.nan_to_num(b.float(), 9.75))


def cases() -> dict[str, Tensor]:
    """Inputs by name."""
    generator = torch.Generator().manual_seed(0)

    def normal(count: int) -> Tensor:
        return torch.randn(count, generator=generator)

    def decades(count: int, width: float) -> Tensor:
        return normal(count) * 10 ** (width * (torch.rand(count, generator=generator) - 0.5))

    found = {
        "zeros": torch.zeros(300),
        "negative zeros": -torch.zeros(300),
        "constant": torch.full((300,), 0.3),
        "negative constant": torch.full((300,), -0.3),
        "one element": torch.tensor([2.5]),
        "one outlier": torch.cat([normal(4200) * 1e-6, torch.tensor([1.0])]),
        "positive": normal(5000).abs(),
        "negative": -normal(5000).abs(),
        "ties": torch.arange(-4096, 4097).float() / 2,
        "12 decades": decades(100_003, 12.0),
        "largest": torch.tensor([torch.finfo(torch.float32).max, 1.0, 0.0] * 50),
        "nearly constant": 1 + normal(5000) * 2.0**-24,
    }
    for exponent in (-30, -36, -38, -40, -42, -44):
        found[f"size 1e{exponent}"] = normal(700) * 10.0**exponent
    for count in (2, 3, 5, 31, 63, 64, 65, 127, 255, 257, 511, 1023, 4095, 4097, 8191):
        found[f"count {count}"] = normal(count)
    return found


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("block", BLOCKS)
def test_planes_and_values_equal_the_reference(lib, name: str, block: int) -> None:
    for case, x in cases().items():
        theirs = reference(name, x, block)
        mine = ours(lib, name, x, block, theirs)
        for number, (a, b) in enumerate(zip(mine, theirs, strict=True)):
            assert same(a, b), (
                f"{case}: plane {number} differs at {(a != b).nonzero().flatten()[:5].tolist()}"
            )
        out = lib.decode(native.NUMBERS.index(name), theirs, 0, torch.empty(x.numel()), min(block, x.numel()))
        assert same(out, decoded(name, theirs, x.numel(), block)), case


@pytest.mark.parametrize("name", EXACT)
def test_a_million_values_over_twelve_decades(lib, name: str) -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(1_000_000, generator=generator)
    x = x * 10 ** (12 * torch.rand(1_000_000, generator=generator) - 9)
    theirs = reference(name, x, 256)
    for a, b in zip(ours(lib, name, x, 256, theirs), theirs, strict=True):
        assert same(a, b)


def test_numbers_around_every_midpoint_of_the_dynamic_map(lib) -> None:
    """An encoder that computes codes has to know where its rounding leaves them in doubt."""
    values = dynamic_map()
    near = beside((values[:-1] + values[1:]) / 2, ulps=24).view(-1, 255)
    x = torch.cat([torch.ones(len(near), 1), near], dim=1).flatten()  # the divisor of each block is 1
    theirs = reference("dynamic", x, 256)
    assert same(ours(lib, "dynamic", x, 256, theirs)[0], theirs[0])


@pytest.mark.parametrize("name", ["dynamic", "softsign", "affine"])
def test_every_code_decodes_alike(lib, name: str) -> None:
    codes = torch.arange(256).to(torch.uint8)
    scales = [1.0, 3.7, 1e-20, 1e20, 2.0**-126, 1e-40]
    planes = [codes.repeat(len(scales)), torch.tensor(scales)]
    if name == "softsign":
        planes[0] = planes[0].view(torch.int8)
    if name == "affine":
        planes.append(torch.tensor([0, 1, 100, 128, 254, 255], dtype=torch.uint8))
    out = lib.decode(native.NUMBERS.index(name), planes, 0, torch.empty(256 * len(scales)), 256)
    assert same(out, decoded(name, planes, 256 * len(scales), 256))


@pytest.mark.parametrize("name", [name for name in EXACT if "+" in name])
def test_every_residual_decodes_alike(lib, name: str) -> None:
    x = torch.randn(65536, generator=torch.Generator().manual_seed(2))
    planes = reference(name, x, 256)
    every = torch.arange(256).to(torch.uint8)
    # Every code meets every residual: codes repeat with period 256, residuals drift against them.
    planes[0] = every.repeat(256).view(planes[0].dtype)
    planes[-1] = torch.cat([every.roll(i) for i in range(256)])[: planes[-1].numel()].contiguous()
    out = lib.decode(native.NUMBERS.index(name), planes, 0, torch.empty(65536), 256)
    assert same(out, decoded(name, planes, 65536, 256))


@pytest.mark.parametrize("scale", [1.0, 0.37, 2.0**-90, 1e20])
def test_midpoints_of_the_dynamic_map(lib, scale: float) -> None:
    values = dynamic_map()
    x = beside(torch.cat([values, (values[:-1] + values[1:]) / 2]))
    x = torch.cat([torch.ones(1), x.clamp(-1, 1)]) * scale
    theirs = reference("dynamic", x, 1 << 20)
    assert same(ours(lib, "dynamic", x, 1 << 20, theirs)[0], theirs[0])
    assert theirs[0].unique().numel() == 256


def test_numbers_on_both_sides_of_where_the_line_is_trusted(lib) -> None:
    """One encoder looks midpoints up only within 8 / 65536 of a code: 0 to 40 of them around each."""
    values = dynamic_map().double()
    middle, width = (values[:-1] + values[1:]) / 2, values[1:] - values[:-1]
    shifts = torch.arange(-40, 41, dtype=torch.float64) / 65536
    x = (middle[:, None] + width[:, None] * shifts).flatten().float()
    x = torch.cat([torch.ones(1), x.clamp(-1, 1)])
    theirs = reference("dynamic", x, 1 << 20)
    assert same(ours(lib, "dynamic", x, 1 << 20, theirs)[0], theirs[0])


def test_cells_of_the_dynamic_encoder(lib) -> None:
    """The ends and the middle of each of the cells that numbers of size 2^-30 to 1 fall into."""
    starts = torch.arange((97 << 6) << 17, (127 << 6 << 17) + 1, 1 << 17, dtype=torch.int32)
    x = torch.cat([starts, starts + (1 << 16), starts[1:] - 1]).view(torch.float32)
    x = torch.cat([x, -x])
    theirs = reference("dynamic", x, 1 << 20)
    assert same(ours(lib, "dynamic", x, 1 << 20, theirs)[0], theirs[0])


@pytest.mark.parametrize("name", ["affine", "softsign", "affine+4", "softsign+8"])
@pytest.mark.parametrize("scale", [1.0, 0.37, 2.0**-59, 2.0**-61, 2.0**61, 2.0**-100])
def test_midpoints_of_the_uniform_codes(lib, name: str, scale: float) -> None:
    steps = (torch.arange(-255, 256).float() / 2).div(127)
    bent = steps / (2 - steps.abs())  # the softsign code's own midpoints
    x = torch.cat([torch.ones(1), beside(torch.cat([steps, bent])).clamp(-1, 1)]) * scale
    theirs = reference(name, x, 1 << 20)
    for a, b in zip(ours(lib, name, x, 1 << 20, theirs), theirs, strict=True):
        assert same(a, b)


@pytest.mark.parametrize("name", native.NUMBERS)
def test_any_range_decodes_as_the_whole(lib, name: str) -> None:
    count, block = 1111, 64
    x = torch.rand(count, generator=torch.Generator().manual_seed(3)) + 1e-3
    planes = reference(name, x, block)
    number = native.NUMBERS.index(name)
    whole = lib.decode(number, planes, 0, torch.empty(count), block)
    for first, size in [(0, 1), (1, 1), (63, 2), (64, 64), (65, 700), (500, 611), (1110, 1), (7, 0)]:
        part = lib.decode(number, planes, first, torch.empty(size), block)
        assert torch.equal(part, whole[first : first + size]), (first, size)


@pytest.mark.parametrize("name", native.NUMBERS)
def test_runs_of_whole_blocks_encode_as_the_whole(lib, name: str) -> None:
    count, block = 1111, 64
    x = torch.rand(count, generator=torch.Generator().manual_seed(4)) + 1e-3
    theirs = reference(name, x, block)
    whole = ours(lib, name, x, block, theirs)
    planes = [torch.full_like(plane, 55) for plane in theirs]
    for first, last in [(640, 1111), (0, 64), (64, 640)]:
        lib.encode(native.NUMBERS.index(name), x[first:last].clone(), planes, block, first, count)
    assert all(torch.equal(a, b) for a, b in zip(planes, whole, strict=True))


@pytest.mark.parametrize("width", [0.5, 6.0, 20.0, 60.0])
def test_log_codes(lib, width: float) -> None:
    """Equal, except where a last bit of the logarithm decides; then the next code, at a midpoint."""
    generator = torch.Generator().manual_seed(5)
    x = 10 ** (width * (torch.rand(70_001, generator=generator) - 0.5)).clamp(-44, 38)
    x[::97] = 0.0
    theirs = reference("log", x, 256)
    mine = ours(lib, "log", x, 256, theirs)
    assert torch.allclose(mine[1], theirs[1], rtol=3e-7, atol=1e-6)
    low, step = mine[1].double().view(-1, 2).repeat_interleave(256, 0)[: x.numel()].unbind(1)
    exact = ((x.double().clamp(min=2.0**-126).log() - low) / step).clamp(0, 255)
    slack = 1.6e-5 / step + 1e-4  # two last places of a logarithm near 88, in codes
    assert bool(((mine[0].double() - exact).abs() <= 0.5 + slack).all())
    different = mine[0] != theirs[0]
    assert different.float().mean() < 2e-3
    assert bool(((mine[0].int() - theirs[0].int()).abs()[different] == 1).all())


def test_log_values_to_the_last_place(lib) -> None:
    codes = torch.arange(256).to(torch.uint8).repeat(3)
    scales = torch.tensor([[-87.3, 0.0761], [-3.0, 0.02], [60.0, 0.11]]).flatten()
    out = lib.decode(native.NUMBERS.index("log"), [codes, scales], 0, torch.empty(768), 256)
    low, step = scales.view(3, 2, 1).unbind(1)
    exponent = (torch.arange(256).float() * step + low).flatten()  # rounded as the reference rounds it
    exact = exponent.double().exp()
    assert bool(((out.double() - exact).abs() <= 0.501 * 2.0**-23 * exact).all())


def test_logarithms_are_correctly_rounded(lib) -> None:
    """Blocks of one element hold the logarithm itself."""
    generator = torch.Generator().manual_seed(6)
    x = 2 ** (250 * torch.rand(50_000, generator=generator) - 125)
    planes = [torch.empty(50_000, dtype=torch.uint8), torch.empty(100_000)]
    lib.encode(native.NUMBERS.index("log"), x, planes, 1)
    exact = x.double().log()
    error = (planes[1].view(-1, 2)[:, 0].double() - exact).abs()
    assert bool((error <= 0.5001 * torch.finfo(torch.float32).eps * exact.abs()).all())


def test_dynamic_codes_equal_bitsandbytes(lib) -> None:
    """bitsandbytes' device-neutral encoder, the one that compares with midpoints."""
    functional = pytest.importorskip("bitsandbytes.functional")
    x = torch.randn(4096, generator=torch.Generator().manual_seed(8))
    assert torch.equal(functional.create_dynamic_map(signed=True), dynamic_map())
    scale = x.view(-1, 256).abs().amax(1)
    middles = (dynamic_map()[:-1] + dynamic_map()[1:]) / 2
    nearest = torch.bucketize(x.view(-1, 256) / scale[:, None], middles)
    mine = ours(lib, "dynamic", x, 256, reference("dynamic", x, 256))
    # A product with the reciprocal may fall on the other side of a midpoint than the quotient.
    assert (mine[0].int() - nearest.flatten().int()).abs().max() <= 1
    assert (mine[0] == nearest.flatten().to(torch.uint8)).float().mean() > 0.999
    back = Dynamic8(256).decode((mine[0].view(1, 1, 1, -1), mine[1].view(1, -1)))
    assert (back.flatten() - x).abs().max() < 0.01 * x.abs().max()
