"""What sharded parameters do; every function runs on all processes and returns what this one saw."""

from __future__ import annotations

import copy
import math
import warnings
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode

from automagic_cameamp.executors import sharded
from automagic_cameamp.optimizers import OPTIMIZERS
from distributed.models import (
    WITHOUT_NEIGHBOURS,
    build,
    digest,
    distance,
    is_improved,
    set_gradients,
    twins,
    whole_of,
)

STEPS = 10  # of codes
# Two steps or more in each phase; a look at the end of each: gathering takes longer than the step.
LOCKSTEPS, WARMUP, LOOKS = 8, 6, (1, 4, 7)
# name of the case -> class, type of the weights, options
CASES: dict[str, tuple[str, torch.dtype, dict[str, Any]]] = {
    "base": ("Automagic_CameAMP", torch.float64, {}),
    "contextual": ("Automagic_CameAMP_COptim", torch.float64, {}),
    "improved": ("Automagic_CameAMP_Improved", torch.float64, {"weight_decay": 0.9}),
    "base, fp32": ("Automagic_CameAMP", torch.float32, {}),
    "base, no extras": (
        "Automagic_CameAMP", torch.float64,
        {"use_tam": False, "use_grams": False, "use_lr_mask": False, "full_finetune": True},
    ),
    "base, row torque, vectors, no clip": (
        "Automagic_CameAMP", torch.float64,
        {"tam_granularity": "row", "confidence_1d": True, "clip_threshold": float("inf")},
    ),
    "base, full moments": ("Automagic_CameAMP", torch.float64, {"factored": False}),
    "base, AdaBelief": ("Automagic_CameAMP", torch.float64, {"came": False}),
    "base, additive, always decay": (
        "Automagic_CameAMP", torch.float64,
        {"lr_mask_rule": "additive", "lr_bump": 1e-3, "hard_min_lr": True, "weight_decay_phase": "always"},
    ),
    "contextual, AdaBelief": ("Automagic_CameAMP_COptim", torch.float64, {"came": False}),
    "base, gradient and projection": (
        "Automagic_CameAMP", torch.float64, {"use_agr": True, "use_orthograd": True},
    ),
    "improved, clipped by percentile": (
        "Automagic_CameAMP_Improved_8Bit", torch.float64,
        {"percentile_clipping": 50, "spatial_awareness": True, "optim_bits": 32},
    ),
    "improved, detail": ("Automagic_CameAMP_Improved", torch.float64, {"spatial_awareness": True}),
    "improved, early cautious": ("Automagic_CameAMP_Improved", torch.float64, {"warmup_steps": 2}),
    "improved, fp32": ("Automagic_CameAMP_Improved", torch.float32, {}),
    "base, rate found": ("Automagic_CameAMP", torch.float64, {"lr_level": "auto", "lr": 1e-3}),
    "improved, rate found": ("Automagic_CameAMP_Improved", torch.float64, {"lr_level": "auto", "lr": 1e-3}),
    "base, rate found, fp32": ("Automagic_CameAMP", torch.float32, {"lr_level": "auto", "lr": 1e-3}),
}  # fmt: skip


def lockstep(folder: Path) -> dict[str, Any]:
    """Sharded against whole, in all phases; on more than two processes the main cases only."""
    results: dict[str, Any] = {}
    for case, (name, dtype, options) in list(CASES.items())[: 4 if dist.get_world_size() > 2 else None]:
        whole, cut = twins(dtype)
        if is_improved(name):
            options = {**WITHOUT_NEIGHBOURS, **options}
        options = {"warmup_steps": WARMUP, **options}
        optimizers = [build(name, model.parameters(), **options) for model in (whole, cut)]
        worst = 0.0
        for t in range(LOCKSTEPS):
            set_gradients(whole, cut, t)
            for optimizer in optimizers:
                optimizer.step()
            if t in LOOKS:
                worst = max(worst, distance(whole, cut))
        gaps = _state_gaps(*optimizers)
        results[case] = {"worst": worst, **gaps}
    return results


