"""The kernels against the reference: every class, phase, type of weights, shape and option."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from automagic_cameamp.kernels.native import flavour
from native import lockstep

FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16
CLASSES: dict[str, tuple[str, dict[str, Any]]] = {
    "base": ("Automagic_CameAMP", {}),
    "base dynamic": ("Automagic_CameAMP8bit", {}),
    "base softsign": ("Automagic_CameAMP8bit", {"state_code": "softsign", "blocksize": 64}),
    "contextual": ("Automagic_CameAMP_COptim", {}),
    "contextual 8bit": ("Automagic_CameAMP_COptim8bit", {"blocksize": 256}),
    "improved": ("Automagic_CameAMP_Improved", {}),
    "affine": ("Automagic_CameAMP_8Bit", {"sync_frequency": 50}),
    "affine 8 bits of error": ("Automagic_CameAMP_8Bit", {"error_bits": 8, "mixed_precision": False}),
    "affine alone": ("Automagic_CameAMP_8Bit", {"error_correction": False}),
    "softsign with error": ("Automagic_CameAMP_8Bit", {"state_code": "softsign"}),
    "memory_optimized": ("Automagic_CameAMP_Improved_8Bit", {"profile": "memory_optimized"}),
    "minimal": ("Automagic_CameAMP_Improved_8Bit", {"profile": "minimal", "verbose": False}),
    "contextual 4bit": ("Automagic_CameAMP_COptim8bit", {"state_code": "softsign4", "blocksize": 64}),
    "balanced": ("Automagic_CameAMP_Improved_8Bit", {"profile": "balanced", "verbose": False}),
    "quality_optimized": (
        "Automagic_CameAMP_Improved_8Bit",
        {"profile": "quality_optimized", "verbose": False, "min_8bit_size": 100},
    ),
}
BEFORE = 3
PHASES = {"early": 100, "middle": 6, "late": 2, "no warm-up": 0}


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("kind", CLASSES)
def test_one_step_from_the_same_state(kind: str, phase: str) -> None:
    name, options = CLASSES[kind]
    lockstep.check(name, FP32, BEFORE, warmup_steps=PHASES[phase], **options)


@pytest.mark.parametrize("dtype", [BF16, FP16])
@pytest.mark.parametrize("kind", ["base", "base dynamic", "balanced", "affine", "contextual 8bit"])
@pytest.mark.parametrize("phase", ["early", "late"])
def test_low_precision_weights(kind: str, phase: str, dtype: torch.dtype) -> None:
    name, options = CLASSES[kind]
    lockstep.check(name, dtype, BEFORE, warmup_steps=PHASES[phase], **options)


@pytest.mark.parametrize(
    "kind", ["base", "base dynamic", "balanced", "affine", "memory_optimized", "minimal", "contextual"]
)
@pytest.mark.parametrize("phase", ["early", "late"])
@pytest.mark.parametrize("limit", ["base", "avx2"])
def test_smaller_instruction_sets(kind: str, phase: str, limit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if flavour() == limit:
        pytest.skip("every other test runs this one")
    monkeypatch.setenv("AUTOMAGIC_CAMEAMP_ISA", limit)
    assert flavour() in ("base", limit)
    name, options = CLASSES[kind]
    lockstep.check(name, FP32, BEFORE, warmup_steps=PHASES[phase], **options)
    lockstep.check(name, BF16, BEFORE, warmup_steps=PHASES[phase], **options)


@pytest.mark.parametrize(("limit", "number"), [("", -1), ("base", 0), ("avx2", 1), ("avx512", 2)])
def test_a_step_is_told_the_limit(limit: str, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOMAGIC_CAMEAMP_ISA", limit)
    optimizer, params = lockstep.make("Automagic_CameAMP", [(20, 20)], FP32, "native")
    lockstep.take(optimizer, params, 0)
    lockstep.take(optimizer, params, 1)
    assert optimizer.stepper.plans.current.table.step.flavour == number


def test_an_unknown_instruction_set_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOMAGIC_CAMEAMP_ISA", "sse9")
    with pytest.raises(ValueError, match="AUTOMAGIC_CAMEAMP_ISA='sse9' is not one of base, avx2, avx512"):
        lockstep.check("Automagic_CameAMP", FP32, 0)


@pytest.mark.parametrize("kind", ["base", "base dynamic", "balanced", "affine", "contextual 8bit"])
@pytest.mark.parametrize(("before", "dtype"), [(0, FP32), (3, FP32), (14, FP32), (3, BF16)])
def test_the_automatic_level(kind: str, before: int, dtype: torch.dtype) -> None:
    name, options = CLASSES[kind]
    lockstep.check(name, dtype, before, warmup_steps=100, lr_level="auto", **options)


def test_nearest_rounding() -> None:
    lockstep.check("Automagic_CameAMP", BF16, BEFORE, stochastic_rounding=False)


@pytest.mark.parametrize("dtype", [BF16, FP16])
@pytest.mark.parametrize("kind", ["base", "base dynamic", "balanced", "affine", "contextual 8bit"])
@pytest.mark.parametrize("beside", [{}, {"lr_level": "auto"}, {"stochastic_rounding": False}], ids=str)
def test_weights_of_24_bits(kind: str, dtype: torch.dtype, beside: dict[str, Any]) -> None:
    name, options = CLASSES[kind]
    lockstep.check(name, dtype, BEFORE, warmup_steps=100, master_weight_bits=24, **options, **beside)


# What tests/matrix does not set: it takes every option off its default, in every phase.
BASE = [
    {"lr_mask_rule": "none"}, {"lr_mask_granularity": "tensor"}, {"weight_decay": 0.0},
    {"final_clip": float("inf")}, {"clip_threshold": float("inf")},
]  # fmt: skip
IMPROVED = [{"frequency_penalty": 0.0}, {"frequency_penalty": 1.0}, {"d_coef": 1}, {"rank_keep": 2}]


@pytest.mark.parametrize("option", BASE, ids=str)
def test_options_of_every_recipe(option: dict[str, Any]) -> None:
    lockstep.check("Automagic_CameAMP8bit", FP32, BEFORE, warmup_steps=100, **option)


@pytest.mark.parametrize("option", IMPROVED, ids=str)
def test_options_of_the_improved_recipe(option: dict[str, Any]) -> None:
    lockstep.check("Automagic_CameAMP_Improved", FP32, BEFORE, warmup_steps=100, **option)


@pytest.mark.parametrize("scales", [None, [1], [5], [2, 7], [1, 5, 10, 25, 50, 100]], ids=str)
def test_momentum_scales(scales: Any) -> None:
    lockstep.check("Automagic_CameAMP_COptim", FP32, BEFORE, momentum_scales=scales)


@pytest.mark.parametrize(("dtype", "bits"), [(FP32, 16), (BF16, 16), (FP16, 16), (BF16, 24), (FP16, 24)])
@pytest.mark.parametrize("keep", [3, 10])
@pytest.mark.parametrize("before", [0, BEFORE])
def test_a_step_that_searches_directions(before: int, keep: int, dtype: torch.dtype, bits: int) -> None:
    """The first one, and one after which the tail owes the rates of several steps."""
    options: dict[str, Any] = {"rank_keep": keep, "rank_penalty_strength": 1.0, "sync_frequency": BEFORE}
    if bits == 24:
        options["master_weight_bits"] = bits
    lockstep.check("Automagic_CameAMP_Improved", dtype, before, warmup_steps=2, **options)


@pytest.mark.parametrize("kind", ["base dynamic", "balanced", "contextual"])
@pytest.mark.parametrize("before", [0, BEFORE])
@pytest.mark.parametrize("off", [(0,), (1,), (2,), (0, 1, 2)], ids=str)
def test_means_without_a_memory(off: tuple[int, ...], before: int, kind: str) -> None:
    """A surprise of exactly 0 makes a confidence of 1e20: no product of two such numbers may overflow."""
    name, options = CLASSES[kind]
    betas = [0.0 if i in off else beta for i, beta in enumerate((0.8, 0.99, 0.999))]
    lockstep.check(name, FP32, before, warmup_steps=2, betas=tuple(betas), **options)


@pytest.mark.parametrize("noise", [0.0, 1e-6, 1e-3])
@pytest.mark.parametrize("shape", [(8, 8), (40, 24), (24, 40)], ids=str)
def test_rows_that_hardly_differ_within(shape: tuple[int, ...], noise: float) -> None:
    """Their variance is a difference of two numbers almost the same: no executor takes it for detail."""
    moves = []
    for engine in ("reference", "native"):
        optimizer, (p,) = lockstep.make("Automagic_CameAMP_Improved", [shape], FP32, engine, warmup_steps=0)
        generator = torch.Generator().manual_seed(1)
        side = (shape[0], 1) if shape[0] <= shape[1] else (1, shape[1])
        p.grad = torch.randn(side, generator=generator) * (
            1 + noise * torch.randn(shape, generator=generator)
        )
        old = p.detach().clone()
        optimizer.step()
        moves.append(p.detach() - old)
    assert lockstep.off_by(*moves) < 5e-3  # 8 eps of rounding, of a variance that is 1e-4 at least


def test_a_plan_outlives_the_search() -> None:
    """And the gradient that is not finite keeps its parameter as it was, what the tail owes included."""
    (_, _), (optimizer, params) = lockstep.twin(
        "Automagic_CameAMP_Improved", [(16, 640), (40, 24)], FP32, 0, sync_frequency=2
    )
    for step in range(4):
        lockstep.take(optimizer, params, step)
    plan = optimizer.stepper.plans.current
    kept = params[1].detach().clone(), {k: v.clone() for k, v in optimizer.state[params[1]].items()}
    assert float(optimizer.state[params[1]]["lowrank_rate"]) > 0
    for p, g in zip(params, lockstep.gradients(params, 4), strict=True):
        p.grad = g
    params[1].grad[0, 0] = float("nan")
    optimizer.step()
    assert optimizer.stepper.plans.current is plan
    assert torch.equal(params[1], kept[0])
    assert all(torch.equal(v, kept[1][k]) for k, v in optimizer.state[params[1]].items())
    assert float(optimizer.state[params[0]]["lowrank_rate"]) == 0


# Slabs, tiles that do not divide them, rows longer than a tile, stacks of matrices.
LARGE = [(700, 777), (16, 20000), (40000, 16), (2, 400, 512), (3, 40000), (600, 100, 3, 3)]


@pytest.mark.parametrize("kind", ["base dynamic", "balanced", "memory_optimized", "contextual 8bit"])
@pytest.mark.parametrize("phase", ["early", "late"])
def test_tensors_larger_than_a_slab(kind: str, phase: str) -> None:
    name, options = CLASSES[kind]
    options = {**options, "lora_rank_penalty": False} if "profile" in options else options
    lockstep.check(name, FP32, 2, LARGE, warmup_steps=1 if phase == "late" else 100, **options)


@pytest.mark.parametrize("kind", CLASSES)
def test_twenty_steps_stay_together(kind: str) -> None:
    """Codes that fall the other way add up over steps, so this bound is wide; the mask stays exact."""
    name, options = CLASSES[kind]
    options = {**options, "sync_frequency": 1000} if "improved" in name.lower() else options
    runs = lockstep.twin(
        name, [(300,), (16, 640), (640, 16), (8, 4, 3, 3)], FP32, 1, warmup_steps=12, **options
    )
    old = [p.detach().clone() for p in runs[0][1]]
    for optimizer, params in runs:
        for step in range(1, 21):
            lockstep.take(optimizer, params, step)
    for p, q, before in zip(*(params for _, params in runs), old, strict=True):
        mine, theirs = runs[0][0].state[p], runs[1][0].state[q]
        for field in ("step", "lr_mask", "last_polarity"):
            assert field not in mine or torch.equal(mine[field], theirs[field])
        apart = (p - q).detach().norm() / (p - before).detach().norm()
        assert apart < 2e-3 if "q" in "".join(mine) else apart < 1e-5
