"""The codes of the kernels against those of ``storage``, number by number and bit by bit.

The reference computes on the CPU, on a machine with a GPU too: torch divides by a number there exactly,
as the kernels do everywhere, and on CUDA multiplies by its inverse.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from automagic_cameamp.engine.fused_tables import CODES, code_tables, span
from automagic_cameamp.engine.rounding import parameter_key, random_bits
from automagic_cameamp.storage import Affine8, Dynamic8, ErrorCorrected, Log8, Softsign4, Softsign8
from automagic_cameamp.storage.blocks import block_of
from automagic_cameamp.storage.rounding import join, split
from automagic_cameamp.types import Layout
from triton_drive import DEVICE

NB, QB = 64, 32
SALT, STEP = 3, 7


@pytest.fixture
def kernels() -> Any:
    """Kernels around single functions of the engine's."""
    import triton_kernels

    return triton_kernels


def codec_of(name: str, layout: Layout, block: int) -> Any:
    code, _, error = name.partition("+")
    made: Any = {
        "dynamic": Dynamic8,
        "softsign": Softsign8,
        "affine": Affine8,
        "softsign4": lambda size: Softsign4(layout, size),
    }[code](block)
    return ErrorCorrected(made, int(error)) if error else made


def fresh(codec: Any, layout: Layout) -> list[Tensor]:
    planes = codec.planes(layout)
    return [torch.zeros(plane.shape, dtype=plane.dtype, device=DEVICE) for plane in planes]


def addresses(codec: Any, layout: Layout, planes: list[Tensor]) -> Tensor:
    found = {plane.suffix: kept.data_ptr() for plane, kept in zip(codec.planes(layout), planes, strict=True)}
    wanted = ("_q", "_q_scale", "_q_zero", "_q_residual")
    return torch.tensor([found.get(suffix, 0) for suffix in wanted], dtype=torch.int64, device=DEVICE)


# Blocks of one row of a tile, of several, of a whole tile; a tensor smaller than its block.
SIZES = [((50, 101), 32), ((50, 101), 64), ((50, 101), 1024), ((50, 101), 2048), ((20, 15), 4096)]
SIZED = pytest.mark.parametrize(("shape", "block"), SIZES, ids=str)


def values(shape: tuple[int, ...]) -> Tensor:
    """Numbers of many sizes; a block of zeros among them."""
    made = torch.Generator().manual_seed(5)
    x = torch.randn(shape, generator=made) * torch.randn(shape, generator=made).mul(3).exp()
    x.view(-1)[32:64] = 0.0
    return x


