"""Weights of 24 bits: exact where they can be, near fp32 in training, bitwise resumed."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import automagic_cameamp as A
from automagic_cameamp.kernels import native as kernels
from automagic_cameamp.state.random_bits import parameter_key, random_bits
from automagic_cameamp.storage.rounding import join, split
from engine.helpers import (
    build,
    differences,
    disk,
    give_gradients,
    name_of,
    parameters,
    same_bits,
    snapshot,
    twin_of,
)

LOW = [torch.bfloat16, torch.float16]
ENGINES = ["reference", *(["native"] if kernels.why_not() is None else [])]
EACH = pytest.mark.parametrize("dtype", LOW, ids=name_of)


def every_value(dtype: torch.dtype) -> Tensor:
    return torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16).view(dtype)


def noise(count: int, step: int = 1) -> Tensor:
    keys = torch.tensor([parameter_key(0, 0)], dtype=torch.int32)
    return random_bits(keys, torch.tensor([float(step)]), count).flatten()


@EACH
@pytest.mark.parametrize("rest", [-127, -128, -1, 0, 1, 126, 127])
def test_what_was_split_is_split_alike(dtype: torch.dtype, rest: int) -> None:
    """All weights, and whatever bits: a step that changes nothing changes no bit."""
    values = every_value(dtype)
    x = join(values, torch.full(values.shape, rest, dtype=torch.int8))
    for bits in (None, noise(values.numel())):
        weight, c = split(x, bits, dtype)
        y = join(weight, c)
        again, d = split(y, bits, dtype)
        number = ~weight.isnan()
        assert torch.equal(weight[number].view(torch.int16), again[number].view(torch.int16))
        assert torch.equal(c[number], d[number])
        assert torch.equal(weight.isnan(), values.isnan())
        if rest == 0:
            assert torch.equal(weight[number].view(torch.int16), values[number].view(torch.int16))
            assert not c.any()


@EACH
def test_the_weight_is_the_nearest_and_the_rest_is_a_256th(dtype: torch.dtype) -> None:
    x = torch.randn(200_000, generator=torch.Generator().manual_seed(1)).mul(10)
    x = x[x.abs() > 1e-3]  # below, fp16 has fewer digits
    weight, rest = split(x, None, dtype)
    digits = 8 if dtype == torch.bfloat16 else 11
    off = (join(weight, rest) - x).abs() / x.abs()
    # Half of a 256th, or a whole one where the rest is clamped.
    assert off.max() <= 2.0 ** -(digits + 7)
    assert off.median() <= 2.0 ** -(digits + 8)
    assert ((weight.float() - x).abs() <= (x.to(dtype).float() - x).abs() * (1 + 2.0**-6)).all()
    assert torch.equal(split(torch.tensor([3e38 * 2, -math.inf]), None, dtype)[0].isinf(), torch.ones(2) > 0)


@EACH
def test_rounding_has_no_bias(dtype: torch.dtype) -> None:
    x = torch.full((1 << 16,), 1.0 + 2.0**-20 + 2.0**-21)
    unit = 2.0**-15 if dtype == torch.bfloat16 else 2.0**-18
    mean = join(*split(x, noise(x.numel()), dtype)).double().mean()
    assert abs(float(mean) - float(x[0])) < 4 * unit / 2 / math.sqrt(x.numel())


def distances(dtype: torch.dtype, bits: int | None, engine: str, steps: int = 120) -> float:
    """Distance to a run in fp32 with the same gradients, relative to the way that run went."""
    runs = []
    for kind, given in ((torch.float32, None), (dtype, bits)):
        start = torch.randn(64, 32, generator=torch.Generator().manual_seed(3)).to(torch.bfloat16).to(kind)
        p = torch.nn.Parameter(start.clone())
        optimizer = A.Automagic_CameAMP(
            [p], lr=1e-4, warmup_steps=10, weight_decay=0.0, master_weight_bits=given, engine=engine
        )
        made = torch.Generator().manual_seed(4)
        for _ in range(steps):
            p.grad = (torch.randn(64, 32, generator=made) + 0.5).to(torch.bfloat16).to(kind)
            optimizer.step()
        x = p.detach()
        if given == 24:
            x = join(x, optimizer.state[p]["weight_correction"])
        runs.append((x.float(), start.float()))
    way = (runs[0][0] - runs[0][1]).norm()
    return float((runs[1][0] - runs[0][0]).norm() / way)


@pytest.mark.parametrize("engine", ENGINES)
def test_training_follows_fp32_far_closer(engine: str) -> None:
    alone, with_rest = distances(torch.bfloat16, None, engine), distances(torch.bfloat16, 24, engine)
    assert with_rest < alone / 20, (alone, with_rest)


@EACH
@pytest.mark.parametrize("kind", ["32bit", "dynamic"])
@pytest.mark.parametrize("engine", ENGINES)
def test_resume_is_bitwise(dtype: torch.dtype, kind: str, engine: str) -> None:
    options: dict[str, Any] = {"master_weight_bits": 24, "engine": engine}
    params = parameters(dtype)
    optimizer = build(kind, params, **options)
    for t in (1, 2, 3):
        give_gradients(params, t)
        optimizer.step()
    twins = [twin_of(p) for p in params]
    other = build(kind, twins, **options)
    other.load_state_dict(disk(optimizer.state_dict()))
    for t in (4, 5):
        for ps, o in ((params, optimizer), (twins, other)):
            give_gradients(ps, t)
            o.step()
    assert not differences(snapshot(optimizer), snapshot(other))
    assert any(bool(s["weight_correction"].any()) for s in optimizer.state.values())


@EACH
@pytest.mark.parametrize("engine", ENGINES)
def test_a_gradient_that_is_not_finite_changes_no_bit(dtype: torch.dtype, engine: str) -> None:
    params = parameters(dtype)
    optimizer = build("32bit", params, master_weight_bits=24, engine=engine)
    for t in (1, 2):
        give_gradients(params, t)
        optimizer.step()
    weight, rest = params[0].detach().clone(), optimizer.state[params[0]]["weight_correction"].clone()
    give_gradients(params, 3)
    params[0].grad.view(-1)[5] = math.nan  # type: ignore[union-attr]
    optimizer.step()
    assert same_bits(params[0], weight)
    assert same_bits(optimizer.state[params[0]]["weight_correction"], rest)


def test_a_state_without_the_rest_starts_with_none() -> None:
    params = parameters(torch.bfloat16, [(40, 32)])
    plain = build("32bit", params, engine="reference")
    give_gradients(params, 1)
    plain.step()
    twins = [twin_of(p) for p in params]
    other = build("32bit", twins, master_weight_bits=24, engine="reference")
    other.load_state_dict(disk(plain.state_dict()))
    assert not other.state[twins[0]]["weight_correction"].any()
    plain.load_state_dict(disk(other.state_dict()))
    assert "weight_correction" not in plain.state[params[0]]


def test_full_precision_needs_none_and_other_bits_are_refused() -> None:
    params = parameters(torch.float32, [(40, 32)])
    optimizer = build("32bit", params, master_weight_bits=24, engine="reference")
    give_gradients(params, 1)
    optimizer.step()
    assert "weight_correction" not in optimizer.state[params[0]]
    with pytest.raises(ValueError, match="master_weight_bits"):
        build("32bit", params, master_weight_bits=32)
