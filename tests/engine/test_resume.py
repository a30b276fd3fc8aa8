"""A run that was saved and loaded goes on bit by bit like the run that never stopped."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from engine.helpers import (
    CLASSES,
    EVERY,
    FLOATS,
    OPTIONS,
    build,
    differences,
    disk,
    give_gradients,
    name_of,
    parameters,
    snapshot,
    train,
    twin_of,
    usual_pairs,
    usually,
)

HALF, ALL = 6, 12


def copies(params: list[Tensor]) -> list[Tensor]:
    return [twin_of(p) for p in params]


def check_resume(kind: str, dtype: torch.dtype, options: dict[str, Any], stop: int = HALF) -> None:
    params = parameters(dtype)
    whole = build(kind, params, **options)
    train(whole, params, range(1, stop + 1))
    saved, weights = disk(whole.state_dict()), copies(params)
    train(whole, params, range(stop + 1, ALL + 1))

    again = build(kind, weights, **options)
    again.load_state_dict(saved)
    train(again, weights, range(stop + 1, ALL + 1))
    assert differences(snapshot(whole), snapshot(again)) == []
    assert all(bool(p.isfinite().all()) for p in params)


def _ways() -> Iterator[Any]:
    """Weights that are rounded by chance, and those with an arithmetic of their own, under all options."""
    for kind, way, usual in usual_pairs():
        few = way in ("default", "additive", "vote")
        for dtype in (torch.bfloat16, torch.float64, *((torch.float32, torch.float16) if few else ())):
            often = usual or dtype in (torch.float32, torch.float16)
            yield usually(kind, dtype, way, name=f"{name_of(dtype)}-{way}-{kind}", usual=often)


@pytest.mark.parametrize(("kind", "dtype", "ways"), list(_ways()))
def test_resume_is_bitwise(kind: str, dtype: torch.dtype, ways: str) -> None:
    check_resume(kind, dtype, OPTIONS[ways])


@pytest.mark.parametrize("stop", range(1, ALL))
@pytest.mark.parametrize("kind", CLASSES)
def test_wherever_it_was_stopped(kind: str, stop: int) -> None:
    """In every phase, before and after the parameters that start late or pause."""
    check_resume(kind, torch.bfloat16, {}, stop)


@EVERY
def test_saving_changes_nothing(kind: str, options: dict[str, Any]) -> None:
    quiet, watched = parameters(torch.bfloat16), parameters(torch.bfloat16)
    a, b = build(kind, quiet, **options), build(kind, watched, **options)
    for t in range(1, 9):
        train(a, quiet, range(t, t + 1))
        train(b, watched, range(t, t + 1))
        disk(b.state_dict())
        b.get_learning_rates(), b.get_memory_stats(), b.health()
    assert differences(snapshot(a), snapshot(b)) == []


@pytest.mark.parametrize("kind", CLASSES)
def test_loading_into_an_optimizer_that_has_already_stepped(kind: str) -> None:
    params = parameters()
    whole = build(kind, params)
    train(whole, params, range(1, HALF + 1))
    saved, weights = disk(whole.state_dict()), [p.detach().clone() for p in params]

    other = parameters()
    again = build(kind, other)
    train(again, other, range(1, 4), salt=50, absent=lambda i, t: i % 2 == 0)
    with torch.no_grad():
        for p, w in zip(other, weights, strict=True):
            p.copy_(w)
    again.load_state_dict(saved)
    assert differences(snapshot(whole), snapshot(again)) == []
    train(whole, params, range(HALF + 1, ALL + 1))
    train(again, other, range(HALF + 1, ALL + 1))
    assert differences(snapshot(whole), snapshot(again)) == []


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("group_mask", [False, True])
def test_groups_added_in_mid_run(kind: str, group_mask: bool) -> None:
    options = {"lr_mask_granularity": "group"} if group_mask else {}

    def start(params: list[Tensor]) -> Any:
        return build(kind, params[:3], **options)

    def grow(optimizer: Any, params: list[Tensor]) -> None:
        optimizer.add_param_group({"params": params[3:], "lr": 2e-4, "weight_decay": 0.0})

    params = parameters(torch.bfloat16)
    whole = start(params)
    train(whole, params, range(1, 4))
    grow(whole, params)
    train(whole, params, range(4, HALF + 1))
    saved, weights = disk(whole.state_dict()), copies(params)
    train(whole, params, range(HALF + 1, ALL + 1))

    again = start(weights)
    grow(again, weights)
    again.load_state_dict(saved)
    train(again, weights, range(HALF + 1, ALL + 1))
    assert differences(snapshot(whole), snapshot(again)) == []


def test_options_changed_in_a_group_come_back() -> None:
    params = parameters()
    whole = build("32bit", [{"params": params[:4], "eta": 1.5}, {"params": params[4:]}])
    whole.param_groups[1]["weight_decay"] = 0.25
    whole.param_groups[0]["lr"] = 1e-4
    whole.param_groups[0]["name"] = "text encoder"
    train(whole, params, range(1, 4))
    again_params = copies(params)
    again = build("32bit", [{"params": again_params[:4]}, {"params": again_params[4:]}])
    again.load_state_dict(disk(whole.state_dict()))
    assert differences(snapshot(whole), snapshot(again)) == []
    assert again.param_groups[0]["name"] == "text encoder"


@pytest.mark.parametrize("dtype", FLOATS, ids=name_of)
@pytest.mark.parametrize("kind", CLASSES)
def test_types_and_values_after_loading(kind: str, dtype: torch.dtype) -> None:
    """torch's own loading would cast codes, scales and counters to the type of the weights."""
    params = parameters(dtype)
    whole = build(kind, params, lr_level="vote")
    train(whole, params, range(1, 5))
    again_params = copies(params)
    again = build(kind, again_params, lr_level="vote")
    again.load_state_dict(disk(whole.state_dict()))
    assert differences(snapshot(whole), snapshot(again)) == []
    kinds = {v.dtype for s in again.state.values() for v in s.values()}
    expected = {torch.float32, torch.uint8} | ({torch.float64} if dtype == torch.float64 else set())
    assert kinds == expected | ({torch.int8} if kind == "softsign" else set())


