"""Resident memory that an optimizer really costs, each in a fresh process.

    python -m benchmarks.resident --workload lora-sdxl

State bytes are what the tensors hold; the resident set also has what the allocator could not give back (holes
between long-lived tensors) and work buffers. The difference is what counts on a full machine.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from benchmarks.common import (
    CANDIDATE_HELP,
    RESULTS,
    ROOT,
    append_row,
    argument_parser,
    available,
    build,
    environment,
    label,
    markdown,
    parse_candidate,
)
from benchmarks.meters import state_bytes, status_kib, warm_allocator
from benchmarks.workloads import WORKLOADS, GradientPool, make_params

OPTIMIZERS = ["adamw-fused", "bnb-adamw8bit", "came", "Automagic_CameAMP", "Automagic_CameAMP8bit"]


def measure(text: str, workload: str, steps: int) -> dict:
    """In this process, which must be fresh: rise of the resident set over parameters and gradients."""
    import torch

    torch.set_num_threads(1)
    name, options = parse_candidate(text)
    warm_allocator()
    params = make_params(WORKLOADS[workload])
    pool = GradientPool(WORKLOADS[workload])
    # A first tiny step loads libraries and tables, which are not a cost per parameter.
    tiny = torch.nn.Parameter(torch.zeros(8, 8))
    tiny.grad = torch.ones_like(tiny)
    build(name, [tiny], **{"lr": 1e-6, **options}).step()
    optimizer = build(name, params, **{"lr": 1e-6, **options})
    pool.redraw(params)
    before = status_kib("VmRSS")
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    for _ in range(steps):
        pool.redraw(params)
        optimizer.step()
    mib = {"resident_mib": status_kib("VmRSS") - before, "high_mib": status_kib("VmHWM") - before}
    row = {"bench": "resident", "optimizer": name, "options": options, "workload": workload, "steps": steps}
    row |= {key: value / 1024 for key, value in mib.items()}
    return {**row, "state_mib": state_bytes(optimizer) / 2**20, **environment()}


def table(rows: list[dict]) -> str:
    keys = ("state_mib", "resident_mib", "high_mib")
    body = [
        [r["workload"], label(r["optimizer"], r["options"]), *(f"{r[key]:.0f}" for key in keys)]
        for r in sorted(rows, key=lambda r: r["workload"])
    ]
    return markdown(["workload", "optimizer", "state MiB", "resident MiB", "highest MiB"], body)


def main(argv: list[str] | None = None) -> list[dict]:
    parser = argument_parser(__doc__)
    parser.add_argument("--workload", default="lora-sdxl", choices=list(WORKLOADS))
    parser.add_argument("--optimizers", nargs="+", default=OPTIMIZERS, help=CANDIDATE_HELP)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--out", type=Path, default=RESULTS / "resident.jsonl")
    parser.add_argument("--quick", action="store_true", help="a small workload, two steps: a smoke test")
    parser.add_argument("--here", action="store_true", help="measure the one optimizer in this process")
    args = parser.parse_args(argv)
    if args.quick:
        args.workload, args.steps = "quick", 2
    if args.here:
        row = measure(args.optimizers[0], args.workload, args.steps)
        print(json.dumps(row))
        return [row]
    if not Path("/proc/self/clear_refs").exists():
        raise SystemExit("the resident set can be measured on Linux only (no /proc/self/clear_refs here)")
    rows = []
    for text in args.optimizers:
        if not available(parse_candidate(text)[0]):
            print(f"skipped: {text} cannot be imported here")
            continue
        command = [sys.executable, "-m", "benchmarks.resident", "--here", "--optimizers", text]
        command += ["--workload", args.workload, "--steps", str(args.steps)]
        # Threads have heaps of their own, so one thread; the parent's allocator settings are not touched.
        variables = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{text}: {done.stderr.strip()}")
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        append_row(args.out, rows[-1])
    print(table(rows))
    return rows


if __name__ == "__main__":
    main()
