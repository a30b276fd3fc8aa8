"""Grams, Cautious, OrthoGrad: descent, lengths, orthogonality."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from automagic_cameamp import techniques as T
from reference import draws, single

mixes = st.floats(0, 1)


def pair(shape, seed, dtype=torch.float64):
    return draws.heavy(shape, seed, dtype=dtype), draws.heavy(shape, seed + 1, dtype=dtype)


@given(draws.shapes, draws.seeds, mixes)
def test_grams_is_the_mix_of_the_two(shape, seed, mix):
    out, g = pair(shape, seed)
    both = zip(draws.lists(out), draws.lists(g), strict=True)
    draws.close(T.grams(out, g, mix), [single.grams(a, b, mix) for a, b in both], 1e-14)
    tensor = torch.full((2, 1, 1, 1), mix, dtype=out.dtype)
    assert torch.equal(T.grams(out, g, tensor), T.grams(out, g, mix))


@given(draws.shapes, draws.seeds, mixes)
def test_grams_identity(shape, seed, mix):
    out, g = pair(shape, seed)
    expected = out * (1 - 2 * mix * ((out * g) < 0).double())
    torch.testing.assert_close(T.grams(out, g, mix), expected, rtol=1e-14, atol=0.0)


@given(draws.shapes, draws.seeds)
def test_grams_ends(shape, seed):
    out, g = pair(shape, seed, torch.float32)
    assert torch.equal(T.grams(out, g, 0.0), out)
    full = T.grams(out, g, 1.0)
    assert torch.equal(full.abs(), out.abs())
    assert bool((full * g >= 0).all())
    half = T.grams(out, g, 0.5)
    agree = out * g >= 0
    assert torch.equal(half, torch.where(agree, out, torch.zeros_like(out)))


def test_grams_zero_gradient_counts_as_agreement():
    out = torch.tensor([[[[1.5, -2.0, 0.0]]]])
    assert torch.equal(T.grams(out, torch.zeros_like(out), 1.0), out)


@given(draws.shapes, draws.seeds)
def test_cautious_is_the_formula_and_descends(shape, seed):
    out, g = pair(shape, seed)
    result = T.cautious(out, g)
    both = zip(draws.lists(out), draws.lists(g), strict=True)
    draws.close(result, [single.cautious(a, b) for a, b in both], 1e-13)
    assert bool((result * g >= 0).all())


@given(draws.shapes, draws.seeds)
def test_cautious_ends(shape, seed):
    out = draws.stack(shape, seed)
    torch.testing.assert_close(T.cautious(out, out), out, rtol=1e-15, atol=0.0)
    assert torch.equal(T.cautious(out, -out).abs(), torch.zeros_like(out))
    assert torch.equal(T.cautious(out, torch.zeros_like(out)).abs(), torch.zeros_like(out))


def test_cautious_rescale_is_capped():
    out, g = torch.ones(1, 1, 1, 5000), -torch.ones(1, 1, 1, 5000)
    g[..., 17] = 1.0  # a mean mask of 1 / 5000 would multiply by 5000
    result = T.cautious(out, g)
    assert int((result != 0).sum()) == 1
    assert abs(float(result[..., 17]) - 1000.0) < 1e-2


@given(draws.shapes, draws.seeds)
def test_orthograd_is_the_formula(shape, seed):
    d, p = draws.stack(shape, seed), draws.stack(shape, seed + 1)
    both = zip(draws.lists(d), draws.lists(p), strict=True)
    draws.close(T.orthograd(d, p), [single.orthograd(a, b) for a, b in both], 1e-10)


@given(st.sampled_from([(7,), (64,), (2, 2), (5, 7), (16, 31), (2, 3, 5), (4, 2, 3, 3)]), draws.seeds)
def test_orthograd_is_orthogonal_after_a_random_mask_and_keeps_the_length(shape, seed):
    """The mask comes first: scaling single elements afterwards would undo the projection."""
    d, p = (draws.stack(shape, seed + i, dtype=torch.float32) for i in range(2))
    mask = torch.exp(draws.stack(shape, seed + 2, dtype=torch.float32))
    d = d * mask
    out = T.orthograd(d, p)
    dot = T.tensor_sum((out * p).double())
    norms = [T.tensor_sum(x.double().square()).sqrt() for x in (d, p, out)]
    assert bool((dot.abs() <= 1e-6 * norms[0] * norms[1]).all())
    sine = norms[2] / norms[0]
    capped = (1 - (T.tensor_sum((d * p).double()) / (norms[0] * norms[1])).square()).sqrt() < 0.1
    assert bool((((sine - 1).abs() < 1e-5) | capped).all())
    assert bool((sine < 1 + 1e-5).all())


def test_orthograd_growth_is_capped_at_ten():
    p = torch.ones(1, 1, 1, 4, dtype=torch.float64)
    d = p.clone()
    d[..., 0] += 1e-3  # almost along p
    out = T.orthograd(d, p)
    rest = d - (d * p).sum() / 4 * p
    torch.testing.assert_close(out, 10 * rest, rtol=1e-9, atol=0.0)
    assert float((out * p).sum().abs()) < 1e-12


def test_orthograd_leaves_zero_weights_and_single_elements_alone():
    d = draws.stack((5, 7), 0)
    assert torch.equal(T.orthograd(d, torch.zeros_like(d)), d)
    one = draws.stack((1,), 0)
    assert torch.equal(T.orthograd(one, one), one)
    half = draws.stack((5, 7), 1)
    half[0] = 0.0
    mixed = T.orthograd(d, half)
    assert torch.equal(mixed[0], d[0]) and not torch.equal(mixed[1], d[1])


def test_orthograd_along_the_weights_leaves_nothing_large():
    p = draws.stack((5, 7), 0)
    out = T.orthograd(3 * p, p)
    assert draws.finite(out)
    assert float(out.norm()) < 1e-10
