"""Stacks of same-shape parameters: results must not depend on how they are cut or where state lies."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from automagic_cameamp import Automagic_CameAMP
from automagic_cameamp.state import chunks as buckets
from automagic_cameamp.state import stacks as arena
from engine.helpers import (
    CLASSES,
    EVERY,
    FLOATS,
    OPTIONS,
    build,
    differences,
    name_of,
    parameters,
    snapshot,
    train,
)

# Odd sizes put elements of one tensor into different lanes of a vector, depending on the stack.
MANY = [(5, 7), (31, 33), (1, 17), (17, 1), (2, 3, 43), (8, 4, 3, 3), (1, 1), (33,), (), (40, 32), (3, 400)]
SHAPES = [shape for shape in MANY for _ in range(3)]


def absent(position: int, step: int) -> bool:
    """One of four is missing at every third step, another starts late: stacks of mixed age."""
    return (position % 4 == 2 and step % 3 == 0) or (position % 4 == 1 and step < 5)


def outcome(kind: str, dtype: torch.dtype, options: dict[str, Any], steps: int = 12) -> Any:
    params = parameters(dtype, SHAPES)
    optimizer = build(kind, params, **{"weight_decay": 5.0, "lr": 1e-3, "max_lr": 1e-2, **options})
    train(optimizer, params, range(1, steps + 1), absent)
    return snapshot(optimizer)


@EVERY
def test_results_do_not_depend_on_the_size_of_the_stack(
    kind: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(buckets, "CPU_CHUNK_ELEMENTS", 1 << 30)
    together = outcome(kind, torch.float32, options)
    for limit in (1, 2700) if not options else (1,):  # one by one, and once in stacks that are cut somewhere
        monkeypatch.setattr(buckets, "CPU_CHUNK_ELEMENTS", limit)
        assert differences(together, outcome(kind, torch.float32, options)) == [], f"at most {limit} elements"


@pytest.mark.parametrize("dtype", FLOATS, ids=name_of)
@pytest.mark.parametrize("kind", CLASSES)
def test_nor_for_other_types(kind: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buckets, "CPU_CHUNK_ELEMENTS", 1 << 30)
    together = outcome(kind, dtype, {})
    monkeypatch.setattr(buckets, "CPU_CHUNK_ELEMENTS", 1)
    assert differences(together, outcome(kind, dtype, {})) == []


def test_nor_for_tensors_larger_than_a_stack(monkeypatch: pytest.MonkeyPatch) -> None:
    def run() -> Any:
        params = parameters(shapes=[(300, 200), (300, 200), (70_001,), (9, 9)])
        optimizer = build("dynamic", params)
        train(optimizer, params, range(1, 5), absent=lambda i, t: False)
        return snapshot(optimizer)

    reference = run()
    for limit in (1000, 60_000, 1 << 30):
        monkeypatch.setattr(buckets, "CPU_CHUNK_ELEMENTS", limit)
        assert differences(reference, run()) == []


@pytest.mark.parametrize("kind", CLASSES)
def test_order_of_the_parameters_does_not_matter(kind: str) -> None:
    """Without the mask (whose mean is a sum over all, in order) a parameter goes its own way."""
    forward, backward = parameters(shapes=SHAPES), parameters(shapes=SHAPES)
    a = build(kind, forward, lr_mask_rule="none")
    b = build(kind, backward[::-1], lr_mask_rule="none")
    train(a, forward, range(1, 9), absent)
    train(b, backward, range(1, 9), absent)
    one, other = snapshot(a), snapshot(b)
    assert differences((one[0], one[1], []), (other[0][::-1], other[1][::-1], [])) == []


def test_the_plan_of_a_group() -> None:
    shapes = [(4, 4), (3,), (4, 4), (0, 7), (4, 4), (3,)]
    params = parameters(shapes=shapes)
    params[4] = torch.nn.Parameter(params[4].detach().double())
    optimizer = Automagic_CameAMP([{"params": params[:3]}, {"params": []}, {"params": params[3:]}])
    plan = [(c.key[0], c.indices) for _, c in optimizer.model.chunks()]
    # An empty parameter is in no stack, a group or a type is never mixed, and order is kept.
    assert plan == [(0, [0, 2]), (0, [1]), (2, [4]), (2, [5])]
    keys = [c.key for _, c in optimizer.model.chunks()]
    assert len(set(keys)) == len(keys)


def test_the_plan_ignores_gradients_and_state() -> None:
    params = parameters()
    optimizer = build("dynamic", params)
    before = [(c.key, c.indices) for _, c in optimizer.model.chunks()]
    train(optimizer, params, range(1, 5))
    assert [(c.key, c.indices) for _, c in optimizer.model.chunks()] == before


# ---------------------------------------------------------------- rows of one tensor


def rows(count: int, shape: tuple[int, ...]) -> tuple[Tensor, list[Tensor]]:
    stack = torch.randn(count, *shape)
    return stack, arena.rows_of(stack, shape)


@pytest.mark.parametrize("shape", [(), (1,), (5,), (2, 3), (2, 1, 3)], ids=str)
@pytest.mark.parametrize("count", [1, 2, 5])
def test_neighbouring_rows_are_stacked_without_a_copy(count: int, shape: tuple[int, ...]) -> None:
    stack, own = rows(count, shape)
    found, in_place = arena.stacked(own, (1, *shape))
    assert in_place and found.shape == (count, 1, *shape)
    assert torch.equal(found.view(stack.shape), stack)
    found.copy_(found + 1) if in_place else arena.write(own, found + 1)
    assert torch.equal(torch.stack(own), found.view(stack.shape))
    found.add_(1)
    assert torch.equal(stack, found.view(stack.shape)), "writing into the stack writes into the rows"
    part, in_place = arena.stacked(own[count // 2 :], shape)
    assert in_place and torch.equal(part, stack[count // 2 :])


@pytest.mark.parametrize("choose", [(0, 2), (2, 1), (1, 1), (3, 0)], ids=str)
def test_other_rows_are_copied_and_written_back(choose: tuple[int, ...]) -> None:
    stack, own = rows(4, (2, 3))
    picked = [own[i] for i in choose]
    found, in_place = arena.stacked(picked, (6,))
    assert not in_place
    assert torch.equal(found, torch.stack(picked).view(-1, 6))
    new = found * 0 + 9.0
    found.copy_(new) if in_place else arena.write(picked, new)
    untouched = [i for i in range(4) if i not in choose]
    assert all(bool((own[i] == 9).all()) for i in choose)
    assert all(bool((own[i] != 9).all()) for i in untouched)


def test_rows_of_different_tensors_are_never_taken_for_one() -> None:
    """Two allocations may happen to lie end to end; a view of one may not reach into the other."""
    whole = torch.randn(8)
    first = torch.empty(0).set_(whole.untyped_storage(), 0, (4,))
    joined, in_place = arena.stacked([first, torch.randn(4)], (4,))
    assert not in_place and joined.shape == (2, 4)
    transposed = torch.randn(3, 2).t()
    assert not arena.stacked([transposed], (2, 3))[1]
    assert torch.equal(arena.stacked([transposed], (2, 3))[0][0], transposed)


def test_state_of_a_stack_lies_in_one_tensor() -> None:
    params = parameters(shapes=[(40, 32)] * 5)
    optimizer = build("dynamic", params)
    train(optimizer, params, range(1, 3), absent=lambda i, t: False)
    for key in optimizer.state[params[0]]:
        storages = {optimizer.state[p][key].untyped_storage().data_ptr() for p in params}
        assert len(storages) == 1, key


def test_channels_last_and_transposed_parameters() -> None:
    """Memory format belongs to the user: kept, and without influence on the values."""
    plain = parameters(shapes=[(8, 4, 3, 3), (40, 32), (40, 32)])
    other = [
        torch.nn.Parameter(plain[0].detach().clone().to(memory_format=torch.channels_last)),
        torch.nn.Parameter(plain[1].detach().t().contiguous().t()),
        torch.nn.Parameter(plain[2].detach().clone()),
    ]
    for p, q in zip(plain, other, strict=True):
        vars(q).update(vars(p))  # type: ignore[attr-defined]  # the marks of a LoRA
    strides = [p.stride() for p in other]
    # The CPU kernels leave strided weights to the reference, which sums in another order.
    a, b = (build("dynamic", params, engine="reference") for params in (plain, other))
    train(a, plain, range(1, 6), absent=lambda i, t: False)
    train(b, other, range(1, 6), absent=lambda i, t: False)
    assert differences(snapshot(a), snapshot(b)) == []
    assert [p.stride() for p in other] == strides


@pytest.mark.parametrize("kind", CLASSES)
def test_gradients_are_left_alone(kind: str) -> None:
    for options in OPTIONS.values():
        params = parameters(torch.float32)
        optimizer = build(kind, params, **options)
        train(optimizer, params, range(1, 2))
        kept = [None if p.grad is None else (p.grad, p.grad.clone()) for p in params]
        for _ in range(3):
            optimizer.step()
        for p, pair in zip(params, kept, strict=True):
            if pair is not None:
                assert p.grad is pair[0] and torch.equal(p.grad, pair[1])
