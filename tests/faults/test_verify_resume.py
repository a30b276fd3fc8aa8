"""``verify_resume`` is right both ways, and touches nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from benchmarks.meters import OpMeter
from torch import Tensor

from automagic_cameamp.checkpoints import load as checkpoint
from automagic_cameamp.checkpoints import rows as landing
from checkpoint.members import MEMBERS, make, trained
from engine.helpers import (
    FLOATS,
    build,
    differences,
    give_gradients,
    name_of,
    parameters,
    snapshot,
    state_bytes,
    train,
)


def untouched(optimizer: Any, params: list[Tensor], steps: int = 3) -> Any:
    """The answer, after making sure that asking changed nothing."""
    before, grads = snapshot(optimizer), [p.grad for p in params]
    values = [None if g is None else g.clone() for g in grads]
    rng, dicts = torch.get_rng_state(), [optimizer.state.get(p) for p in params]
    skipped, count = optimizer.health(), len(optimizer.state)
    answer = optimizer.verify_resume(steps)
    assert differences(before, snapshot(optimizer)) == []
    assert torch.equal(rng, torch.get_rng_state())
    assert optimizer.health() == skipped and len(optimizer.state) == count
    for p, g, v, own in zip(params, grads, values, dicts, strict=True):
        assert p.grad is g and optimizer.state.get(p) is own
        assert g is None or torch.equal(g, v)
    return answer


@pytest.mark.parametrize("member", MEMBERS)
def test_every_member_is_bitwise(member: str) -> None:
    optimizer, params = trained(member, torch.bfloat16)
    answer = untouched(optimizer, params)
    assert answer and answer.bitwise and answer.difference is None
    assert str(answer).startswith("bitwise: the state of 7 parameters")
    assert answer.steps == 3 and answer.saved_bytes > state_bytes(optimizer)


@pytest.mark.parametrize("dtype", FLOATS, ids=name_of)
def test_before_the_first_step_without_gradients_and_with_missing_ones(dtype: torch.dtype) -> None:
    params = parameters(dtype)
    optimizer = build("dynamic", [{"params": params[:4]}, {"params": params[4:], "lr": 1e-4}])
    assert untouched(optimizer, params).parameters == 0
    give_gradients(params, 1)
    assert untouched(optimizer, params)
    train(optimizer, params, range(1, 4))
    optimizer.param_groups[1]["lr"] = 0.0  # a scheduler's
    optimizer.zero_grad()
    answer = untouched(optimizer, params)
    assert answer and 0 < answer.parameters < len(params)


def test_names_and_marks_and_a_level_that_needs_a_start() -> None:
    from automagic_cameamp import Automagic_CameAMP

    model = torch.nn.Linear(4, 3)
    model.weight._is_lora_layer = True  # type: ignore[assignment]
    optimizer = Automagic_CameAMP(model.named_parameters(), lr=1e-4, lr_level="distance", warmup_steps=3)
    optimizer.param_groups[0]["lr"] = 0.0
    assert optimizer.verify_resume()
    model(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    assert optimizer.verify_resume()


def test_a_state_dict_that_loses_something_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is broken in loading is named: parameter, field, index and values."""
    params = parameters(shapes=[(6, 4), (5,)])
    optimizer = build("32bit", [("first", params[0]), ("second", params[1])])
    train(optimizer, params, range(1, 4))
    whole = landing.fill

    def off(row: dict[str, Tensor], saved: Any) -> None:
        whole(row, saved)
        if row["exp_avg"].shape == (6, 4):
            row["exp_avg"][2, 3] += 1

    monkeypatch.setattr(landing, "fill", off)
    answer = untouched(optimizer, params)
    assert not answer and not answer.bitwise
    value = float(optimizer.state[params[0]]["exp_avg"][2, 3])
    words = "after loading, state 'exp_avg' of first differs in 1 of 24 elements, first at [2, 3]: "
    assert words + f"{value!r} without saving, {value + 1:.3f}"[:-3] in str(answer)


def test_a_tensor_that_comes_back_as_a_number_is_found() -> None:
    params = parameters(shapes=[(6, 4)])
    optimizer = build("32bit", params)
    train(optimizer, params, range(1, 4))

    def number(loaded: Any) -> None:
        for state in loaded.state.values():
            state["step"] = float(state["step"])

    optimizer.register_load_state_dict_post_hook(number)
    answer = untouched(optimizer, params)
    assert "after loading, state 'step' of param_0 is 3.0, was tensor(3.)" in str(answer)


