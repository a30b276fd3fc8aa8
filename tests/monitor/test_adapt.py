"""Precision changed in mid-run: state kept, object kept, or nothing changed at all."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import nn

from automagic_cameamp import (
    Automagic_CameAMP_8Bit,
    Automagic_CameAMP_Improved_8Bit,
    Improved8BitOptimizerConfig,
    Optimizer8BitConfig,
)
from automagic_cameamp.monitor import (
    AdaptiveOptimizer,
    adapt,
    change_precision,
    progressive_quantization_training,
)
from automagic_cameamp.monitor.adapt import class_for

from .conftest import loss_of, network, train

PROFILE = {"lr": 1e-3, "max_lr": 1e-2, "warmup_steps": 20}


def momentum(optimizer: Any) -> list[torch.Tensor]:
    """First moments in fp32, whatever they are stored as."""
    found = []
    for i, p in enumerate(p for g in optimizer.param_groups for p in g["params"]):
        coded = optimizer.quantized_states[i]
        found.append(coded["exp_avg"].dequantize() if "exp_avg" in coded else optimizer.state[p]["exp_avg"])
    return [m.clone() for m in found]


def row_moments(optimizer: Any) -> list[torch.Tensor]:
    """Row means of the second moment, in fp32, however they are held."""
    states = optimizer.high_precision_states
    return [states[i]["exp_avg_sq_row"] for i in states if "exp_avg_sq_row" in states[i]]


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


CHANGES = [
    ("Automagic_CameAMP_8Bit", {"quantize_states": False}, {"quantize_states": True}, 0.01),
    ("Automagic_CameAMP_8Bit", {}, {"quantize_states": False}, 1e-6),
    ("Automagic_CameAMP_8Bit", {"block_size": 512}, {"block_size": 64}, 0.01),
    ("Automagic_CameAMP_8Bit", {}, {"error_correction": False}, 0.02),
    ("Automagic_CameAMP_8Bit", {"error_correction": False}, {"error_correction": True}, 0.01),
    ("Automagic_CameAMP_8Bit", {}, {"mixed_precision": False}, 0.01),
    ("Automagic_CameAMP_Improved_8Bit", {"min_8bit_size": 10**8}, {"min_8bit_size": 256}, 0.03),
    ("Automagic_CameAMP_Improved_8Bit", {}, {"optim_bits": 32}, 1e-6),
    ("Automagic_CameAMP8bit", {"blocksize": 1024}, {"blocksize": 128}, 0.03),
]


@pytest.mark.parametrize(("name", "first", "then", "error"), CHANGES)
def test_state_is_kept(make: Any, model: nn.Module, name: str, first: Any, then: Any, error: float) -> None:
    """Steps, mask, moments go on; the momentum is the old one up to the new code's rounding."""
    optimizer = make(name, steps=12, **first)
    before, steps = momentum(optimizer), [float(s["step"]) for s in optimizer.state.values()]
    masks = [optimizer.high_precision_states[i]["lr_mask"].clone() for i in range(4)]
    second = row_moments(optimizer)
    groups = [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
    assert change_precision(optimizer, **then) is optimizer
    assert all(getattr(optimizer.config, k) == v for k, v in then.items())
    assert [float(s["step"]) for s in optimizer.state.values()] == steps
    assert [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups] == groups
    for i, mask in enumerate(masks):
        assert torch.equal(optimizer.high_precision_states[i]["lr_mask"], mask)
    for old, new in zip(before, momentum(optimizer), strict=True):
        assert relative(new, old) <= error
    now = row_moments(optimizer)
    assert len(now) == len(second) > 0
    for old, new in zip(second, now, strict=True):
        assert relative(new, old) <= 0.005  # bf16 at the least
    train(model, optimizer, 3, start=12)
    assert optimizer.health()["skipped_updates"] == 0


def test_the_run_goes_on_as_if_nothing_happened(make: Any, model: nn.Module) -> None:
    """From 8 bits to 32, and compared with a run that starts over: the losses stay those of the run."""
    optimizer = make(steps=30)
    twin = network()
    other = Automagic_CameAMP_8Bit(twin.named_parameters(), **vars(optimizer.config))
    train(twin, other, 30)
    change_precision(optimizer, quantize_states=False)
    changed, unchanged = train(model, optimizer, 30, start=30), train(twin, other, 30, start=30)
    assert changed == pytest.approx(unchanged, rel=5e-3)
    assert changed != unchanged


def test_memory_follows(make: Any) -> None:
    optimizer = make(steps=3, quantize_states=False)
    exact = optimizer.get_memory_stats()["bytes_per_parameter"]
    change_precision(optimizer, quantize_states=True, error_correction=False)
    assert optimizer.get_memory_stats()["bytes_per_parameter"] < 0.6 * exact
    assert optimizer.get_memory_efficiency_report()["8bit_parameters"] > 0


def test_a_scheduler_stays_attached(make: Any, model: nn.Module) -> None:
    optimizer = make(steps=2)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    train(model, optimizer, 1)
    scheduler.step()
    change_precision(optimizer, block_size=64)
    train(model, optimizer, 1)
    scheduler.step()
    assert scheduler.get_last_lr() == [2.5e-4] == [g["lr"] for g in optimizer.param_groups]


def test_group_options_change_in_every_group(model: nn.Module) -> None:
    groups = [{"params": [p], "lr": 1e-3} for p in model.parameters()]
    groups[1]["edge_penalty"] = 0.5
    optimizer = Automagic_CameAMP_Improved_8Bit(groups, **PROFILE, min_8bit_size=256)
    train(model, optimizer, 2)
    change_precision(optimizer, profile="quality_optimized", min_8bit_size=10**8, verbose=False)
    assert [g["edge_penalty"] for g in optimizer.param_groups] == [0.15] * 4
    assert optimizer.config.min_8bit_size == 10**8 and optimizer.config.profile == "quality_optimized"
    assert optimizer.get_memory_efficiency_report()["8bit_parameters"] == 0
    train(model, optimizer, 2)


def test_memory_optimized_in_mid_run(make: Any, model: nn.Module) -> None:
    """Regularisers off, mask per row: fields go, and the run goes on."""
    optimizer = make("Automagic_CameAMP_Improved_8Bit", steps=5)
    before = optimizer.get_memory_stats()["bytes_per_parameter"]
    change_precision(optimizer, profile="memory_optimized")
    assert optimizer.get_memory_stats()["bytes_per_parameter"] < before
    assert {float(s["step"]) for s in optimizer.state.values()} == {5.0}
    train(model, optimizer, 3)


def test_the_controller_goes_on(make: Any, model: nn.Module) -> None:
    optimizer = make("Automagic_CameAMP_COptim8bit", steps=6, blocksize=1024)
    before = copy.deepcopy(optimizer.state_dict())
    change_precision(optimizer, blocksize=128)
    after = optimizer.state_dict()
    extra = {k for k in before if k not in ("state", "param_groups")}
    assert "c_optim" in extra
    for key in extra:
        assert str(after[key]) == str(before[key])
    train(model, optimizer, 2, start=6)


def test_no_change_touches_nothing(make: Any) -> None:
    optimizer = make(steps=2)
    before = {id(v) for s in optimizer.state.values() for v in s.values()}
    change_precision(optimizer, block_size=optimizer.config.block_size)
    assert {id(v) for s in optimizer.state.values() for v in s.values()} == before


def test_before_the_first_step(make: Any, model: nn.Module) -> None:
    optimizer = make()
    change_precision(optimizer, quantize_states=False)
    train(model, optimizer, 1)
    assert optimizer.get_memory_stats()["quantized_params"] == 0


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"lr": 1e-3}, ValueError, "lr is not allowed"),
        ({"block_sise": 64}, TypeError, "Did you mean 'block_size'"),
        ({"block_size": 100}, ValueError, "block_size=100 is not allowed"),
        ({"profile": "Balanced"}, ValueError, "profile='Balanced' is not allowed"),
        ({"min_block_size": 2048}, ValueError, "must not exceed max_block_size"),
    ],
)
def test_on_a_mistake_nothing_changes(make: Any, options: Any, error: type[Exception], message: str) -> None:
    optimizer = make(steps=2)
    config, state = copy.deepcopy(optimizer.config), copy.deepcopy(optimizer.state_dict())
    with pytest.raises(error, match=message):
        change_precision(optimizer, **options)
    assert optimizer.config == config
    assert all(
        torch.equal(a, b)
        for old, new in zip(state["state"].values(), optimizer.state_dict()["state"].values(), strict=True)
        for a, b in zip(old.values(), new.values(), strict=True)
    )


