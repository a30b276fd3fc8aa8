"""The controller's memory in checkpoints, copies and reports: bit by bit, or a clear word."""

from __future__ import annotations

import copy
import pickle
import warnings
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from automagic_cameamp import CheckpointError
from contextual.helpers import CLASSES, KEY, both, build, copies, go, same_run
from engine.helpers import differences, disk, draw, parameters, snapshot, state_bytes, train


@both
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("options", [{}, {"came": False}, {"momentum_scales": [1, 3, 7]}], ids=str)
def test_resume_is_bitwise(cls: Any, dtype: torch.dtype, options: dict[str, Any]) -> None:
    params = parameters(dtype)
    whole = build(cls, params, **options)
    go(whole, params, range(1, 7))
    saved, weights = disk(whole.state_dict()), copies(params)
    go(whole, params, range(7, 13))

    again = build(cls, weights, **options)
    again.load_state_dict(saved)
    go(again, weights, range(7, 13))
    same_run(whole, again)


@both
def test_resume_at_every_step(cls: Any) -> None:
    params = parameters()
    whole = build(cls, params)
    saved = []
    for t in range(1, 13):
        saved.append((disk(whole.state_dict()), copies(params)))
        go(whole, params, range(t, t + 1))
    for t, (state, weights) in enumerate(saved, 1):
        again = build(cls, weights)
        again.load_state_dict(state)
        go(again, weights, range(t, 13))
        same_run(whole, again)


def test_the_entry_at_the_top() -> None:
    params = parameters()
    optimizer = build(CLASSES[0], params)
    assert disk(optimizer.state_dict())[KEY] == {"edge_case_count": 0, "contextual_lr_multiplier": 1.0}
    go(optimizer, params, range(1, 6))
    entry = disk(optimizer.state_dict())[KEY]
    assert entry["edge_case_count"] == optimizer.c_optim.edge_case_count
    assert entry["contextual_lr_multiplier"] == optimizer.c_optim.compute_contextual_lr_multiplier()
    assert torch.equal(entry["memory"], optimizer.state[params[0]][KEY])
    assert optimizer.state[params[0]][KEY] is optimizer.c_optim.memory


def test_an_empty_state_loads_without_a_word() -> None:
    """Trainers reload the state dict of a fresh optimizer."""
    optimizer = build(CLASSES[0], parameters())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.load_state_dict(optimizer.state_dict())
    assert optimizer.c_optim.compute_contextual_lr_multiplier() == 1.0


def stripped(state: dict[str, Any], inner: bool = True, outer: bool = True) -> dict[str, Any]:
    state = copy.deepcopy(state)
    if outer:
        state.pop(KEY)
    if inner:
        for own in state["state"].values():
            own.pop(KEY, None)
    return state


@pytest.mark.parametrize("where", ["inner", "outer"])
def test_either_copy_of_the_memory_is_enough(where: str) -> None:
    params = parameters()
    whole = build(CLASSES[0], params)
    go(whole, params, range(1, 6))
    saved, weights = stripped(disk(whole.state_dict()), **{where: False}), copies(params)
    again = build(CLASSES[0], weights)
    again.load_state_dict(saved)
    go(whole, params, range(6, 10))
    go(again, weights, range(6, 10))
    same_run(whole, again)


def test_a_state_without_memory_starts_neutral_and_says_so_once() -> None:
    params = parameters()
    whole = build(CLASSES[0], params)
    go(whole, params, range(1, 8))
    weights = copies(params)
    again = build(CLASSES[0], weights)
    go(again, weights, range(1, 4))  # what it had learned is forgotten
    with pytest.warns(UserWarning, match="c_optim") as found:
        again.load_state_dict(stripped(disk(whole.state_dict())))
    assert len(found) == 1
    assert again.c_optim.compute_contextual_lr_multiplier() == 1.0 and again.c_optim.loss_history == []
    go(again, weights, range(8, 10))
    assert again.c_optim.lr_history == pytest.approx([5e-4, 5e-4])


@pytest.mark.parametrize(
    "harm", [lambda m: m.bfloat16(), lambda m: m[:-5], lambda m: m[:50], lambda m: [1.0]]
)
def test_a_damaged_memory_is_refused_and_nothing_changes(harm: Any) -> None:
    params = parameters()
    whole = build(CLASSES[0], params)
    go(whole, params, range(1, 4))
    saved = disk(whole.state_dict())
    saved["state"][0][KEY] = harm(saved["state"][0][KEY])
    weights = copies(params)
    again = build(CLASSES[0], weights)
    go(again, weights, range(4, 6))
    before, memory = snapshot(again), again.c_optim.memory
    with pytest.raises(CheckpointError, match=KEY):
        again.load_state_dict(saved)
    assert differences(before, snapshot(again)) == [] and again.c_optim.memory is memory


