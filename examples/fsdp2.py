"""Sharded training with FSDP2: every process holds a part of weights, gradients and optimizer state.

torchrun --nproc-per-node 2 examples/fsdp2.py
A second start, with the same or another number of processes, goes on from the checkpoint.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from automagic_cameamp import Automagic_CameAMP8bit


def main(folder: Path) -> None:
    cuda = torch.cuda.is_available()
    dist.init_process_group("nccl" if cuda else "gloo")
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if cuda else torch.device("cpu")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 129), nn.GELU(), nn.Linear(129, 16)).to(device)
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for layer in (model[0], model[2]):
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    # After fully_shard: the optimizer has to see the sharded parameters.
    optimizer = Automagic_CameAMP8bit(model.parameters(), lr=1e-3, max_lr=1.0, warmup_steps=20)

    weights, states = get_state_dict(model, optimizer)
    saved = {"model": weights, "optimizer": states, "step": torch.zeros(())}
    if (folder / ".metadata").exists():
        dcp.load(saved, checkpoint_id=folder)
        set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=states)
    start = int(saved["step"])

    task = torch.randn(16, 16, generator=torch.Generator().manual_seed(1)).to(device) / 4
    data = torch.Generator().manual_seed(100 + dist.get_rank() + 1000 * start)
    first = last = 0.0
    for _ in range(40):
        x = torch.randn(32, 16, generator=data).to(device)
        loss = (model(x) - x @ task).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        last = float(loss.detach())
        first = first or last
    weights, states = get_state_dict(model, optimizer)
    dcp.save(
        {"model": weights, "optimizer": states, "step": torch.tensor(start + 40.0)}, checkpoint_id=folder
    )
    if dist.get_rank() == 0:
        held = int(
            sum(optimizer.get_memory_stats()[f"total_{k}_memory"] for k in ("quantized", "high_precision"))
        )
        print(f"steps {start} to {start + 40}, loss {first:.3f} -> {last:.3f}, {held} bytes of state here")
    dist.barrier()  # a process that leaves first would take the others' connections with it
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/fsdp2"))
