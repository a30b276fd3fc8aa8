"""What all codes share: blocks of one tensor only, ragged ends, declared planes, the choice of a code."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from automagic_cameamp.storage import (
    MIN_QUANTIZED,
    Codec,
    Dynamic8,
    Log8,
    Policy,
    Softsign8,
    StateSpec,
    choose,
)
from automagic_cameamp.storage.blocks import from_blocks, to_blocks
from automagic_cameamp.types import Layout

CODERS = [Dynamic8, Softsign8, Log8]
SHAPES = [(7,), (1,), (64,), (65,), (9, 31), (3, 8, 5), (4, 3, 3, 3), (40, 40), (100, 41)]


def values(layout: Layout, count: int) -> Tensor:
    x = torch.randn(count, *layout.view) * torch.exp(2 * torch.randn(count, *layout.view))
    return x.abs() + 1e-6


def same(a: tuple[Tensor, ...], b: tuple[Tensor, ...]) -> bool:
    return all(x.dtype == y.dtype and torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("coder_class", CODERS)
@pytest.mark.parametrize("shape", [*SHAPES, (0,), (0, 4)], ids=str)
@pytest.mark.parametrize("block", [64, 256, 4096])
def test_planes_are_what_encode_gives(coder_class: type, shape: tuple[int, ...], block: int) -> None:
    layout, coder = Layout.of(shape), coder_class(block)
    x = values(layout, 3)
    stored = coder.encode(x)
    planes = coder.planes(layout)
    assert [p.suffix for p in planes] == ["_q", "_q_scale"]
    for plane, tensor in zip(planes, stored, strict=True):
        assert tensor.shape == (3, *plane.shape)
        assert tensor.dtype == plane.dtype
        assert tensor[0].reshape(plane.own_shape).shape == plane.own_shape
    assert planes[0].own_shape == shape and planes[0].dtype in (torch.int8, torch.uint8)
    back = coder.decode(stored)
    assert back.shape == x.shape and back.dtype == torch.float32
    assert bool(back.isfinite().all())


@pytest.mark.parametrize("coder_class", CODERS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_tensor_is_coded_the_same_in_every_stack(coder_class: type, shape: tuple[int, ...]) -> None:
    coder = coder_class(64)
    x = values(Layout.of(shape), 5)
    x[2] *= 1e20  # a neighbour of another size must not be seen
    together = coder.encode(x)
    decoded = coder.decode(together)
    for i in range(5):
        alone = coder.encode(x[i : i + 1])
        assert same(alone, tuple(t[i : i + 1] for t in together))
        assert torch.equal(coder.decode(alone), decoded[i : i + 1])


@pytest.mark.parametrize("coder_class", CODERS)
def test_blocks_do_not_see_each_other(coder_class: type) -> None:
    x = values(Layout.of((4, 100)), 1)  # blocks of 64: 0-63 ... and a last one of 16
    before = coder_class(64).encode(x)
    x.view(-1)[130] *= 1e6  # block 2
    after = coder_class(64).encode(x)
    changed = (before[0] != after[0]).flatten().nonzero().flatten()
    assert bool(((changed >= 128) & (changed < 192)).all())
    scales = (before[1] != after[1]).reshape(7, -1).any(-1)
    assert scales.tolist() == [False, False, True, False, False, False, False]


@pytest.mark.parametrize("coder_class", CODERS)
@pytest.mark.parametrize("count", [1, 5, 63])
def test_a_block_larger_than_the_tensor_is_the_tensor(coder_class: type, count: int) -> None:
    x = values(Layout.of((count,)), 2)
    small, large = coder_class(64), coder_class(4096)
    assert small.encode(x)[1].shape[1] == 1
    assert same(small.encode(x), large.encode(x))


@pytest.mark.parametrize("coder_class", CODERS)
@pytest.mark.parametrize("rest", [1, 63])
def test_a_ragged_tail_is_coded_like_a_tensor_of_its_own(coder_class: type, rest: int) -> None:
    x = values(Layout.of((128 + rest,)), 1)
    coder = coder_class(64)
    codes, scales = coder.encode(x)
    alone = coder.encode(x[..., 128:])
    assert torch.equal(codes[..., 128:], alone[0])
    assert torch.equal(scales[:, 2:], alone[1])
    assert torch.equal(coder.decode((codes, scales))[..., 128:], coder.decode(alone))


@pytest.mark.parametrize("coder_class", CODERS)
def test_input_is_left_alone_and_not_aliased(coder_class: type) -> None:
    x = values(Layout.of((8, 16)), 2)
    kept = x.clone()
    planes = coder_class(64).encode(x)
    copies = tuple(p.clone() for p in planes)
    back = coder_class(64).decode(planes)
    back.zero_()
    assert torch.equal(x, kept)
    assert same(planes, copies)


@pytest.mark.parametrize("coder_class", CODERS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types_are_coded_as_their_fp32_value(coder_class: type, dtype: torch.dtype) -> None:
    x = values(Layout.of((100,)), 1).to(dtype)
    assert same(coder_class(64).encode(x), coder_class(64).encode(x.float()))


@pytest.mark.parametrize("shape", [(2, 130), (3, 4, 5), (1, 64)])
def test_cutting_and_joining_blocks_is_the_identity(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    blocks = to_blocks(x, 16)
    assert blocks.shape[0] == shape[0] and blocks.shape[-1] == 16
    assert torch.equal(from_blocks(blocks, shape[1:]), x)
    tail = blocks.flatten(1)[:, x[0].numel() :]
    assert torch.equal(tail, torch.zeros_like(tail))


def test_who_is_coded() -> None:
    signed, denominator, plain = (StateSpec("x", "full", d) for d in ("signed", "positive", "plain"))
    large, small, vector = Layout.of((32, 32)), Layout.of((31, 33)), Layout.of((100_000,))
    assert large.numel == MIN_QUANTIZED and small.numel == MIN_QUANTIZED - 1

    def chosen(spec: StateSpec, layout: Layout, code: str) -> type | None:
        coder: Codec | None = choose(spec, layout, Policy(code=code, block_size=64))
        return None if coder is None else type(coder)

    assert chosen(signed, large, "dynamic") is Dynamic8
    assert chosen(signed, large, "softsign") is Softsign8
    assert chosen(denominator, large, "dynamic") is Log8
    assert chosen(denominator, large, "softsign") is Log8
    for code in ("fp32", "dynamic", "softsign"):
        assert chosen(plain, large, code) is None
        assert chosen(signed, small, code) is None
        assert chosen(signed, vector, code) is None
        assert chosen(denominator, vector, code) is None
    assert chosen(signed, large, "fp32") is None


@pytest.mark.parametrize("coder_class", CODERS)
def test_global_random_state_is_untouched(coder_class: type) -> None:
    before = torch.get_rng_state()
    coder_class(64).decode(coder_class(64).encode(torch.ones(1, 1, 10, 10)))
    assert torch.equal(torch.get_rng_state(), before)
