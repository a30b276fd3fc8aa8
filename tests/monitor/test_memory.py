"""MemoryMonitor, analyze_memory_usage, check_memory_leak."""

from __future__ import annotations

import io
import re
from typing import Any

import pytest
import torch
from torch import nn

from automagic_cameamp import OPTIMIZERS
from automagic_cameamp.monitor import MemoryMonitor, analyze_memory_usage, check_memory_leak

from .conftest import loss_of, network, train


def held(optimizer: Any) -> int:
    """Bytes of the state tensors, counted here."""
    return sum(
        v.numel() * v.element_size()
        for state in optimizer.state.values()
        for v in state.values()
        if isinstance(v, torch.Tensor)
    )


def test_memory_monitor_trains_and_reports_every_so_often(make: Any, model: nn.Module) -> None:
    out = io.StringIO()
    optimizer = make()
    monitor = MemoryMonitor(optimizer, log_frequency=3, file=out)
    losses = [monitor.step(lambda i=i: loss_of(model, i)) for i in range(7)]
    twin = network()
    other = type(optimizer)(twin.named_parameters(), **vars(optimizer.config))
    assert [float(v) for v in losses] == train(twin, other, 7)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))
    assert not any(v.requires_grad for v in losses)
    text = out.getvalue()
    assert re.findall(r"Step (\d+):", text) == ["3", "6"] and monitor.step_count == 7
    assert [row["step"] for row in monitor.history] == [3, 6]
    stats = optimizer.get_memory_stats()
    assert f"Quantized: {stats['total_quantized_memory'] / 2**20:.2f} MB" in text
    assert f"Compression: {stats['compression_ratio']:.2%}" in text


def test_memory_monitor_refuses_a_frequency_of_0(make: Any) -> None:
    with pytest.raises(ValueError, match="log_frequency=0 is not allowed"):
        MemoryMonitor(make(), 0)


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_analyze_prints_the_report_of_every_class(
    make: Any, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    optimizer = make(name, steps=2)
    report = analyze_memory_usage(optimizer)
    assert report == optimizer.get_memory_efficiency_report()
    text = capsys.readouterr().out
    assert f"parameters: {report['total_parameters']:,}" in text
    assert f"saved against fp32: {report['memory_saved_mb']:.2f} MB" in text
    assert ("Little is quantised" in text) == (report["compression_ratio"] < 0.3)
    assert ("Nearly everything" in text) == (report["compression_ratio"] > 0.8)


def test_leak_check_sees_growth_and_none(make: Any, model: nn.Module) -> None:
    out = io.StringIO()
    optimizer = make()
    assert check_memory_leak(optimizer, file=out) == {
        "gpu_bytes": 0,
        "optimizer_bytes": 0,
        "growth": 0,
        "freed_gpu_bytes": 0,
    }
    train(model, optimizer, 1)
    assert check_memory_leak(optimizer, file=out)["growth"] == held(optimizer) > 0
    train(model, optimizer, 3)
    found = check_memory_leak(optimizer, file=out)
    assert found["growth"] == 0 and found["optimizer_bytes"] == held(optimizer)
    assert out.getvalue().count("Optimizer Memory:") == 3 and out.getvalue().count("Changed by") == 1


class Wrapper:
    """As accelerate's: the optimizer is inside."""

    def __init__(self, optimizer: Any) -> None:
        self.optimizer = optimizer


def test_a_wrapped_optimizer_is_found_and_a_foreign_one_refused(make: Any, model: nn.Module) -> None:
    optimizer = make(steps=1)
    assert analyze_memory_usage(Wrapper(Wrapper(optimizer)), file=io.StringIO()) == (
        optimizer.get_memory_efficiency_report()
    )
    with pytest.raises(TypeError, match="optimizer=SGD is not allowed"):
        analyze_memory_usage(torch.optim.SGD(model.parameters()))
