"""Two thousand damaged state dicts: each is refused by a clear error of ours, or the run goes on finite."""

from __future__ import annotations

import copy
import functools
import random
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from automagic_cameamp import CheckpointError, import_state
from checkpoint import foreign
from checkpoint.members import make, never
from engine.helpers import differences, parameters, snapshot, train

CASES, PARTS = 2000, 8
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


JUNK: list[Any] = [None, "x", -1, 0, 7, 1.5, float("nan"), float("inf"), [], {}, True, (1, 2), object()]
JUNK += [torch.zeros(()), torch.ones(3), torch.full((2, 2), float("nan")), 10**400, b"raw", {1: 2}]
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int8, torch.uint8, torch.int64]
DTYPES += [torch.bool, torch.complex64, torch.int16]
NUMBERS = [float("nan"), float("inf"), -float("inf"), -1.0, 0.0, 1e-38, 1e15, 3e38, 255.0]


def one(rng: random.Random, values: Any) -> Any:
    return rng.choice(list(values))


def damage_tensor(rng: random.Random, x: Tensor) -> Any:
    """Another type, shape, content or thing in place of a tensor."""
    kind = rng.randrange(9)
    if kind == 0:
        return x.to(one(rng, DTYPES))
    if kind == 1:
        return x.flatten()[: rng.randrange(x.numel() + 1)]
    if kind == 2:
        return x.mT if x.dim() >= 2 else x.reshape(1, -1)
    if kind == 3:
        return torch.cat([x.flatten(), x.flatten()])
    if kind == 4:
        return x.double().fill_(one(rng, NUMBERS)).to(x.dtype) if x.is_floating_point() else ~x
    if kind == 5:
        y = x.clone().flatten()
        if y.is_floating_point():
            y[rng.randrange(len(y))] = torch.tensor(one(rng, NUMBERS), dtype=torch.float64)
        elif y.dtype is not torch.bool:
            y[:] = torch.randint(0, 127, y.shape, generator=torch.Generator().manual_seed(rng.randrange(9)))
        return y.reshape(x.shape)
    if kind == 6:
        return x * -1 if x.is_floating_point() else x + 1
    if kind == 7:
        return x.to("meta")
    return one(rng, JUNK)


def damage_state(rng: random.Random, state: dict[Any, Any]) -> None:
    """Something wrong with the state of one or two parameters."""
    if not state:
        return
    i = one(rng, state)
    entry = state[i]
    kind = rng.randrange(9)
    if not isinstance(entry, dict) or not entry or kind == 0:
        state[i] = one(rng, JUNK)
    elif kind == 1:
        del entry[one(rng, entry)]
    elif kind == 2:
        entry[one(rng, ["junk", "exp_avg", "lr_mask", "exp_avg_q_residual", 5, "c_optim"])] = one(rng, JUNK)
    elif kind == 3:
        a, b = one(rng, entry), one(rng, entry)
        entry[a], entry[b] = entry[b], entry[a]
    elif kind == 4:
        key = one(rng, entry)
        entry[f"{key}_old"] = entry.pop(key)
    elif kind == 5:
        j = one(rng, state)
        state[i], state[j] = state[j], state[i]
    elif kind == 6:
        state[one(rng, ["a", 99, -1, None])] = state.pop(i)
    else:
        key = one(rng, entry)
        value = entry[key]
        if isinstance(value, dict) and value:
            key, entry = one(rng, value), value
            value = entry[key]
        entry[key] = damage_tensor(rng, value) if isinstance(value, Tensor) else one(rng, JUNK)


def damage_groups(rng: random.Random, saved: dict[str, Any]) -> None:
    """Something wrong with the groups."""
    groups = saved["param_groups"]
    kind = rng.randrange(8)
    if not isinstance(groups, list) or not groups or kind == 0:
        saved["param_groups"] = one(rng, JUNK)
    elif kind == 1:
        groups.append(copy.deepcopy(groups[0]))
    elif not isinstance(groups[0], dict) or not groups[0] or kind == 2:
        groups[0] = one(rng, JUNK)
    elif kind == 3:
        groups[0]["params"] = one(
            rng, [[0], [0, 0, 0], [2, 1, 0], ["a", 1, 2], [None, 1, 2], 3, None, [[], 1, 2]]
        )
    elif kind == 4:
        groups[0].pop(one(rng, groups[0]), None)
    else:
        groups[0][one(rng, groups[0])] = one(rng, JUNK)


def damaged(rng: random.Random, saved: dict[str, Any]) -> dict[str, Any]:
    for _ in range(rng.randint(1, 3)):
        kind = rng.randrange(10)
        if kind == 0:
            saved.pop(one(rng, saved), None)
        elif kind == 1:
            saved[one(rng, ["state", "magic_version", "c_optim", "other"])] = one(rng, JUNK)
        elif kind <= 3 and "param_groups" in saved:
            damage_groups(rng, saved)
        elif isinstance(saved.get("state"), dict):
            damage_state(rng, saved["state"])
        if not saved:
            break
    return saved


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
            assert not value.is_floating_point() or bool(value.isfinite().all()), key
    optimizer.state_dict()
    return "trained"


@pytest.mark.parametrize("part", range(PARTS))
def test_damaged_state_dicts(part: int) -> None:
    count: Counter[str] = Counter()
    for case in range(part, CASES, PARTS):
        rng = random.Random(case)
        params = parameters(shapes=SHAPES)
        optimizer = make(
            one(rng, TARGETS), params, **(OPTIONS[rng.randrange(8)] if rng.random() < 0.3 else {})
        )
        saved = damaged(rng, copy.deepcopy(source(one(rng, SOURCES), rng.randrange(len(OPTIONS)))))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "the state dict holds no c_optim entry")
            warnings.filterwarnings("ignore", "lr=")
            try:
                count[outcome(optimizer, params, lambda o=optimizer, s=saved: o.load_state_dict(s))] += 1
            except Exception as error:
                raise AssertionError(f"case {case}: {type(error).__name__}: {error}") from error
    assert count["trained"] >= 10 and count["refused"] >= 100, count


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
