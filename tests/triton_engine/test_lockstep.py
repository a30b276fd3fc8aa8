"""The Triton engine in lock-step with the reference: recipes, codes, types, shapes, phases, options."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import automagic_cameamp as A
from triton_drive import FEW, REST, SHAPES, WARMUP, By, build, differences, give, parameters, run, runner

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
BASE, BASE8 = A.Automagic_CameAMP, A.Automagic_CameAMP8bit
IMPROVED, AFFINE, BNB = (
    A.Automagic_CameAMP_Improved,
    A.Automagic_CameAMP_8Bit,
    A.Automagic_CameAMP_Improved_8Bit,
)
CONTEXT, CONTEXT8 = A.Automagic_CameAMP_COptim, A.Automagic_CameAMP_COptim8bit
QUIET = {"verbose": False}
NO_PICTURES = {"background_regularization": False, "spatial_awareness": False, "lora_rank_penalty": False}
# Blocks of 32, 1,024 (the last one short), 256, and one that holds all of its tensor; one without a code.
BLOCKS = By({(70, 20): 32, (40, 64): 1024, (33, 50): 256, (32, 36): 4096}, {(2, 25, 21)})
MIXED = [*BLOCKS.sizes, *BLOCKS.plain, (8,)]

# name -> (class, type, options). Warm-up 5: the steps below cross both of its borders.
CASES: dict[str, tuple[type, torch.dtype, dict[str, Any]]] = {
    "base": (BASE, F32, {}),
    "base bf16": (BASE, BF16, {}),
    "base fp16 to nearest": (BASE, F16, {"stochastic_rounding": False}),
    "unfactored": (
        BASE,
        F32,
        {"factored": False, "confidence_1d": True, "weight_decay_phase": "always", "hard_min_lr": True},
    ),
    "few stages": (
        BASE,
        F32,
        {"use_tam": False, "use_grams": False, "final_clip": float("inf"), "full_finetune": True},
    ),
    "no warm-up": (BASE, BF16, {"warmup_steps": 0, "stochastic_rounding": False}),
    "row mask": (BASE, F32, {"lr_mask_granularity": "row"}),
    "tensor mask": (BASE, BF16, {"lr_mask_granularity": "tensor"}),
    "dynamic": (BASE8, F32, {"blocksize": 64}),
    "softsign": (BASE8, F16, {"blocksize": 256, "state_code": "softsign"}),
    "log": (BASE8, F32, {"blocksize": 64, "factored": False}),
    "improved": (IMPROVED, F32, {"sync_frequency": 3}),
    "affine": (AFFINE, BF16, {"sync_frequency": 100}),
    "affine, fp16 vectors": (
        AFFINE,
        F32,
        {"mixed_precision": False, "error_bits": 8, "state_code": "softsign", "lora_rank_penalty": False},
    ),
    "memory_optimized, narrow": (BNB, BF16, {"profile": "memory_optimized", **QUIET}),
    "quality_optimized": (BNB, F32, {"profile": "quality_optimized", "min_8bit_size": 1000, **QUIET}),
    "24 bits": (BASE, BF16, {"master_weight_bits": 24}),
    "24 bits, fp16 to nearest": (
        BASE8,
        F16,
        {"blocksize": 64, "master_weight_bits": 24, "stochastic_rounding": False},
    ),
    "24 bits, affine, mixed blocks": (
        AFFINE,
        BF16,
        {"quantization_strategy": BLOCKS, "master_weight_bits": 24, "sync_frequency": 100},
    ),
    "softsign, mixed blocks": (
        AFFINE,
        F32,
        {"quantization_strategy": BLOCKS, "state_code": "softsign", "error_bits": 8, **NO_PICTURES},
    ),
    "log, mixed blocks": (
        AFFINE,
        F32,
        {"quantization_strategy": BLOCKS, "state_code": "dynamic", "factored": False, **NO_PICTURES},
    ),
    "minimal, narrow": (BNB, BF16, {"profile": "minimal", "min_8bit_size": 1000}),
    "context, four bits, 24": (
        CONTEXT8,
        BF16,
        {"blocksize": 64, "state_code": "softsign4", "momentum_scales": [1, 5, 10], "master_weight_bits": 24},
    ),
    "context": (CONTEXT, F32, {}),
    # The update itself has a share, and no further mean is kept.
    "context, one mean": (CONTEXT, F32, {"momentum_scales": [1, 5]}),
    "context 8 bit": (CONTEXT8, BF16, {"blocksize": 64, "momentum_scales": [1, 3, 10]}),
}


@pytest.mark.parametrize("name", CASES)
def test_same_as_the_reference(name: str) -> None:
    cls, dtype, options = CASES[name]
    shapes = SHAPES if name in ("base", "improved", "context") else MIXED if "blocks" in name else FEW
    if "narrow" in name:  # blocks of 1,024 and 256, of 64 and 256
        shapes = [(300, 14), (70, 72), (8,)]

    def loss(optimizer: Any, params: Any, t: int) -> None:
        if optimizer.controller is not None and t % 2:
            optimizer.record_loss(1.0 / t)

    ours = run(cls, "triton", WARMUP, shapes, dtype, loss, **options)
    theirs = run(cls, "reference", WARMUP, shapes, dtype, loss, **options)
    whole = runner(ours[1])
    assert whole is not None and not whole.rest, "the Triton engine did not take the step"
    assert len(whole.members) == len(shapes)
    assert (whole.runner.flags.DOUBLINGS > 0) is ("narrow" in name or "blocks" in name)
    assert whole.runner.flags.REST is (options.get("master_weight_bits") == 24)
    found = differences(parameters(shapes, dtype), theirs, ours)
    assert not found, "\n".join(found)
    assert ours[1].param_groups[0]["clock"] == WARMUP


def test_a_step_that_renews_the_basis_is_the_references() -> None:
    _, optimizer = run(IMPROVED, "triton", 3, sync_frequency=2)
    whole = runner(optimizer, renewing=True)
    assert {tuple(chunk.layout.shape) for _, chunk in whole.rest} == {(70, 20), (12, 30)}
    assert len(whole.members) + 2 == len(SHAPES)


@pytest.mark.parametrize("options", [{}, {"stochastic_rounding": False}], ids=["stochastic", "nearest"])
def test_24_bits_beside_weights_of_other_types(options: dict[str, Any]) -> None:
    shapes, dtypes = [(12, 30), (30, 12), (8,), (9,), (5, 6)], [BF16, F16, BF16, F16, F32]
    results = []
    for engine in ("triton", "reference"):
        params = [
            torch.nn.Parameter(p.detach().to(d)) for p, d in zip(parameters(shapes), dtypes, strict=True)
        ]
        optimizer = build(IMPROVED, params, engine, master_weight_bits=24, sync_frequency=2, **options)
        for t in range(1, 4):
            give(params, t)
            optimizer.step()
        results.append((params, optimizer))
    whole = runner(results[0][1])
    assert not whole.rest and whole.runner.flags.REST
    start = [p.to(d) for p, d in zip(parameters(shapes), dtypes, strict=True)]
    found = differences(start, results[1], results[0])
    assert not found, "\n".join(found)
    for p in results[0][0]:
        assert (REST in results[0][1].state[p]) is (p.dtype != F32)


def test_groups_with_their_own_options() -> None:
    results = []
    for engine in ("triton", "reference"):
        params = parameters()
        groups = [
            {"params": params[:2], "lr": 1e-3, "betas": (0.5, 0.9, 0.99), "weight_decay": 0.0},
            {"params": []},
            {"params": params[2:], "warmup_steps": 1, "eta": 1.0, "lr_mask_rule": "none"},
        ]
        optimizer = BASE(groups, lr=5e-4, warmup_steps=WARMUP, engine=engine)
        for t in range(1, 4):
            give(params, t)
            optimizer.step()
        results.append((params, optimizer))
    found = differences(parameters(), results[1], results[0])
    assert not found, "\n".join(found)


def test_missing_gradients_and_late_joiners() -> None:
    def absent(optimizer: Any, params: Any, t: int) -> None:
        params[0].grad = None if t < 3 else params[0].grad
        params[1].grad = None if t % 2 else params[1].grad
        params[3].grad = None

    shapes = [(12, 30), (12, 30), (8,), (8,)]
    for cls in (BASE, CONTEXT):
        ours = run(cls, "triton", 4, shapes, hook=absent)
        theirs = run(cls, "reference", 4, shapes, hook=absent)
        found = differences(parameters(shapes), theirs, ours)
        assert not found, "\n".join(found)
        assert not ours[1].state[ours[0][3]]