@pytest.mark.parametrize("kind", CLASSES)
def test_load_save_load_is_stable(kind: str) -> None:
    params = parameters(torch.bfloat16)
    optimizer = build(kind, params)
    train(optimizer, params, range(1, 5))
    before = snapshot(optimizer)
    for _ in range(50):
        optimizer.load_state_dict(disk(optimizer.state_dict()))
    assert differences(before, snapshot(optimizer)) == []


@pytest.mark.parametrize("kind", CLASSES)
def test_loaded_state_is_a_copy(kind: str) -> None:
    params = parameters()
    whole = build(kind, params)
    train(whole, params, range(1, 4))
    again_params = copies(params)
    again = build(kind, again_params)
    again.load_state_dict(whole.state_dict())  # not through a file: the tensors are alive
    before = snapshot(whole)
    train(again, again_params, range(4, 8))
    assert differences(before, snapshot(whole)) == []


def test_state_dict_shows_the_live_tensors() -> None:
    """Trainers that offload move what they find in state_dict(); it must be the state itself."""
    params = parameters()
    optimizer = build("dynamic", params)
    train(optimizer, params, range(1, 4))
    shown = optimizer.state_dict()["state"]
    for i, p in enumerate(params):
        for key, value in optimizer.state.get(p, {}).items():
            assert shown[i][key] is value


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "torch.save"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=name_of)
@pytest.mark.parametrize("kind", CLASSES)
def test_a_copy_of_the_optimizer_goes_on(kind: str, dtype: torch.dtype, how: str) -> None:
    params = parameters(dtype)
    optimizer = build(kind, params)
    train(optimizer, params, range(1, HALF + 1))
    if how == "deepcopy":
        twin, twins = copy.deepcopy((optimizer, params))
    elif how == "pickle":
        twin, twins = pickle.loads(pickle.dumps((optimizer, params)))
    else:
        buffer = io.BytesIO()
        torch.save((optimizer, params), buffer)
        buffer.seek(0)
        twin, twins = torch.load(buffer, weights_only=False)
    assert differences(snapshot(optimizer), snapshot(twin)) == []
    train(optimizer, params, range(HALF + 1, ALL + 1))
    train(twin, twins, range(HALF + 1, ALL + 1))
    assert differences(snapshot(optimizer), snapshot(twin)) == []
    assert twin.config == optimizer.config
    assert twin.health()["skipped_updates"] == 0


