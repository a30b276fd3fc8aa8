"""The mask's counter and its two rules; ALLoRA's row gain."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from automagic_cameamp import techniques as T
from automagic_cameamp.techniques.learning_rate import MASK_HIGH, MASK_LOW
from reference import draws, mask, single

ADDITIVE = T.additive_code(1e-4, 3e-6, 1e-7, 1e-3)
codes = st.sampled_from([T.GEOMETRIC, ADDITIVE])
YES, NO = torch.ones(1, 1, 1, 1, dtype=torch.bool), torch.zeros(1, 1, 1, 1, dtype=torch.bool)


def every_state(code):
    """All counters with both signs, as [1,1,2,N]."""
    k = torch.arange(code.low, code.high + 1, dtype=torch.int32).to(code.counter)
    k = k.expand(1, 1, 2, -1).contiguous()
    last = torch.tensor([1, -1], dtype=code.counter).view(1, 1, 2, 1).expand_as(k).contiguous()
    return k, last


@pytest.mark.parametrize("code", [T.GEOMETRIC, ADDITIVE, T.additive_code(1e-6, 3e-6, 1e-7, 1e-3)])
def test_every_word_splits_and_joins(code):
    k, last = every_state(code)
    word = T.join_word(k, last, code)
    assert word.dtype == code.dtype
    assert word.flatten().unique().numel() == word.numel(), "two states share a word"
    back, sign = T.split_word(word, code)
    assert torch.equal(back, k) and torch.equal(sign, last)
    start = torch.tensor([code.start], dtype=code.dtype)
    assert [int(x) for x in T.split_word(start, code)] == [0, 1]


@pytest.mark.parametrize("code", [T.GEOMETRIC, ADDITIVE])
@pytest.mark.parametrize("bump", [-1, 0, 1])
def test_the_counter_saturates(code, bump):
    k, _ = every_state(code)
    moved = T.count(k, torch.full_like(k, bump), code)
    assert moved.dtype == code.counter
    assert torch.equal(moved.int(), (k.int() + bump).clamp(code.low, code.high))


ONE = torch.ones((), dtype=torch.float64)


def test_geometric_ends_need_no_clamp():
    k, _ = every_state(T.GEOMETRIC)
    mu = T.geometric_mask(k, ONE)
    assert MASK_LOW <= float(mu.min()) and float(mu.max()) <= MASK_HIGH
    # One more count in either direction would leave the range.
    step = 64 ** (1 / 127)
    assert float(mu.min()) / step < MASK_LOW and float(mu.max()) * step > MASK_HIGH
    assert float(T.geometric_mask(torch.zeros(1, dtype=torch.int8), ONE)) == 1.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_geometric_formula_and_division_by_the_mean(dtype):
    k, _ = every_state(T.GEOMETRIC)
    one = ONE.to(dtype)
    expected = torch.tensor([64 ** (x / 127) for x in k.flatten().tolist()], dtype=torch.float64)
    mu = T.geometric_mask(k, one)
    assert mu.dtype == dtype and mu.shape == k.shape
    torch.testing.assert_close(mu.flatten().double(), expected, rtol=1e-6, atol=0.0)
    torch.testing.assert_close(T.geometric_mask(k, 2 * one), mu / 2, rtol=1e-6, atol=0.0)


@given(
    st.floats(1e-6, 1e-3), st.floats(1e-6, 1e-3), st.floats(1e-8, 1e-6), st.floats(1.01e-3, 1e-2), st.data()
)
def test_additive_rule_is_clamped_and_exact(lr, bump, low, high, data):
    code = T.additive_code(lr, bump, low, high)
    k = data.draw(st.integers(code.low, code.high))
    mu = T.additive_mask(torch.tensor([k], dtype=code.counter), torch.float64, lr, bump, low, high)
    assert float(mu) * lr == pytest.approx(min(max(lr + k * bump, low), high), rel=1e-12)
    ends = torch.tensor([code.low, code.high], dtype=code.counter)
    rates = T.additive_mask(ends, torch.float64, lr, bump, low, high) * lr
    assert rates.tolist() == pytest.approx([low, high], rel=1e-12), "the range's ends cannot be reached"


def test_additive_without_a_bump_is_one():
    code = T.additive_code(1e-3, 0.0, 1e-7, 1e-3)
    k = T.count(torch.zeros(3, dtype=code.counter), torch.ones(3, dtype=code.counter), code)
    assert torch.equal(T.additive_mask(k, torch.float32, 1e-3, 0.0, 1e-7, 1e-3), torch.ones(3))


def test_additive_refuses_what_its_word_cannot_hold():
    with pytest.raises(ValueError, match=r"lr_bump.*use lr_bump >= "):
        T.check_additive(1e-4, 1e-9, 1e-7, 1e-3)
    T.check_additive(0.0, 1.0, 0.0, 16383.0)
    assert T.additive_code(0.0, 1.0, 0.0, 16383.0).high == 16383
    assert T.additive_code(0.0, 1.0, 0.0, 1e9).high == 16383, "a schedule may ask for more in mid-run"


@given(draws.seeds, st.sampled_from([-1, 1]))
def test_agreement_table(seed, last_sign):
    g = draws.heavy((5, 7), seed, batch=1, dead=0.3)
    last = torch.full_like(g, last_sign).to(torch.int8)
    bump, new = T.agreement(g, last, YES)
    assert torch.equal(bump, (g.sign() * last_sign).to(torch.int8))
    assert torch.equal(new, torch.where(g == 0, last, g.sign().to(torch.int8)))
    bump, new_frozen = T.agreement(g, last, NO)
    assert not bump.any()
    assert torch.equal(new_frozen, new)


@settings(max_examples=16)
@given(draws.seeds, st.booleans())
def test_a_long_run_is_the_plain_counter(seed, additive):
    """400 steps of signs, with many zeros, against counters in plain Python."""
    code = ADDITIVE if additive else T.GEOMETRIC
    oracle = mask.Additive(12, 10**9, 1e-4, 3e-6, 1e-7, 1e-3) if additive else mask.Geometric(12, 10**9)
    generator = torch.Generator().manual_seed(seed)
    bias = torch.linspace(-1.5, 1.5, 12, dtype=torch.float64)
    word = torch.full((1, 1, 3, 4), code.start, dtype=code.dtype)
    for t in range(1, 401):
        g = (torch.randn(12, generator=generator, dtype=torch.float64) + bias).view(1, 1, 3, 4)
        if t > 1:
            g = g * (torch.rand(1, 1, 3, 4, generator=generator) > 0.3)
        k, last = T.split_word(word, code)
        bump, last = T.agreement(g, last, YES if t > 1 else NO)
        word = T.join_word(T.count(k, bump, code), last, code)
        oracle.see(g.flatten().tolist())
    assert T.split_word(word, code)[0].flatten().tolist() == oracle.k
    assert min(oracle.k) >= code.low and max(oracle.k) <= code.high


@pytest.mark.parametrize("granularity", ["row", "tensor"])
def test_majority(granularity):
    bump = torch.randint(-1, 2, (2, 3, 5, 7), dtype=torch.int8)
    total, sign = T.majority(bump, granularity)
    expected = bump.long().sum(-1, keepdim=True) if granularity == "row" else bump.long().sum((1, 2, 3))
    assert torch.equal(total.long().flatten(), expected.flatten())
    assert torch.equal(sign.long(), total.sign().long()) and sign.dtype == torch.int8


@given(draws.matrix_shapes, draws.seeds, st.sampled_from([0.1, 1.0, 2.0, 10.0]), draws.scales)
def test_allora_is_the_formula(shape, seed, eta, scale):
    p = draws.stack(shape, seed, scale=scale)
    gain = T.allora_gain(p, eta)
    assert gain.shape == (*p.shape[:3], 1)
    expected = torch.tensor([single.allora(row.tolist(), eta) for row in p.flatten(0, 2)], dtype=p.dtype)
    torch.testing.assert_close(gain.flatten(), expected, rtol=1e-13, atol=0.0)
    assert bool(((gain > 0) & (gain <= eta * (1 + 1e-12))).all())


@pytest.mark.parametrize("eta", [0.5, 2.0, 4.0])
def test_allora_ends(eta):
    zero = torch.zeros(1, 1, 3, 4, dtype=torch.float64)
    assert torch.equal(T.allora_gain(zero, eta), torch.full((1, 1, 3, 1), eta, dtype=torch.float64))
    rows = torch.logspace(-3, 8, 40, dtype=torch.float64).view(1, 1, 40, 1)
    gain = T.allora_gain(rows, eta).flatten()
    assert bool((gain.diff() < 0).all()), "larger rows must get smaller gains"
    assert float(gain[-1]) == pytest.approx(1 / math.sqrt(1e8), rel=1e-6)
