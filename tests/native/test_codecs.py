"""The native codecs against the reference's, bit for bit, in every instruction set this machine has.

The reference is itself held to bitsandbytes, to fp64 and to its own invariants by tests/storage; here
only equality matters, so inputs are chosen where an encoder could decide otherwise: midpoints and
their neighbours, ties, ends of ranges, subnormal blocks, short last blocks.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from automagic_cameamp.engine.rounding import parameter_key, random_bits, stochastic_round
from automagic_cameamp.storage import Dynamic8, Unit4, dynamic_map
from automagic_cameamp.storage.residual import pack_nibbles, unpack_nibbles
from automagic_cameamp.techniques import learning_rate
from automagic_cameamp.techniques._bits import pack_bits
from automagic_cameamp.types import Layout
from native import codec_library as native

pytestmark = pytest.mark.skipif(native.compiler() is None, reason="no C++ compiler: nothing to build")
EXACT = [name for name in native.NUMBERS if name != "log"]
BLOCKS = [64, 256, 4096]


@pytest.fixture(scope="module", params=native.runnable())
def lib(request, tmp_path_factory) -> native.Codecs:
    return native.build(tmp_path_factory.mktemp("codecs"), request.param)


def layout(count: int) -> Layout:
    return Layout.of((count,))


def stack(x: Tensor) -> Tensor:
    return x.reshape(1, 1, 1, -1)


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


def beside(values: Tensor, ulps: int = 2) -> Tensor:
    """Values and their neighbours in fp32."""
    up = down = values
    found = [values]
    for _ in range(ulps):
        up = torch.nextafter(up, torch.tensor(9e9))
        down = torch.nextafter(down, torch.tensor(-9e9))
        found += [up, down]
    return torch.cat(found)


@pytest.mark.parametrize("scale", [1.0, 0.37, 2.0**-90, 1e20])
def test_midpoints_of_the_dynamic_map(lib, scale: float) -> None:
    values = dynamic_map()
    x = beside(torch.cat([values, (values[:-1] + values[1:]) / 2]))
    x = torch.cat([torch.ones(1), x.clamp(-1, 1)]) * scale
    theirs = reference("dynamic", x, 1 << 20)
    assert same(ours(lib, "dynamic", x, 1 << 20, theirs)[0], theirs[0])
    assert theirs[0].unique().numel() == 256


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


@pytest.mark.parametrize("count", [1, 2, 7, 512, 513, 5000])
@pytest.mark.parametrize("random", [False, True])
def test_unit4(lib, count: int, random: bool) -> None:
    x = torch.rand(count, generator=torch.Generator().manual_seed(count))
    x[: count // 10] = 0.0
    x[count // 2] = 1.0
    key, step = parameter_key(3, 5), 17
    bits = random_bits(torch.tensor([key], dtype=torch.int32), torch.tensor([float(step)]), count)
    coder = Unit4(layout(count))
    (theirs,) = coder.encode(stack(x), bits.view(1, 1, 1, -1) if random else None)
    mine = torch.full_like(theirs.flatten(), 99)
    base = random_base(lib, key, step)
    lib.encode(native.UNIT, x, [mine], 1, numel=count, base=base if random else None)
    assert torch.equal(mine, theirs.flatten())
    out = lib.decode(native.UNIT, [mine], 0, torch.empty(count), 1)
    assert torch.equal(out, coder.decode((theirs,)).flatten())
    half = count // 4 * 2
    second = torch.full_like(mine, 99)
    lib.encode(native.UNIT, x[half:].clone(), [second], 1, half, count, base if random else None)
    assert torch.equal(second[half // 2 :], mine[half // 2 :])


def random_base(lib: native.Codecs, key: int, step: int) -> int:
    """The hash of element 0 is the finaliser of the base: undo it by asking for one that is known."""

    def mix(x: int) -> int:
        x = ((x ^ (x >> 16)) * 0x7FEB352D) & 0xFFFFFFFF
        x = ((x ^ (x >> 15)) * 0x846CA68B) & 0xFFFFFFFF
        return x ^ (x >> 16)

    base = mix((key + step * 0x9E3779B1) & 0xFFFFFFFF)
    assert mix(base) == int(lib.random(key, step, 1)[0]) & 0xFFFFFFFF
    return base


@pytest.mark.parametrize(("seed", "index", "step"), [(0, 0, 1), (42, 7, 1000), (-5, 1443, 2**24 - 1)])
def test_random_bits(lib, seed: int, index: int, step: int) -> None:
    key = parameter_key(seed, index)
    keys, steps = torch.tensor([key], dtype=torch.int32), torch.tensor([float(step)])
    assert torch.equal(lib.random(key, step, 10_001), random_bits(keys, steps, 10_001)[0])


def special() -> Tensor:
    """Numbers at which conversions differ: ends, subnormals, ties of both half types."""
    halves = torch.arange(65536, dtype=torch.int32).to(torch.int16)
    found = []
    for dtype in (torch.bfloat16, torch.float16):
        exact = halves.view(dtype).float()
        exact = exact[exact.isfinite()]
        ordered = exact.sort().values
        middles = ((ordered[:-1].double() + ordered[1:].double()) / 2).float()
        found += [exact, beside(middles, 1)]
    infinite = torch.tensor([float("inf"), -float("inf"), 65519.9, 65520.0, -65520.0, 65536.0, 3.4e38])
    return torch.cat([*found, infinite, torch.randn(10_007) * 1e-5])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_conversions(lib, dtype: torch.dtype) -> None:
    x = special()
    typed = torch.empty(x.numel(), dtype=dtype)
    lib.convert(1, x, typed)
    assert torch.equal(typed, x.to(dtype))
    if dtype != torch.float32:
        typed = torch.arange(65536, dtype=torch.int32).to(torch.int16).view(dtype)
        back = torch.empty(65536)
        lib.convert(0, back, typed)
        assert torch.equal(back.nan_to_num(7.5), typed.float().nan_to_num(7.5))
    nan = torch.empty(9, dtype=dtype)
    lib.convert(1, torch.full((9,), math.nan), nan)
    assert bool(nan.isnan().all())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("step", [1, 77])
def test_stochastic_rounding(lib, dtype: torch.dtype, step: int) -> None:
    x = special()
    key = parameter_key(11, 3)
    bits = random_bits(torch.tensor([key], dtype=torch.int32), torch.tensor([float(step)]), x.numel())[0]
    theirs = stochastic_round(x, bits, dtype)
    mine = torch.empty(x.numel(), dtype=dtype)
    lib.convert(2, x, mine, key, step)
    assert torch.equal(mine.view(torch.int16), theirs.view(torch.int16))
    # A run in the middle uses the noise of its own elements.
    part = torch.zeros(x.numel(), dtype=dtype)
    lib.convert(2, x[1003:2006].clone(), part, key, step, 1003)
    assert torch.equal(part[1003:2006].view(torch.int16), mine[1003:2006].view(torch.int16))
    assert not part[:1003].any() and not part[2006:].any()


@pytest.mark.parametrize("live", [0, 1])
@pytest.mark.parametrize("count", [1, 8, 13, 4096, 5003])
def test_mask_words(lib, live: int, count: int) -> None:
    code = learning_rate.GEOMETRIC
    generator = torch.Generator().manual_seed(count)
    word = torch.randint(0, 2 * (code.high + code.offset) + 2, (1, 1, 1, count), generator=generator)
    word = word.to(torch.uint8)
    g = torch.randn(1, 1, 1, count, generator=generator)
    g[..., ::5] = 0.0
    mean = torch.tensor(0.93)
    k, last = learning_rate.split_word(word, code)
    bump, last = learning_rate.agreement(g, last, torch.tensor(bool(live)))
    k = learning_rate.count(k, bump, code)
    expected = learning_rate.join_word(k, last, code)
    codes = torch.arange(code.low, code.high + 1)
    table = torch.cat([learning_rate.geometric_mask(codes, mean), torch.zeros(1)])
    mine, value = word.flatten().clone(), torch.empty(count)
    negative = torch.full(((count + 7) // 8,), 99, dtype=torch.uint8)
    lib.mask(g.flatten(), live, table, mine, value, negative)
    assert torch.equal(mine, expected.flatten())
    assert torch.equal(value, learning_rate.geometric_mask(k, mean).flatten())
    assert torch.equal(negative, pack_bits(g < 0).flatten())


@pytest.mark.parametrize("random", [False, True])
def test_log16(lib, random: bool) -> None:
    """Against the definition, evaluated in fp64: nearest or one of the two codes around each logarithm."""
    generator = torch.Generator().manual_seed(7)
    for count, width in [(1, 0.0), (2, 3.0), (257, 12.0), (5120, 40.0)]:
        x = (10 ** (width * (torch.rand(count, generator=generator) - 0.7))).float()
        x[1::9] = 0.0
        q, scale = torch.empty(count, dtype=torch.int16), torch.empty(2, dtype=torch.float16)
        lib.encode(native.LOG16, x, [q, scale], 1, base=random_base(lib, 5, 9) if random else None)
        low, step = scale.double().tolist()
        live = x >= 2.0**-126
        assert torch.equal(q == -32768, ~live)
        exact = ((x[live].double().log() - low) / step).clamp(0, 65534) - 32767
        error = (q[live].double() - exact).abs()
        assert bool((error <= (1.0 if random else 0.5) + 1e-5 / step).all())
        assert low * 16 == math.floor(low * 16) and 0 <= exact.min() + 32767
        assert step * 2**19 == round(step * 2**19)
        assert (exact.max() + 32767) * step <= 65534 * step + 1e-5
        out = lib.decode(native.LOG16, [q, scale], 0, torch.empty(count), 1)
        assert torch.equal(out == 0, ~live)
        assert bool(((out[live].double().log() - x[live].double().log()).abs() <= step + 2e-5).all())


def test_nibbles_of_the_reference_are_ours(lib) -> None:
    """Odd counts leave the last half byte 0."""
    x = torch.rand(9)
    mine = torch.full((5,), 255, dtype=torch.uint8)
    lib.encode(native.UNIT, x, [mine], 1, numel=9)
    nibbles = unpack_nibbles(mine.view(1, -1), 10)
    assert nibbles[0, 9] == 0 and torch.equal(pack_nibbles(nibbles[:, :9]), mine.view(1, -1))


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
