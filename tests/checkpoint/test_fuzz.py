"""Damaged state dicts and files: each is refused by a clear error of ours, or the run goes on finite.

scripts/fuzz_checkpoints.py tries ten thousand of these cases.
"""

from __future__ import annotations

import copy
import functools
import io
import random
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from automagic_cameamp import CheckpointError, import_state
from automagic_trainer.checkpoint import PARTS, DamagedCheckpoint, read
from checkpoint import foreign
from checkpoint.damage import armed, damaged, damaged_file, one
from checkpoint.members import make, never
from engine.helpers import differences, parameters, snapshot, train

CASES, SHARES = 800, 4
SHAPES = [(40, 32), (6,), (3, 4, 5)]
SOURCES = ["base", "base dynamic", "affine", "improved", "sized one block", "contextual"]
TARGETS = ["base", "base dynamic", "affine", "improved", "sized", "contextual 8bit"]
OPTIONS: list[dict[str, Any]] = [
    {},
    {"lr_mask_granularity": "row"},
    {"lr_mask_rule": "additive"},
    {"lr_mask_granularity": "group"},
    {"lr_level": "distance"},
    {"lr_level": "vote"},
    {"came": False},
    {"factored": False, "confidence_1d": True},
]


@functools.cache
def source(member: str, options: int) -> dict[str, Any]:
    params = parameters(shapes=SHAPES)
    optimizer = make(member, params, **OPTIONS[options])
    train(optimizer, params, range(1, 4), never)
    return copy.deepcopy(optimizer.state_dict())


@functools.cache
def foreign_source(kind: str) -> dict[str, Any]:
    return foreign.STATES[kind]()


def outcome(optimizer: Any, params: list[Tensor], load: Callable[[], Any]) -> str:
    """'refused' or 'trained'; anything else is an AssertionError."""
    before = snapshot(optimizer)
    try:
        load()
    except CheckpointError as error:
        assert len(str(error)) > 30 and str(error).rstrip().endswith("Nothing was loaded.")
        assert differences(before, snapshot(optimizer)) == []
        return "refused"
    train(optimizer, params, range(4, 6), never)
    for p in params:
        assert bool(p.isfinite().all()), "a weight is not finite"
        for key, value in optimizer.state[p].items():
            floating = isinstance(value, torch.Tensor) and value.is_floating_point()
            assert not floating or bool(value.isfinite().all()), key  # others are a program's own
    optimizer.state_dict()
    return "trained"


@pytest.mark.parametrize("part", range(SHARES))
def test_damaged_state_dicts(part: int) -> None:
    count: Counter[str] = Counter()
    for case in range(part, CASES, SHARES):
        count[damaged_dict(case)] += 1
    assert count["trained"] >= 10 and count["refused"] >= 100, count


def test_broken_files(tmp_path: Path) -> None:
    count = Counter(broken_file(case, tmp_path) for case in range(200))
    assert count["trained"] >= 5 and count["refused"] >= 100, count


def test_the_trap_works(tmp_path: Path) -> None:
    """Read without care, the pickle does what it must never do."""
    path, trap = tmp_path / "x.pt", tmp_path / "executed"
    path.write_bytes(armed(file_of("base"), str(trap)))
    torch.load(path, weights_only=False)
    assert trap.exists()


def damaged_dict(case: int) -> str:
    """What happens to the state dict of this number."""
    rng = random.Random(case)
    params = parameters(shapes=SHAPES)
    optimizer = make(one(rng, TARGETS), params, **(OPTIONS[rng.randrange(8)] if rng.random() < 0.3 else {}))
    saved = damaged(rng, copy.deepcopy(source(one(rng, SOURCES), rng.randrange(len(OPTIONS)))))
    return checked_outcome(case, optimizer, params, lambda: optimizer.load_state_dict(saved))


def checked_outcome(case: int, optimizer: Any, params: list[Tensor], load: Callable[[], Any]) -> str:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the state dict holds no c_optim entry")
        warnings.filterwarnings("ignore", "lr=")
        try:
            return outcome(optimizer, params, load)
        except Exception as error:
            raise AssertionError(f"case {case}: {type(error).__name__}: {error}") from error


@functools.cache
def file_of(member: str) -> bytes:
    """A checkpoint of the trainer, as bytes."""
    buffer = io.BytesIO()
    torch.save({name: 0 for name in PARTS} | {"optimizer": source(member, 0)}, buffer)
    return buffer.getvalue()


def broken_file(case: int, folder: Path) -> str:
    """What happens to the file of this number: read as the trainer reads it, then loaded."""
    rng = random.Random(case)
    member = one(rng, SOURCES)
    params = parameters(shapes=SHAPES)
    optimizer = make(member, params)
    path, trap = folder / "step-00000001.pt", folder / "executed"
    path.write_bytes(damaged_file(rng, file_of(member), str(trap)))

    def load() -> None:
        try:
            payload = read(path)
        except DamagedCheckpoint as error:
            raise CheckpointError(f"{error}: Nothing was loaded.") from None
        optimizer.load_state_dict(payload["optimizer"])

    try:
        return checked_outcome(case, optimizer, params, load)
    finally:
        assert not trap.exists(), f"case {case}: a pickle was executed"


@pytest.mark.parametrize("kind", foreign.STATES)
def test_damaged_foreign_state_dicts(kind: str) -> None:
    count: Counter[str] = Counter()
    for case in range(60):
        rng = random.Random(case)
        params = parameters(shapes=foreign.SHAPES[:3])
        optimizer = make(one(rng, TARGETS), params)
        saved = copy.deepcopy(foreign_source(kind))
        saved["state"] = {i: s for i, s in saved["state"].items() if i < 3}
        saved["param_groups"][0]["params"] = [0, 1, 2]
        saved = damaged(rng, saved)
        try:
            count[outcome(optimizer, params, lambda o=optimizer, s=saved: import_state(o, s))] += 1
        except Exception as error:
            raise AssertionError(f"case {case}: {type(error).__name__}: {error}") from error
    assert count["trained"] >= 3 and count["refused"] >= 20, count
