"""Which stages each class runs in which phase: the class table of the algorithm, seen by a spy."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import automagic_cameamp as package
from automagic_cameamp import techniques as T
from automagic_cameamp.schedule import phase_of
from automagic_cameamp.types import Phase
from improved import drive
from reference import drive as base_drive
from reference.draws import normal

E, M, L = Phase.EARLY, Phase.MIDDLE, Phase.LATE
ALWAYS, WARM, EARLY, AFTER, NEVER = (E, M, L), (E, M), (E,), (M, L), ()

# What is watched: every technique that some class may or may not run.
BASE = {
    "agr": NEVER,
    "factored_moment": ALWAYS,
    "torque": EARLY,
    "grams": ALWAYS,
    "cautious": NEVER,
    "orthograd": NEVER,
    "adaptive_decay": EARLY,
    "spd": NEVER,
    "allora_gain": ALWAYS,
    "count": WARM,
    "geometric_mask": ALWAYS,
    "frequency_filter": NEVER,
    "emphasise": NEVER,
    "edge_hits": NEVER,
    "background_gain": NEVER,
    "spatial_gain": NEVER,
}
IMPROVED = {
    **BASE,
    "grams": ALWAYS,
    "cautious": AFTER,  # looked at; it counts once Grams has faded
    "adaptive_decay": NEVER,
    "spd": WARM,
    "frequency_filter": ALWAYS,
    "emphasise": ALWAYS,
    "edge_hits": ALWAYS,
    "background_gain": ALWAYS,
    "spatial_gain": ALWAYS,
}
REGULARISERS = ("frequency_filter", "emphasise", "edge_hits", "background_gain", "spatial_gain")
PLAIN = {**IMPROVED, **dict.fromkeys(REGULARISERS, NEVER)}

CLASSES: dict[str, tuple[str, dict[str, Any], dict[str, tuple[Phase, ...]]]] = {
    "B": ("Automagic_CameAMP", {}, BASE),
    "B8": ("Automagic_CameAMP8bit", {}, BASE),
    "C": ("Automagic_CameAMP_COptim", {}, BASE),
    "C8": ("Automagic_CameAMP_COptim8bit", {}, BASE),
    "I": ("Automagic_CameAMP_Improved", {}, IMPROVED),
    "A8": ("Automagic_CameAMP_8Bit", {}, IMPROVED),
    "N8": ("Automagic_CameAMP_Improved_8Bit", {}, IMPROVED),
    "N8 quality": ("Automagic_CameAMP_Improved_8Bit", {"profile": "quality_optimized"}, IMPROVED),
    "N8 balanced": ("Automagic_CameAMP_Improved_8Bit", {"profile": "balanced"}, IMPROVED),
    "N8 memory": ("Automagic_CameAMP_Improved_8Bit", {"profile": "memory_optimized"}, PLAIN),
    # options that switch a stage on or off
    "I options": (
        "Automagic_CameAMP_Improved",
        {"use_agr": True, "use_orthograd": True, "use_grams": False, "use_cautious": False, "use_spd": False},
        {**IMPROVED, "agr": ALWAYS, "orthograd": EARLY, "grams": NEVER, "cautious": NEVER, "spd": NEVER},
    ),
    "I no mask": (
        "Automagic_CameAMP_Improved",
        {"use_lr_mask": False, "full_finetune": True, "use_tam": False},
        {**IMPROVED, "count": NEVER, "geometric_mask": NEVER, "allora_gain": NEVER, "torque": NEVER},
    ),
    "B decay always": (
        "Automagic_CameAMP",
        {"weight_decay_phase": "always"},
        {**BASE, "adaptive_decay": ALWAYS},
    ),
}


def spied(monkeypatch: pytest.MonkeyPatch, names: Any) -> dict[str, int]:
    """Counts the calls of these techniques, wherever a recipe makes them."""
    calls = dict.fromkeys(names, 0)
    for name in names:
        function = getattr(T, name)

        def call(*args: Any, _name: str = name, _function: Any = function, **options: Any) -> Any:
            calls[_name] += 1
            return _function(*args, **options)

        if hasattr(function, "steps"):  # a recipe drives it step by step

            def steps(*args: Any, _name: str = name, _function: Any = function, **options: Any) -> Any:
                calls[_name] += 1
                return _function.steps(*args, **options)

            call.steps = steps  # type: ignore[attr-defined]
        monkeypatch.setattr(T, name, call)
    return calls


@pytest.mark.parametrize("case", CLASSES)
def test_the_stages_of_every_class(case, monkeypatch):
    name, options, table = CLASSES[case]
    if not hasattr(package, name):
        pytest.fail(f"{name} is not in the package")
    # 13 x 12: more than rank_keep directions on both sides
    params = base_drive.parameters([(13, 12)])
    options = {"lr": 1e-3, "warmup_steps": 8, "engine": "reference", **options}
    optimizer = getattr(package, name)(params, **options)
    calls = spied(monkeypatch, table)
    seen: dict[str, set[Phase]] = {technique: set() for technique in table}
    for t in range(1, 11):
        calls.update(dict.fromkeys(calls, 0))
        base_drive.give_gradients(params, t)
        optimizer.step()
        for technique, count in calls.items():
            if count:
                seen[technique].add(phase_of(t, 8))
            if technique != "factored_moment":  # twice: second moment and confidence
                assert count <= 1, f"{technique} ran {count} times at t={t}"
            expected = phase_of(t, 8) in table[technique]
            assert (count > 0) == expected, f"{technique} at t={t} ({phase_of(t, 8)})"
    assert {technique: tuple(p for p in ALWAYS if p in phases) for technique, phases in seen.items()} == table


@pytest.mark.parametrize("shape", [(), (1,), (40,)])
def test_vectors_run_no_stage_of_matrices(shape, monkeypatch):
    calls = spied(monkeypatch, [*REGULARISERS, "allora_gain", "factored_moment"])
    params = base_drive.parameters([shape])
    drive.train(params, 8, package.Automagic_CameAMP_Improved)
    assert set(calls.values()) == {0}


@pytest.mark.parametrize(
    "cls", ["Automagic_CameAMP_Improved", "Automagic_CameAMP_8Bit", "Automagic_CameAMP_Improved_8Bit"]
)
def test_there_is_no_weight_decay_but_spd(cls):
    """Zero gradients: whatever weight_decay is, nothing decays in any phase."""
    p = torch.nn.Parameter(normal((5, 7), 0, dtype=torch.float32))
    before = p.detach().clone()
    optimizer = getattr(package, cls)([p], lr=1e-3, weight_decay=0.5, warmup_steps=4, lora_rank_penalty=False)
    for _ in range(8):
        p.grad = torch.zeros_like(p)
        optimizer.step()
    assert torch.equal(p.detach(), before)


@pytest.mark.parametrize("warmup", [0, 1, 4, 5])
def test_spd_ends_with_the_warm_up(warmup):
    """Weights that must grow against the gradient's wish: the pull is seen until t < W."""
    shown = []
    for strength in (0.0, 1.0):
        p = torch.nn.Parameter(torch.full((3, 4), 1e-6))
        optimizer = package.Automagic_CameAMP_Improved(
            [p],
            lr=1e-3,
            weight_decay=strength,
            warmup_steps=warmup,
            lora_rank_penalty=False,
            use_grams=False,
            use_cautious=False,
            use_lr_mask=False,
            betas=(0.99, 0.99, 0.999),
            beta1_decay=1.0,
        )
        moved = []
        for t in range(1, 9):
            p.data.fill_(1e-6)
            # The momentum keeps its first direction, away from 0; later gradients point along the weights.
            p.grad = torch.full((3, 4), -1.0 if t == 1 else 1e-4)
            optimizer.step()
            moved.append(p.detach().clone())
        shown.append(moved)
    differs = [not torch.equal(a, b) for a, b in zip(*shown, strict=True)]
    assert differs == [1 < t < warmup for t in range(1, 9)]


def test_the_basis_is_renewed_every_sync_frequency_steps(monkeypatch):
    calls = spied(monkeypatch, ["top_basis", "shrink_tail"])
    params = base_drive.parameters([(9, 8)])
    optimizer = drive.train(params, 0, package.Automagic_CameAMP_Improved, sync_frequency=4)
    renewed = []
    for t in range(1, 12):
        before = calls["top_basis"]
        base_drive.give_gradients(params, t)
        optimizer.step()
        if calls["top_basis"] > before:
            renewed.append(t)
    assert renewed == [1, 5, 9]
    assert calls["shrink_tail"] == 3
