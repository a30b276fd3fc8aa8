"""A parameter's updates are its own: the steps that it has no part in do not show."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import example, given, settings

from automagic_cameamp import OPTIMIZERS, Automagic_CameAMP, Automagic_CameAMP_Improved
from counts.helpers import BAD, ENGINES, GOOD, NONE, SHAPES, build, give, held, lora, patterns, weights
from engine.helpers import draw
from faults.recorded import same

EVERY = pytest.mark.parametrize("engine", ENGINES)
ALTERNATING = [(GOOD, NONE, GOOD, NONE, GOOD) if t % 2 else (NONE, GOOD) * 2 + (NONE,) for t in range(20)]
RARE = [(GOOD, GOOD if t % 7 == 2 else NONE, NONE if t < 11 else GOOD, GOOD, GOOD) for t in range(24)]
BAD_WHEN_DUE = [(GOOD, BAD if t == 3 else GOOD, BAD if t in (3, 4) else GOOD, GOOD, BAD) for t in range(9)]


def check(name: str, engine: str, pattern: list[tuple[int, ...]], dtype: torch.dtype) -> None:
    rounding: dict[str, Any] = {} if dtype == torch.float32 else {"stochastic_rounding": False}
    params = weights(dtype)
    together = build(name, params, engine, **rounding)
    for step, kinds in enumerate(pattern):
        give(params, step, kinds)
        together.step()
    for i, p in enumerate(params):
        others = weights(dtype)  # without gradients: the random bits of a code go by the place in the list
        alone = build(name, others, engine, **rounding)
        for step, kinds in enumerate(pattern):
            if kinds[i] != NONE:
                give(others, step, tuple(kinds[i] if j == i else NONE for j in range(len(others))))
                alone.step()
        assert same(held(together, [p]), held(alone, [others[i]])), f"parameter {i}"


@EVERY
@pytest.mark.parametrize("name", OPTIMIZERS)
@settings(max_examples=4)
@example(ALTERNATING)
@example(RARE)
@example(BAD_WHEN_DUE)
@given(patterns)
def test_together_and_alone(name: str, engine: str, pattern: list[tuple[int, ...]]) -> None:
    check(name, engine, pattern, torch.float32)


@EVERY
@settings(max_examples=4)
@example(ALTERNATING)
@example(BAD_WHEN_DUE)
@given(patterns)
def test_weights_of_less_than_fp32(engine: str, pattern: list[tuple[int, ...]]) -> None:
    check("Automagic_CameAMP_Improved", engine, pattern, torch.bfloat16)


@EVERY
def test_directions_are_found_whichever_steps_have_gradients(engine: str) -> None:
    """As a public report had it: two adapters trained in turn, the interval even."""
    params = weights()[:2]
    optimizer = Automagic_CameAMP_Improved(params, lr=1e-3, rank_keep=3, sync_frequency=4, engine=engine)
    for step in range(40):
        give(params, step, (GOOD, NONE) if step % 2 == 0 else (NONE, GOOD))
        optimizer.step()
    for p in params:
        state = optimizer.state[p]
        assert float(state["step"]) == 20 and bool(state["lowrank_basis"].any())
        # Owed since the search at update 17: four rates at most.
        assert 0 < float(state["lowrank_rate"]) <= 4 * 1e-3 * 0.01


@EVERY
def test_a_group_that_is_added_late_searches_at_its_first_update(engine: str) -> None:
    params = weights()
    optimizer = build("Automagic_CameAMP_Improved", params[:2], engine)
    for step in range(4):
        give(params[:2], step, (GOOD, GOOD)) if step != 2 else give(params[:2], step, (NONE, GOOD))
        optimizer.step()
    optimizer.add_param_group({"params": params[2:4]})
    give(params, 4, (GOOD,) * 3 + (NONE, NONE))
    optimizer.step()
    assert bool(optimizer.state[params[2]]["lowrank_basis"].any()) and not optimizer.state[params[3]]
    give(params, 5, (NONE,) * 3 + (GOOD, NONE))
    optimizer.step()
    assert bool(optimizer.state[params[3]]["lowrank_basis"].any())


@pytest.mark.parametrize("options", [{"lr_mask_granularity": "group"}, {"lr_level": "vote"}], ids=str)
def test_votes_of_a_group_wait_for_its_next_update(options: dict[str, Any]) -> None:
    """A group that moves at every other step is one that moves at every step of a clock half as fast."""
    results = []
    for pause in (1, 2, 3):
        params = lora(0.3 * draw(3, i, shape=SHAPES[i]) for i in range(3))
        groups = [{"params": params[:2]}, {"params": params[2:], "lr_mask_rule": "none"}]
        optimizer = Automagic_CameAMP(groups, lr=1e-3, warmup_steps=30, **options)
        for step in range(pause * 24):
            own = (GOOD, GOOD) if step % pause == 0 else (NONE, NONE)
            give(params, step // pause, (*own, GOOD if pause > 1 else NONE))
            optimizer.step()
        states = [{k: v for k, v in optimizer.state[p].items() if k != "vote_clock"} for p in params[:2]]
        name = "lr_mask" if "lr_mask_granularity" in options else "lr_level"
        assert all(bool(state[name].any()) for state in states)
        results.append([[p.detach() for p in params[:2]], states])
    assert same(results[0], results[1]) and same(results[0], results[2])


@settings(max_examples=20)
@example(ALTERNATING)
@example(BAD_WHEN_DUE)
@given(patterns)
def test_a_group_keeps_one_counter(pattern: list[tuple[int, ...]]) -> None:
    """Whoever has a gradient: the counter is the group's, moved once by the votes of every update of it."""
    params = weights()
    optimizer = Automagic_CameAMP(params, lr=1e-3, warmup_steps=99, lr_mask_granularity="group")
    count, votes = 0, 0.0
    for step, kinds in enumerate(pattern):
        give(params, step, kinds)
        optimizer.step()
        moved = [optimizer.state[p] for p, kind in zip(params, kinds, strict=True) if kind == GOOD]
        if moved:
            count += (votes > 0) - (votes < 0)
            votes = sum(float(state["lr_mask_vote"]) for state in moved)
            assert {int(state["lr_mask"]) for state in moved} == {count}
