"""What replicas do; every function runs on all processes and returns what this one saw."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from automagic_cameamp.optimizers import OPTIMIZERS
from distributed.models import build, digest

STEPS, WARMUP, BAD_STEP = 40, 24, 16


def _train(name: str, dtype: torch.dtype, engine: str = "auto") -> dict[str, Any]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 40), nn.Tanh(), nn.LayerNorm(40), nn.Linear(40, 9)).to(dtype)
    replica = DistributedDataParallel(model)
    optimizer = build(name, model.named_parameters(), warmup_steps=WARMUP, engine=engine)
    start = digest_of_weights(model)
    generator = torch.Generator().manual_seed(10 + dist.get_rank())  # every process has its own data
    for t in range(STEPS):
        optimizer.zero_grad()
        x = torch.randn(4, 32, generator=generator).to(dtype)
        loss = replica(x).float().square().mean()
        if t == BAD_STEP and dist.get_rank() == dist.get_world_size() - 1:
            loss = loss * float("nan")
        loss.backward()
        # Only the first process tells the loss: the others must neither wait nor drift.
        told = {"loss": loss.detach()} if dist.get_rank() == 0 and hasattr(optimizer, "c_optim") else {}
        optimizer.step(**told)
    return {
        "digest": digest(optimizer),
        "moved": digest_of_weights(model) != start,
        "skipped": optimizer.health()["skipped_updates"],
        "finite": all(bool(p.isfinite().all()) for p in model.parameters()),
        "coded": any(key.endswith("_q") for p in model.parameters() for key in optimizer.state[p]),
    }


def digest_of_weights(model: nn.Module) -> str:
    return str([p.detach().double().sum().item().hex() for p in model.parameters()])


def replicas(folder: Path) -> dict[str, Any]:
    """All seven classes in fp32 and two in bf16 with stochastic rounding; two of them without the kernels."""
    if dist.get_world_size() > 2:  # the same for more of them, where most is kept
        return {"Automagic_CameAMP_COptim8bit": _train("Automagic_CameAMP_COptim8bit", torch.float32)} | {
            "Automagic_CameAMP_Improved_8Bit bf16": _train("Automagic_CameAMP_Improved_8Bit", torch.bfloat16)
        }
    results = {name: _train(name, torch.float32) for name in OPTIMIZERS}
    for name in ("Automagic_CameAMP", "Automagic_CameAMP_Improved_8Bit"):
        results[f"{name} bf16"] = _train(name, torch.bfloat16)
    results["Automagic_CameAMP_COptim8bit reference"] = _train(
        "Automagic_CameAMP_COptim8bit", torch.float32, "reference"
    )
    results["Automagic_CameAMP_8Bit bf16 reference"] = _train(
        "Automagic_CameAMP_8Bit", torch.bfloat16, "reference"
    )
    return results


def losses(folder: Path) -> dict[str, Any]:
    """Who tells a loss differs from step to step; what the controller took down is the same everywhere."""
    rank, world = dist.get_rank(), dist.get_world_size()
    p = nn.Parameter(torch.ones(4, 4))
    optimizer = build("Automagic_CameAMP_COptim", [p])
    tellers = [[], [0], list(range(world)), [world - 1]]
    for t, who in enumerate(tellers):
        p.grad = torch.ones(4, 4) + t
        optimizer.step(**({"loss": 10.0 * t + rank} if rank in who else {}))
    return {"history": optimizer.c_optim.loss_history, "digest": digest(optimizer)}
