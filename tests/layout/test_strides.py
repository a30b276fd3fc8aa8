"""How the elements of weights and gradients lie in memory changes neither the step nor the checkpoint."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from automagic_cameamp import OPTIMIZERS
from automagic_cameamp.executors.native import copies
from automagic_cameamp.executors.native import plan as native
from layout.arrange import ARRANGED

CLASSES = sorted(OPTIMIZERS)
SHAPES = [(6, 10), (16, 3, 3, 3), (7,), (3, 4, 5), (16, 3, 3, 3), (2, 3, 2, 3, 2), (33, 65)]
ORDERS = st.lists(st.sampled_from(sorted(ARRANGED)), min_size=len(SHAPES), max_size=len(SHAPES))


def make(name: str, orders: list[str], dtype: torch.dtype, **options: Any) -> tuple[Any, list[Any]]:
    draw = torch.Generator().manual_seed(0)
    starts = [(torch.randn(s, generator=draw) * 0.05).to(dtype) for s in SHAPES]
    params = [torch.nn.Parameter(ARRANGED[o](x)) for o, x in zip(orders, starts, strict=True)]
    return OPTIMIZERS[name](params, lr=1e-3, warmup_steps=4, **options), params


def give(params: list[Any], orders: list[str], step: int) -> None:
    draw = torch.Generator().manual_seed(100 + step)
    for p, order in zip(params, orders, strict=True):
        p.grad = ARRANGED[order]((torch.randn(p.shape, generator=draw) * 0.01).to(p.dtype))


def values(optimizer: Any, params: list[Any]) -> dict[str, torch.Tensor]:
    found = {f"p{i}": p.detach().clone() for i, p in enumerate(params)}
    for i, p in enumerate(params):
        found |= {f"{i}.{k}": v.clone() for k, v in optimizer.state[p].items() if isinstance(v, torch.Tensor)}
    return found


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert list(a) == list(b)
    for name in a:
        assert torch.equal(a[name], b[name]), name


@pytest.mark.parametrize("name", CLASSES)
@settings(max_examples=5)
@given(
    weights=ORDERS,
    gradients=ORDERS,
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    batch=st.sampled_from([1, 500, copies.BATCH]),
    release=st.booleans(),
)
def test_the_step_is_that_of_contiguous_weights(
    name: str, weights: list[str], gradients: list[str], dtype: torch.dtype, batch: int, release: bool
) -> None:
    """Bit for bit: weights, state, and what a checkpoint of one brings to the other, in both directions."""
    straight = ["contiguous"] * len(SHAPES)
    usual = copies.BATCH
    copies.BATCH = batch
    try:
        (one, params), (two, others) = make(name, straight, dtype), make(name, weights, dtype)
        for step in range(6):
            give(params, straight, step)
            give(others, gradients, step)
            one.step()
            if release and step == 2:
                for p in others:
                    two.step_parameter(p)
            two.step()
            same(values(one, params), values(two, others))
            if step == 3:
                first, second = copy.deepcopy(one.state_dict()), copy.deepcopy(two.state_dict())
                one.load_state_dict(second)
                two.load_state_dict(first)
        assert two.stepper.plans.current is not None  # the kernels took all of it
        assert [p.stride() for p in others] == [p.stride() for p in make(name, weights, dtype)[1]]
    finally:
        copies.BATCH = usual


def test_a_step_with_searches_for_directions() -> None:
    """Weights of less than fp32 take such a step as fp32 copies of their own."""
    for dtype in (torch.float32, torch.bfloat16):
        ends = []
        for order in ("contiguous", "transposed"):
            orders = [order] * len(SHAPES)
            options = {"profile": "balanced", "sync_frequency": 2}
            optimizer, params = make("Automagic_CameAMP_Improved_8Bit", orders, dtype, **options)
            for step in range(5):
                give(params, orders, step)
                optimizer.step()
            ends.append(values(optimizer, params))
        same(*ends)


def test_a_gradient_that_is_not_finite_changes_nothing() -> None:
    orders = ["transposed"] * len(SHAPES)
    optimizer, params = make("Automagic_CameAMP8bit", orders, torch.float32)
    give(params, orders, 0)
    optimizer.step()
    before = params[0].detach().clone()
    give(params, orders, 1)
    params[0].grad[2, 3] = float("nan")
    optimizer.step()
    assert torch.equal(params[0], before)
    assert optimizer.health()["skipped_updates"] == 1


def test_copies_are_bounded_by_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a model whose weights all lie in another order, only a batch is copied at a time."""
    monkeypatch.setattr(copies, "BATCH", 4096)
    held: list[int] = []
    original = copies.Scratch.begin

    def begin(self: copies.Scratch) -> None:
        held.append(self.used)
        original(self)

    monkeypatch.setattr(copies.Scratch, "begin", begin)
    params = [torch.nn.Parameter(torch.randn(32, 32).t()) for _ in range(40)]
    optimizer = OPTIMIZERS["Automagic_CameAMP"](params, lr=1e-3)
    for p in params:
        p.grad = torch.randn(32, 32).t()
    optimizer.step()
    optimizer.step()
    assert len(held) >= 20
    assert max(held) <= 2 * 4 * 4096