def test_a_state_that_cannot_be_loaded_changes_nothing(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    optimizer = make(steps=2)
    config = optimizer.config

    def refuse(state: Any) -> None:
        raise RuntimeError("no")

    monkeypatch.setattr(optimizer, "load_state_dict", refuse)
    with pytest.raises(RuntimeError, match="no"):
        change_precision(optimizer, block_size=64)
    assert optimizer.config is config


# ------------------------------------------------------------------------------------- AdaptiveOptimizer


def run(adaptive: AdaptiveOptimizer, p: nn.Parameter, losses: list[float]) -> None:
    """Losses of these values, whatever the parameter does."""
    for value in losses:
        loss = p.sum() * 0 + (p * 1e-3).square().sum()
        adaptive.step_with_adaptation(loss - loss.detach() + value)


def parameter() -> nn.Parameter:
    return nn.Parameter(torch.linspace(-1, 1, 64 * 64).reshape(64, 64))


@pytest.mark.parametrize(
    ("losses", "blocks"),
    [
        ([1.0] * 100 + [2.0] * 100, 256),  # worse: half the block
        ([1.0] * 100 + [1.05] * 100, 512),  # within a tenth
        ([2.0] * 100 + [1.0] * 100, 512),
        ([1.0] * 199, 512),  # nothing to compare with yet
        ([1.0] * 100 + [2.0] * 100 + [4.0] * 100, 128),
        ([1.0] * 100 + [2.0] * 100 + [4.0] * 100 + [8.0] * 100, 128),  # not below 128
        ([-2.0] * 100 + [-1.0] * 100, 256),  # below 0, and rising is worse
        ([-1.0] * 100 + [-2.0] * 100, 512),
        ([0.0] * 200, 512),
    ],
)
def test_blocks_shrink_when_the_loss_gets_worse(
    monkeypatch: pytest.MonkeyPatch, losses: list[float], blocks: int
) -> None:
    monkeypatch.setattr(adapt, "WINDOW", 10)  # the shape of these curves, a tenth of the steps
    losses = losses[::10] if len(losses) % 10 == 0 else losses[:19]
    out, p = io.StringIO(), parameter()
    config = Optimizer8BitConfig(lr=1e-4, block_size=512)
    adaptive = AdaptiveOptimizer([p], config, file=out)
    optimizer = adaptive.optimizer
    run(adaptive, p, losses)
    assert adaptive.performance_history == pytest.approx(losses, abs=1e-6)
    assert config.block_size == adaptive.optimizer.config.block_size == blocks
    assert adaptive.optimizer is optimizer
    assert (
        optimizer.quantized_states[0]["exp_avg"].block_size == blocks
    )  # the live state, not only the config
    assert float(optimizer.state[p]["step"]) == len(losses)
    assert out.getvalue().count("block_size is now") == {512: 0, 256: 1, 128: 2}[blocks]


def test_the_window_is_100_steps() -> None:
    p = parameter()
    adaptive = AdaptiveOptimizer([p], Optimizer8BitConfig(lr=1e-4, block_size=512), file=io.StringIO())
    run(adaptive, p, [1.0] * 100 + [2.0] * 99)
    assert adaptive.optimizer.config.block_size == 512
    run(adaptive, p, [2.0])
    assert adaptive.optimizer.config.block_size == 256


def test_a_config_without_blocks_raises_the_size() -> None:
    p = parameter()
    config = Improved8BitOptimizerConfig(lr=1e-4, min_8bit_size=2048)
    adaptive = AdaptiveOptimizer((q for q in [p]), config, file=io.StringIO())
    assert isinstance(adaptive.optimizer, Automagic_CameAMP_Improved_8Bit)
    run(adaptive, p, [1.0] * 100 + [2.0] * 100)
    assert adaptive.base_config.min_8bit_size == adaptive.optimizer.config.min_8bit_size == 4096


def test_class_for_refuses_what_is_no_config() -> None:
    with pytest.raises(TypeError, match="config=dict is not allowed"):
        class_for({})


# ------------------------------------------------------------------------- progressive quantisation


def epochs(name: str, total: int, **options: Any) -> tuple[list[dict[str, Any]], Any, str]:
    """One row per epoch: what the optimizer was and held."""
    model, rows, out = network(), [], io.StringIO()

    def train_epoch(m: nn.Module, optimizer: Any, dataloader: Any) -> None:
        for salt in dataloader:
            optimizer.zero_grad()
            loss_of(m, salt).backward()
            optimizer.step()
        rows.append(
            {
                "object": id(optimizer),
                "step": float(optimizer.state[next(m.parameters())]["step"]),
                "clock": optimizer.param_groups[0]["clock"],
                "8bit": optimizer.get_memory_efficiency_report()["8bit_parameters"],
                "size": getattr(optimizer.config, "min_8bit_size", None),
                "config": copy.copy(optimizer.config),
            }
        )

    final = progressive_quantization_training(
        model, range(5), total, train_epoch=train_epoch, optimizer=name, file=out, **PROFILE, **options
    )
    return rows, final, out.getvalue()


def test_plan_of_the_8bit_class() -> None:
    rows, final, said = epochs("Automagic_CameAMP_8Bit", 8)
    assert len({row["object"] for row in rows}) == 1 and rows[0]["object"] == id(final)
    assert [row["step"] for row in rows] == [5.0 * (i + 1) for i in range(8)] == [r["clock"] for r in rows]
    assert [row["8bit"] > 0 for row in rows] == [False] * 2 + [True] * 6
    last = rows[-1]["config"]
    assert (last.quantize_states, last.error_correction, last.block_size) == (True, True, 128)
    assert last.warmup_steps == 20 and final.param_groups[0]["lr"] == 1e-3
    assert said.splitlines() == ["Stage 1: 32-bit state (2 epochs)", "Stage 2: 8-bit state (6 epochs)"]


def test_plan_of_the_improved_class() -> None:
    rows, _, said = epochs("Automagic_CameAMP_Improved_8Bit", 10, verbose=False)
    assert [row["step"] for row in rows] == [5.0 * (i + 1) for i in range(10)]
    assert [row["size"] for row in rows] == [
        *[99_999_999] * 2,
        8192,
        7168,
        6144,
        5120,
        4096,
        3072,
        *[1024] * 2,
    ]
    assert [row["8bit"] for row in rows][:3] == [0, 0, 0] and rows[-1]["8bit"] >= 64 * 96
    profiles = [row["config"].profile for row in rows]
    assert profiles == ["quality_optimized"] * 2 + ["balanced"] * 6 + ["memory_optimized"] * 2
    assert rows[0]["config"].edge_penalty == 0.15 and rows[-1]["config"].edge_suppression is False
    assert not any(row["config"].verbose for row in rows)  # the caller's option holds in every stage
    assert said.count("Stage") == 3


@pytest.mark.parametrize("total", [0, 1, 2, 3, 4, 5, 7])
@pytest.mark.parametrize("name", ["Automagic_CameAMP_8Bit", "Automagic_CameAMP_Improved_8Bit"])
def test_every_number_of_epochs(name: str, total: int) -> None:
    rows, final, _ = epochs(name, total)
    assert len(rows) == total and type(final).__name__ == name


def test_loss_fn_instead_of_train_epoch() -> None:
    model = network()
    before = float(loss_of(model).detach())
    optimizer = progressive_quantization_training(
        model, range(10), 4, loss_fn=loss_of, file=io.StringIO(), **PROFILE
    )
    assert float(loss_of(model).detach()) < before and optimizer.param_groups[0]["clock"] == 40


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "pass it or loss_fn"),
        ({"train_epoch": print, "loss_fn": print}, "one of the two"),
        ({"loss_fn": print, "optimizer": "AdamW"}, "optimizer='AdamW' is not allowed"),
    ],
)
def test_progressive_refuses(options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        progressive_quantization_training(network(), [], 4, **options)
    with pytest.raises(ValueError, match="total_epochs=-1"):
        progressive_quantization_training(network(), [], -1, loss_fn=loss_of)