@SIZED
@pytest.mark.parametrize("name", ["dynamic", "softsign", "affine", "affine+4", "softsign+8", "softsign4"])
def test_a_momentum_is_coded_like_the_references(
    name: str, shape: tuple[int, ...], block: int, kernels: Any
) -> None:
    layout = Layout.of(shape)
    codec, x, numel = codec_of(name, layout, block), values(shape), layout.numel
    key = parameter_key(0, 1)
    keys = torch.tensor([key ^ SALT], dtype=torch.int32)
    bits = random_bits(keys, torch.tensor([float(STEP)]), numel).view(1, *layout.view)
    wanted = codec.encode(x.view(1, *layout.view), bits)

    inner = getattr(codec, "code", codec)
    number, error = CODES[type(inner)], getattr(codec, "bits", 0)
    planes = fresh(codec, layout)
    at = addresses(codec, layout, planes)
    code_map, base, bound = code_tables(torch.device(DEVICE), number)
    grid = (-(-numel // (NB * QB)),)
    share = (span(block, numel) or 0) // QB
    kernels.keep[grid](
        at, x.to(DEVICE), code_map, base, bound, numel, share, key, SALT, STEP, number, error, NB, QB, 6,
        enable_fp_fusion=False,
    )  # fmt: skip
    for plane, ours, theirs in zip(codec.planes(layout), planes, wanted, strict=True):
        assert torch.equal(ours.cpu().flatten(), theirs.flatten()), plane.suffix

    y = torch.full(shape, torch.nan, device=DEVICE)
    kernels.look_up[grid](
        at, y, code_map, numel, block_of(layout, block), number, error, NB, QB, enable_fp_fusion=False
    )
    decoded = codec.decode(wanted).view(shape)
    torch.testing.assert_close(y.cpu(), decoded, rtol=0.0, atol=1e-6 * float(decoded.abs().max()))


@SIZED
def test_a_second_moment_is_coded_like_the_references(
    shape: tuple[int, ...], block: int, kernels: Any
) -> None:
    """Up to the last bit of a logarithm, which may move a value across a border."""
    layout, codec = Layout.of(shape), Log8(block)
    x = values(shape).square() + 1e-30
    wanted = codec.encode(x.view(1, *layout.view))
    planes = fresh(codec, layout)
    at, y = addresses(codec, layout, planes), torch.full(shape, torch.nan, device=DEVICE)
    grid = (-(-layout.numel // (NB * QB)),)
    share = (span(block, layout.numel) or 0) // QB
    kernels.moments[grid](
        at, x.to(DEVICE), y, layout.numel, share, block_of(layout, block), NB, QB, 6, enable_fp_fusion=False
    )  # fmt: skip
    off = (planes[0].cpu().int().flatten() - wanted[0].int().flatten()).abs()
    assert off.max() <= 1 and (off > 0).float().mean() < 0.003
    torch.testing.assert_close(planes[1].cpu().flatten(), wanted[1].flatten(), rtol=1e-6, atol=1e-6)
    if DEVICE == "cpu":  # the interpreter reads what the same program wrote
        torch.testing.assert_close(y, codec.decode(wanted).view(shape), rtol=0.2, atol=0.0)


def test_blocks_that_no_tile_can_hold_are_named() -> None:
    assert [span(b, 5000) for b in (32, 256, 4096)] == [32, 256, 4096]
    assert [span(b, 5000) for b in (16, 100, 8192)] == [None, None, None]
    assert [span(4096, n) for n in (1, 33, 1100, 4096)] == [32, 64, 2048, 4096]


def every_weight(dtype: torch.dtype) -> Tensor:
    """All weights of a type with all kinds of rests, fp32 numbers of every exponent, and special ones."""
    made = torch.Generator().manual_seed(2)
    words = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16).view(dtype)
    rests = torch.randint(-128, 128, words.shape, generator=made).to(torch.int8)
    raw = torch.randint(-(1 << 31), 1 << 31, (1 << 15,), generator=made).to(torch.int32).view(torch.float32)
    small = torch.randn(1 << 15, generator=made) * 10
    largest = torch.finfo(dtype).max
    special = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, largest, -largest, 65519.0, 65520.0, 1e-45])
    special = special.repeat(1 << 14)[: 1 << 14]
    return torch.cat([join(words, rests), raw, small, special, -small[: 1 << 14]])


@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")  # numpy's, in the interpreter
@pytest.mark.parametrize("random", [False, True])
@pytest.mark.parametrize(("dtype", "kind"), [(torch.bfloat16, 1), (torch.float16, 2)], ids=str)
def test_24_bits_are_split_and_joined_like_the_references(
    dtype: torch.dtype, kind: int, random: bool, kernels: Any
) -> None:
    x = every_weight(dtype)
    made = torch.Generator().manual_seed(3)
    bits = torch.randint(-(1 << 31), 1 << 31, x.shape, generator=made).to(torch.int32)
    weight, rest = split(x, bits if random else None, dtype)
    p = torch.zeros(x.shape, dtype=dtype, device=DEVICE)
    c = torch.zeros(x.shape, dtype=torch.int8, device=DEVICE)
    at = [torch.tensor([v.data_ptr()], device=DEVICE) for v in (p, c)]
    size = 1 << 14
    grid = (x.numel() // size,)
    assert grid[0] * size == x.numel()
    kernels.parts[grid](x.to(DEVICE), bits.to(DEVICE), *at, kind, random, size, enable_fp_fusion=False)
    number = ~x.isnan()
    assert torch.equal(p.cpu()[number].view(torch.int16), weight[number].view(torch.int16))
    assert torch.equal(c.cpu()[number], rest[number])
    assert torch.equal(p.cpu().isnan(), ~number)

    y = torch.zeros(x.shape, device=DEVICE)
    kernels.joined[grid](*at, y, kind, size, enable_fp_fusion=False)
    assert torch.equal(y.cpu()[number].view(torch.int32), join(weight, rest)[number].view(torch.int32))
