"""What is held, counted from the tensors; and that it stays so."""

from __future__ import annotations

import gc
import random
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from automagic_cameamp import Automagic_CameAMP, Automagic_CameAMP8bit
from engine.helpers import CLASSES, EVERY, build, disk, held_bytes, parameters, state_bytes, train

DENSE = [(1024, 1024), (1024, 1024), (1024, 4096), (4096,), (1024,)]


def stepped(cls: type, shapes: list[tuple[int, ...]], **options: Any) -> Any:
    params = [torch.nn.Parameter(torch.randn(s)) for s in shapes]
    optimizer = cls(params, **options)
    for p in params:
        p.grad = torch.randn_like(p)
    optimizer.step()
    return optimizer


@EVERY
def test_report_equals_the_tensors(kind: str, options: dict[str, Any]) -> None:
    params = parameters(torch.bfloat16)
    optimizer = build(kind, params, **options)
    train(optimizer, params, range(1, 6))
    stats = optimizer.get_memory_stats()
    total = stats["total_quantized_memory"] + stats["total_high_precision_memory"]
    assert total == state_bytes(optimizer)
    assert sum(optimizer.get_memory_efficiency_report()["states_breakdown"].values()) == total
    with_state = [p for p in params if optimizer.state.get(p)]
    elements = sum(p.numel() for p in with_state)
    assert stats["quantized_params"] + stats["high_precision_params"] == elements
    assert stats["bytes_per_parameter"] == pytest.approx(total / elements)
    assert stats["fraction_of_adam"] == pytest.approx(total / elements / 8)
    large = sum(p.numel() for p in with_state if p.numel() >= 1024)
    assert stats["quantized_params"] == (0 if kind == "32bit" else large)
    assert (stats["total_quantized_memory"] > 0) is (kind != "32bit")
    assert 0 < stats["compression_ratio"] <= 1


def test_report_before_the_first_step() -> None:
    stats = build("dynamic", parameters()).get_memory_stats()
    assert set(stats.values()) == {0}
    for name in ("total_quantized_memory", "total_high_precision_memory", "bytes_per_parameter"):
        assert name in stats
    assert "fraction_of_adam" in stats


@pytest.mark.parametrize("options", [{}, {"state_code": "softsign"}, {"blocksize": 4096}], ids=str)
def test_eight_bits_against_adam(options: dict[str, Any]) -> None:
    """At most 27% of Adam on dense matrices; Adam holds 8 bytes per element."""
    optimizer = stepped(Automagic_CameAMP8bit, DENSE, lr=1e-4, **options)
    elements = sum(p.numel() for p in optimizer.param_groups[0]["params"])
    assert state_bytes(optimizer) / (8 * elements) <= 0.27
    assert optimizer.get_memory_stats()["fraction_of_adam"] <= 0.27


def test_thirty_two_bits_against_adam() -> None:
    """fp32 momentum and one byte of mask: five bytes and the row and column statistics."""
    optimizer = stepped(Automagic_CameAMP, DENSE, lr=1e-4)
    elements = sum(p.numel() for p in optimizer.param_groups[0]["params"])
    assert 5.0 <= state_bytes(optimizer) / elements <= 5.05


def test_a_rate_that_is_found_costs_a_quarter_of_a_byte() -> None:
    found, given = (stepped(Automagic_CameAMP8bit, DENSE, **options) for options in ({}, {"lr": 1e-4}))
    elements = sum(p.numel() for p in found.param_groups[0]["params"])
    assert 0 < (state_bytes(found) - state_bytes(given)) / elements <= 0.26


def test_bytes_of_a_dense_matrix() -> None:
    """Codes, a scale per 256, one mask byte, and fp32 vectors: nothing else."""
    optimizer = stepped(Automagic_CameAMP8bit, [(1024, 1024)], lr=1e-4)
    n = 1024 * 1024
    vectors = 4 * 4 * 1024  # two statistics of rows and columns
    scalars = sum(v.element_size() for v in next(iter(optimizer.state.values())).values() if v.dim() == 0)
    assert scalars <= 64
    assert state_bytes(optimizer) == n + 4 * n // 256 + n + vectors + scalars


