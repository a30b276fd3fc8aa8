"""Offload: the step on host copies is the plain step bit for bit, whatever way the copies take."""

from __future__ import annotations

import copy
import logging
from typing import Any

import pytest
import torch
from torch import Tensor

from automagic_cameamp import accumulate_in_fp32
from automagic_cameamp.optimizers import OPTIMIZERS
from automagic_cameamp.step import Stepper
from automagic_cameamp.training import offload
from engine.helpers import differences, disk, draw, parameters, snapshot, train


class Late(offload.Clones):
    """A device whose copies to the host happen only when somebody waits, and whose host memory is NaN."""

    def __init__(self) -> None:
        self.pending: list[tuple[Tensor, Tensor]] = []
        self.fetched = self.sent = 0
        self.bytes = 0

    def buffer(self, like: Tensor) -> Tensor:
        self.bytes += like.numel() * like.element_size()
        return torch.full(like.shape, float("nan"), dtype=like.dtype)

    def fetch(self, source: Tensor, target: Tensor) -> None:
        self.fetched += 1
        self.pending = [(s, t) for s, t in self.pending if t is not target]
        self.pending.append((source.clone(), target))  # a stream reads what was there when it was asked

    def wait(self) -> None:
        for source, target in self.pending:
            target.copy_(source)
        self.pending = []

    def send(self, source: Tensor, target: Tensor) -> None:
        self.sent += 1
        target.copy_(source)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Late:
    late = Late()
    monkeypatch.setattr(offload, "transfer_for", lambda _: late)
    return late


def build(name: str, params: Any, **options: Any) -> Any:
    cls: Any = OPTIMIZERS[name]
    return cls(params, **{"lr": 5e-4, "warmup_steps": 5, "weight_decay": 0.1, **options})


def pair(name: str, dtype: torch.dtype = torch.float32, **options: Any) -> list[Any]:
    return [build(name, parameters(dtype), offload=where, **options) for where in ("none", "cpu")]


def params_of(optimizer: Any) -> list[Tensor]:
    return optimizer.param_groups[0]["params"]


def equal(a: Any, b: Any) -> list[str]:
    return differences(snapshot(a), snapshot(b))


@pytest.mark.parametrize("engine", ["auto", "reference"])
@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_bitwise_equal_to_the_plain_step(name: str, engine: str, device: Late) -> None:
    plain, far = pair(name, engine=engine)
    for optimizer in (plain, far):
        train(optimizer, params_of(optimizer), range(1, 9))
    assert equal(plain, far) == []
    assert device.fetched == 2 * device.sent > 0  # a weight and a gradient come, a weight goes


def test_bf16_weights_and_a_bad_gradient(device: Late) -> None:
    plain, far = pair("Automagic_CameAMP8bit", torch.bfloat16)
    for optimizer in (plain, far):
        params = params_of(optimizer)
        train(optimizer, params, range(1, 4))
        params[0].grad[0, 0] = float("nan")  # type: ignore[index]
        optimizer.step()
        train(optimizer, params, range(4, 6))
        assert optimizer.health()["skipped_updates"] == 1
    assert equal(plain, far) == []


def test_copies_begin_in_backward_and_clipping_is_seen(device: Late) -> None:
    models, optimizers = [], []
    for where in ("none", "cpu"):
        torch.manual_seed(0)
        models.append(torch.nn.Sequential(torch.nn.Linear(9, 7), torch.nn.Tanh(), torch.nn.Linear(7, 3)))
        optimizers.append(build("Automagic_CameAMP_COptim", models[-1].parameters(), offload=where))
    for t in range(6):
        for model, optimizer in zip(models, optimizers, strict=True):
            optimizer.zero_grad()
            for part in range(2):  # accumulated
                x = torch.randn(5, 9, generator=torch.Generator().manual_seed(10 * t + part))
                model(x).square().mean().backward()
            if optimizer is optimizers[1]:
                early = device.fetched
            if t >= 3:
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
            optimizer.step(loss=float(t))
            if optimizer is optimizers[1] and t in (1, 2):
                assert device.fetched == early  # all was copied or on its way before step()
            if optimizer is optimizers[1] and t > 3:
                assert device.fetched == early + 4  # the clipped gradients, not the weights
    assert equal(*optimizers) == []


def test_weights_written_between_steps_count(device: Late) -> None:
    plain, far = pair("Automagic_CameAMP")
    for optimizer in (plain, far):
        train(optimizer, params_of(optimizer), range(1, 4))
        with torch.no_grad():
            for p in params_of(optimizer):
                p.data.mul_(0.5)
        train(optimizer, params_of(optimizer), range(4, 6))
    assert equal(plain, far) == []


