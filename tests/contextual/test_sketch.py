"""The sketch keeps angles: against the exact cosine, for noise, structure and every stack."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from automagic_cameamp import techniques as T
from automagic_cameamp.control import ContextualController

N = 500_000


def cosine(a: Tensor, b: Tensor) -> float:
    a, b = a.double().flatten(), b.double().flatten()
    return float((a * b).sum() / (a.norm() * b.norm()))


def pair(n: int, rho: float, seed: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    a, b = torch.randn(n, generator=g), torch.randn(n, generator=g)
    return a, rho * a + math.sqrt(1 - rho**2) * b


def sketched(x: Tensor, offset: int = 0) -> Tensor:
    return T.sketch(x.reshape(1, 1, 1, -1), offset)


@pytest.mark.parametrize("rho", [0.0, 0.3, -0.5, 0.9])
def test_the_cosine_is_kept_within_two_percent(rho: float) -> None:
    errors = []
    for seed in range(24):
        a, b = pair(N, rho, seed)
        errors.append(cosine(sketched(a), sketched(b)) - cosine(a, b))
    e = torch.tensor(errors)
    assert float(e.square().mean().sqrt()) <= 0.02
    assert abs(float(e.mean())) <= 0.012  # unbiased: within four standard errors


@pytest.mark.parametrize("width", [64, 1000, 4096, 1 << 14])
def test_low_rank_gradients_are_noise_too(width: int) -> None:
    """Rows that repeat meet in the same bucket again and again; random signs keep them apart."""
    errors = []
    for seed in range(16):
        g = torch.Generator().manual_seed(seed)
        rows = N // width
        a, b = torch.randn(rows, 1, generator=g), torch.randn(1, width, generator=g)
        c, d = torch.randn(rows, 1, generator=g), torch.randn(1, width, generator=g)
        errors.append(cosine(sketched(a * b), sketched(c * d)) - cosine(a * b, c * d))
    assert float(torch.tensor(errors).square().mean().sqrt()) <= 0.02


def test_vectors_of_one_sign() -> None:
    a, b = torch.ones(N), torch.cat([torch.ones(N // 2), -torch.ones(N // 2)])
    assert cosine(sketched(a), sketched(a)) == pytest.approx(1, abs=1e-6)
    assert abs(cosine(sketched(a), sketched(b))) <= 0.06  # one draw of sd 1/sqrt(4096), four of them


@pytest.mark.parametrize("n", [1, 7, 4095, 4096])
def test_a_short_tensor_keeps_everything(n: int) -> None:
    a, b = pair(n, 0.2, 3)
    assert cosine(sketched(a), sketched(b)) == pytest.approx(cosine(a, b), abs=1e-5)
    assert torch.equal(sketched(a).abs(), a.abs().view(1, -1))


@pytest.mark.parametrize("n", [4097, 8192, 65_537, 200_001])
def test_against_a_plain_loop_over_buckets(n: int) -> None:
    x = torch.randn(n, dtype=torch.float64)
    signs = T.random_signs(n, 5, x)
    assert set(signs.tolist()) == {-1.0, 1.0}
    expected = torch.zeros(4096, dtype=torch.float64)
    for start in range(0, n, 4096):
        part = (signs * x)[start : start + 4096]
        expected[: part.numel()] += part
    torch.testing.assert_close(sketched(x, 5)[0], expected)


def test_signs_are_balanced_and_pairs_independent() -> None:
    signs = T.random_signs(65_537, 0, torch.zeros(()))
    assert abs(float(signs.mean())) < 4 / 256
    for shift in (1, 2, 4096, 8192, 30_000):
        assert abs(float((signs * signs.roll(shift)).mean())) < 4 / 256
    assert torch.equal(T.random_signs(9, 65_537 + 4, signs), signs[4:13])  # cyclic


def test_many_tensors_of_many_sizes_make_one_sketch() -> None:
    """The optimizer's own path: sketches of stacks, folded, added."""
    shapes = [(300, 200), (64, 8), (50,), (3, 3, 16, 16), (1000, 300), (7,)] * 2
    last: list[Tensor] | None = None
    errors = []
    for seed in range(12):
        g = torch.Generator().manual_seed(seed)
        new = [torch.randn(s, generator=g) for s in shapes]
        if last is not None:
            new = [0.4 * x + math.sqrt(1 - 0.16) * y for x, y in zip(last, new, strict=True)]
            c = ContextualController()
            c.update_context(last)
            c.update_context(new)
            unit = [torch.cat([x.flatten() / x.square().mean().sqrt() for x in xs]) for xs in (last, new)]
            errors.append(c.compute_gradient_consistency() - cosine(*unit))
        last = new
    assert float(torch.tensor(errors).square().mean().sqrt()) <= 0.02


def test_absent_tensors_keep_the_place_of_the_others() -> None:
    whole = torch.randn(6, 40)
    part = torch.zeros(6, 40)
    part[[1, 4]] = whole[[1, 4]]
    q = whole[[1, 4]]
    placed = q.new_zeros(6, 40).index_copy(0, torch.tensor([1, 4]), q)
    assert torch.equal(T.fold(part, 3), T.fold(placed, 3))
    assert T.fold(whole, 3).shape == (4096,)
