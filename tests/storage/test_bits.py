"""Sign bits, eight to a byte."""

from __future__ import annotations

import pytest
import torch

from automagic_cameamp.techniques import pack_bits, packed_size, unpack_bits


def test_every_byte() -> None:
    packed = torch.arange(256, dtype=torch.uint8).view(256, 1)
    bits = unpack_bits(packed, (8,))
    assert bits.dtype == torch.bool
    numbers = sum(bits[:, i].int() << i for i in range(8))
    assert torch.equal(numbers, torch.arange(256, dtype=torch.int32)), "the first element is the lowest bit"
    assert torch.equal(pack_bits(bits), packed)


@pytest.mark.parametrize("shape", [(1,), (7,), (8,), (9,), (1, 1, 1), (3, 5, 7), (2, 8, 16)], ids=str)
def test_round_trip_and_size(shape: tuple[int, ...]) -> None:
    bits = torch.rand(4, *shape) < 0.5
    packed = pack_bits(bits)
    count = bits[0].numel()
    assert packed.dtype == torch.uint8
    assert packed.shape == (4, packed_size(count)) and packed_size(count) == -(-count // 8)
    assert torch.equal(unpack_bits(packed, shape), bits)
    for i in range(4):
        assert torch.equal(pack_bits(bits[i : i + 1]), packed[i : i + 1])


def test_unused_bits_are_zero() -> None:
    packed = pack_bits(torch.ones(1, 11, dtype=torch.bool))
    assert packed.tolist() == [[255, 0b111]]
