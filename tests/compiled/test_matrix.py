"""Every class, code, type and option through the tracer: one graph per stack, and the reference's very bits.

The graph is run as it was traced, so nothing may differ at all; what a compiler makes of it is looked at in
test_inductor.py, of every row here with ``pytest -m slow``.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from automagic_cameamp import ContextualConfig
from automagic_cameamp.executors import compiled
from automagic_cameamp.state import counts
from automagic_cameamp.types import Phase
from matrix.rows import ROWS, Strategy, cases
from native import lockstep
from native.test_lockstep import CLASSES

SHAPES: list[tuple[int, ...]] = [(24, 40), (24, 40), (7,)]
BEFORE = 3
BASE, IMPROVED, CONTEXTUAL = (
    "Automagic_CameAMP",
    "Automagic_CameAMP_Improved",
    "Automagic_CameAMP_COptim",
)
AFFINE = "Automagic_CameAMP_8Bit"
# Several in one row, where none of them hides another: a trace costs seconds.
OPTIONS: list[tuple[str, dict[str, Any]]] = [
    (BASE, {"came": False, "use_agr": True, "lr_level": "vote"}),
    (
        BASE,
        {
            "factored": False,
            "confidence_1d": True,
            "tam_granularity": "row",
            "use_orthograd": True,
            "lr_mask_granularity": "row",
        },
    ),
    (
        BASE,
        {
            "use_tam": False,
            "use_grams": False,
            "use_lr_mask": False,
            "full_finetune": True,
            "lr_level": "distance",
        },
    ),
    # In fp32 as in Python: a rate is a tensor in a graph, and the bounds are divided by it.
    (
        BASE,
        {
            "lr": 2.0**-10,
            "min_lr": 15 * 2.0**-14,
            "max_lr": 17 * 2.0**-14,
            "lr_mask_granularity": "tensor",
            "betas": (0.5, 0.9, 0.95),
            "beta1_decay": 0.9,
        },
    ),
    (
        BASE,
        {
            "weight_decay_phase": "always",
            "weight_decay": 0.3,
            "hard_min_lr": True,
            "clip_threshold": float("inf"),
            "final_clip": 0.1,
            "eps": (1e-20, 1e-10, 1e-4),
            "eta": 1.0,
        },
    ),
    (BASE, {"lr_mask_rule": "additive", "lr_bump": 1e-4, "lr_mask_granularity": "group"}),
    (BASE, {"lr_level": "auto"}),
    (CONTEXTUAL, {"momentum_scales": None}),
    (CONTEXTUAL, {"momentum_scales": [2, 7], "came": False}),
    (IMPROVED, {"use_cautious": False, "use_spd": False, "spatial_mode": "conv", "d_coef": 1}),
    (
        IMPROVED,
        {
            "edge_suppression": False,
            "background_regularization": False,
            "spatial_awareness": False,
            "frequency_penalty": 0.0,
            "lora_rank_penalty": False,
        },
    ),
    (
        IMPROVED,
        {
            "edge_penalty": 0.5,
            "edge_threshold": 0.3,
            "detail_preservation": 0.3,
            "rank_keep": 3,
            "rank_penalty_strength": 0.1,
            "low_rank_emphasis": 2.0,
            "weight_decay": 0.5,
        },
    ),
    (AFFINE, {"adaptive_block_size": True, "min_block_size": 512, "max_block_size": 2048}),
    (AFFINE, {"quantization_strategy": Strategy()}),
    (AFFINE, {"block_size": 64, "quantize_states": False}),
    ("Automagic_CameAMP_Improved_8Bit", {"percentile_clipping": 50, "block_wise": False, "min_8bit_size": 0}),
    ("Automagic_CameAMP_Improved_8Bit", {"optim_bits": 4, "force_8bit": True, "min_8bit_size": 0}),
    ("Automagic_CameAMP_Improved_8Bit", {"stable_emb": True, "min_8bit_size": 0}),
    ("Automagic_CameAMP_Improved_8Bit", {"profile": "minimal", "verbose": False}),
    ("Automagic_CameAMP8bit", {"state_code": "softsign4"}),
]
# In tests of phases and types; and what a graph does not see: options of the host, its inputs, the
# controller's.
APART = {"warmup_steps", "master_weight_bits", "stochastic_rounding", "engine", "offload", "seed", "verbose"}
APART |= set(ContextualConfig.CONTROLLER_OPTIONS)
NAMED = {option for _, given in [*OPTIONS, *CLASSES.values()] for option in given}
# An option that has no row here gets one with its value of the matrix.
OPTIONS += [
    (name, {**ROWS[option].beside, option: ROWS[option].value})
    for name, option in cases()
    if option not in NAMED | APART
]


def traced(
    name: str,
    dtype: torch.dtype,
    options: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    phase: Phase | None,
) -> None:
    """One step from the same state, by the reference and by the traced graph: the same bits."""
    monkeypatch.setattr(torch, "compile", lambda traced, **_: traced)
    if phase is not None:
        monkeypatch.setattr(counts.Phases, "of", lambda self, states, warmup: phase)
    (reference, params), (other, others) = lockstep.twin(name, SHAPES, dtype, BEFORE, "compiled", **options)
    for optimizer, own in ((reference, params), (other, others)):
        lockstep.take(optimizer, own, BEFORE)
    graphs = compiled.COMPILED.graphs.values()
    assert len(graphs) == 2 and all(graph.call is not None for graph in graphs)
    for p, q in zip(params, others, strict=True):
        assert torch.equal(p, q)
        for key, value in reference.state[p].items():
            assert torch.equal(value, other.state[q][key]), key


@pytest.mark.parametrize("kind", CLASSES)
def test_every_class_and_code(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a phase that only the device knows, so the graph holds all of them."""
    name, options = CLASSES[kind]
    traced(name, torch.float32, {"warmup_steps": 6, **options}, monkeypatch, Phase.MIXED)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *((BASE, dtype) for dtype in (torch.bfloat16, torch.float16, torch.float64)),
        ("Automagic_CameAMP8bit", torch.bfloat16),
        ("Automagic_CameAMP8bit", torch.float64),
        ("Automagic_CameAMP_8Bit", torch.bfloat16),
        ("Automagic_CameAMP_8Bit", torch.float16),
    ],
)
def test_every_type(name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = {"master_weight_bits": 24} if dtype == torch.bfloat16 else {"stochastic_rounding": False}
    traced(name, dtype, {"warmup_steps": 2, **kept}, monkeypatch, None)


@pytest.mark.parametrize("name, options", OPTIONS, ids=lambda x: str(x)[:60])
def test_every_option(name: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    traced(name, torch.float32, {"warmup_steps": 6, **options}, monkeypatch, Phase.MIXED)


@pytest.mark.parametrize("phase", ["early", "middle", "late"])
def test_every_phase(phase: str, monkeypatch: pytest.MonkeyPatch) -> None:
    traced(
        BASE,
        torch.float32,
        {"warmup_steps": {"early": 100, "middle": 6, "late": 2}[phase]},
        monkeypatch,
        None,
    )
