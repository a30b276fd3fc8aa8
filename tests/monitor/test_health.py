"""check_training_health, AdaptiveTrainingMonitor, quantisation error, learning rates."""

from __future__ import annotations

import io
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from automagic_cameamp.monitor import (
    AdaptiveTrainingMonitor,
    check_quantization_quality,
    check_training_health,
    health,
    monitor_learning_rates,
)

FALLING = [2.0 * 0.97**i for i in range(30)]


class Report:
    """Only what the check reads of an optimizer."""

    def __init__(self, ratio: float = 0.9) -> None:
        self.ratio, self.param_groups = ratio, []

    def get_memory_stats(self) -> dict[str, float]:
        raise AssertionError("not read")

    def get_memory_efficiency_report(self) -> dict[str, float]:
        return {"compression_ratio": self.ratio}


@pytest.mark.parametrize(
    ("losses", "ratio", "codes"),
    [
        (FALLING, 0.9, []),
        (FALLING, 0.1, ["low_quantization"]),
        ([1.0] * 30, 0.9, ["slow_convergence"]),
        ([1.0] * 20, 0.9, []),  # too few to judge
        ([1.0, 9.0] * 15, 0.9, ["slow_convergence", "unstable"]),
        ([1.0, 9.0] * 5, 0.9, []),
        ([], 0.9, []),
        ([0.0] * 30, 0.9, []),  # arrived
        ([0.0] * 29 + [1.0], 0.9, ["slow_convergence", "unstable"]),  # away from 0: no division by it
        ([-1.0 - 0.1 * i for i in range(30)], 0.9, []),  # below 0 and falling
        ([-1.0] * 30, 0.9, ["slow_convergence"]),
        ([1.0, -1.0] * 15, 0.9, ["unstable"]),  # a mean of 0
        ([*FALLING, math.nan], 0.9, ["not_finite"]),
        ([*FALLING, math.inf], 0.1, ["low_quantization", "not_finite"]),
    ],
)
def test_health(losses: list[float], ratio: float, codes: list[str]) -> None:
    report = check_training_health(Report(ratio), losses)
    assert report["codes"] == codes
    assert report["status"] == ("warning" if codes else "healthy")
    assert len(report["issues"]) == len(report["suggestions"]) == len(codes)
    assert {"status", "issues", "suggestions"} <= report.keys()


