"""Autograd notices every write of a step, whoever makes it: a tensor that changed has another version.

A backward pass that needs the old weights after a step must fail, as it does with torch's own optimizers,
instead of using the new ones.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from automagic_cameamp import OPTIMIZERS
from automagic_cameamp.executors.native import versions

CLASSES = sorted(OPTIMIZERS)
WAYS = ["step", "release", "parameter", "offload", "closure"]


def versions_of(optimizer: Any, params: list[Any]) -> dict[str, tuple[torch.Tensor, int, torch.Tensor]]:
    """Name -> tensor, its version, its value."""
    found = {f"p{i}": p for i, p in enumerate(params)}
    for i, p in enumerate(params):
        state = optimizer.state.get(p, {})
        # The controller's memory is a new tensor after every step.
        found |= {f"{i}.{k}": v for k, v in state.items() if isinstance(v, torch.Tensor) and k != "c_optim"}
    return {name: (x, x._version, x.detach().clone()) for name, x in found.items()}


def take(optimizer: Any, params: list[Any], way: str, absent: frozenset[int], seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    grads = [torch.randn(p.shape, generator=draw).to(p.dtype) for p in params]

    def backward() -> torch.Tensor:
        used = [(p * g).sum() for i, (p, g) in enumerate(zip(params, grads, strict=True)) if i not in absent]
        loss = torch.stack([u.float() for u in used]).sum()
        loss.backward()
        return loss

    optimizer.zero_grad()
    if way == "closure":
        optimizer.step(backward)
        return
    if way == "release":
        with optimizer.release_gradients(params):
            backward()
            optimizer.step()
        return
    backward()
    if way == "parameter":
        for p in params:
            optimizer.step_parameter(p)
            p.grad = None
    optimizer.step()


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("engine", ["auto", "reference"])
@settings(max_examples=6)
@given(
    way=st.sampled_from(WAYS),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    strided=st.booleans(),
    absent=st.frozensets(st.integers(0, 2), max_size=2),
)
def test_what_changed_has_another_version(
    name: str, engine: str, way: str, dtype: torch.dtype, strided: bool, absent: frozenset[int]
) -> None:
    params: list[Any] = [torch.nn.Parameter(torch.randn(s).to(dtype)) for s in ((8, 12), (5,), (4, 3, 3, 3))]
    if strided:
        params[0] = torch.nn.Parameter(params[0].detach().t().contiguous().t())
    offload = "cpu" if way == "offload" else "none"
    optimizer = OPTIMIZERS[name](params, lr=1e-3, engine=engine, warmup_steps=3, offload=offload)
    take(optimizer, params, way, frozenset(), 0)
    for step in range(1, 4):
        before = versions_of(optimizer, params)
        take(optimizer, params, way, absent, step)
        for key, (x, version, value) in before.items():
            if not torch.equal(x.detach(), value):
                assert x._version > version, key
        for i in absent:  # no false alarm for weights that nobody touched
            assert params[i]._version == before[f"p{i}"][1]


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("engine", ["auto", "reference"])
def test_a_backward_pass_over_stepped_weights_fails(name: str, engine: str) -> None:
    """The two networks of a GAN: the discriminator steps before the generator has used it."""
    g = torch.nn.Linear(4, 4)
    d = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))
    optimizer = OPTIMIZERS[name](d.parameters(), lr=1e-3, engine=engine)
    for _ in range(3):
        score = d(g(torch.randn(8, 4)))
        optimizer.zero_grad()
        score.square().mean().backward(retain_graph=True)
        optimizer.step()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            torch.autograd.grad(-score.mean(), g.weight)


def test_state_that_a_graph_keeps() -> None:
    p = torch.nn.Parameter(torch.randn(6, 6))
    optimizer = OPTIMIZERS["Automagic_CameAMP"]([p], lr=1e-3)
    p.grad = torch.randn_like(p)
    optimizer.step()
    loss = (optimizer.state[p]["exp_avg"] * p).sum()
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_loading_and_rolling_back_move_versions() -> None:
    params = [torch.nn.Parameter(torch.randn(6, 6)) for _ in range(2)]
    optimizer = OPTIMIZERS["Automagic_CameAMP8bit"](params, lr=1e-3)
    recorder = optimizer.record(4)
    for step in range(3):
        take(optimizer, params, "step", frozenset(), step)
    recorder.take()
    saved = optimizer.state_dict()
    saved["state"] = {i: {k: v.clone() for k, v in s.items()} for i, s in saved["state"].items()}
    take(optimizer, params, "step", frozenset(), 9)
    for change in (recorder.rollback, lambda: optimizer.load_state_dict(saved)):
        before = versions_of(optimizer, params)
        take(optimizer, params, "step", frozenset(), 10)
        change()
        for key, (x, version, value) in before.items():
            assert torch.equal(x.detach(), value) or x._version > version, key


def test_one_call_for_all_and_none_for_tensors_without_a_counter(monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.inference_mode():
        frozen = torch.zeros(2)
    x = torch.zeros(2)
    versions.moved([x, frozen])
    assert x._version == 1
    monkeypatch.setattr(versions, "_takes_lists", lambda: False)
    one = versions.increment_version
    monkeypatch.setattr(
        versions, "increment_version", lambda t: one(t) if isinstance(t, torch.Tensor) else 1 / 0
    )
    versions.moved([x, frozen])
    assert x._version == 2


def test_one_counter_for_the_rows_of_a_stack() -> None:
    params = [torch.nn.Parameter(torch.randn(8, 8)) for _ in range(40)]
    optimizer = OPTIMIZERS["Automagic_CameAMP8bit"](params, lr=1e-3)
    for p in params:
        p.grad = torch.randn_like(p)
    optimizer.step()
    found = versions.counters(optimizer.state.values())
    assert len(found) == len(optimizer.state[params[0]])
