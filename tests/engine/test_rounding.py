"""Stochastic rounding: exact where it can be, unbiased where it cannot, the same bits everywhere."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from automagic_cameamp import Automagic_CameAMP
from automagic_cameamp.state.random_bits import parameter_key, random_bits, stochastic_round
from engine.helpers import FLOATS, build, differences, draw, name_of, parameters, same_bits, snapshot, train

LOW = [torch.bfloat16, torch.float16]


def keys(*indices: int, seed: int = 0) -> Tensor:
    return torch.tensor([parameter_key(seed, i) for i in indices], dtype=torch.int32)


def noise(count: int, step: int = 1, index: int = 0) -> Tensor:
    return random_bits(keys(index), torch.tensor([float(step)]), count).flatten()


def every_value(dtype: torch.dtype) -> Tensor:
    return torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16).view(dtype)


def test_the_bits_are_those_of_the_definition() -> None:
    """A hash of seed, parameter, step and element, written down a second time: runs of old stay resumable."""
    full = (1 << 32) - 1

    def mix(x: int) -> int:
        x = (x ^ x >> 16) * 0x7FEB352D & full
        x = (x ^ x >> 15) * 0x846CA68B & full
        return x ^ x >> 16

    def signed(x: int) -> int:
        return x - (1 << 32) if x >> 31 else x

    for seed, index, step, first in [(0, 0, 1, 0), (7, 3, 12345, 5), (2**32 - 1, 1000, 2, 2**20)]:
        key = mix(mix(seed) + (index + 1) * 0x9E3779B1 & full)
        assert parameter_key(seed, index) == signed(key)
        base = mix(key + step * 0x9E3779B1 & full)
        wanted = [signed(mix(base ^ (first + i) * 0x9E3779B1 & full)) for i in range(40)]
        found = random_bits(keys(index, seed=seed), torch.tensor([float(step)]), 40, first)
        assert found.tolist() == [wanted]


@pytest.mark.parametrize("dtype", LOW, ids=name_of)
@pytest.mark.parametrize("which", ["random", "none", "all"])
def test_every_representable_value_is_exact(dtype: torch.dtype, which: str) -> None:
    """All 65,536 patterns: subnormals, both zeros, infinities; a NaN stays a NaN."""
    values = every_value(dtype)
    some = {
        "random": noise(values.numel()),
        "none": torch.zeros(values.numel(), dtype=torch.int32),
        "all": torch.full((values.numel(),), -1, dtype=torch.int32),
    }[which]
    rounded = stochastic_round(values.float(), some, dtype)
    number = ~values.isnan()
    wrong = (rounded.view(torch.int16) != values.view(torch.int16)) & number
    assert not wrong.any(), f"{values[wrong][:5].tolist()} became {rounded[wrong][:5].tolist()}"
    assert bool(rounded[~number].isnan().all())


@pytest.mark.parametrize("dtype", LOW, ids=name_of)
@pytest.mark.parametrize("size", [1e-8, 1e-6, 3e-5, 1e-3, 1.0, 1000.0])
def test_a_value_goes_to_one_of_its_neighbours(dtype: torch.dtype, size: float) -> None:
    x = size * (1 + draw(1, shape=(50_000,)))
    rounded = stochastic_round(x, noise(50_000), dtype).float()
    nearest = x.to(dtype)
    step = torch.full_like(nearest, float("inf"))
    up, down = torch.nextafter(nearest, step).float(), torch.nextafter(nearest, -step).float()
    low = torch.where(nearest.float() <= x, nearest.float(), down)
    high = torch.where(nearest.float() >= x, nearest.float(), up)
    assert bool(((rounded == low) | (rounded == high)).all())


@pytest.mark.parametrize("dtype", LOW, ids=name_of)
@pytest.mark.parametrize("exponent", [-24, -20, -15, -14, -1, 0, 5])
@pytest.mark.parametrize("fraction", [0.01, 0.25, 0.9])
def test_probability_is_the_fraction(dtype: torch.dtype, exponent: int, fraction: float) -> None:
    """In every binade, the subnormals of fp16 included."""
    low = torch.tensor(2.0**exponent, dtype=dtype)
    high = torch.nextafter(low, torch.tensor(float("inf"), dtype=dtype))
    gap = high.float() - low.float()
    count = 200_000
    for sign in (1.0, -1.0):
        x = sign * (low.float() + fraction * gap).expand(count)
        rounded = stochastic_round(x, noise(count), dtype).float().abs()
        share = (rounded == high.float()).double().mean().item()
        assert abs(share - fraction) < 5 * (fraction * (1 - fraction) / count) ** 0.5 + 2.0**-12
        assert bool(((rounded == high.float()) | (rounded == low.float())).all())


@pytest.mark.parametrize("dtype", LOW, ids=name_of)
def test_special_values(dtype: torch.dtype) -> None:
    x = torch.tensor([float("inf"), -float("inf"), float("nan"), 1e-45, -1e-45, 0.0])
    for step in range(20):
        rounded = stochastic_round(x, noise(6, step), dtype)
        assert rounded[0] == float("inf") and rounded[1] == -float("inf") and bool(rounded[2].isnan())
        assert bool((rounded[3:].abs().float() <= 2.0**-24).all())


@pytest.mark.parametrize("dtype", LOW, ids=name_of)
def test_what_nearest_keeps_finite_stays_finite(dtype: torch.dtype) -> None:
    biggest = torch.finfo(dtype).max
    x = torch.tensor([biggest * (1 + 2.0**-13), -biggest * (1 + 2.0**-13)]).repeat(50_000)
    assert bool(x.to(dtype).isfinite().all())
    rounded = stochastic_round(x, noise(x.numel()), dtype)
    assert bool(rounded.isfinite().all())


@pytest.mark.parametrize("dtype", LOW, ids=name_of)
def test_mean_of_tiny_updates(dtype: torch.dtype) -> None:
    """Update / weight = 1e-5, far below the last place: the mean over 16M draws is within 3%."""
    chunk, total, moved = 1 << 20, 0.0, 0.0
    for i in range(16):
        w = (1 + torch.rand(chunk)).to(dtype).float()
        rounded = stochastic_round(w + 1e-5 * w, noise(chunk, 3, i), dtype).float()
        moved += (rounded.double() - w.double()).sum().item()
        total += 1e-5 * w.double().sum().item()
    assert abs(moved / total - 1) < 0.03


def test_other_types_are_refused() -> None:
    with pytest.raises(TypeError, match="float8"):
        stochastic_round(torch.ones(3), noise(3), torch.float8_e4m3fn)


# ---------------------------------------------------------------- the random bits


def test_every_bit_is_fair_and_steps_are_independent() -> None:
    count = 1 << 16
    rows = torch.stack([noise(count, step, index) for step in (1, 2, 1000) for index in (0, 1, 77)])
    planes = torch.stack([(rows >> b) & 1 for b in range(32)]).float()
    assert (planes.mean(-1) - 0.5).abs().max() < 5 * 0.5 / count**0.5
    for b in (0, 7, 15, 31):  # any two of the nine streams, and a stream against itself shifted
        centred = planes[b] - 0.5
        correlation = centred @ centred.T * 4 / count
        off = correlation - torch.diag(correlation.diag())
        assert off.abs().max() < 5 / count**0.5
        for shift in (1, 2, 8, 1024):
            assert (centred * centred.roll(shift, -1)).mean(-1).abs().max() * 4 < 5.5 / count**0.5
    assert rows.unique().numel() > 0.99 * rows.numel()


def test_bits_do_not_depend_on_the_stack() -> None:
    together = random_bits(keys(3, 5, 9), torch.tensor([4.0, 4.0, 7.0]), 1000)
    for row, (index, step) in enumerate(((3, 4.0), (5, 4.0), (9, 7.0))):
        assert torch.equal(together[row : row + 1], random_bits(keys(index), torch.tensor([step]), 1000))
    assert torch.equal(together[:, :10], random_bits(keys(3, 5, 9), torch.tensor([4.0, 4.0, 7.0]), 10))


def test_keys_differ_by_seed_and_parameter() -> None:
    found = {parameter_key(seed, index) for seed in (0, 1, 2**31, 2**32 - 1) for index in range(5000)}
    assert len(found) > 4 * 5000 - 10  # 32 bits: a collision among 20,000 is expected every tenth time
    assert all(-(2**31) <= key < 2**31 for key in found)


# ---------------------------------------------------------------- in the optimizer


@pytest.mark.parametrize("dtype", LOW, ids=name_of)
@pytest.mark.parametrize("engine", ["auto", "reference"])
def test_two_runs_are_bitwise_equal_and_the_seed_matters(dtype: torch.dtype, engine: str) -> None:
    snapshots = []
    for seed in (0, 0, 1):
        torch.manual_seed(len(snapshots))  # the global seed must not matter
        params = parameters(dtype)
        optimizer = build("dynamic", params, seed=seed, engine=engine)
        train(optimizer, params, range(1, 6))
        snapshots.append(snapshot(optimizer))
    assert differences(snapshots[0], snapshots[1]) == []
    assert any(not same_bits(a, b) for a, b in zip(snapshots[0][0], snapshots[2][0], strict=True))


@pytest.mark.parametrize("dtype", FLOATS, ids=name_of)
def test_global_random_state_is_untouched(dtype: torch.dtype) -> None:
    import random

    import numpy as np

    before = torch.get_rng_state(), random.getstate(), repr(np.random.get_state())
    params = parameters(dtype)
    optimizer = build("softsign", params)
    train(optimizer, params, range(1, 4))
    optimizer.load_state_dict(optimizer.state_dict())
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert repr(np.random.get_state()) == before[2]


@pytest.mark.parametrize("dtype", LOW, ids=name_of)
@pytest.mark.parametrize("setting", [None, True, False])
@pytest.mark.parametrize("engine", ["auto", "reference"])
def test_the_option(dtype: torch.dtype, setting: bool | None, engine: str) -> None:
    """An update of a hundredth of the last place is lost by rounding to nearest, and only there."""
    p = torch.nn.Parameter(torch.ones(64, 64, dtype=dtype))
    last_place = torch.finfo(dtype).eps
    options: dict[str, Any] = {"max_lr": 1.0, "min_lr": 0.0, "lr_mask_rule": "none", "weight_decay": 0.0}
    options.update(full_finetune=True, engine=engine)
    optimizer = Automagic_CameAMP([p], lr=last_place / 100, stochastic_rounding=setting, **options)
    for _ in range(20):
        p.grad = torch.ones_like(p) + 0.1 * draw(1, shape=(64, 64)).to(dtype)
        optimizer.step()
    assert (float((1 - p.detach().float()).abs().max()) > 0) is (setting is not False)


@pytest.mark.parametrize("dtype", LOW, ids=name_of)
def test_weight_decay_below_the_last_place(dtype: torch.dtype) -> None:
    """lr * weight_decay = 1e-6 for 1,000 steps shrinks bf16 weights as it shrinks fp32 weights."""
    options = dict(
        lr=1e-3,
        weight_decay=1e-3,
        weight_decay_phase="always",
        lr_mask_rule="none",
        warmup_steps=0,
        full_finetune=True,  # no row gain: the rate is lr
    )
    start = (1 + torch.rand(256, 256)).to(dtype)
    p, exact = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.double())
    p.grad, exact.grad = torch.zeros_like(p), torch.zeros_like(exact)
    optimizer, reference = Automagic_CameAMP([p], **options), Automagic_CameAMP([exact], **options)
    for _ in range(5):
        reference.step()
    torch.testing.assert_close(exact.detach(), start.double() * (1 - 1e-6) ** 5, rtol=1e-12, atol=0.0)
    for _ in range(1000):
        optimizer.step()
    lost = (start.double() - p.detach().double()).mean().item()
    expected = start.double().mean().item() * (1 - (1 - 1e-6) ** 1000)
    assert abs(lost / expected - 1) < 0.02