def test_lora_shapes_are_quantised_too() -> None:
    optimizer = stepped(Automagic_CameAMP8bit, [(16, 320), (320, 16), (16, 1280), (1280, 16)] * 4)
    assert optimizer.get_memory_stats()["high_precision_params"] == 0
    assert held_bytes(optimizer) == state_bytes(optimizer)


def test_a_state_costs_no_allocation_of_its_own() -> None:
    """1,000 small tensors: a few storages, not several per parameter."""
    optimizer = stepped(Automagic_CameAMP8bit, [(4, 64)] * 1000)
    storages = {v.untyped_storage().data_ptr() for s in optimizer.state.values() for v in s.values()}
    keys = len(next(iter(optimizer.state.values())))
    assert len(storages) <= keys * 2
    assert held_bytes(optimizer) == state_bytes(optimizer)


class Operations(TorchDispatchMode):
    """Names of the torch operations that run inside."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", CLASSES)
def test_nothing_is_allocated_before_the_first_step(kind: str) -> None:
    params = parameters()
    with Operations() as seen:
        torch.zeros(1)
        assert seen.names, "the watch itself must see"
        seen.names.clear()
        optimizer = build(kind, params)
        assert seen.names == []
    assert len(optimizer.state) == 0
    optimizer.get_learning_rates(), optimizer.get_memory_stats(), optimizer.health(), repr(optimizer)
    optimizer.state_dict()
    optimizer.step()  # no gradient anywhere
    optimizer.zero_grad()
    assert not any(optimizer.state.values())


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("options", [{}, {"lr_mask_granularity": "row", "lr_level": "distance"}], ids=str)
def test_memory_is_flat(kind: str, options: dict[str, Any]) -> None:
    """120 steps with random missing gradients and three loads: the same bytes, and no storage kept alive."""
    shapes = [(40, 32)] * 6 + [(8,)] * 5 + [(16, 100)] * 4 + [(), (3, 5, 7), (4, 3, 3, 3)]
    params = parameters(shapes=shapes)
    optimizer = build(kind, params, **options)
    chance = random.Random(1)
    train(optimizer, params, range(1, 2), absent=lambda i, t: i % 3 == 0)
    train(optimizer, params, range(2, 3), absent=lambda i, t: False)
    total = state_bytes(optimizer)
    for t in range(3, 123):
        train(optimizer, params, range(t, t + 1), absent=lambda i, t: chance.random() < 0.3)
        if t % 40 == 0:
            optimizer.load_state_dict(disk(optimizer.state_dict()))
        if t % 10 == 0:
            assert state_bytes(optimizer) == total
            assert total <= held_bytes(optimizer) <= 1.01 * total
    assert optimizer.get_memory_stats()["total_quantized_memory"] <= total


def test_a_dead_parameter_frees_its_state() -> None:
    """No list of parameters is held: dropping a group drops its memory with it."""
    import weakref

    params = parameters(shapes=[(4, 4), (4, 4)])
    optimizer = build("32bit", [{"params": [params[0]]}, {"params": [params[1]]}])
    train(optimizer, params, range(1, 3), absent=lambda i, t: False)
    optimizer.state.pop(params[1])
    optimizer.param_groups.pop()
    watch = weakref.ref(params.pop())
    gc.collect()
    assert watch() is None


def test_a_checkpoint_is_as_small_as_the_state() -> None:
    import io

    optimizer = stepped(Automagic_CameAMP8bit, [(256, 256)] * 4 + [(64,)] * 4)
    buffer = io.BytesIO()
    torch.save(optimizer.state_dict(), buffer)
    assert buffer.tell() <= 1.01 * state_bytes(optimizer) + 40_000  # the format's own overhead per tensor
