"""Phase boundaries, and the MIXED phase that must not be told from the three static ones."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from automagic_cameamp import recipes, schedule
from automagic_cameamp import techniques as T
from automagic_cameamp.recipes import base
from automagic_cameamp.schedule import phase_between, phase_of
from automagic_cameamp.types import Layout, Phase
from reference import drive
from reference.draws import stack
from rotated import rotated

E, M, L = Phase.EARLY, Phase.MIDDLE, Phase.LATE


@pytest.mark.parametrize(
    ("warmup", "expected"),
    [
        (0, [L, L, L]),
        (1, [L, L, L]),
        (2, [M, L, L]),
        (3, [E, M, L, L]),
        (4, [E, M, M, L, L]),
        (5, [E, E, M, M, L, L]),
        (6, [E, E, M, M, M, L, L]),
        (7, [E, E, E, M, M, M, L, L]),
    ],
)
def test_boundaries(warmup, expected):
    assert [phase_of(t, warmup) for t in range(1, len(expected) + 1)] == expected


@given(st.integers(1, 10**6), st.integers(0, 10**6))
def test_phase_is_the_definition_and_the_flags_agree(t, warmup):
    phase = phase_of(t, warmup)
    assert (phase is E) == (t < warmup / 2)
    assert (phase is L) == (t >= warmup)
    k = schedule.scalars(torch.full((1, 1, 1, 1), float(t)), 0.8, 0.9995, warmup)
    assert bool(k.early) == phase.may_be_early
    assert bool(k.warm) == phase.may_warm_up
    assert int(k.t) == t


@given(st.integers(1, 50), st.integers(0, 50), st.integers(0, 60))
def test_phase_of_a_stack_is_mixed_exactly_where_its_tensors_differ(first, more, warmup):
    phases = {phase_of(t, warmup) for t in (first, first + more)}
    expected = phases.pop() if len(phases) == 1 else Phase.MIXED
    assert phase_between(first, first + more, warmup) is expected


def test_mixed_may_be_anything():
    assert Phase.MIXED.may_be_early and Phase.MIXED.may_warm_up
    assert M.may_warm_up and not M.may_be_early
    assert not L.may_warm_up and not L.may_be_early


def assert_same(a, b, where):
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), f"{name} {where}"


@rotated("way, warmup", drive.WAYS, [0, 5, 6])
def test_mixed_equals_static_bitwise(way, warmup):
    for shape in ((5, 7), (3,), (2, 3, 4)):
        layout = Layout.of(shape)
        options = {"warmup_steps": warmup, **drive.WAYS[way]}
        hp = drive.hyper(layout, **options)
        p, gs = stack(shape, 0, 2, 0.1, torch.float32), drive.gradients(shape, 9, batch=2)
        static = drive.run(p, gs, hp, layout)
        mixed = drive.run(p, gs, hp, layout, phase=lambda t: Phase.MIXED)
        for t, (a, b) in enumerate(zip(static, mixed, strict=True), start=1):
            assert_same(a, b, f"at t={t} of {shape}")


@pytest.mark.parametrize("way", drive.WAYS)
def test_a_stack_of_tensors_in_different_phases(way):
    """Each tensor of a MIXED stack must move exactly as it would alone in its own phase."""
    shape = (5, 7)
    layout = Layout.of(shape)
    hp = drive.hyper(layout, **{**drive.WAYS[way], **({} if way in ("plain",) else {"warmup_steps": 6})})
    starts = [0, 1, 3, 6]
    weights, states = [], []
    for i, done in enumerate(starts):
        p, state = stack(shape, i, 1, 0.1, torch.float32), None
        for t, g in enumerate(drive.gradients(shape, done, seed=i), start=1):
            state = drive.fresh(p, hp, layout) if state is None else state
            now = phase_of(t, hp.warmup_steps)
            result = T.alone(base.update(p, g, state, drive.shared(hp, 5), hp, now, layout))
            p, state = result.p, result.state
        weights.append(p)
        states.append(drive.fresh(p, hp, layout) if state is None else state)
    g = torch.cat(drive.gradients(shape, 4, seed=99))

    rows = [recipes.as_dict(s) for s in states]
    joined = {k: torch.cat([r[k] for r in rows]) for k, v in rows[0].items() if v is not None}
    shared = drive.shared(hp, 5)
    steps = base.update(torch.cat(weights), g, recipes.make_state(joined), shared, hp, Phase.MIXED, layout)
    together = T.alone(steps)
    for i, done in enumerate(starts):
        now = phase_of(done + 1, hp.warmup_steps)
        alone = T.alone(base.update(weights[i], g[i : i + 1], states[i], shared, hp, now, layout))
        part = {name: x[i : i + 1] for name, x in drive.flatten(together).items()}
        assert_same(part, drive.flatten(alone), f"of a tensor at t={done + 1}")


@pytest.mark.parametrize("warmup", [0, 1, 2, 5, 6])
def test_what_stops_at_which_boundary(warmup):
    """Torque and decay stop at t >= W/2, the mask at t >= W, seen from outside."""
    params = drive.parameters([(5, 7), (6,)])
    optimizer = drive.train(params, 0, warmup_steps=warmup, weight_decay=0.0)
    previous = None
    for t in range(1, 10):
        drive.give_gradients(params, t)
        optimizer.step()
        now = {
            name: [optimizer.state[p][name].clone() for p in params if name in optimizer.state[p]]
            for name in ("s", "lr_mask", "lr_mask_sum")
        }
        assert (len(now["lr_mask"]) > 0) == (warmup > 0)
        if previous is not None and warmup > 0:
            moved = {name: not drive.equal(now[name], previous[name]) for name in now}
            assert moved["s"] == (t < warmup / 2), f"torque at t={t}"
            # t = 1 has no previous sign; from t = 2 on every word moves until W.
            assert moved["lr_mask"] == (t < warmup), f"mask at t={t}"
            assert moved["lr_mask_sum"] == (t < warmup), f"mask sum at t={t}"
        previous = now


@pytest.mark.parametrize("warmup", [0, 1, 4, 5])
def test_early_weight_decay_ends_at_half_the_warm_up(warmup):
    """A gradient of zero leaves nothing but the decay."""
    p = torch.nn.Parameter(torch.ones(3, 4))
    optimizer = drive.train([p], 0, warmup_steps=warmup, weight_decay=0.5)
    for t in range(1, 8):
        before = p.detach().clone()
        p.grad = torch.zeros_like(p)
        optimizer.step()
        assert torch.equal(p.detach(), before) == (t >= warmup / 2), f"t={t}"


def test_a_warm_up_that_is_changed_in_mid_run_counts_from_the_same_step():
    """W belongs to the group; the step counter of a tensor goes on."""
    params = drive.parameters([(5, 7)])
    optimizer = drive.train(params, 7)  # W = 6: the mask is frozen
    before = optimizer.state[params[0]]["lr_mask"].clone()
    optimizer.param_groups[0]["warmup_steps"] = 20
    for t in (8, 9):
        drive.give_gradients(params, t)
        optimizer.step()
    assert not torch.equal(optimizer.state[params[0]]["lr_mask"], before)
    assert int(optimizer.state[params[0]]["step"]) == 9
