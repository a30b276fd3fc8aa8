"""Does every executor step like the reference here, who steps what, and how long does it take?

The equality is that of the compiled executor's own check: from one state, on the same gradients, one step may
differ by what the order of sums explains.
"""

from __future__ import annotations

import copy
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import OPTIMIZERS, CameAMPOptimizer

TOLERANCE = 2e-4  # of the largest move; a sum's order explains 2e-5 (executors/compiled.py)
STEPS = 2  # before the one that is compared
LORA = [(16, 320), (640, 16), (300,), (8, 4, 3, 3)]
FEW = [(24, 32), (40,)]  # every form is compiled, which takes its time
SPEED: list[tuple[int, ...]] = [*[(16, 640), (640, 16)] * 24, *[(640, 640)] * 2, *[(640,)] * 16]
WARM, ROUNDS = 4, 9
COMPILES = ("cuda", "xpu")

Params = list[torch.nn.Parameter]


def parameters(shapes: list[tuple[int, ...]], device: str) -> Params:
    """The same parameters at every call."""
    draw = torch.Generator().manual_seed(0)
    return [
        torch.nn.Parameter((torch.randn(s, generator=draw, device="cpu") * 0.05).to(device)) for s in shapes
    ]


def give(params: Params, step: int) -> None:
    """The gradients of a step, which are known by its number."""
    draw = torch.Generator().manual_seed(1000 + step)
    for p in params:
        p.grad = (torch.randn(p.shape, generator=draw, device="cpu") * 0.01).to(p.device)


def optimizer_of(name: str, params: Params, engine: str, **options: Any) -> CameAMPOptimizer:
    """One of our classes on parameters."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return OPTIMIZERS[name](params, **{"lr": 1e-3, "engine": engine, "verbose": False, **options})


def apart(old: list[Tensor], expected: Params, found: Params) -> float:
    """Largest distance of two steps, in units of the largest move of each tensor, less the last place's."""
    worst = 0.0
    for before, p, q in zip(old, expected, found, strict=True):
        a, b, start = p.detach().double(), q.detach().double(), before.double()
        wrong = ((a - b).abs() - a.abs() * 2.0**-22).clamp(min=0.0)
        worst = max(worst, float(wrong.max() / (a - start).abs().max().clamp(min=1e-30)))
        if not bool(b.isfinite().all()):
            return float("inf")
    return worst


def compared(name: str, engine: str, device: str, shapes: list[tuple[int, ...]]) -> dict[str, Any]:
    """One class by one executor beside the reference: the distance, or why it could not be taken."""
    row: dict[str, Any] = {"optimizer": name, "engine": engine, "device": device}
    began = time.perf_counter()
    params, others = parameters(shapes, device), parameters(shapes, device)
    try:
        reference = optimizer_of(name, params, "reference")
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            for step in range(STEPS):
                give(params, step)
                reference.step()
            other = optimizer_of(name, others, engine)
            for p, q in zip(params, others, strict=True):
                q.data.copy_(p.data)
            other.load_state_dict(copy.deepcopy(reference.state_dict()))
            old = [p.detach().clone() for p in params]
            for optimizer, mine in ((reference, params), (other, others)):
                give(mine, STEPS)
                optimizer.step()
            taken = sorted({r.engine for r in other.engine_report().rows})
            reasons = {r.reason for r in other.engine_report().rows if r.engine != engine}
    except RuntimeError as error:  # the engine that was named cannot be had here
        return {**row, "verdict": "not there", "why": _line(error), "difference": None, "seconds": 0.0}
    difference = apart(old, params, others)
    row["difference"] = difference
    row["seconds"] = round(time.perf_counter() - began, 2)
    if difference > TOLERANCE:
        return {**row, "verdict": "DIFFERS", "why": f"more than {TOLERANCE:.0e} of a move"}
    if engine not in taken:
        why = "; ".join(sorted(reasons) + [_line(w.message) for w in said])
        return {**row, "verdict": "not there", "why": why}
    return {**row, "verdict": "ok", "why": None}