def _state_gaps(whole: Any, cut: Any) -> dict[str, Any]:
    """Largest relative difference of a state, keys that differ, integer states that are not equal."""
    worst, wrong = 0.0, []
    limits = [optimizer.param_groups[0]["level_limit"] for optimizer in (whole, cut)]
    found = whole.param_groups[0]["lr_level"] == "auto"
    if not math.isclose(*limits, rel_tol=1e-6) or math.isfinite(limits[0]) is not found:
        wrong.append(f"level_limit {limits}")
    pairs = zip(whole.param_groups[0]["params"], cut.param_groups[0]["params"], strict=True)
    for p, q in pairs:
        a, b = whole.state[p], cut.state[q]
        if a.keys() != b.keys():
            wrong.append(f"keys {sorted(a.keys() ^ b.keys())}")
        for key in a:
            value = whole_of(b[key])
            if value.dtype != a[key].dtype or value.shape != a[key].shape:
                wrong.append(f"form of {key}")
            elif not value.is_floating_point():
                wrong += [] if torch.equal(value, a[key]) else [key]
            elif key != "c_optim" and value.numel():
                scale = a[key].abs().max().clamp(min=1e-30)
                worst = max(worst, float((value - a[key]).abs().max() / scale))
    return {"state": worst, "wrong": wrong}


