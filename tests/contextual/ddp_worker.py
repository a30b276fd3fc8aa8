"""One rank of a data-parallel run: ``python ddp_worker.py RANK STORE``; prints what it ended with."""

from __future__ import annotations

import json
import sys

import torch
import torch.distributed as dist

from automagic_cameamp import Automagic_CameAMP_COptim


def main(rank: int, store: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    torch.manual_seed(0)
    model = torch.nn.Linear(20, 7)
    optimizer = Automagic_CameAMP_COptim(model.parameters(), lr=1e-3, max_lr=1.0, warmup_steps=4)
    torch.manual_seed(1 + rank)  # every rank has its own data
    multipliers = []
    for t in range(20):
        optimizer.zero_grad()
        loss = model(torch.randn(16, 20)).square().mean()
        loss.backward()
        for p in model.parameters():  # what DistributedDataParallel does, without its long import
            dist.all_reduce(p.grad)
            p.grad /= 2
        # The ranks' own losses go opposite ways; only their mean means something.
        optimizer.step(loss=loss.detach() + (0.4 * t if rank else -0.3 * t))
        multipliers.append(optimizer.c_optim.compute_contextual_lr_multiplier())
    weights = [p.detach().double().sum().item().hex() for p in model.parameters()]
    print(json.dumps({"m": multipliers, "weights": weights, "losses": optimizer.c_optim.loss_history}))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
