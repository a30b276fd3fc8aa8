"""Reductions and packed bits: exact values, and bits that no thread count can change."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from automagic_cameamp import techniques as T
from automagic_cameamp.techniques import _reduce
from reference import draws

LONG = [(1023,), (1024,), (4096,), (4097,), (5000,), (10_243,)]


@given(draws.shapes, draws.seeds)
def test_reductions_are_the_plain_ones(shape, seed):
    x = draws.heavy(shape, seed)
    pairs = [
        (T.row_sum(x), x.sum(-1, keepdim=True)),
        (T.row_mean(x), x.mean(-1, keepdim=True)),
        (_reduce.col_sum(x), x.sum(-2, keepdim=True)),
        (T.tensor_sum(x), x.sum((1, 2, 3), keepdim=True)),
        (T.rms(x), x.square().mean((1, 2, 3), keepdim=True).sqrt()),
    ]
    for ours, plain in pairs:
        torch.testing.assert_close(ours, plain, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", LONG)
def test_long_rows_are_summed_whole(shape):
    x = draws.stack(shape, 0, batch=3)
    torch.testing.assert_close(T.row_sum(x), x.sum(-1, keepdim=True), rtol=1e-12, atol=1e-12)
    ones = torch.ones(1, 1, 1, shape[0])
    assert float(T.tensor_sum(ones)) == shape[0]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@given(draws.shapes, draws.seeds)
def test_all_finite_sees_one_bad_element_of_one_tensor(bad, shape, seed):
    x = draws.stack(shape, seed, batch=3, dtype=torch.float32)
    assert bool(T.all_finite(x).all())
    x[1].view(-1)[seed % x[1].numel()] = bad
    assert T.all_finite(x).flatten().tolist() == [True, False, True]


@given(st.integers(1, 70), draws.seeds, draws.batches)
def test_packed_bits(count, seed, batch):
    bits = draws.normal((batch, count), seed) > 0
    packed = T.pack_bits(bits)
    assert packed.shape == (batch, T.packed_size(count)) and packed.dtype == torch.uint8
    assert torch.equal(T.unpack_bits(packed, (count,)), bits)


def test_first_bit_is_the_lowest():
    bits = torch.zeros(1, 10, dtype=torch.bool)
    bits[0, 0] = bits[0, 9] = True
    assert T.pack_bits(bits).tolist() == [[1, 2]]


# Every reduction that a recipe takes, on shapes where torch would like to use several threads: a
# single number out of more than 32,768, which is where its threads start to split a sum.
THREADS = """
import torch
from automagic_cameamp import techniques as T
from automagic_cameamp.techniques import _reduce

def results(shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    flat, row = x.flatten(1), x.square().mean(-1, keepdim=True)
    col = x.square().mean(-2, keepdim=True)
    one = torch.ones(1, dtype=torch.bool)
    history = (x * 40).to(torch.uint8) // 64 * 85
    scalar = torch.zeros(shape[0], 1, 1, 1)
    yield "tensor_sum", T.tensor_sum(x)
    yield "row_sum", T.row_sum(x)
    yield "col_sum", _reduce.col_sum(x)
    yield "rms_clip", T.rms_clip(x, 0.5)
    yield "factored_rsqrt", T.factored_rsqrt(x, row, col, row.mean(-2, keepdim=True))
    yield "factored_moment", torch.cat([m.flatten() for m in T.factored_moment(row, col, x * x, 0.9, 0.0)])
    yield "torque", T.torque(scalar, x, x.abs())[0]
    yield "adaptive_decay", T.adaptive_decay(x)
    yield "agr", T.agr(x)
    yield "cautious", T.cautious(x, x.flip(-1))
    yield "orthograd", T.orthograd(x, x.flip(-1).abs())
    yield "allora_gain", T.allora_gain(x, 2.0)
    yield "majority", T.majority(x.sign().to(torch.int8), "tensor")[0]
    zero = torch.zeros(shape[0])
    for i, part in enumerate(T.distance_evidence(zero, flat * 0, flat, flat.abs(), torch.tensor(1.0))):
        yield f"distance_evidence {i}", part
    for i, part in enumerate(T.sign_vote(history, x, one.expand(shape[0]))):
        yield f"sign_vote {i}", part

SHAPES = [(1, 1, 1, 100_003), (1, 1, 100_003, 1), (1, 1, 50_257, 3), (1, 40_009, 2, 2), (2, 1, 2, 70_001)]
for shape in SHAPES:
    torch.set_num_threads(1)
    first = dict(results(shape))
    torch.set_num_threads(2)
    for name, value in results(shape):
        if not torch.equal(first[name], value):
            print(name, shape)
"""


def test_one_and_two_threads_give_the_same_bits():
    """In a process of its own: the number of threads is fixed by the environment of this one."""
    source = Path(T.__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", THREADS],
        env={**os.environ, "OMP_NUM_THREADS": "2", "PYTHONPATH": str(source)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "", f"depends on the number of threads:\n{done.stdout}"
