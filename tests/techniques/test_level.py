"""The pieces of the level rules: the sample, the evidence for a distance, the vote of signs."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from automagic_cameamp import techniques as T
from reference import draws


@pytest.mark.parametrize("numel", [1, 2, 4095, 4096, 4097, 4107, 50_000])
def test_the_sample_has_the_size_that_the_state_reserves(numel):
    x = torch.arange(numel, dtype=torch.float32).expand(2, 1, 1, numel)
    taken = T.sample(x)
    assert taken.shape == (2, T.sample_size(numel))
    step = 1 if numel < 4096 else 11
    assert torch.equal(taken[1], torch.arange(0, numel, step, dtype=torch.float32))


def test_distance_evidence_formula():
    b, s, g, travelled = 2, *(draws.normal((2, 9), i) for i in range(3))
    r, weight = draws.normal((b,), 3), torch.tensor(0.7, dtype=torch.float64)
    new_r, new_s, norm = T.distance_evidence(r, s, g, travelled, weight)
    for i in range(b):
        dot = sum(float(x * y) for x, y in zip(g[i], travelled[i], strict=True))
        assert float(new_r[i]) == pytest.approx(0.9995 * float(r[i]) + 0.7 * dot, rel=1e-12)
        assert float(norm[i]) == pytest.approx(sum(abs(float(x)) for x in new_s[i]), rel=1e-12)
    torch.testing.assert_close(new_s, 0.9995 * s + 0.7 * g, rtol=1e-14, atol=0.0)


@given(st.floats(1.0, 1e6), st.floats(-1e3, 1e3), st.floats(0, 1e3), st.sampled_from([1e-6, 1e-3]))
def test_distance_level_never_falls(level, r, norm, start):
    old, evidence, size = (torch.tensor(x, dtype=torch.float64) for x in (level, r, norm))
    new = T.distance_level(old, evidence, size, start)
    expected = max(level, r / norm / start) if norm > 0 else level
    assert float(new) == pytest.approx(expected, rel=1e-12)
    assert float(new) >= level


def pushed(signs):
    """History word after these signs (True: negative), oldest first."""
    history = torch.zeros(1, 1, 1, 1, dtype=torch.uint8)
    for negative in signs:
        history = T.push_sign(history, torch.full((1, 1, 1, 1), -1.0 if negative else 1.0))
    return history


def test_history_keeps_the_last_eight_signs():
    assert int(pushed([True] * 20)) == 255
    assert int(pushed([True] * 9 + [False] * 8)) == 0
    assert int(pushed([False, True] * 10)) == 0x55
    assert int(pushed([True, False] * 10)) == 0xAA
    assert int(pushed([True] + [False] * 7)) == 128


def vote(history, u=1.0, enough=True):
    weight = torch.full(history.shape, u)
    numerator, denominator = T.sign_vote(history, weight, torch.tensor([enough]))
    return float(numerator), float(denominator)


def test_vote_of_every_history():
    for code in range(256):
        history = torch.full((1, 1, 1, 1), code, dtype=torch.uint8)
        expected = 1.0 if code in (0, 255) else -1.0 if code in (0x55, 0xAA) else 0.0
        assert vote(history) == (expected, 1.0)
        assert vote(history, u=-3.0) == (3.0 * expected, 3.0)
        assert vote(history, enough=False) == (0.0, 1.0)


def test_vote_is_balanced_over_all_histories():
    """Under noise every history is equally likely, so the mean vote must be exactly 0."""
    every = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    assert vote(every)[0] == 0.0


def test_vote_weighs_by_the_update():
    history = torch.tensor([0, 0x55, 3], dtype=torch.uint8).view(1, 1, 1, 3)
    u = torch.tensor([2.0, -5.0, 1.0]).view(1, 1, 1, 3)
    numerator, denominator = T.sign_vote(history, u, torch.tensor([True]))
    assert (float(numerator), float(denominator)) == (-3.0, 8.0)