@pytest.mark.parametrize("way", [(0, 1), (1, 0), (1, 1)], ids=["to host", "from host", "on host"])
@pytest.mark.parametrize("name", ["Automagic_CameAMP8bit", "Automagic_CameAMP_COptim"])
def test_checkpoints_are_the_same(name: str, way: tuple[int, int], device: Late) -> None:
    both = pair(name)
    for optimizer in both:
        train(optimizer, params_of(optimizer), range(1, 5))
    first, second = both[way[0]], pair(name)[way[1]]
    with torch.no_grad():
        for p, q in zip(params_of(second), params_of(first), strict=True):
            p.copy_(q)
    second.load_state_dict(disk(first.state_dict()))
    assert equal(first, second) == []
    for optimizer in (first, second):
        train(optimizer, params_of(optimizer), range(5, 9))
    assert equal(first, second) == []
    twin = copy.deepcopy(second)
    train(twin, params_of(twin), range(9, 11))
    train(second, params_of(second), range(9, 11))
    assert equal(second, twin) == []


def test_what_memory_it_takes_is_said_before_it_is_taken(
    device: Late, caplog: pytest.LogCaptureFixture
) -> None:
    _, far = pair("Automagic_CameAMP8bit")
    asked: list[str] = []
    device.buffer = lambda like: (asked.append(caplog.text), torch.empty_like(like))[1]  # type: ignore[method-assign]
    with caplog.at_level(logging.INFO, "automagic_cameamp"):
        train(far, params_of(far), range(1, 2), lambda i, t: False)
    weights = sum(p.numel() * p.element_size() for p in params_of(far))
    state = sum(v.numel() * v.element_size() for s in far.state.values() for v in s.values())
    assert f"{2 * weights} for weights and gradients, {state} for state" in asked[0]
    assert caplog.text.count("host memory") == 1


def test_a_failed_step_puts_the_parameters_back(device: Late, monkeypatch: pytest.MonkeyPatch) -> None:
    _, far = pair("Automagic_CameAMP")
    params = list(params_of(far))
    train(far, params, range(1, 3))
    before = snapshot(far)
    monkeypatch.setattr(Stepper, "step", lambda *_: (_ for _ in ()).throw(MemoryError("full")))
    with pytest.raises(MemoryError):
        far.step()
    assert all(p is q for p, q in zip(params, params_of(far), strict=True))
    assert set(map(id, far.state)) <= set(map(id, params))
    assert differences(before, snapshot(far)) == []


def test_sharded_parameters_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    _, far = pair("Automagic_CameAMP")
    monkeypatch.setattr(offload, "is_distributed", lambda p: True)
    before = snapshot(far)
    with pytest.raises(ValueError, match="sharded parameters"):
        train(far, params_of(far), range(1, 2))
    assert differences(before, snapshot(far)) == []


def test_sparse_gradients_are_refused_before_anything_is_copied(device: Late) -> None:
    table = torch.nn.Embedding(5, 3, sparse=True)
    other = torch.nn.Parameter(torch.ones(3))
    optimizer = build("Automagic_CameAMP", [other, table.weight], offload="cpu")
    table(torch.tensor([1, 2])).sum().backward()
    other.grad = torch.ones(3)
    with pytest.raises(RuntimeError, match=r"param_1 has a torch.sparse_coo gradient: only dense"):
        optimizer.step()
    assert device.fetched == device.bytes == 0 and not any(optimizer.state.values())


@pytest.mark.skipif(
    not hasattr(torch.Tensor, "grad_dtype"), reason="this torch has no fp32 gradients of bf16"
)
def test_host_copies_are_made_once_and_anew_where_gradients_get_another_type(device: Late) -> None:
    runs, made = [], []
    for where in ("none", "cpu"):
        model = torch.nn.Linear(9, 7)
        with torch.no_grad():
            for i, p in enumerate(model.parameters()):
                p.copy_(draw(i, shape=tuple(p.shape)))
        model.bfloat16()
        optimizer = build("Automagic_CameAMP", model.parameters(), offload=where)
        for t in range(4):
            optimizer.zero_grad()
            if t == 2:
                accumulate_in_fp32(model)
            for part in range(2):
                model(draw(10 + t, part, shape=(5, 9)).bfloat16()).float().square().mean().backward()
            optimizer.step()
            made.append(device.bytes)
        runs.append(optimizer)
    assert equal(*runs) == []
    assert made[:4] == [0] * 4
    bf16, same, fp32, last = made[4:]
    assert same == bf16 == 2 * 2 * 70 and last == fp32 == bf16 + 4 * 70


def test_other_places_are_refused() -> None:
    with pytest.raises(ValueError, match="offload='disk'"):
        build("Automagic_CameAMP", parameters(), offload="disk")


def test_a_dropped_optimizer_leaves_no_copies(device: Late) -> None:
    model = torch.nn.Linear(4, 4)
    optimizer = build("Automagic_CameAMP", model.parameters(), offload="cpu")
    for _ in range(2):
        model(torch.ones(1, 4)).sum().backward()
        optimizer.step()
    before = device.fetched
    del optimizer
    model(torch.ones(1, 4)).sum().backward()
    assert device.fetched == before
