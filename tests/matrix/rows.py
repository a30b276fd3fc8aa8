"""Every option off its default: with what value, beside which others, and what then shows that it acts."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import torch

from automagic_cameamp import OPTIMIZERS

SHAPES: list[tuple[int, ...]] = [(12, 300), (40, 24), (300,), (7,), (8, 4, 3, 3), ()]
# One class per recipe, with all its options; and classes for the options that they alone have.
FIRST = ("Automagic_CameAMP8bit", "Automagic_CameAMP_COptim8bit", "Automagic_CameAMP_Improved")
REST = ("Automagic_CameAMP_8Bit", "Automagic_CameAMP_Improved_8Bit")
BF16 = torch.bfloat16


class Row(NamedTuple):
    """How an option shows.

    Args:
        value: off its default.
        beside: options of both runs, with and without it.
        dtype: of the weights.
        native: whether the kernels take it for a matrix; where not, the reference steps in their stead.
        shows: "numbers" in weights or state; else what another test looks at.
        scheduled: the rate that a scheduler sets after the first step.
        sharded: why it does nothing for sharded parameters, or "refused"; docs/training.md has the table.
    """

    value: Any
    beside: dict[str, Any] = {}
    dtype: torch.dtype = torch.float32
    native: bool = True
    shows: str = "numbers"
    scheduled: float | None = None
    sharded: str = ""


class Strategy:
    """Quantises nothing but the largest, in small blocks."""

    def should_quantize(self, name: str, shape: torch.Size, kind: torch.dtype) -> bool:
        return shape.numel() > 1000

    def get_block_size(self, shape: torch.Size) -> int:
        return 64


NEIGHBOURS = "left out for them"
SEARCH = {"sync_frequency": 2, "rank_keep": 3}
ADAPT = {"adaptive_block_size": True, "min_block_size": 32}
EVERY = {"min_8bit_size": 0}
ROWS: dict[str, Row] = {
    "lr": Row(3e-3),
    "min_lr": Row(9e-4),
    "max_lr": Row(1.02e-3),
    "lr_bump": Row(1e-4, {"lr_mask_rule": "additive"}, native=False),
    "eps": Row((1e-8, 1e-8, 1e-3)),
    "clip_threshold": Row(0.2),
    "betas": Row((0.3, 0.9, 0.95)),
    "beta1_decay": Row(0.5),
    "beta1_follows_lr": Row(True, {"beta1_decay": 0.5}),
    "eta": Row(0.5),
    "weight_decay": Row(0.9),
    "warmup_steps": Row(3),
    "came": Row(False, native=False),
    "full_finetune": Row(True),
    "verbose": Row(True, shows="a log"),
    "factored": Row(False, native=False),
    "confidence_1d": Row(True),
    "final_clip": Row(0.3),
    "use_agr": Row(True, native=False),
    "use_tam": Row(False),
    "use_grams": Row(False),
    "use_orthograd": Row(True, native=False),
    "use_lr_mask": Row(False),
    "tam_granularity": Row("row", native=False),
    "hard_min_lr": Row(True, {"min_lr": 5e-4}, scheduled=1e-4),
    "lr_mask_rule": Row("additive", native=False),
    "lr_mask_granularity": Row("row", sharded="refused"),
    "lr_level": Row("distance", native=False, sharded="refused"),
    "weight_decay_phase": Row("always", {"weight_decay": 0.9}),
    "stochastic_rounding": Row(False, dtype=BF16),
    "master_weight_bits": Row(24, dtype=BF16),
    "seed": Row(1, dtype=BF16),
    "engine": Row("native", shows="who steps"),
    "offload": Row("cpu", shows="the host"),
    "blocksize": Row(64),
    "state_code": Row("softsign"),
    "context_window": Row(5),
    "edge_case_threshold": Row(0.3, {"context_window": 2}),
    "adaptation_rate": Row(0.9),
    "context_lr_bounds": Row((0.999, 1.001)),
    "momentum_scales": Row([2, 7]),
    "edge_suppression": Row(False, sharded=NEIGHBOURS),
    "edge_penalty": Row(1.0, sharded=NEIGHBOURS),
    "edge_threshold": Row(0.3, sharded=NEIGHBOURS),
    "background_regularization": Row(False),
    "spatial_awareness": Row(False),
    "detail_preservation": Row(0.1),
    "frequency_penalty": Row(0.7, sharded=NEIGHBOURS),
    "lora_rank_penalty": Row(False, sharded=NEIGHBOURS),
    "rank_penalty_strength": Row(1.0, SEARCH, sharded=NEIGHBOURS),
    "low_rank_emphasis": Row(3.0, sharded=NEIGHBOURS),
    "rank_keep": Row(3, sharded=NEIGHBOURS),
    "d_coef": Row(5),
    "spatial_mode": Row("conv", sharded=NEIGHBOURS),
    "use_cautious": Row(False, {"beta1_decay": 0.5}),
    "use_spd": Row(False, {"weight_decay": 0.9}),
    "sync_frequency": Row(2, sharded=NEIGHBOURS),
    "quantize_states": Row(False),
    "error_correction": Row(False),
    "error_bits": Row(8),
    "block_size": Row(64),
    "mixed_precision": Row(False, sharded="vectors are held in fp32"),
    "adaptive_block_size": Row(True),
    "min_block_size": Row(512, {"adaptive_block_size": True}),
    "max_block_size": Row(64, ADAPT),
    "quantization_strategy": Row(Strategy()),
    "optim_bits": Row(4, EVERY),
    "min_8bit_size": Row(1000),
    "force_8bit": Row(True, EVERY),
    "percentile_clipping": Row(50, native=False),
    "block_wise": Row(False, EVERY),
    "stable_emb": Row(True, EVERY),
    "profile": Row("memory_optimized", sharded="refused"),
}


def options_of(name: str) -> list[str]:
    config: Any = OPTIMIZERS[name].config_class
    return [f.name for f in dataclasses.fields(config)]


def cases() -> list[tuple[str, str]]:
    """(class, option): every option in every recipe that has it, and in the class that alone has it."""
    found = [(name, option) for name in FIRST for option in options_of(name)]
    seen = {option for _, option in found}
    return found + [(name, option) for name in REST for option in options_of(name) if option not in seen]


def off_default(option: str, default: Any, row: Row) -> bool:
    before = row.beside.get(option, default)
    return not (row.value == before or (row.value != row.value and math.isnan(before)))