@both
@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_a_copy_goes_on_bitwise(cls: Any, how: str) -> None:
    params = parameters(torch.bfloat16)
    optimizer = build(cls, params)
    go(optimizer, params, range(1, 7))
    optimizer.record_loss(3.0)  # told, not yet used
    twice = copy.deepcopy if how == "deepcopy" else lambda x: pickle.loads(pickle.dumps(x))
    twin, twins = twice((optimizer, params))
    for o, ps in ((optimizer, params), (twin, twins)):
        go(o, ps, range(7, 12), losses=False)
    same_run(optimizer, twin)
    assert twin.c_optim.loss_history == optimizer.c_optim.loss_history
    assert twin.c_optim is not optimizer.c_optim


def test_saving_and_reporting_change_nothing() -> None:
    quiet, watched = parameters(), parameters()
    a, b = build(CLASSES[1], quiet), build(CLASSES[1], watched)
    for t in range(1, 9):
        go(a, quiet, range(t, t + 1))
        go(b, watched, range(t, t + 1))
        disk(b.state_dict())
        c = b.c_optim
        c.detect_edge_case(), c.compute_contextual_lr_multiplier(), c.compute_loss_stability(), c.loss_history
    same_run(a, b)


def test_memory_is_beside_the_first_parameter_with_state() -> None:
    """Also when an earlier one wakes up: a fresh optimizer, into which it is loaded, has it there."""
    params = parameters()
    late = lambda i, t: i < 2 and t < 4  # noqa: E731
    optimizer = build(CLASSES[0], params)

    def homes(o: Any, owned: list[torch.Tensor]) -> list[int]:
        return [i for i, p in enumerate(owned) if KEY in o.state.get(p, {})]

    train(optimizer, params, range(1, 4), late)
    assert homes(optimizer, params) == [2]
    train(optimizer, params, range(4, 7), late)
    assert homes(optimizer, params) == [0]
    weights = copies(params)
    again = build(CLASSES[0], weights)
    again.load_state_dict(disk(optimizer.state_dict()))
    assert homes(again, weights) == [0]
    train(optimizer, params, range(7, 10), late)
    train(again, weights, range(7, 10), late)
    same_run(optimizer, again)


def test_groups_added_in_mid_run() -> None:
    params = parameters()
    whole = build(CLASSES[0], params[:3])
    go(whole, params, range(1, 4))
    whole.add_param_group({"params": params[3:], "lr": 2e-4})
    go(whole, params, range(4, 7))
    weights = copies(params)
    again = build(CLASSES[0], weights[:3])
    again.add_param_group({"params": weights[3:], "lr": 2e-4})
    again.load_state_dict(disk(whole.state_dict()))
    go(whole, params, range(7, 10))
    go(again, weights, range(7, 10))
    same_run(whole, again)


def test_memory_is_counted() -> None:
    params = parameters()
    optimizer = build(CLASSES[1], params, blocksize=64)
    go(optimizer, params, range(1, 4))
    stats = optimizer.get_memory_stats()
    assert stats["total_quantized_memory"] + stats["total_high_precision_memory"] == state_bytes(optimizer)
    assert optimizer.c_optim.memory.numel() * 4 < 34_500


# ------------------------------------------------------------------ torch's distributed checkpoints


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(40, 40)
        self.second = torch.nn.Linear(40, 8)

    def run(self, optimizer: Any, steps: range) -> None:
        for t in steps:
            optimizer.zero_grad()
            x = draw(11, t, shape=(16, 40))
            loss = (self.second(self.first(x).relu()) - x[:, :8]).square().mean()
            loss.backward()
            optimizer.step(loss=loss.detach())


def twins(cls: Any) -> tuple[Net, Any]:
    net = Net()
    for i, p in enumerate(net.parameters()):
        p.data.copy_(0.2 * draw(13, i, shape=tuple(p.shape)))
    return net, build(cls, net.parameters())


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")
@both
@pytest.mark.parametrize("flat", [False, True])
def test_distributed_checkpoint_keeps_the_controller(cls: Any, flat: bool, tmp_path: Any) -> None:
    options = StateDictOptions(flatten_optimizer_state_dict=flat)
    net, whole = twins(cls)
    net.run(whole, range(12))
    dcp.save({"optimizer": get_optimizer_state_dict(net, whole, options=options)}, checkpoint_id=tmp_path)
    weights = copy.deepcopy(net.state_dict())
    net.run(whole, range(12, 18))

    other, again = twins(cls)
    other.load_state_dict(weights)
    state = {"optimizer": get_optimizer_state_dict(other, again, options=options)}
    dcp.load(state, checkpoint_id=tmp_path)
    set_optimizer_state_dict(other, again, state["optimizer"], options=options)
    assert all(torch.equal(p, weights[name]) for name, p in other.named_parameters())
    other.run(again, range(12, 18))
    same_run(whole, again)


@both
def test_the_dummy_step_of_a_distributed_checkpoint(cls: Any) -> None:
    """Gradients of 0 at lr 0: nothing moves, nothing is learned, every state is finite."""
    net, optimizer = twins(cls)
    before = copies(list(net.parameters()))
    get_optimizer_state_dict(net, optimizer)
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), before, strict=True))
    c = optimizer.c_optim
    assert c.compute_contextual_lr_multiplier() == 1.0 and c.compute_gradient_consistency() == 1.0
    for own in optimizer.state.values():
        assert all(bool(v.float().isfinite().all()) for v in own.values())