def test_options_that_are_tensors_are_compared_bit_by_bit() -> None:
    params = parameters(shapes=[(6, 4)])
    optimizer = build("32bit", params, lr=torch.tensor(5e-4))
    train(optimizer, params, range(1, 4))
    assert untouched(optimizer, params)
    optimizer.register_load_state_dict_post_hook(lambda loaded: loaded.param_groups[0]["lr"].mul_(2))
    answer = untouched(optimizer, params)
    assert "after loading, 'lr' of group 0 is tensor(0.0010), was tensor(0.0005)" in str(answer)


def test_what_only_a_step_shows_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    params = parameters(shapes=[(6, 4), (5,)])
    optimizer = build("32bit", params)
    train(optimizer, params, range(1, 4))
    whole = type(optimizer).step

    def step(self: Any, closure: Any = None, *, loss: Any = None) -> Any:
        result = whole(self, closure, loss=loss)
        if getattr(self, "came_from_a_file", False):
            self.param_groups[0]["params"][1].data[2] = 7.0
        return result

    load = checkpoint.commit
    monkeypatch.setattr(
        checkpoint, "commit", lambda o, f: (load(o, f), setattr(o.owner, "came_from_a_file", True))
    )
    monkeypatch.setattr(type(optimizer), "step", step)
    answer = optimizer.verify_resume()
    assert "not bitwise: at replayed step 1, param_1 differs in 1 of 5 elements, first at [2]" in str(answer)
    assert str(answer).endswith("7.0 with")


def test_a_cast_state_a_refused_one_and_one_that_cannot_be_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    params = parameters(shapes=[(6, 4)])
    optimizer = make("base", params)
    train(optimizer, params, range(1, 3))
    optimizer.register_state_dict_post_hook(_cast)
    answer = optimizer.verify_resume()
    assert not answer and "refused" in str(answer) and "float16" in str(answer)

    optimizer = make("base", params)
    train(optimizer, params, range(1, 3))
    optimizer.param_groups[0]["note"] = lambda: 0
    answer = optimizer.verify_resume()
    assert not answer and "cannot be saved" in str(answer)
    assert (answer.saved_bytes, answer.steps, answer.parameters) == (0, 0, 1)


def _cast(optimizer: Any, saved: dict[str, Any]) -> None:
    for i, state in saved["state"].items():
        saved["state"][i] = {k: v.half() for k, v in state.items()}


def test_no_replayed_step_is_a_check_of_loading_alone() -> None:
    params = parameters()
    optimizer = build("32bit", params)
    train(optimizer, params, range(1, 3))
    answer = untouched(optimizer, params, steps=0)
    assert answer and answer.steps == 0


@pytest.mark.parametrize("steps", [-1, 1.5, "2"])
def test_steps_are_checked(steps: Any) -> None:
    with pytest.raises(ValueError, match="steps="):
        build("32bit", parameters()).verify_resume(steps)


@pytest.mark.parametrize("kind", ["32bit", "dynamic"])
def test_memory_is_what_the_documentation_says(kind: str) -> None:
    params = parameters(shapes=[(64, 64)] * 60)
    optimizer = build(kind, params)
    train(optimizer, params, range(1, 3), lambda i, t: False)
    weights = sum(p.nbytes for p in params)
    with OpMeter() as plain:
        optimizer.step()
    with OpMeter() as meter:
        assert optimizer.verify_resume()
    # two copies, the gradients of both, and what was read from the bytes
    documented = 2 * (weights + state_bytes(optimizer)) + 2 * weights + state_bytes(optimizer)
    assert meter.peak <= documented + plain.peak


@pytest.mark.parametrize("member", MEMBERS)
@pytest.mark.parametrize("steps", [1, 2, 12])
def test_a_rate_that_is_found_resumes(member: str, steps: int) -> None:
    """The README's first example: the level follows from the state, and is the copies' too."""
    params = parameters(torch.float32)
    optimizer = make(member, params, lr=1.0, lr_level="auto")
    train(optimizer, params, range(1, steps + 1))
    assert untouched(optimizer, params), str(optimizer.verify_resume())


@pytest.mark.parametrize("given", [True, False], ids=["gradients", "none"])
@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int64, torch.bool], ids=name_of)
def test_frozen_weights_that_take_no_gradient(dtype: torch.dtype, given: bool) -> None:
    p = torch.nn.Parameter(torch.ones(6, 5))
    for frozen in (torch.zeros(4, 3).to(dtype), torch.zeros(4, 3, device="meta")):
        optimizer = build("dynamic", [torch.nn.Parameter(frozen, requires_grad=False), p])
        p.grad = torch.ones(6, 5)
        optimizer.step()
        p.grad = torch.ones(6, 5) if given else None
        assert optimizer.verify_resume().parameters == 1 and optimizer.verify_resume()


def test_asked_in_a_block_of_inference_mode() -> None:
    optimizer, _ = trained("base")
    with torch.inference_mode():
        assert optimizer.verify_resume()