def sharded(name: str) -> dict[str, Any]:
    """A class on sharded parameters, in a group of this process alone, beside the reference."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Shard, distribute_tensor

    row: dict[str, Any] = {"optimizer": name, "engine": "sharded", "device": "cpu"}
    if not dist.is_available() or dist.is_initialized():
        return {**row, "verdict": "not there", "why": "no torch.distributed, or in use", "difference": None}
    began = time.perf_counter()
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        params, whole = parameters(LORA[:3], "cpu"), parameters(LORA[:3], "cpu")
        spread = [torch.nn.Parameter(distribute_tensor(p.detach(), mesh, [Shard(0)])) for p in whole]
        reference, other = optimizer_of(name, params, "reference"), optimizer_of(name, spread, "auto")
        old = whole
        for step in range(STEPS + 1):
            old = [p.detach().clone() for p in params]
            give(params, step)
            for p, q in zip(params, spread, strict=True):
                assert p.grad is not None
                q.grad = distribute_tensor(p.grad, mesh, [Shard(0)])
            reference.step()
            other.step()
        parts = [q.data for q in spread]
        found = [torch.nn.Parameter(x.full_tensor()) for x in parts if isinstance(x, DTensor)]
        row["difference"] = apart(list(old), params, found)
        row["seconds"] = round(time.perf_counter() - began, 2)
        taken = {r.engine for r in other.engine_report().rows}
    finally:
        dist.destroy_process_group()
    if row["difference"] > TOLERANCE:
        return {**row, "verdict": "DIFFERS", "why": f"more than {TOLERANCE:.0e} of a move"}
    return {**row, "verdict": "ok" if taken == {"sharded"} else "not there", "why": None}


def self_test(device: str, full: bool) -> list[dict[str, Any]]:
    """Every executor that could be at work on a device.

    Args:
        device: 'cpu', 'cuda', ...
        full: also what compiles for long: torch.compile on a CPU, and on a GPU for every class.
    """
    rows = []
    if device == "cpu":
        rows += [compared(name, "native", device, LORA) for name in OPTIMIZERS]
    if device == "cpu" and full:
        rows.append(sharded("Automagic_CameAMP"))
    if device in COMPILES or full:
        names = list(OPTIMIZERS) if full and device in COMPILES else ["Automagic_CameAMP8bit"]
        rows += [compared(name, "compiled", device, FEW) for name in names]
    return rows


def engines(device: str) -> list[dict[str, Any]]:
    """Who steps a LoRA, a bias and a convolution of each class by default, and why."""
    rows = []
    for name in OPTIMIZERS:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what they say is the table's subject
            report = optimizer_of(name, parameters(LORA, device), "auto").engine_report()
        total = sum(row.elements for row in report.rows)
        for row in report.rows:
            share = row.elements / total
            rows.append({"optimizer": name, "engine": row.engine, "share": share, "why": row.reason})
    return rows


def speed(device: str) -> list[dict[str, Any]]:
    """Milliseconds of a step of the `SPEED` parameters, and their ratio to torch's fused AdamW."""
    params = parameters(SPEED, device)
    give(params, 0)
    rivals: dict[str, Callable[[], object]] = {}
    fused = device in ("cpu", "cuda", "xpu", "mps")
    rivals["torch AdamW, fused" if fused else "torch AdamW"] = torch.optim.AdamW(
        params, lr=1e-6, fused=fused or None
    ).step
    for name in OPTIMIZERS:
        rivals[name] = optimizer_of(name, params, "auto", lr=1e-6, warmup_steps=1).step
    times: dict[str, list[float]] = {name: [] for name in rivals}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number in range(WARM + ROUNDS):
            for name, step in rivals.items():  # in turn, so that a drift of the machine hits all
                _wait(device)
                start = time.perf_counter()
                step()
                _wait(device)
                if number >= WARM:
                    times[name].append(time.perf_counter() - start)
    base = next(iter(times.values()))
    return [
        {
            "optimizer": name,
            "milliseconds": round(statistics.median(found) * 1e3, 2),
            "of_adamw": round(statistics.median(a / b for a, b in zip(found, base, strict=True)), 2),
        }
        for name, found in times.items()
    ]


def _wait(device: str) -> None:
    if device != "cpu":
        torch.accelerator.synchronize()


def _line(error: object) -> str:
    return " ".join(str(error).split())[:200]
