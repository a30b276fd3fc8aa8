"""Watching a run: memory, learning rates, quantisation error, health; and acting on it.

    from automagic_cameamp import monitor
    monitor.report(optimizer, "report.html")

Functions that print take ``file=``; each returns what it prints. matplotlib is imported only to draw.
"""

from __future__ import annotations

from .adapt import AdaptiveOptimizer, change_precision, progressive_quantization_training
from .benchmark import benchmark_optimizer
from .dashboard import TrainingDashboard
from .health import (
    AdaptiveTrainingMonitor,
    check_quantization_quality,
    check_training_health,
    monitor_learning_rates,
)
from .memory import MemoryMonitor, analyze_memory_usage, check_memory_leak
from .page import report
from .recommend import (
    CustomQuantizationStrategy,
    adjust_config_for_model_size,
    get_adaptive_config,
    get_hardware_optimized_config,
    get_recommended_config,
)

__all__ = [
    "AdaptiveOptimizer",
    "AdaptiveTrainingMonitor",
    "CustomQuantizationStrategy",
    "MemoryMonitor",
    "TrainingDashboard",
    "adjust_config_for_model_size",
    "analyze_memory_usage",
    "benchmark_optimizer",
    "change_precision",
    "check_memory_leak",
    "check_quantization_quality",
    "check_training_health",
    "get_adaptive_config",
    "get_hardware_optimized_config",
    "get_recommended_config",
    "monitor_learning_rates",
    "progressive_quantization_training",
    "report",
]