def test_the_documented_formulas_hold_where_they_are_defined() -> None:
    """For losses above 0: improvement over the last 20, and variance over mean of the last 10."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        losses = (torch.rand(30, generator=generator, dtype=torch.float64) * 3 + 0.01).tolist()
        recent = torch.tensor(losses[-10:], dtype=torch.float64)
        wanted = []
        if (losses[-20] - losses[-1]) / losses[-20] < 0.1:
            wanted.append("slow_convergence")
        if float(recent.var(correction=0) / recent.mean()) > 0.1:
            wanted.append("unstable")
        assert check_training_health(Report(), losses)["codes"] == wanted


def test_threshold_and_tensors() -> None:
    losses = [torch.tensor(v, requires_grad=True) for v in FALLING]
    assert check_training_health(Report(), losses)["status"] == "healthy"
    assert check_training_health(Report(), losses, 0.9)["codes"] == ["slow_convergence"]


def test_health_of_a_real_run(make: Any) -> None:
    report = check_training_health(make("Automagic_CameAMP", steps=2), FALLING)
    assert report["codes"] == ["low_quantization"] and "0%" in report["issues"][0]


# ------------------------------------------------------------------------------ AdaptiveTrainingMonitor


@pytest.mark.parametrize(
    ("losses", "issue"),
    [
        ([0.5] * 49, None),  # the window is not full
        ([0.5] * 50, "convergence_stall"),
        ([0.5 + 1e-5 * (i % 2) for i in range(50)], "convergence_stall"),
        ([0.5 + 1e-3 * (i % 2) for i in range(50)], None),
        ([1e-6 * (1 + i) for i in range(50)], None),  # small losses that move
        ([0.0] * 50, "convergence_stall"),
        ([-3.0] * 50, "convergence_stall"),
        ([0.5 + i for i in range(40)] + [7.0] * 10, "convergence_stall"),
        ([1.0 / (i + 1) for i in range(49)] + [math.nan], "not_finite"),
    ],
)
def test_adaptive_monitor_on_losses(make: Any, losses: list[float], issue: str | None) -> None:
    monitor = AdaptiveTrainingMonitor(make())
    for loss in losses:
        monitor.update(loss)
    assert monitor.should_adjust_config() == (issue is not None, issue)
    assert monitor.memory_history == []  # no GPU here, and none asked for


def test_adaptive_monitor_keeps_a_window(make: Any) -> None:
    monitor = AdaptiveTrainingMonitor(make(), window_size=5)
    for i in range(12):
        monitor.update(torch.tensor(float(i), requires_grad=True))
    assert monitor.loss_history == [7.0, 8.0, 9.0, 10.0, 11.0]
    with pytest.raises(ValueError, match="window_size=0"):
        AdaptiveTrainingMonitor(make(), window_size=0)


@pytest.mark.parametrize(("used", "issue"), [(0.95, "memory_pressure"), (0.8, None)])
def test_memory_pressure(make: Any, monkeypatch: pytest.MonkeyPatch, used: float, issue: str | None) -> None:
    total = 8 * 2**30
    monkeypatch.setattr(health, "device_of", lambda _: torch.device("cuda", 0))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: int(used * total))
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=total)
    )
    monitor = AdaptiveTrainingMonitor(make(), window_size=12)
    for i in range(30):
        monitor.update(float(i))
    assert len(monitor.memory_history) == 12
    assert monitor.should_adjust_config() == (issue is not None, issue)


def test_every_issue_has_a_suggestion(make: Any) -> None:
    monitor = AdaptiveTrainingMonitor(make())
    known = {
        monitor.get_adjustment_suggestion(i) for i in ("convergence_stall", "memory_pressure", "not_finite")
    }
    assert len(known) == 3
    assert monitor.get_adjustment_suggestion(None) == monitor.get_adjustment_suggestion("x") not in known


# ------------------------------------------------------------------------------- errors and rates by name


def test_quantization_quality_is_the_norm_of_the_accumulator(make: Any) -> None:
    out = io.StringIO()
    optimizer = make(steps=3)
    found = check_quantization_quality(optimizer, file=out)
    assert {"0.weight"} <= found.keys() <= {name for name in ("0.weight", "0.bias", "2.weight", "2.bias")}
    errors = [
        (i, name, float(state.error_accumulator.norm()))
        for i, states in optimizer.quantized_states.items()
        for name, state in states.items()
    ]
    names = ["0.weight", "0.bias", "2.weight", "2.bias"]
    for i, name, norm in errors:
        assert found[names[i]][name] == pytest.approx(norm, rel=1e-6)
    assert found["0.weight"]["exp_avg"] > 0
    assert out.getvalue().count("Error norm =") == len(errors)


def test_quantization_quality_without_correction_and_without_quantisation(make: Any) -> None:
    found = check_quantization_quality(make(steps=2, error_correction=False), file=io.StringIO())
    assert {v for states in found.values() for v in states.values()} == {0.0}
    out = io.StringIO()
    assert check_quantization_quality(make("Automagic_CameAMP", steps=2), file=out) == {}
    assert "no state is quantised" in out.getvalue()


def test_learning_rates_are_the_masks(make: Any) -> None:
    out = io.StringIO()
    optimizer = make(steps=9)
    found = monitor_learning_rates(optimizer, file=out)
    assert list(found) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    mask = optimizer.high_precision_states[0]["lr_mask"]
    assert found["0.weight"] == {
        "min": float(mask.min()),
        "max": float(mask.max()),
        "mean": float(mask.mean()),
    }
    assert found["0.weight"]["min"] < found["0.weight"]["max"]
    assert out.getvalue().count("LR stats: min=") == 4


def test_learning_rates_without_a_mask(make: Any) -> None:
    out = io.StringIO()
    assert monitor_learning_rates(make(steps=2, use_lr_mask=False), file=out) == {}
    assert "mean rate of each group" in out.getvalue()


def test_parameters_without_names_are_numbered(model: torch.nn.Module) -> None:
    from automagic_cameamp import Automagic_CameAMP_8Bit

    from .conftest import train

    optimizer = Automagic_CameAMP_8Bit(model.parameters(), lr=1e-3)
    train(model, optimizer, 1)
    assert list(monitor_learning_rates(optimizer, file=io.StringIO())) == [f"param_{i}" for i in range(4)]
