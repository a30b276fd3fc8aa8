"""The model, its gradients and its optimizers on every process."""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from automagic_cameamp.optimizers import OPTIMIZERS

LR = 1e-2
# Stages that sharded parameters do without.
WITHOUT_NEIGHBOURS = {
    "frequency_penalty": 0.0,
    "edge_suppression": False,
    "lora_rank_penalty": False,
}


class Shapes(nn.Module):
    """Shapes that divide evenly, that do not, that leave processes without a row; of every number of dims."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(20, 33)
        self.b = nn.Linear(33, 3)
        self.kernel = nn.Conv2d(3, 5, 3)
        self.stack = nn.Parameter(torch.randn(6, 5, 4))
        self.one = nn.Parameter(torch.randn(1, 7))
        self.twins = nn.ParameterList([nn.Parameter(torch.randn(10, 6)) for _ in range(2)])
        self.wide = nn.Parameter(torch.randn(9, 256))
        self.alone = nn.Parameter(torch.randn(1))  # a vector of which all processes but one hold nothing


def build(name: str, params: Any, **options: Any) -> Any:
    """An optimizer of a class, its codes in use wherever they can be."""
    defaults: dict[str, Any] = {"lr": LR, "max_lr": 1.0, "warmup_steps": 8, "weight_decay": 0.1}
    cls: Any = OPTIMIZERS[name]
    if "min_8bit_size" in cls.config_class.__dataclass_fields__:
        defaults["min_8bit_size"] = 0
    return cls(params, **{**defaults, **options})


def is_improved(name: str) -> bool:
    return name in ("Automagic_CameAMP_Improved", "Automagic_CameAMP_8Bit", "Automagic_CameAMP_Improved_8Bit")


def twins(dtype: torch.dtype) -> tuple[nn.Module, nn.Module]:
    """The same model whole and sharded over all processes."""
    torch.manual_seed(0)
    whole = Shapes().to(dtype)
    cut = copy.deepcopy(whole)
    fully_shard(cut, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    return whole, cut


def shard_like(whole: Tensor, p: DTensor) -> DTensor:
    """A whole tensor, distributed like a parameter; the cut is that of torch.chunk."""
    rank, world = dist.get_rank(), dist.get_world_size()
    parts = whole.chunk(world)
    part = parts[rank] if rank < len(parts) else whole[:0]
    return DTensor.from_local(
        part.clone(), p.device_mesh, p.placements, run_check=False, shape=p.shape, stride=whole.stride()
    )


def gradients(model: nn.Module, step: int) -> Iterator[Tensor]:
    """Gradients that have a mean, so that torque, mask and confidence find something."""
    generator = torch.Generator().manual_seed(1000 + step)
    for p in model.parameters():
        noise = torch.randn(p.shape, generator=generator, dtype=torch.float64)
        yield (noise + 0.5 * torch.cos(torch.arange(p.numel()).view(p.shape))).to(p.dtype)


def set_gradients(whole: nn.Module, cut: nn.Module, step: int) -> None:
    for p, q, g in zip(whole.parameters(), cut.parameters(), gradients(whole, step), strict=True):
        # One of two twins misses a step, so that a stack is in two phases at once.
        absent = step == 2 and p is whole.twins[0]
        p.grad = None if absent else g.clone()
        q.grad = None if absent else shard_like(g, q)


def whole_of(x: Any) -> Any:
    if not isinstance(x, DTensor):
        return x
    if x.dtype == torch.int16:  # neither gloo nor NCCL gathers it
        return x.to(torch.int32).full_tensor().to(torch.int16)
    return x.full_tensor()


def part_of(x: Any) -> Tensor:
    return x.to_local() if isinstance(x, DTensor) else x


def digest(optimizer: Any) -> str:
    """One word for weights and states of this process, bit by bit, types included."""
    sha = hashlib.sha256()
    for group in optimizer.param_groups:
        for p in group["params"]:
            for name, value in [("p", p.detach()), *sorted(optimizer.state[p].items())]:
                value = part_of(value).contiguous()
                sha.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
                sha.update(value.view(-1).view(torch.uint8).numpy().tobytes() if value.numel() else b"")
    return sha.hexdigest()


def distance(whole: nn.Module, cut: nn.Module) -> float:
    """Largest difference of a weight, in units of the learning rate; NaN counts."""
    worst = 0.0
    for p, q in zip(whole.parameters(), cut.parameters(), strict=True):
        gap = float((p.detach() - whole_of(q.detach())).abs().max()) / LR
        worst = math.inf if math.isnan(gap) else max(worst, gap)
    return worst
