"""Configurations by GPU memory, by model size, per tensor."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from automagic_cameamp import (
    Automagic_CameAMP_8Bit,
    Automagic_CameAMP_Improved_8Bit,
    Improved8BitOptimizerConfig,
    OptimizationProfiles,
    Optimizer8BitConfig,
    OptimizerConfig,
)
from automagic_cameamp.monitor import (
    CustomQuantizationStrategy,
    adjust_config_for_model_size,
    get_adaptive_config,
    get_hardware_optimized_config,
    get_recommended_config,
)

from .conftest import loss_of, network


def parameters() -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(torch.zeros(4, 4))]


@pytest.mark.parametrize(
    ("gpu", "correction", "block", "edges", "verbose"),
    [
        (0, False, 512, False, False),
        (7.9, False, 512, False, False),
        (8, True, 256, True, False),
        (15.9, True, 256, True, False),
        (16, True, 128, True, True),
        (80, True, 128, True, True),
    ],
)
def test_recommended(gpu: float, correction: bool, block: int, edges: bool, verbose: bool) -> None:
    config = get_recommended_config(gpu)
    assert config.quantize_states and config.error_correction is correction and config.block_size == block
    assert config.edge_suppression is edges and config.spatial_awareness is edges
    assert config.verbose is verbose
    Automagic_CameAMP_8Bit(parameters(), **config.__dict__)


@pytest.mark.parametrize("gpu", [-1, float("nan"), "12GB", 12_000, True])
def test_recommended_refuses(gpu: Any) -> None:
    for ask in (get_recommended_config, get_adaptive_config, get_hardware_optimized_config):
        with pytest.raises(ValueError, match=r"gpu_memory_gb=.* a number in \[0, 4096\]"):
            ask(gpu)
    assert get_adaptive_config("12") == get_adaptive_config(12)  # type: ignore[arg-type]  # from a command line


@pytest.mark.parametrize(
    ("total", "block", "correction"),
    [
        (9_999_999, 128, True),
        (10_000_000, 256, True),
        (99_999_999, 256, True),
        (100_000_000, 512, False),
    ],
)
def test_by_model_size(total: int, block: int, correction: bool) -> None:
    config = Optimizer8BitConfig(block_size=64)
    parts = (torch.empty(total - 5, device="meta"), torch.empty(5, device="meta"))
    assert adjust_config_for_model_size(config, (p for p in parts)) is config
    assert (config.block_size, config.error_correction) == (block, correction)
    Automagic_CameAMP_8Bit(parameters(), **config.__dict__)


@pytest.mark.parametrize("config", [OptimizerConfig(), Improved8BitOptimizerConfig()])
def test_by_model_size_refuses_a_config_without_blocks(config: Any) -> None:
    before = dict(vars(config))
    with pytest.raises(TypeError, match="has no block_size"):
        adjust_config_for_model_size(config, parameters())
    assert vars(config) == before  # or Cls(params, **config.__dict__) would fail later


def cuda(monkeypatch: pytest.MonkeyPatch, gigabytes: float, major: int = 8) -> None:
    properties = SimpleNamespace(total_memory=int(gigabytes * 2**30), major=major)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)


@pytest.mark.parametrize(
    ("gpu", "profile"),
    [
        (7.9, "memory_optimized"),
        (8, "balanced"),
        (15.9, "balanced"),
        (16, "quality_optimized"),
    ],
)
def test_adaptive(monkeypatch: pytest.MonkeyPatch, gpu: float, profile: str) -> None:
    wanted = getattr(OptimizationProfiles, profile)()
    assert get_adaptive_config(gpu) == wanted
    cuda(monkeypatch, gpu)
    assert get_adaptive_config() == wanted
    Automagic_CameAMP_Improved_8Bit(parameters(), **wanted.__dict__)


@pytest.mark.parametrize(
    ("gpu", "major", "profile", "size"),
    [
        (5.9, 8, "memory_optimized", 2048),
        (24, 6, "memory_optimized", 2048),  # old, whatever its memory
        (6, 7, "balanced", 4096),
        (11.9, 9, "balanced", 4096),
        (12, 8, "quality_optimized", 8192),
    ],
)
def test_by_hardware(
    monkeypatch: pytest.MonkeyPatch, gpu: float, major: int, profile: str, size: int
) -> None:
    wanted = getattr(OptimizationProfiles, profile)()
    wanted.min_8bit_size = size
    assert get_hardware_optimized_config(gpu, major) == wanted
    cuda(monkeypatch, gpu, major)
    assert get_hardware_optimized_config() == wanted
    if major >= 7:
        assert get_hardware_optimized_config(gpu) == wanted


@pytest.mark.parametrize("choose", [get_adaptive_config, get_hardware_optimized_config])
def test_without_a_gpu_the_state_is_32_bit(monkeypatch: pytest.MonkeyPatch, choose: Any) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    config, model = choose(), network()
    optimizer = Automagic_CameAMP_Improved_8Bit(model.parameters(), **config.__dict__)
    loss_of(model).backward()
    optimizer.step()
    assert optimizer.get_memory_efficiency_report()["8bit_parameters"] == 0


def test_strategy_decides_per_parameter() -> None:
    strategy = CustomQuantizationStrategy
    for shape, quantised, block in [
        ((100, 100), False, 128),
        ((101, 100), True, 128),
        ((1000, 101), True, 256),
        ((1001, 1000), True, 512),
        ((), False, 128),
    ]:
        assert strategy.should_quantize("any", torch.Size(shape), torch.float32) is quantised
        assert strategy.get_block_size(shape) == block
    big, small = torch.nn.Parameter(torch.ones(128, 128)), torch.nn.Parameter(torch.ones(64, 64))
    optimizer = Automagic_CameAMP_8Bit([big, small], lr=1e-3, quantization_strategy=strategy)
    (big.square().sum() + small.square().sum()).backward()
    optimizer.step()
    assert optimizer.get_memory_stats()["quantized_params"] == big.numel()
