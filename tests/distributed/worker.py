"""One process of several: ``python worker.py RANK WORLD STORE FOLDER CHECK...``; prints its results."""

from __future__ import annotations

import datetime
import json
import sys
import warnings
from pathlib import Path

import torch
import torch.distributed as dist


def main(rank: int, world: int, store: str, folder: str, checks: list[str]) -> None:
    from distributed import checks_ddp, checks_flat, checks_fsdp, checks_saved

    torch.set_num_threads(1)
    # torch's own, at every all-gather of FSDP2 on CPU tensors.
    warnings.filterwarnings("ignore", module=r"torch\..*")
    # Sharded and fp64 weights on a CPU are stepped by the reference.
    warnings.filterwarnings("ignore", message=".* of the elements that are stepped on the CPU")
    patience = datetime.timedelta(seconds=60)
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=world, timeout=patience
    )
    known = {**vars(checks_ddp), **vars(checks_flat), **vars(checks_fsdp), **vars(checks_saved)}
    results = {name: known[name](Path(folder)) for name in checks}
    dist.barrier()
    dist.destroy_process_group()
    print(json.dumps(results))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4], sys.argv[5:])