def test_a_copy_made_before_the_first_step_goes_on() -> None:
    params = parameters(torch.bfloat16)
    optimizer = build("dynamic", params)
    twin, twins = copy.deepcopy((optimizer, params))
    train(optimizer, params, range(1, 4))
    train(twin, twins, range(1, 4))
    assert differences(snapshot(optimizer), snapshot(twin)) == []


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=name_of)
@pytest.mark.parametrize("kind", CLASSES)
def test_model_converted_after_construction(kind: str, dtype: torch.dtype) -> None:
    """Trainers build the optimizer first and call network.to(dtype) afterwards."""
    module = torch.nn.ParameterList([twin_of(p) for p in parameters()])
    optimizer = build(kind, module.parameters())
    module.to(dtype)
    native = parameters(dtype)
    reference = build(kind, native)
    converted = list(module.parameters())
    train(optimizer, converted, range(1, 6))
    train(reference, native, range(1, 6))
    assert differences(snapshot(reference), snapshot(optimizer)) == []


@pytest.mark.parametrize("kind", CLASSES)
def test_parameters_replaced_before_the_first_step(kind: str) -> None:
    """FSDP2 and XLA put new Parameter objects into param_groups."""
    old, new, plain = parameters(), parameters(torch.bfloat16), parameters(torch.bfloat16)
    optimizer = build(kind, old)
    optimizer.param_groups[0]["params"] = new
    reference = build(kind, plain)
    train(optimizer, new, range(1, 6))
    train(reference, plain, range(1, 6))
    assert differences(snapshot(reference), snapshot(optimizer)) == []
    assert not any(p in optimizer.state for p in old)
    again_params = copies(new)
    again = build(kind, again_params)
    again.load_state_dict(disk(optimizer.state_dict()))
    assert differences(snapshot(optimizer), snapshot(again)) == []


@pytest.mark.parametrize("kind", CLASSES)
def test_weights_converted_in_mid_run_keep_their_state(kind: str) -> None:
    module = torch.nn.ParameterList([twin_of(p) for p in parameters()])
    optimizer = build(kind, module.parameters())
    params = list(module.parameters())
    train(optimizer, params, range(1, 4))
    before = snapshot(optimizer)[1]
    module.to(torch.bfloat16)
    assert differences(([], before, []), ([], snapshot(optimizer)[1], [])) == []
    with pytest.warns(UserWarning, match="changed its type in mid-run, from torch.float32 to torch.bfloat16"):
        train(optimizer, params, range(4, 7))
    assert all(p.dtype == torch.bfloat16 and bool(p.isfinite().all()) for p in params)
    assert optimizer.health() == {"steps": 6, "skipped_updates": 0, "parameters": {}}
    again_params = copies(params)
    again = build(kind, again_params)
    again.load_state_dict(disk(optimizer.state_dict()))
    train(optimizer, params, range(7, 10))
    train(again, again_params, range(7, 10))
    assert differences(snapshot(optimizer), snapshot(again)) == []


def test_part_of_a_model_converted_in_mid_run() -> None:
    """Some modules go to bf16 while others stay: the stacks change, names and counts must not."""
    params = parameters(shapes=[(40, 32)] * 4)
    optimizer = build("32bit", params)
    train(optimizer, params, range(1, 3), absent=lambda i, t: False)
    params[1].data = params[1].data.bfloat16()
    give_gradients(params, 3, lambda i, t: False)
    params[2].grad[0, 0] = float("nan")
    with pytest.warns(UserWarning, match="parameter param_1 changed its type in mid-run"):
        optimizer.step()
    assert optimizer.health() == {"steps": 3, "skipped_updates": 1, "parameters": {"param_2": 1}}


def test_a_parameter_in_its_own_memory_goes_on_the_same() -> None:
    """State rows normally share a tensor; moving or cloning some of them must not be noticed."""
    a, b = parameters(torch.bfloat16), parameters(torch.bfloat16)
    whole, moved = build("dynamic", a), build("dynamic", b)
    train(whole, a, range(1, 5))
    train(moved, b, range(1, 5))
    for p in (b[0], b[2], b[7]):
        for key, value in moved.state[p].items():
            moved.state[p][key] = value.clone()
    for value in moved.state[b[3]].values():
        value.data = value.data.clone()  # the way offloading trainers move state
    train(whole, a, range(5, 9))
    train(moved, b, range(5, 9))
    assert differences(snapshot(whole), snapshot(moved)) == []
