"""Named sets of options for ``Automagic_CameAMP_Improved_8Bit``. They never set a learning rate."""

from __future__ import annotations

from typing import Any

from .configs import Improved8BitOptimizerConfig

PROFILES: dict[str, dict[str, Any]] = {
    "memory_optimized": {
        "force_8bit": True,
        "min_8bit_size": 1024,
        "edge_suppression": False,
        "spatial_awareness": False,
        "background_regularization": False,
        "frequency_penalty": 0.0,
        "lora_rank_penalty": False,
        # One counter per row and one bit per element instead of a byte: 25% of Adam needs it.
        "lr_mask_granularity": "row",
        "verbose": False,
    },
    # Ours, not the documents': four bits of momentum and one mask counter per row.
    "minimal": {
        "optim_bits": 4,
        "min_8bit_size": 1024,
        "edge_suppression": False,
        "spatial_awareness": False,
        "background_regularization": False,
        "frequency_penalty": 0.0,
        "lora_rank_penalty": False,
        "lr_mask_granularity": "row",
        "verbose": False,
    },
    "quality_optimized": {
        "edge_suppression": True,
        "edge_penalty": 0.15,
        "background_regularization": True,
        "spatial_awareness": True,
        "lora_rank_penalty": True,
        "frequency_penalty": 0.08,
        "rank_penalty_strength": 0.02,
        "verbose": True,
    },
    "balanced": {
        "min_8bit_size": 4096,
        "edge_suppression": True,
        "edge_penalty": 0.1,
        "background_regularization": True,
        "spatial_awareness": True,
        "lora_rank_penalty": True,
        "frequency_penalty": 0.05,
        "verbose": True,
    },
}


class OptimizationProfiles:
    """Fresh configs of the profiles, free to be changed before use."""

    @staticmethod
    def memory_optimized() -> Improved8BitOptimizerConfig:
        """Least memory: eight bits from 1,024 elements on, no regularisers."""
        return Improved8BitOptimizerConfig(**PROFILES["memory_optimized"])

    @staticmethod
    def minimal() -> Improved8BitOptimizerConfig:
        """Less than that: four bits of momentum, at most 8% of Adam's state; noisier updates."""
        return Improved8BitOptimizerConfig(**PROFILES["minimal"])

    @staticmethod
    def quality_optimized() -> Improved8BitOptimizerConfig:
        """All regularisers, stronger."""
        return Improved8BitOptimizerConfig(**PROFILES["quality_optimized"])

    @staticmethod
    def balanced() -> Improved8BitOptimizerConfig:
        """All regularisers at their default strength."""
        return Improved8BitOptimizerConfig(**PROFILES["balanced"])
