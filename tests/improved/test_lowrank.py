"""A16: the kept directions, the tail that shrinks, the update that leans."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from automagic_cameamp import Automagic_CameAMP_Improved
from automagic_cameamp import techniques as T
from automagic_cameamp.types import Layout
from improved import drive
from reference import draws
from reference import drive as base_drive

sizes = st.tuples(st.integers(2, 24), st.integers(2, 24))
strengths = st.sampled_from([0.0, 1e-4, 0.3, 1.0])
emphases = st.sampled_from([1.0, 1.2, 3.0])


def spectrum(values: list[float], rows: int, columns: int, seed: int = 0) -> Tensor:
    """A matrix with these singular values, largest first."""
    u = torch.linalg.qr(draws.normal((rows, len(values)), seed))[0]
    v = torch.linalg.qr(draws.normal((columns, len(values)), seed + 1))[0]
    return ((u * torch.tensor(values, dtype=torch.float64)) @ v.mT)[None, None]


def projector(w: Tensor, keep: int) -> Tensor:
    basis = T.top_basis(w, keep)
    return basis @ basis.mT


def shrunk(w: Tensor, keep: int, strength: float) -> Tensor:
    return T.shrink_tail(w, T.top_basis(w, keep), torch.full((w.shape[0], 1, 1, 1), strength, dtype=w.dtype))


@given(sizes, draws.seeds, st.integers(1, 23), strengths)
def test_the_top_is_kept_and_the_tail_shrinks_exactly(size, seed, keep, strength):
    side = min(size)
    keep = min(keep, side - 1)
    values = [2.0 ** (1 - i / 2) for i in range(side)]
    w = spectrum(values, size[0], size[1], seed)
    out = shrunk(w, keep, strength)
    # Far apart, so the order of the singular values stays as it is.
    after = torch.linalg.svdvals(out[0, 0]).tolist()
    expected = values[:keep] + [v * (1 - strength) for v in values[keep:]]
    assert after == pytest.approx(expected, abs=1e-11)


@given(sizes, draws.seeds)
def test_the_kept_subspace_is_untouched(size, seed):
    keep = max(1, min(size) // 2)
    values = [4.0] * keep + [1.0] * (min(size) - keep)
    w = spectrum(values, size[0], size[1], seed)
    before, after = projector(w, keep), projector(shrunk(w, keep, 0.5), keep)
    torch.testing.assert_close(after, before, rtol=0, atol=1e-9)


@given(sizes, draws.seeds, st.integers(1, 23))
def test_the_basis_is_that_of_the_largest_singular_values(size, seed, keep):
    keep = min(keep, min(size))
    w = draws.stack(size, seed)
    basis = T.top_basis(w, keep)
    assert basis.shape == (2, 1, min(size), keep)
    torch.testing.assert_close(
        basis.mT @ basis, torch.eye(keep, dtype=w.dtype).expand(2, 1, -1, -1), rtol=0, atol=1e-12
    )
    inside = projector(w, keep) @ w if size[0] <= size[1] else w @ projector(w, keep)
    expected = torch.linalg.svdvals(w)[..., :keep].square().sum(-1)
    torch.testing.assert_close(inside.square().sum((-1, -2)), expected, rtol=1e-10, atol=0)


@given(sizes, draws.seeds, st.integers(1, 23), strengths, emphases)
def test_the_other_directions_say_the_same(size, seed, keep, strength, emphasis):
    """What is not kept, as a basis of its own: half the bytes where most is kept."""
    keep = min(keep, min(size) - 1)
    w, u = draws.stack(size, seed), draws.stack(size, seed + 1)
    top, tail = T.top_basis(w, keep), T.tail_basis(w, keep)
    assert tail.shape == (2, 1, min(size), min(size) - keep)
    s = torch.full((2, 1, 1, 1), strength, dtype=w.dtype)
    torch.testing.assert_close(
        T.shrink_tail(w, tail, s, tail=True), T.shrink_tail(w, top, s), rtol=0, atol=1e-12
    )
    leaning = T.emphasise(u, tail, emphasis, tail=True)
    torch.testing.assert_close(leaning, T.emphasise(u, top, emphasis), rtol=0, atol=1e-12)
    torch.testing.assert_close(T.emphasise(u, tail * 0, emphasis, tail=True), u, rtol=1e-14, atol=1e-14)


def test_which_basis_is_stored_and_how_exactly():
    """The smaller one; eight bits of it turn an update by less than a half per cent."""
    w, u = draws.normal((16, 40), 1), draws.normal((16, 40), 2)
    names = {}
    for keep in (7, 8, 9, 10):
        p = torch.nn.Parameter(w.clone())
        p._is_lora_layer = True  # type: ignore[attr-defined]
        optimizer = Automagic_CameAMP_Improved([p], lr=1e-6, rank_keep=keep, sync_frequency=1)
        p.grad = u.clone()
        optimizer.step()
        state = optimizer.state[p]
        (names[keep],) = state.keys() & {"lowrank_basis", "lowrank_tail"}
        held = state[names[keep]]
        assert held.shape == (16, min(keep, 16 - keep))
        if keep == 10:
            tail = held.to(w.dtype)[None, None] / 127
            exact = T.emphasise(u[None, None], T.top_basis(p.detach()[None, None], keep), 1.2)
            assert draws.relative(T.emphasise(u[None, None], tail, 1.2, tail=True), exact) < 0.005
    assert names == {7: "lowrank_basis", 8: "lowrank_basis", 9: "lowrank_tail", 10: "lowrank_tail"}


@given(sizes, draws.seeds)
def test_a_strength_above_one_is_one(size, seed):
    w = draws.stack(size, seed)
    assert torch.equal(shrunk(w, 1, 7.5), shrunk(w, 1, 1.0))


def test_the_tail_of_every_matrix_of_a_batch():
    w = draws.stack((3, 6, 9), 0, batch=2)
    out = shrunk(w, 2, 0.25)
    for b in range(2):
        for k in range(3):
            before, after = torch.linalg.svdvals(w[b, k]), torch.linalg.svdvals(out[b, k])
            torch.testing.assert_close(after, torch.cat([before[:2], before[2:] * 0.75]), rtol=0, atol=1e-11)


# ------------------------------------------------------------------ emphasis


@given(sizes, draws.seeds, emphases)
def test_emphasis_keeps_the_norm_and_leans_to_the_top(size, seed, emphasis):
    w, u = draws.stack(size, seed), draws.stack(size, seed + 1)
    out = T.emphasise(u, T.top_basis(w, 1), emphasis)
    torch.testing.assert_close(out.flatten(1).norm(dim=1), u.flatten(1).norm(dim=1), rtol=1e-13, atol=0)
    kept = projector(w, 1)

    def top(x: Tensor) -> Tensor:
        inside = kept @ x if size[0] <= size[1] else x @ kept
        return inside.flatten(1).norm(dim=1)

    assert bool((top(out) >= top(u) * (1 - 1e-12)).all())
    if emphasis > 1:
        assert bool((top(out) > top(u)).all())


@given(sizes, draws.seeds)
def test_emphasis_of_one_and_an_empty_basis_are_the_identity(size, seed):
    u = draws.stack(size, seed)
    basis = T.top_basis(draws.stack(size, seed + 1), 1)
    assert torch.equal(T.emphasise(u, basis, 1.0), u)
    torch.testing.assert_close(T.emphasise(u, basis * 0, 1.7), u, rtol=1e-15, atol=0)


def test_emphasis_of_nothing_is_nothing():
    u = torch.zeros(2, 1, 4, 5)
    assert torch.equal(T.emphasise(u, T.top_basis(torch.randn(2, 1, 4, 5), 1), 2.0), u)


# ------------------------------------------------------------------ in the optimizer


def test_who_has_a_tail():
    for shape, keep, expected in [
        ((11, 11), 10, True),
        ((10, 500), 10, False),
        ((500, 11), 10, True),
        ((128, 129), 10, True),
        ((129, 129), 10, False),
        ((3, 40, 12), 10, True),
        ((16, 4, 3, 3), 10, True),
        ((16, 1, 3, 3), 10, False),  # nine columns
        ((500,), 1, False),
        ((), 1, False),
    ]:
        assert T.has_tail(Layout.of(shape), keep) is expected, shape


def test_a_rank_that_is_kept_whole_changes_nothing():
    """Matrices of rank at most rank_keep: the same bits as without the penalty."""
    shapes, options = [(4, 30), (30, 4), (2, 4, 9)], {"rank_keep": 4, "sync_frequency": 1}
    on, off = drive_pair(shapes, options, {"lora_rank_penalty": False})
    assert all(torch.equal(a, b) for a, b in zip(on, off, strict=True))
    on, off = drive_pair([(5, 30)], options, {"lora_rank_penalty": False})
    assert not torch.equal(on[0], off[0])


def drive_pair(shapes, options, change):
    results = []
    for extra in ({}, change):
        params = base_drive.parameters(shapes)
        drive.train(params, 8, Automagic_CameAMP_Improved, **{**options, **extra})
        results.append([p.detach().clone() for p in params])
    return results


def test_the_tail_shrinks_by_the_rates_since_the_last_time():
    """lr, mask and emphasis off: after n steps of a zero gradient the tail is prod(1 - owed)."""
    p = torch.nn.Parameter(spectrum([4.0, 2.0, 1.0, 0.5], 6, 8)[0, 0].clone())
    p._is_lora_layer = True  # type: ignore[attr-defined]
    optimizer = Automagic_CameAMP_Improved(
        [p], lr=0.01, max_lr=1.0, rank_keep=2, rank_penalty_strength=0.5, low_rank_emphasis=1.0,
        sync_frequency=4, use_lr_mask=False, full_finetune=True, warmup_steps=0,
    )  # fmt: skip
    tails = []
    for _ in range(9):
        p.grad = torch.zeros_like(p)
        optimizer.step()
        values = torch.linalg.svdvals(p.detach())
        torch.testing.assert_close(
            values[:2], torch.tensor([4.0, 2.0], dtype=values.dtype), rtol=1e-6, atol=0
        )
        tails.append(float(values[2]))
    once, later = 1 - 0.005, 1 - 4 * 0.005  # step 1 owes one rate, steps 5 and 9 owe four
    expected = [once] * 4 + [once * later] * 4 + [once * later**2]
    assert tails == pytest.approx(expected, rel=1e-6)


def test_a_lr_of_zero_shrinks_nothing():
    p = torch.nn.Parameter(draws.normal((6, 8), 0))
    p._is_lora_layer = True  # type: ignore[attr-defined]
    before = p.detach().clone()
    optimizer = Automagic_CameAMP_Improved([p], lr=1e-3, rank_keep=2, sync_frequency=1)
    optimizer.param_groups[0]["lr"] = 0.0
    for t in range(5):
        p.grad = draws.normal((6, 8), t)
        optimizer.step()
    torch.testing.assert_close(p.detach(), before, rtol=0, atol=0)


def test_unmarked_parameters_of_a_marked_model_keep_their_tail():
    """The penalty and ALLoRA apply to a LoRA's parameters only."""
    marked, other = (torch.nn.Parameter(draws.normal((6, 8), i)) for i in range(2))
    marked._is_lora_layer = True  # type: ignore[attr-defined]
    optimizer = Automagic_CameAMP_Improved([marked, other], lr=1e-3, rank_keep=2)
    for p in (marked, other):
        p.grad = draws.normal((6, 8), 9)
    optimizer.step()
    assert "lowrank_basis" in optimizer.state[marked]
    assert "lowrank_basis" not in optimizer.state[other]