def codes(folder: Path) -> dict[str, Any]:
    """Eight-bit classes and bf16 weights: a row of 256 is one block in both forms."""
    results: dict[str, Any] = {}
    cases = [(n, torch.float32) for n in OPTIMIZERS if n.lower().endswith("8bit")]
    for name, dtype in [*cases, ("Automagic_CameAMP", torch.bfloat16)]:
        torch.manual_seed(0)
        whole = nn.ParameterList([nn.Parameter(torch.randn(9, 256)) for _ in range(3)]).to(dtype)
        cut = copy.deepcopy(whole)
        fully_shard(cut, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
        options = dict(WITHOUT_NEIGHBOURS) if is_improved(name) else {}
        for block in ("blocksize", "block_size"):
            if block in OPTIMIZERS[name].config_class.__dataclass_fields__:  # type: ignore[attr-defined]
                options[block] = 256
        optimizers = [build(name, model.parameters(), **options) for model in (whole, cut)]
        for t in range(STEPS):
            generator = torch.Generator().manual_seed(t)
            for p, q in zip(whole, cut, strict=True):
                p.grad = torch.randn(p.shape, generator=generator).to(dtype) + 0.3
                q.grad = distribute_tensor(p.grad.clone(), q.device_mesh, q.placements)
            for optimizer in optimizers:
                optimizer.step()
        differs, total = 0, 0
        for p, q in zip(whole, cut, strict=True):
            pairs = [(p.detach(), whole_of(q.detach()))] if dtype == torch.bfloat16 else []
            pairs += [
                (value, whole_of(optimizers[1].state[q][key]))
                for key, value in optimizers[0].state[p].items()
                # Coded row statistics of the whole run are fp32 in a shard.
                if key.startswith("exp_avg") and key.endswith("_q") and key in optimizers[1].state[q]
            ]
            for a, b in pairs:
                differs += int((a != b).sum())
                total += a.numel()
        results[f"{name} {dtype}"] = {"differs": differs, "total": total, "worst": distance(whole, cut)}
    return results


def collectives(folder: Path) -> dict[str, Any]:
    """How often the processes talk in one step, for one tensor and for many, and what else they send."""
    results: dict[str, Any] = {}
    for name in OPTIMIZERS:
        counts = []
        for few in (True, False):
            whole, cut = twins(torch.float32)
            options = WITHOUT_NEIGHBOURS if is_improved(name) else {}
            optimizer = build(name, [cut.a.weight] if few else cut.parameters(), **options)
            set_gradients(whole, cut, 0)
            if hasattr(optimizer, "c_optim"):
                optimizer.record_loss(1.0 + dist.get_rank())
            counted = mock.patch.object(dist, "all_reduce", wraps=dist.all_reduce)
            with CommDebugMode() as seen, counted as calls:
                optimizer.step()
            counts.append([calls.call_count, seen.get_total_counts()])
        results[name] = counts
    return results


def batches(folder: Path) -> dict[str, Any]:
    """Updates that wait together are limited: more of them make more reductions, and the same step."""
    whole, cut = twins(torch.float64)
    optimizers = [build("Automagic_CameAMP", model.parameters()) for model in (whole, cut)]
    counted = mock.patch.object(dist, "all_reduce", wraps=dist.all_reduce)
    with mock.patch.object(sharded, "AT_ONCE", 500), counted as calls:
        for t in range(2):
            set_gradients(whole, cut, t)
            for optimizer in optimizers:
                optimizer.step()
    return {"worst": distance(whole, cut), "reductions": calls.call_count / 2}


def training(folder: Path) -> dict[str, Any]:
    """fully_shard's own gradients: each process has its share of the batch; the whole model all of it."""
    torch.manual_seed(0)
    whole = nn.Sequential(nn.Linear(12, 33), nn.Tanh(), nn.LayerNorm(33), nn.Linear(33, 3))
    cut = copy.deepcopy(whole)
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in cut:
        if isinstance(layer, nn.Linear):
            fully_shard(layer, mesh=mesh)
    fully_shard(cut, mesh=mesh)
    optimizers = [build("Automagic_CameAMP", model.parameters()) for model in (whole, cut)]
    for t in range(10):
        torch.manual_seed(t)
        x = torch.randn(8 * dist.get_world_size(), 12)
        batches = (x, x.chunk(mesh.size())[mesh.get_local_rank()])
        for model, optimizer, batch in zip((whole, cut), optimizers, batches, strict=True):
            optimizer.zero_grad()
            model(batch).square().mean().backward()
            optimizer.step()
    return {
        "worst": distance(whole, cut),
        "rates": [optimizer.get_learning_rates() for optimizer in optimizers],
        "held": optimizers[1].get_memory_stats()["total_high_precision_memory"],
        "whole": optimizers[0].get_memory_stats()["total_high_precision_memory"],
    }


def nonfinite(folder: Path) -> dict[str, Any]:
    """One process's rows of two tensors have a bad gradient: nobody moves them, all move the others."""
    whole, cut = twins(torch.float32)
    optimizer = build("Automagic_CameAMP8bit", cut.named_parameters(), weight_decay=0.1)
    set_gradients(whole, cut, 0)
    optimizer.step()
    bad = [cut.a.weight, cut.stack]
    before = digest(_Only(optimizer, bad)), digest(optimizer)
    set_gradients(whole, cut, 1)
    if dist.get_rank() == 0:
        bad[0].grad.to_local()[0, 3] = float("nan")
        bad[1].grad.to_local()[0, 0, 1] = float("inf")
    optimizer.step()
    after = digest(_Only(optimizer, bad)), digest(optimizer)
    return {
        "kept": before[0] == after[0],
        "moved": before[1] != after[1],
        "skipped": optimizer.health()["parameters"],
    }


class _Only:
    """Some parameters of an optimizer, for a digest."""

    def __init__(self, optimizer: Any, params: list[Any]) -> None:
        self.param_groups, self.state = [{"params": params}], optimizer.state


def refusals(folder: Path) -> dict[str, Any]:
    """What cannot be done is said before anything moves."""
    world = dist.get_world_size()
    mesh = init_device_mesh("cpu", (world,))
    results = {}
    for name, options in {
        "lr_level": {"lr_level": "distance"},
        "lr_mask_granularity": {"lr_mask_granularity": "row"},
    }.items():
        results[name] = _refused([_parameter(mesh, [Shard(0)])], "Automagic_CameAMP", **options)
    results["columns"] = _refused([_parameter(mesh, [Shard(1)])], "Automagic_CameAMP")
    results["replicated"] = _refused([_parameter(mesh, [Replicate()])], "Automagic_CameAMP")
    grid = init_device_mesh("cpu", (world, 1))
    results["hybrid"] = _refused([_parameter(grid, [Replicate(), Shard(0)])], "Automagic_CameAMP")
    try:
        build("Automagic_CameAMP", [_parameter(mesh, [Shard(0)])]).record(5)
    except ValueError as error:
        results["record"] = str(error)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        p = _parameter(mesh, [Shard(0)])
        optimizer = build("Automagic_CameAMP_Improved", [p])
        for _ in range(3):
            optimizer.step()
    results["warned"] = [str(w.message) for w in said if "sharded" in str(w.message)]
    return results


def four_bits(folder: Path) -> dict[str, Any]:
    """Two elements that share a byte could be parted: what such a state is held in instead."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    p = _parameter(mesh, [Shard(0)], (16, 64))
    optimizer = build("Automagic_CameAMP8bit", [p], state_code="softsign4")
    optimizer.step()
    codes = optimizer.state[p]["exp_avg_q"]
    return {"shape": list(codes.shape), "dtype": str(codes.dtype)}


def _parameter(mesh: Any, placements: list[Any], shape: tuple[int, ...] = (8, 6)) -> nn.Parameter:
    p = nn.Parameter(distribute_tensor(torch.ones(shape), mesh, placements))
    p.grad = distribute_tensor(torch.ones(shape), mesh, placements)
    return p


def _refused(params: list[nn.Parameter], name: str, **options: Any) -> str:
    optimizer = build(name, params, **options)
    try:
        optimizer.step()
    except (ValueError, RuntimeError) as error:
        untouched = all(bool((whole_of(p.detach()) == 1).all()) for p in params)
        return str(error) if untouched and not any(optimizer.state.values()) else "moved"
    return "accepted"
