"""Configurations by GPU memory, by model size, and per tensor."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from automagic_cameamp import Improved8BitOptimizerConfig, OptimizationProfiles, Optimizer8BitConfig

C = TypeVar("C")
NEVER = 99_999_999  # a min_8bit_size that no tensor reaches
GB = 2**30
LARGEST = 4096  # GB; what is larger was meant in MB


class Hardware(NamedTuple):
    """Memory in GiB, and the first number of the compute capability."""

    memory: float
    capability: int


def _memory(gigabytes: float) -> float:
    """The memory that somebody names, as a number; who names megabytes is told."""
    try:
        found = math.nan if isinstance(gigabytes, bool) else float(gigabytes)
    except (TypeError, ValueError):
        found = math.nan
    if not 0 <= found <= LARGEST:
        raise ValueError(f"gpu_memory_gb={gigabytes!r} is not allowed: a number in [0, {LARGEST}].")
    return found


def get_recommended_config(gpu_memory_gb: float) -> Optimizer8BitConfig:
    """A config of ``Automagic_CameAMP_8Bit`` for a GPU of that memory: below 8 GB, below 16 GB, above."""
    gpu_memory_gb = _memory(gpu_memory_gb)
    if gpu_memory_gb < 8:
        return Optimizer8BitConfig(
            error_correction=False, block_size=512, edge_suppression=False, spatial_awareness=False
        )
    if gpu_memory_gb < 16:
        return Optimizer8BitConfig(error_correction=True, block_size=256)
    return Optimizer8BitConfig(error_correction=True, block_size=128, verbose=True)


def adjust_config_for_model_size(config: C, model_params: Iterable[Tensor]) -> C:
    """Set block size and error correction by the number of parameters: below 10 M, below 100 M, above.

    Args:
        config: an ``Optimizer8BitConfig``; it is changed and returned.
        model_params: the parameters; they are only counted.
    """
    settings: Any = config
    if not hasattr(settings, "block_size") or not hasattr(settings, "error_correction"):
        kind = type(config).__name__
        raise TypeError(f"config={kind} is not allowed: it has no block_size; pass an Optimizer8BitConfig")
    total = sum(p.numel() for p in model_params)
    settings.block_size = 128 if total < 10_000_000 else 256 if total < 100_000_000 else 512
    settings.error_correction = total < 100_000_000
    return config


def get_adaptive_config(gpu_memory_gb: float | None = None) -> Improved8BitOptimizerConfig:
    """The profile for this machine's GPU: memory_optimized, balanced or quality_optimized.

    Without a GPU it is memory_optimized with 32-bit state, as the documents have it; eight-bit state works on
    a CPU too, so lower ``min_8bit_size`` if you want it.

    Args:
        gpu_memory_gb: decide for a GPU of this memory; None looks at the first one here.
    """
    gpu = _hardware() if gpu_memory_gb is None else Hardware(_memory(gpu_memory_gb), 0)
    if gpu is None:
        return _without_gpu()
    if gpu.memory < 8:
        return OptimizationProfiles.memory_optimized()
    return OptimizationProfiles.balanced() if gpu.memory < 16 else OptimizationProfiles.quality_optimized()


def get_hardware_optimized_config(
    gpu_memory_gb: float | None = None, compute_capability: int | None = None
) -> Improved8BitOptimizerConfig:
    """The profile for this machine's GPU, with ``min_8bit_size`` set: below 6 GB or old, below 12 GB, above.

    Args:
        gpu_memory_gb: decide for a GPU of this memory; None looks at the first one here.
        compute_capability: its first number, 7 or more for a GPU that is not old; None goes by the GPU here,
            or takes it for a recent one where ``gpu_memory_gb`` is given.
    """
    gpu = _hardware() if gpu_memory_gb is None else Hardware(_memory(gpu_memory_gb), 7)
    if gpu is None:
        return _without_gpu()
    capability = gpu.capability if compute_capability is None else compute_capability
    if gpu.memory < 6 or capability < 7:
        config, size = OptimizationProfiles.memory_optimized(), 2048
    elif gpu.memory < 12:
        config, size = OptimizationProfiles.balanced(), 4096
    else:
        config, size = OptimizationProfiles.quality_optimized(), 8192
    config.min_8bit_size = size
    return config


def _hardware() -> Hardware | None:
    """The first CUDA device, None without one."""
    if not torch.cuda.is_available():
        return None
    properties = torch.cuda.get_device_properties(0)
    return Hardware(properties.total_memory / GB, properties.major)


def _without_gpu() -> Improved8BitOptimizerConfig:
    config = OptimizationProfiles.memory_optimized()
    config.min_8bit_size = NEVER
    return config


class CustomQuantizationStrategy:
    """Quantise what has more than 10,000 elements, in blocks that grow with the tensor.

    Give it, or a class of your own with these two methods, to ``Automagic_CameAMP_8Bit`` as
    ``quantization_strategy``.
    """

    @staticmethod
    def should_quantize(param_name: str, param_shape: Iterable[int], param_type: torch.dtype) -> bool:
        """Whether this parameter's state is quantised."""
        return math.prod(param_shape) > 10_000

    @staticmethod
    def get_block_size(param_shape: Iterable[int]) -> int:
        """Elements that share a scale."""
        numel = math.prod(param_shape)
        return 512 if numel > 1_000_000 else 256 if numel > 100_000 else 128
