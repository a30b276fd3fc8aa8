"""What a program or an accident puts into a group or a gradient in mid-run: refused whole, or taken whole."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from automagic_cameamp import OPTIMIZERS, Automagic_CameAMP, Automagic_CameAMP_COptim8bit
from automagic_cameamp.configs import ENGINE_OPTIONS, GROUP_NAMES
from engine.helpers import differences, disk, snapshot
from engine.test_options import BAD

ENGINES = ["reference", "auto"]
SHAPES = [(6, 5), (5,), (3, 4)]


def draw(seed: int, shape: tuple[int, ...]) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def build(name: str = "Automagic_CameAMP", **options: Any) -> tuple[Any, list[torch.nn.Parameter]]:
    params = [torch.nn.Parameter(draw(i, shape)) for i, shape in enumerate(SHAPES)]
    return OPTIMIZERS[name](params, **{"lr": 1e-3, "warmup_steps": 8, **options}), params


def go(optimizer: Any, params: list[torch.nn.Parameter], t: int, gain: float = 1.0) -> None:
    for i, p in enumerate(params):
        p.grad = gain * draw(100 * t + i, tuple(p.shape))
    optimizer.step()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -1e-3, "1e-3", None, True])
@pytest.mark.parametrize("level", ["fixed", "auto"])
def test_a_rate_that_is_none_is_refused_before_anything_moves(bad: Any, engine: str, level: str) -> None:
    optimizer, params = build(engine=engine, lr_level=level)
    other, theirs = build(engine=engine, lr_level=level)
    for t in range(5):
        if t == 3:
            optimizer.param_groups[0]["lr"] = bad
            with pytest.raises(ValueError, match=r"lr=.* is not allowed: a number in \[0, inf\)"):
                go(optimizer, params, t)
            optimizer.param_groups[0]["lr"] = 1e-3
        go(optimizer, params, t)
        go(other, theirs, t)
        assert all(map(torch.equal, params, theirs))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", [np.float64, np.float32, np.int64, int, np.asarray])
def test_numbers_of_other_kinds_are_rates(kind: Any, engine: str) -> None:
    optimizer, params = build(engine=engine)
    other, theirs = build(engine=engine)
    for t in range(4):
        for o, lr in ((optimizer, kind(t)), (other, float(t))):
            o.param_groups[0]["lr"] = lr
        go(optimizer, params, t)
        go(other, theirs, t)
        assert all(map(torch.equal, params, theirs))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("level", ["fixed", "auto"])
@pytest.mark.parametrize("least", [-5e-324, -3e-20, -1e-12])
def test_what_rounding_leaves_below_zero_is_zero(least: float, level: str, engine: str) -> None:
    """Torch's cosine ends a few units of rounding beside 0, on either side."""
    optimizer, params = build(engine=engine, lr_level=level)
    other, theirs = build(engine=engine, lr_level=level)
    for t in range(6):
        for o, lr in ((optimizer, least), (other, 0.0)):
            o.param_groups[0]["lr"] = lr if t > 3 else 1e-3
        before = [p.detach().clone() for p in params]
        go(optimizer, params, t)
        go(other, theirs, t)
        assert all(map(torch.equal, params, theirs))
        assert t <= 3 or all(map(torch.equal, params, before))
    again, _ = build(engine=engine, lr_level=level)
    again.load_state_dict(disk(optimizer.state_dict()))
    assert again.param_groups[0]["lr"] == 0


