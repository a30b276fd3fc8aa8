"""One bad gradient must cost one update of one parameter, and be seen."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from engine.helpers import (
    CLASSES,
    EVERY,
    FLOATS,
    build,
    differences,
    draw,
    give_gradients,
    name_of,
    parameters,
    same_bits,
    snapshot,
    train,
)

VICTIMS = {"quantised matrix": 2, "vector": 1, "3-D": 3, "convolution": 4, "0-D": 5}
BAD = {"nan": float("nan"), "inf": float("inf"), "-inf": -float("inf"), "overflow": 1e30}


def spoil(g: torch.Tensor, value: float) -> None:
    """One element only; in fp64 and fp16 an overflow needs another size."""
    if value == 1e30 and g.dtype == torch.float64:
        value = 1e200
    if value == 1e30 and g.dtype == torch.float16:
        value = float("inf")
    g.view(-1)[g.numel() // 2] = value


def steps(optimizer: Any, p: torch.Tensor) -> float:
    state = optimizer.state.get(p)
    return float(state["step"]) if state else 0.0


def state_of(optimizer: Any, p: torch.Tensor) -> Any:
    return [p.detach().clone()], [{k: v.clone() for k, v in optimizer.state[p].items()}], []


@pytest.mark.parametrize("value", BAD.values(), ids=BAD.keys())
@pytest.mark.parametrize("dtype", FLOATS, ids=name_of)
@pytest.mark.parametrize("kind", CLASSES)
def test_the_parameter_and_its_state_are_untouched(kind: str, dtype: torch.dtype, value: float) -> None:
    params = parameters(dtype)
    optimizer = build(kind, params)
    train(optimizer, params, range(1, 4))
    for t, (label, i) in enumerate(VICTIMS.items(), start=4):
        give_gradients(params, t)
        spoil(params[i].grad, value)
        before = state_of(optimizer, params[i])
        counts = [steps(optimizer, p) for p in params]
        optimizer.step()
        assert differences(before, state_of(optimizer, params[i])) == [], label
        updated = [steps(optimizer, p) - n for n, p in zip(counts, params, strict=True)]
        assert updated == [float(j != i and p.grad is not None) for j, p in enumerate(params)], label
    expected = {f"param_{i}": 1 for i in sorted(VICTIMS.values())}
    health = optimizer.health()
    assert health["skipped_updates"] == len(VICTIMS)
    assert health["parameters"] == expected
    assert all(bool(p.isfinite().all()) for p in params)


@EVERY
def test_a_bad_gradient_is_like_a_missing_one(kind: str, options: dict[str, Any]) -> None:
    """For this parameter, for its neighbours in the stack, and for what all parameters share."""
    bad, none = parameters(torch.bfloat16), parameters(torch.bfloat16)
    spoiled, spared = build(kind, bad, **options), build(kind, none, **options)
    for t in range(1, 11):
        give_gradients(bad, t)
        give_gradients(none, t)
        if t > 1:  # at the first step no state exists yet on the other side
            for i in (t % 6, (t + 2) % 6):
                spoil(bad[i].grad, float("nan") if t % 2 else 1e30)
                none[i].grad = None
        spoiled.step()
        spared.step()
        assert differences(snapshot(spared), snapshot(spoiled)) == [], f"step {t}"
    assert spoiled.health()["skipped_updates"] == 18


@EVERY
def test_at_the_very_first_step(kind: str, options: dict[str, Any]) -> None:
    params, clean = parameters(), parameters()
    optimizer, late = build(kind, params, **options), build(kind, clean, **options)
    start = [p.detach().clone() for p in params]
    give_gradients(params, 1)
    for p in params:
        if p.grad is not None:
            spoil(p.grad, float("nan"))
    optimizer.step()
    assert all(same_bits(a, p) for a, p in zip(start, params, strict=True))
    assert all(bool(v.isfinite().all()) for s in optimizer.state.values() for v in s.values())
    assert optimizer.get_learning_rates() == pytest.approx([5e-4]), "no update yet: the group's own lr"
    train(optimizer, params, range(2, 6))
    train(late, clean, range(2, 6))
    assert all(same_bits(a, b) for a, b in zip(params, clean, strict=True))


@pytest.mark.parametrize(
    "options", [{}, {"factored": False}, {"came": False}], ids=["came", "full", "belief"]
)
@pytest.mark.parametrize("shape", [(1000, 10), (10, 1000), (3, 500, 5), (2000,), (200, 5, 3, 3)], ids=str)
@pytest.mark.parametrize("size", [1e17, 1e18, 5e18, 1.8e19, 1e25])
def test_finite_gradients_whose_sums_overflow(
    options: dict[str, Any], shape: tuple[int, ...], size: float
) -> None:
    """Squares may be finite while a sum over a row, a column or the tensor is not."""
    p = torch.nn.Parameter(draw(1, shape=shape))
    optimizer = build("32bit", [p], **options)
    p.grad = draw(2, shape=shape)
    optimizer.step()
    before = state_of(optimizer, p)
    p.grad = size * (1 + 0.1 * draw(3, shape=shape))
    optimizer.step()
    assert bool(p.isfinite().all())
    assert all(bool(v.isfinite().all()) for v in optimizer.state[p].values())
    if optimizer.health()["skipped_updates"]:
        assert differences(before, state_of(optimizer, p)) == []
    for t in range(5):
        p.grad = draw(4, t, shape=shape)
        optimizer.step()
    assert bool(p.isfinite().all())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=name_of)
def test_negative_zeros_stay_negative(dtype: torch.dtype) -> None:
    """Bitwise means bitwise, also where the weights pass through stochastic rounding."""
    p = torch.nn.Parameter(torch.full((8, 8), -0.0, dtype=dtype))
    optimizer = build("32bit", [p])
    p.grad = torch.full_like(p, float("nan"))
    optimizer.step()
    assert same_bits(p, torch.full((8, 8), -0.0, dtype=dtype))


def test_names_in_the_report() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
    optimizer = build("32bit", module.named_parameters())
    for t in range(5):
        for p in module.parameters():
            p.grad = torch.ones_like(p)
        if t in (1, 3):
            module[1].weight.grad[0, 0] = float("inf")
        if t == 3:
            module[0].bias.grad.fill_(float("nan"))
        optimizer.step()
    assert optimizer.health() == {
        "steps": 5,
        "skipped_updates": 3,
        "parameters": {"0.bias": 1, "1.weight": 2},
    }


def test_counts_with_groups_and_missing_gradients() -> None:
    params = parameters(shapes=[(4,)] * 6)
    optimizer = build("32bit", [{"params": params[:2]}, {"params": []}, {"params": params[2:]}])
    for t in range(1, 7):
        give_gradients(params, t, lambda i, t: i == t % 6)
        for i in (1, 4):
            if params[i].grad is not None:
                params[i].grad[0] = float("nan")
        optimizer.step()
    assert optimizer.health()["parameters"] == {"param_1": 5, "param_4": 5}
    assert optimizer.health()["steps"] == 6


def test_before_the_first_step() -> None:
    assert build("32bit", parameters()).health() == {"steps": 0, "skipped_updates": 0, "parameters": {}}
