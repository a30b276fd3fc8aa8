"""Data-parallel training: every process has its own part of the data and the whole model.

torchrun --nproc-per-node 2 examples/ddp.py
accelerate launch --multi_gpu --num_processes 2 examples/ddp.py
"""

from __future__ import annotations

import gc
import os

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from automagic_cameamp import Automagic_CameAMP_COptim8bit


def train(cuda: bool) -> None:
    rank, local = dist.get_rank(), int(os.environ["LOCAL_RANK"])
    device = torch.device("cuda", local) if cuda else torch.device("cpu")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 16)).to(device)
    replica = DistributedDataParallel(model, device_ids=[local] if cuda else None)
    optimizer = Automagic_CameAMP_COptim8bit(replica.parameters(), lr=1e-3, max_lr=1.0, warmup_steps=20)

    task = torch.randn(16, 16, generator=torch.Generator().manual_seed(1)).to(device) / 4
    data = torch.Generator().manual_seed(100 + rank)  # its own data
    first = last = 0.0
    for _ in range(40):
        x = torch.randn(32, 16, generator=data).to(device)
        loss = (replica(x) - x @ task).square().mean()
        optimizer.zero_grad()
        loss.backward()
        # Each process tells its own loss; the controller takes the mean over all.
        optimizer.step(loss=loss.detach())
        last = float(loss.detach())
        first = first or last
    weights = torch.cat([p.detach().double().sum().view(1) for p in model.parameters()])
    least, most = weights.clone(), weights.clone()
    dist.all_reduce(least, op=dist.ReduceOp.MIN)
    dist.all_reduce(most, op=dist.ReduceOp.MAX)
    if rank == 0:
        print(f"loss {first:.3f} -> {last:.3f}; replicas equal: {torch.equal(least, most)}")


def main() -> None:
    cuda = torch.cuda.is_available()
    dist.init_process_group("nccl" if cuda else "gloo")
    train(cuda)
    gc.collect()  # the replica must be gone before its process group, or torch may abort at exit
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
