"""Weights of somebody else's class, read and written through it, in every way that an optimizer steps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from automagic_cameamp.optimizers import OPTIMIZERS
from tensors.kinds import Held, inference
from tensors.runs import WAYS, build, everything, step, weights


def wrapped(optimizer_params: list[nn.Parameter]) -> list[nn.Parameter]:
    return [nn.Parameter(Held(p.detach().clone())) for p in optimizer_params]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_wrappers_step_as_the_values_that_they_hold(name: str, way: str) -> None:
    params = weights()
    held = wrapped(params)
    optimizer, other = build(name, params, "reference"), build(name, held, way)
    for t in range(3):
        step(optimizer, params, t, "auto")
        step(other, held, t, way)
    for p, q in zip(params, held, strict=True):
        values: Any = q.detach()
        assert torch.allclose(p, values.inner, rtol=1e-5, atol=1e-6)
        assert optimizer.state[p].keys() == other.state[q].keys()


def test_trying_a_resume_leaves_the_weights_alone() -> None:
    held = wrapped(weights())
    optimizer = build("Automagic_CameAMP8bit", held)
    step(optimizer, held, 0, "auto")
    inner: list[Any] = [p.detach() for p in held]
    before = [p.inner.clone() for p in inner]
    random = torch.get_rng_state()
    assert optimizer.verify_resume()
    assert all(torch.equal(a, b.inner) for a, b in zip(before, inner, strict=True))
    assert torch.equal(random, torch.get_rng_state())


def test_a_skipped_update_writes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    held = wrapped(weights())
    optimizer = build("Automagic_CameAMP8bit", held)
    step(optimizer, held, 0, "auto")
    for p in held:
        p.grad = torch.full(p.shape, float("nan"))
    versions = [p.detach().inner._version for p in held]  # type: ignore[attr-defined]
    optimizer.step()
    assert versions == [p.detach().inner._version for p in held]  # type: ignore[attr-defined]
    assert optimizer.health()["skipped_updates"] == 3


def test_options_that_cannot_hold_for_wrappers() -> None:
    held = wrapped(weights(dtype=torch.bfloat16))
    with pytest.raises(ValueError, match="master_weight_bits=24 .* layer.0, a Held"):
        build("Automagic_CameAMP8bit", held, master_weight_bits=24)
    optimizer = build("Automagic_CameAMP8bit", held)
    with pytest.raises(ValueError, match="record=50 .* Held"):
        optimizer.record()


def test_a_frozen_weight_of_any_kind_may_stand_in_a_group() -> None:
    """Quantised base weights under a LoRA, or weights that a program keeps elsewhere."""
    frozen = [
        torch.ones(4, 4, device="meta"),
        inference(torch.ones(4, 4)),
        Held(torch.ones(4, 4)),
        torch.ones(1).expand(4),
    ]
    params = [*weights(), *(nn.Parameter(p, requires_grad=False) for p in frozen)]
    for name in OPTIMIZERS:
        optimizer = build(name, params)
        for t in range(3):
            step(optimizer, params, t, "auto", absent=range(3, 7))
        assert optimizer.stepper.plans.current is not None


def test_steps_inside_a_block_of_inference_mode() -> None:
    """State that is made there can be written outside, and the other way round."""
    params = weights()
    optimizer = build("Automagic_CameAMP_COptim8bit", params, "reference")
    for t in range(4):
        with torch.inference_mode(t % 2 == 0):
            step(optimizer, params, t, "reference")
    assert not any(v.is_inference() for s in optimizer.state.values() for v in s.values())


def test_saved_state_of_any_kind_is_read_or_refused() -> None:
    params = weights()
    optimizer = build("Automagic_CameAMP", params)
    step(optimizer, params, 0, "auto")
    saved = optimizer.state_dict()
    before = everything(optimizer)
    zero = torch._efficientzerotensor((12, 8))
    for value, good in (
        (zero, True),
        (torch._neg_view(-saved["state"][0]["exp_avg"]), True),
        (zero.to("meta"), False),
    ):
        entry = {**saved["state"][0], "exp_avg": value}
        other = build("Automagic_CameAMP", weights())
        changed = {**saved, "state": {**saved["state"], 0: entry}}
        if good:
            other.load_state_dict(changed)
            loaded = other.state[other.param_groups[0]["params"][0]]["exp_avg"]
            assert torch.equal(loaded, value.clone())
        else:
            with pytest.raises(ValueError, match="exp_avg"):
                other.load_state_dict(changed)
    assert [name for name, _ in before] == [name for name, _ in everything(optimizer)]
