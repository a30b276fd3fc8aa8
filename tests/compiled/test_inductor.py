"""What Inductor makes of a step: within the bounds of the lock-step tests, and not compiled twice."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import automagic_cameamp
from automagic_cameamp.executors import compiled
from automagic_cameamp.state import counts
from automagic_cameamp.types import Phase
from compiled.test_matrix import BEFORE, CLASSES, OPTIONS
from compiled.test_matrix import SHAPES as ROW_SHAPES
from native import lockstep

pytestmark = pytest.mark.timeout(600)  # a compiler runs
SHAPES: list[tuple[int, ...]] = [(33, 65), (33, 65), (7,)]
# Inductor may add the 960 elements of a tensor one after the other: n eps of their sum at most.
IN_ORDER = 960 * 2.0**-24


@pytest.mark.parametrize(
    "name, dtype, options",
    [
        ("Automagic_CameAMP8bit", torch.float32, {"warmup_steps": 2}),
        (
            "Automagic_CameAMP_Improved_8Bit",
            torch.bfloat16,
            {"warmup_steps": 6, "profile": "memory_optimized"},
        ),
    ],
)
def test_one_step_from_the_same_state(name: str, dtype: torch.dtype, options: dict[str, Any]) -> None:
    step(name, SHAPES, dtype, options)


def step(
    name: str,
    shapes: list[tuple[int, ...]],
    dtype: torch.dtype,
    options: dict[str, Any],
    line: float = lockstep.LINE,
) -> None:
    """One step from the same state, by the reference and compiled."""
    runs = lockstep.twin(name, shapes, dtype, BEFORE, "compiled", **options)
    old = [p.detach().clone() for p in runs[0][1]]
    for optimizer, params in runs:
        lockstep.take(optimizer, params, BEFORE)
    assert not compiled.COMPILED.broken
    assert all(graph.call is not None for graph in compiled.COMPILED.graphs.values())
    lockstep.compare(runs, old, line=line)


# The rows that change most of the base recipe and of COptim's; all 33 rows with ``pytest -m slow``.
QUICK = ("tam_granularity", "momentum_scales")


@pytest.mark.parametrize(
    "name, options",
    [row for row in OPTIONS if any(row[1].get(key) for key in QUICK)],
    ids=lambda x: str(x)[:60],
)
def test_options_off_their_default(
    name: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counts.Phases, "of", lambda self, states, warmup: Phase.MIXED)
    step(name, ROW_SHAPES[:2], torch.float32, {"warmup_steps": 6, **options}, IN_ORDER)


@pytest.mark.slow
@pytest.mark.parametrize("name, options", [*CLASSES.values(), *OPTIONS], ids=lambda x: str(x)[:60])
def test_every_row(name: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counts.Phases, "of", lambda self, states, warmup: Phase.MIXED)
    step(name, ROW_SHAPES, torch.float32, {"warmup_steps": 6, **options}, IN_ORDER)


def test_rates_steps_and_the_set_of_gradients_compile_nothing_anew() -> None:
    params = [torch.nn.Parameter(torch.randn(6, 10)) for _ in range(5)]
    twins = [torch.nn.Parameter(p.detach().clone()) for p in params]
    made = [
        automagic_cameamp.Automagic_CameAMP(own, lr=1e-3, warmup_steps=0, engine=engine)
        for own, engine in ((params, "compiled"), (twins, "reference"))
    ]
    with torch._dynamo.config.patch(error_on_recompile=True):
        for step, members in enumerate(([0, 1, 2, 3, 4], [0, 2], [1, 3, 4], [0, 1, 2, 3, 4])):
            for i, (p, q) in enumerate(zip(params, twins, strict=True)):
                p.grad = torch.randn(p.shape) if i in members else None
                q.grad = None if p.grad is None else p.grad.clone()
            for optimizer in made:
                optimizer.param_groups[0]["lr"] = 1e-3 / (step + 1)
                optimizer.step()
    assert len(compiled.COMPILED.graphs) == 1
    for p, q in zip(params, twins, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)