@pytest.mark.parametrize(
    ("sizes", "wanted"), [([], []), ([9], [[0]]), ([1, 1], [[0, 1]]), ([5, 9, 1], [[0], [1], [2]])]
)
def test_batches(sizes: list[int], wanted: list[list[int]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copies, "BATCH", 6)
    assert list(copies.batches(list(range(len(sizes))), sizes)) == wanted


@given(
    shape=st.lists(st.integers(1, 3), min_size=1, max_size=3),
    strides=st.lists(st.integers(0, 9), min_size=3, max_size=3),
)
def test_what_shares_memory_is_seen(shape: list[int], strides: list[int]) -> None:
    """``apart`` may take a tensor for one that shares memory, never the other way."""
    x = torch.arange(100).as_strided(shape, strides[: len(shape)])
    distinct = len(x.flatten().unique()) == x.numel()
    assert distinct or not copies.apart(x)
    if all(n == 1 or s == t for n, s, t in zip(shape, x.stride(), torch.empty(shape).stride(), strict=True)):
        assert copies.apart(x)


def test_one_tensor_that_the_kernels_do_not_take_leaves_the_others_theirs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every step is planned, and one call takes the other 200, which stand in one stack with it."""
    taken: list[int] = []
    original = native.Table.call
    monkeypatch.setattr(
        native.Table, "call", lambda self, g, p: (taken.append(len(g)), original(self, g, p))[1]
    )
    params: list[Any] = [torch.nn.Parameter(torch.randn(8, 8)) for _ in range(201)]
    if not hasattr(params[7], "grad_dtype"):
        pytest.skip("this torch has no gradients of another type than their weights")
    params[7].grad_dtype = torch.float64
    optimizer = OPTIMIZERS["Automagic_CameAMP"](params, lr=1e-3)
    plans = set()
    for _ in range(3):
        for p in params:
            p.grad = torch.randn(8, 8, dtype=torch.float64 if p is params[7] else torch.float32)
        optimizer.step()
        plans.add(optimizer.stepper.plans.current)
    assert taken == [200] * 3
    assert len(plans) == 1
    assert None not in plans


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_mixed_step_is_the_same_however_it_is_taken(name: str, dtype: torch.dtype) -> None:
    """Planned, without a plan, released one by one: the same bits, beside weights of fp64 in the group."""
    ends = []
    for way in ("planned", "anew", "released"):
        draw = torch.Generator().manual_seed(0)
        params: list[Any] = [
            torch.nn.Parameter(torch.randn(12, 9, generator=draw).to(dtype)) for _ in range(4)
        ]
        params.insert(0, torch.nn.Parameter(torch.randn(12, 9, generator=draw).double()))
        params[2] = torch.nn.Parameter(params[2].detach().t().contiguous().t())
        optimizer = OPTIMIZERS[name](params, lr=1e-3, warmup_steps=4)
        for step in range(6):
            draw.manual_seed(50 + step)
            for p in params:
                p.grad = (torch.randn(12, 9, generator=draw) * 0.1).to(p.dtype)
            if way == "anew":
                optimizer.stepper.forget()
            for p in params if way == "released" else ():
                optimizer.step_parameter(p)
            optimizer.step()
        if way == "planned":
            assert optimizer.stepper.plans.current is not None
        ends.append(values(optimizer, params))
    same(ends[0], ends[1])
    same(ends[0], ends[2])


def test_a_gradient_that_becomes_one_for_the_kernels_gets_to_them() -> None:
    """Who steps depends on what is there now, not on the past: a resumed run would choose so, too."""
    params: list[Any] = [torch.nn.Parameter(torch.randn(6, 8)) for _ in range(3)]
    if not hasattr(params[0], "grad_dtype"):
        pytest.skip("this torch has no gradients of another type than their weights")
    params[0].grad_dtype = None
    optimizer: Any = OPTIMIZERS["Automagic_CameAMP"](params, lr=1e-3)
    for p in params:
        p.grad = torch.randn(6, 8)
    params[0].grad = torch.randn(6, 8).double()
    optimizer.step()
    assert len(optimizer.stepper.plans.current.rest.places) == 1
    params[0].grad = torch.randn(6, 8)
    optimizer.step()
    assert not optimizer.stepper.plans.current.rest.places
