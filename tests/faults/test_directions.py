"""A gradient that is not finite in the very step that looks for new low-rank directions."""

from __future__ import annotations

import copy

import pytest
import torch

import automagic_cameamp as A
from automagic_cameamp import techniques as T
from faults.recorded import ENGINES, build, draw, give, same


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("find", [T.top_basis, T.tail_basis], ids=["top", "tail"])
def test_neighbours_in_a_stack_do_not_notice(find, bad: float) -> None:  # type: ignore[no-untyped-def]
    w = draw(3, (3, 1, 40, 32))
    clean = find(w, 10)
    w[1, 0, 5, 6] = bad
    found = find(w, 10)
    assert torch.equal(found[[0, 2]], clean[[0, 2]]) and bool(found.isfinite().all())


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("cls", [A.Automagic_CameAMP_8Bit, A.Automagic_CameAMP_Improved])
def test_the_bad_one_is_untouched_the_others_move(cls: type, engine: str) -> None:
    shapes = [(40, 24), (40, 24), (24, 40)]  # LAPACK raises for small sides only
    optimizer, params = build(engine, cls=cls, shapes=shapes, sync_frequency=3)
    twin, theirs = build(engine, cls=cls, shapes=shapes, sync_frequency=3)
    for step in range(1, 8):
        give(params, step)
        give(theirs, step)
        bad = step == 4  # the clock of the group is 3: a step that searches
        if bad:
            kept = params[1].detach().clone(), copy.deepcopy(optimizer.state[params[1]])
            params[1].grad[2, 3] = float("nan")
        optimizer.step()
        twin.step()
        if bad:
            assert torch.equal(params[1], kept[0]) and same(optimizer.state[params[1]], kept[1])
            assert all(torch.equal(params[i], theirs[i]) for i in (0, 2))
    assert optimizer.health()["parameters"] == {"layer1": 1}