@pytest.mark.parametrize("floor", [1e-38, 9e-33, 1e-32])
@pytest.mark.parametrize("place", [0, 1])
def test_the_least_floors_divide_nothing_by_zero(floor: float, place: int) -> None:
    """Vector units take what has no normal number for 0; such floors are left to plain torch."""
    eps = [1e-30, 1e-16, 1e-8]
    eps[place] = floor
    optimizer, params = build(eps=tuple(eps))
    for p in params:
        p.grad = torch.zeros_like(p)
    optimizer.step()
    optimizer.step()
    assert all(bool(p.isfinite().all()) for p in params)
    elsewhere = optimizer.engine_report().elements("reference")
    assert elsewhere == (sum(p.numel() for p in params) if floor < 1e-32 else 0)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("size", [1e15, 1e16, 1e18, 3e18, 5e18, 8e18, 1e19, 1e30])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_after_a_spike_a_run_saves_and_goes_on(name: str, size: float, engine: str) -> None:
    """What a step takes a checkpoint holds and a loader takes; a spike too large for that moves nothing."""
    optimizer, params = build(name, engine=engine, lr_mask_granularity="element")
    for t in range(4):
        go(optimizer, params, t, size if t == 2 else 1.0)
    assert optimizer.param_groups[0]["clock"] == 4 and all(bool(p.isfinite().all()) for p in params)
    again, theirs = build(name, engine=engine, lr_mask_granularity="element")
    with torch.no_grad():
        for p, q in zip(params, theirs, strict=True):
            q.copy_(p)
    again.load_state_dict(disk(optimizer.state_dict()))
    for t in range(4, 7):
        go(optimizer, params, t)
        go(again, theirs, t)
    assert all(map(torch.equal, params, theirs))


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("seed", range(4))
def test_votes_of_a_group_are_taken_back(name: str, seed: int) -> None:
    """Votes count ``d_coef`` times where descent makes the weights grow."""
    optimizer, params = build(name, lr_mask_granularity="group", warmup_steps=50)
    for t in range(12):
        for i, p in enumerate(params):
            p.grad = -p.detach().sign() * draw(1000 * seed + 10 * t + i, tuple(p.shape)).abs()
        optimizer.step()
        again, _ = build(name, lr_mask_granularity="group", warmup_steps=50)
        again.load_state_dict(disk(optimizer.state_dict()))


def test_weights_of_any_size_are_remembered() -> None:
    for level in ("auto", "distance"):
        p = torch.nn.Parameter(draw(0, (6, 5)) * 1e10)
        optimizer = Automagic_CameAMP([p], lr=1e-3, lr_level=level)
        go(optimizer, [p], 0)
        again = Automagic_CameAMP([torch.nn.Parameter(p.detach().clone())], lr=1e-3, lr_level=level)
        again.load_state_dict(disk(optimizer.state_dict()))


def test_nothing_of_an_empty_parameter_is_added_up_on_the_host() -> None:
    params = [torch.nn.Parameter(torch.zeros(0, 4)), torch.nn.Parameter(draw(0, (4, 3)))]
    optimizer = Automagic_CameAMP_COptim8bit(params, lr=1e-3, offload="cpu")
    with optimizer.release_gradients(params, accumulation=2):
        for t in range(4):
            (params[0].sum() + (params[1] * draw(t, (4, 3))).sum()).backward()
            if t % 2:
                optimizer.step()
    assert optimizer.param_groups[0]["clock"] == 2 and all(p.grad is None for p in params)


def only_beside_another(name: str, value: Any) -> bool:
    """Bounds that are refused for what the other one is, and a bound that is not set."""
    return name in GROUP_NAMES and (value is None or (isinstance(value, float | int) and value >= 0))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", [name for name in BAD if name not in ENGINE_OPTIONS])
def test_what_the_constructor_refuses_is_refused_in_mid_run(name: str, engine: str) -> None:
    key = GROUP_NAMES.get(name, name)
    optimizer, params = build("Automagic_CameAMP8bit", engine=engine)
    go(optimizer, params, 0)
    group = optimizer.param_groups[0]
    for value in BAD[name]:
        if isinstance(value, torch.Tensor) or only_beside_another(name, value):
            continue  # a tensor is not read, for a device would have to be waited for
        before, usual, group[key] = snapshot(optimizer), group[key], value
        with pytest.raises((ValueError, TypeError), match=f"{name}|{key}"):
            go(optimizer, params, 1)
        group[key] = usual
        assert differences(before, snapshot(optimizer)) == [], value
    go(optimizer, params, 2)
    assert all(bool(p.isfinite().all()) for p in params)


@pytest.mark.parametrize("engine", ENGINES)
def test_one_number_for_three_is_read_like_the_constructors(engine: str) -> None:
    optimizer, params = build(engine=engine)
    go(optimizer, params, 0)
    optimizer.param_groups[0]["eps"] = 1e-6
    go(optimizer, params, 1)
    assert optimizer.param_groups[0]["eps"] == (1e-30, 1e-16, 1e-6)


def test_a_tensor_of_two_rates_is_refused() -> None:
    for engine in ENGINES:
        optimizer, params = build(engine=engine)
        optimizer.param_groups[0]["lr"] = torch.ones(2)
        with pytest.raises(ValueError, match=r"lr=\(2,\) is not allowed"):
            go(optimizer, params, 0)
