"""The native rounding, random bits, small codes and mask words against the reference's, bit for bit."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from automagic_cameamp.state.random_bits import parameter_key, random_bits, stochastic_round
from automagic_cameamp.storage import Softsign4, Unit4
from automagic_cameamp.storage.residual import pack_nibbles, unpack_nibbles
from automagic_cameamp.storage.rounding import join, split
from automagic_cameamp.techniques import learning_rate
from automagic_cameamp.techniques._bits import pack_bits
from automagic_cameamp.types import Layout
from native import codec_library as native
from native.codec_library import beside, stack

pytestmark = pytest.mark.skipif(native.compiler() is None, reason="no C++ compiler: nothing to build")


@pytest.mark.parametrize("count", [1, 2, 7, 512, 513, 5000])
@pytest.mark.parametrize("random", [False, True])
def test_unit4(lib, count: int, random: bool) -> None:
    x = torch.rand(count, generator=torch.Generator().manual_seed(count))
    x[: count // 10] = 0.0
    x[count // 2] = 1.0
    key, step = parameter_key(3, 5), 17
    bits = random_bits(torch.tensor([key], dtype=torch.int32), torch.tensor([float(step)]), count)
    coder = Unit4(Layout.of((count,)))
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


@pytest.mark.parametrize("block", [33, 64, 1000])
@pytest.mark.parametrize("count", [1, 2, 7, 512, 1031, 5000])
def test_softsign4(lib, count: int, block: int) -> None:
    x = torch.randn(count, generator=torch.Generator().manual_seed(count))
    x = x * torch.logspace(-30, 3, count)
    x[: count // 10] = 0.0
    key, step = parameter_key(3, 5), 17
    bits = random_bits(torch.tensor([key], dtype=torch.int32), torch.tensor([float(step)]), count)
    layout = Layout.of((count,))
    coder = Softsign4(layout, block)
    theirs = coder.encode(stack(x), bits.view(1, 1, 1, -1))
    mine = [torch.full_like(plane.flatten(), 99) for plane in theirs]
    own, base = min(block, count), random_base(lib, key, step)
    lib.encode(native.FOUR, x, mine, own, numel=count, base=base)
    for a, b in zip(mine, theirs, strict=True):
        assert torch.equal(a, b.flatten())
    wanted = coder.decode(theirs).flatten()
    for first in (0, count // 3):
        out = lib.decode(native.FOUR, mine, first, torch.empty(count - first), own)
        assert torch.equal(out, wanted[first:])
    half = count // own // 2 * own
    second = [plane.clone() for plane in mine]
    lib.encode(native.FOUR, x[half:].clone(), second, own, half, count, base)
    for a, b in zip(second, mine, strict=True):
        assert torch.equal(a, b), "a later run leaves the byte that it shares with an earlier one"


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


def same_halves(a: Tensor, b: Tensor) -> bool:
    """Equal bits, but for those of what is not a number."""
    number = ~b.isnan()
    return torch.equal(a.isnan(), b.isnan()) and torch.equal(
        a.view(torch.int16)[number], b.view(torch.int16)[number]
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_weight_of_24_bits(lib, dtype: torch.dtype) -> None:
    """All 2^24 of them, joined; and split again, to the nearest."""
    weights = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16).view(dtype)
    again, rest_again = torch.empty_like(weights), torch.empty(weights.shape, dtype=torch.int8)
    for number in range(-128, 128):
        rest = torch.full(weights.shape, number, dtype=torch.int8)
        x = join(weights, rest)
        mine, real = lib.join(weights, rest), ~weights.isnan()
        assert torch.equal(mine[real].view(torch.int32), x[real].view(torch.int32)), number
        assert torch.equal(mine.isnan(), ~real), number
        if number % 16:
            continue
        theirs = split(x, None, dtype)
        lib.split(x, again, rest_again)
        assert same_halves(again, theirs[0]) and torch.equal(rest_again, theirs[1]), number


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("random", [False, True])
def test_splitting_into_24_bits(lib, dtype: torch.dtype, random: bool) -> None:
    x = torch.cat([special(), torch.randn(4999, generator=torch.Generator().manual_seed(2))])
    key, step = parameter_key(11, 3), 9
    bits = random_bits(torch.tensor([key], dtype=torch.int32), torch.tensor([float(step)]), x.numel())[0]
    theirs = split(x, bits if random else None, dtype)
    mine = torch.empty(x.numel(), dtype=dtype), torch.full((x.numel(),), 99, dtype=torch.int8)
    noise = (key, step) if random else None
    lib.split(x, *mine, noise)
    # A run in the middle uses the noise of its own elements.
    part = torch.zeros(x.numel(), dtype=dtype), torch.zeros(x.numel(), dtype=torch.int8)
    lib.split(x[1003:2006].clone(), *part, noise, 1003)
    assert same_halves(mine[0], theirs[0]) and torch.equal(mine[1], theirs[1])
    assert same_halves(part[0][1003:2006], mine[0][1003:2006])
    assert torch.equal(part[1][1003:2006], mine[1][1003:2006])
    assert not any(c[:1003].any() or c[2006:].any() for c in part)


@pytest.mark.parametrize("live", [0, 1])
@pytest.mark.parametrize("count", [1, 8, 13, 4096, 5003])
def test_mask_words(lib, live: int, count: int) -> None:
    code = learning_rate.GEOMETRIC
    generator = torch.Generator().manual_seed(count)
    word = torch.randint(0, 2 * (code.high + code.offset) + 2, (1, 1, 1, count), generator=generator)
    word = word.to(torch.uint8)
    g = torch.randn(1, 1, 1, count, generator=generator)
    g[..., ::5] = 0.0
    k, last = learning_rate.split_word(word, code)
    bump, last = learning_rate.agreement(g, last, torch.tensor(bool(live)))
    k = learning_rate.count(k, bump, code)
    expected = learning_rate.join_word(k, last, code)
    mine, value = word.flatten().clone(), torch.empty(count)
    negative = torch.zeros((count + 7) // 8, dtype=torch.uint8)
    lib.mask(g.flatten(), live, mine, value, negative)
    assert torch.equal(mine, expected.flatten())
    exact = torch.exp2(k.double() * learning_rate.GEOMETRIC_STEP).flatten()
    assert float((value / exact - 1).abs().max()) <= 4 * 2.0**-24  # a product of two, each rounded
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
