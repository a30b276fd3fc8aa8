"""Time, bytes and memory of one optimizer step on a GPU, against other optimizers and the copy bandwidth.

    python -m benchmarks.step_gpu                                # every workload, every peer that imports
    python -m benchmarks.step_gpu --workload one-big-bf16 --dram # DRAM bytes too, from Nsight Compute (ncu)
    python -m benchmarks.step_gpu --dry-run                      # on a CPU: no number counts

Candidates of one workload take turns, round after round; a step is timed between two events of the
stream, after a memset that pushes the last step's data out of the cache. The bound is the time that
a copy of as many bytes takes: gradient, weights and state of the 8-bit class read once, and all but
the gradient written (bytes_per_param). Each row names device, driver, versions and commit.
"""

from __future__ import annotations

import csv
import gc
import io
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import (
    CANDIDATE_HELP,
    RESULTS,
    ROOT,
    append_row,
    argument_parser,
    available,
    environment,
    is_ours,
    label,
    markdown,
    median,
    parse_candidate,
    quantile,
)
from benchmarks.common import build as build_optimizer
from benchmarks.workloads import WORKLOADS, GradientPool, make_params

REFERENCE = "adamw-fused"
PEERS = [REFERENCE, "bnb-adamw8bit", "torchao-adamw8bit", "flash-adamw", "came", "adv-adamw", "sdnq-adamw"]
OURS = [
    "Automagic_CameAMP",
    "Automagic_CameAMP8bit",
    "Automagic_CameAMP8bit:master_weight_bits=24",
    "Automagic_CameAMP_COptim8bit",
    "Automagic_CameAMP_Improved_8Bit",
    "Automagic_CameAMP_Improved_8Bit:profile=minimal",
]
DEFAULT = ["lora-sdxl", "full-124m", "one-billion-bf16", "one-big-bf16"]
MIB = 1 << 20
METRICS = "dram__bytes_read.sum,dram__bytes_write.sum"
MARK = "step_gpu-dram-bytes"


class Clock:
    """Milliseconds of work on a device; on a CPU (dry run) by the wall clock."""

    def __init__(self, device: str, flush: int) -> None:
        self.cuda = device == "cuda"
        self.junk = torch.empty(flush, dtype=torch.uint8, device=device)

    def __call__(self, work: Any) -> float:
        self.junk.zero_()
        if not self.cuda:
            start = time.perf_counter()
            work()
            return (time.perf_counter() - start) * 1e3
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        work()
        end.record()
        end.synchronize()
        return start.elapsed_time(end)


def copy_bandwidth(clock: Clock, device: str, size: int) -> float:
    """Bytes per second of a copy, reads and writes both counted."""
    source, target = (torch.zeros(size, dtype=torch.uint8, device=device) for _ in range(2))
    times = [clock(lambda: target.copy_(source)) for _ in range(10)]
    return 2 * size / (median(times[2:]) * 1e-3)


def machine(device: str) -> dict[str, Any]:
    """Device, driver and versions behind a row."""
    info = environment(device)
    for name in ("triton", "bitsandbytes", "torchao"):
        try:
            info[name] = __import__("importlib.metadata").metadata.version(name)
        except ModuleNotFoundError:
            info[name] = None
    info["cuda"] = torch.version.cuda
    info["driver"] = None
    if device == "cuda" and (tool := shutil.which("nvidia-smi")):
        command = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        info["driver"] = done.stdout.strip().splitlines()[0] if done.stdout.strip() else None
    return info


def bound_bytes(dtype: torch.dtype) -> float:
    """Bytes per parameter of a step that reads and writes everything once: 10 with bf16 weights."""
    width = torch.empty((), dtype=dtype).element_size()
    return 3 * width + 4  # g, p read; p written; momentum and mask of one byte each, read and written


class Candidate:
    """One optimizer with parameters of its own, and its timings."""

    def __init__(self, name: str, options: dict[str, Any], workload: str, device: str) -> None:
        self.name, self.options = name, options
        before = self._allocated(device)
        self.params = make_params(WORKLOADS[workload], device=device)
        weights = self._allocated(device) - before
        extra = {"lr": 1e-6, **({"engine": "auto"} if is_ours(name) else {}), **options}
        self.optimizer = build_optimizer(name, self.params, **extra)
        self.held, self.peak, self.times = weights, 0, []

    @staticmethod
    def _allocated(device: str) -> int:
        return torch.cuda.memory_allocated() if device == "cuda" else 0

    def first(self, pool: GradientPool, device: str) -> None:
        """Steps that make the state and compile, then one whose peak memory is read."""
        before = self._allocated(device)
        for _ in range(4):
            pool.redraw(self.params)
            self.optimizer.step()
        self.state = self._allocated(device) - before
        pool.redraw(self.params)
        if device == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            start = torch.cuda.memory_allocated()
            self.optimizer.step()
            torch.cuda.synchronize()
            self.peak = torch.cuda.max_memory_allocated() - start


def launches(candidate: Candidate, pool: GradientPool) -> int | None:
    """Kernels and copies on the device in one step, from torch's profiler."""
    from torch.profiler import ProfilerActivity, profile

    pool.redraw(candidate.params)
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as seen:
        candidate.optimizer.step()
        torch.cuda.synchronize()
    kinds = [event for event in seen.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    return len(kinds)


def dram_bytes(workload: str, name: str, options: dict[str, Any]) -> float | None:
    """DRAM bytes of one step, read by Nsight Compute in a process of its own; None where it cannot run."""
    tool = shutil.which("ncu")
    if tool is None:
        return None
    text = name + ":" + ";".join(f"{k}={v}" for k, v in options.items()) if options else name
    command = [tool, "--profile-from-start", "off", "--csv", "--metrics", METRICS, sys.executable]
    command += ["-m", "benchmarks.step_gpu", "--one-step", text, "--workload", workload]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    return sum_of_metrics(done.stdout) if done.returncode == 0 else None


def sum_of_metrics(text: str) -> float:
    """Bytes in the CSV that ncu prints among other lines."""
    lines = [line for line in text.splitlines() if line.startswith('"')]
    units = {"byte": 1.0, "Kbyte": 1e3, "Mbyte": 1e6, "Gbyte": 1e9}
    total = 0.0
    for row in csv.DictReader(io.StringIO("\n".join(lines))):
        if row.get("Metric Name") in METRICS.split(","):
            total += float(row["Metric Value"].replace(",", "")) * units[row["Metric Unit"]]
    return total


def one_step(text: str, workload: str) -> None:
    """What runs under ncu: one step between the profiler's marks."""
    name, options = parse_candidate(text)
    candidate = Candidate(name, options, workload, "cuda")
    pool = GradientPool(WORKLOADS[workload], device="cuda")
    candidate.first(pool, "cuda")
    pool.redraw(candidate.params)
    torch.cuda.synchronize()
    torch.cuda.cudart().cudaProfilerStart()
    candidate.optimizer.step()
    torch.cuda.synchronize()
    torch.cuda.cudart().cudaProfilerStop()
    print(MARK)


def run(workload: str, texts: list[str], rounds: int, device: str, dram: bool) -> list[dict[str, Any]]:
    """Rows of all candidates on one workload."""
    work = WORKLOADS[workload]
    clock = Clock(device, 256 * MIB if device == "cuda" else MIB)
    bandwidth = copy_bandwidth(clock, device, 1024 * MIB if device == "cuda" else MIB)
    pool = GradientPool(work, device=device)
    candidates = []
    for text in texts:
        name, options = parse_candidate(text)
        if not available(name):
            print(f"skipped: {name} cannot be imported here")
            continue
        try:
            candidate = Candidate(name, options, workload, device)
            candidate.first(pool, device)
        except (RuntimeError, ValueError) as error:
            print(f"skipped: {name}: {error}")
            continue
        candidates.append(candidate)
    for turn in range(rounds):
        for k in range(len(candidates)):
            candidate = candidates[(k + turn) % len(candidates)]
            pool.redraw(candidate.params)
            candidate.times.append(clock(candidate.optimizer.step))
    base = next((c for c in candidates if c.name == REFERENCE), candidates[0])
    bound = bound_bytes(work.dtype) * work.numel
    rows = []
    for c in candidates:
        count = launches(c, pool) if device == "cuda" else None
        rows.append(
            {
                "bench": "step_gpu",
                "dry_run": device != "cuda",
                "workload": workload,
                "optimizer": c.name,
                "options": c.options,
                "ms": median(c.times),
                "ms_p10": quantile(c.times, 0.1),
                "ms_p90": quantile(c.times, 0.9),
                "ratio": median(c.times) / median(base.times),
                "x_bound": median(c.times) * 1e-3 * bandwidth / bound,
                "bound_bytes_per_param": bound / work.numel,
                "copy_gb_per_s": bandwidth / 1e9,
                "dram_bytes_per_param": None,
                "launches": count,
                "state_bytes_per_param": c.state / work.numel,
                "peak_share_of_weights": c.peak / max(1, c.held),
                "rounds": rounds,
                **machine(device),
            }
        )
    del candidates, base, candidate
    gc.collect()
    if dram:
        for row in rows:
            found = dram_bytes(workload, row["optimizer"], row["options"])
            row["dram_bytes_per_param"] = None if found is None else found / work.numel
    return rows


COLUMNS = ["optimizer", "ms (p10-p90)", "x fused", "x bound", "DRAM B/param", "launches"]
COLUMNS += ["state B/param", "peak, share of weights"]


def table(rows: list[dict[str, Any]]) -> str:
    """The rows of one workload."""
    return markdown(
        COLUMNS,
        [
            [
                label(r["optimizer"], r["options"]),
                f"{r['ms']:.3g} ({r['ms_p10']:.3g}-{r['ms_p90']:.3g})",
                r["ratio"],
                r["x_bound"],
                r["dram_bytes_per_param"],
                r["launches"],
                r["state_bytes_per_param"],
                r["peak_share_of_weights"],
            ]
            for r in rows
        ],
    )


def main(argv: list[str] | None = None) -> list[dict[str, Any]]:
    parser = argument_parser(__doc__)
    parser.add_argument("--workload", nargs="+", default=DEFAULT, choices=list(WORKLOADS))
    parser.add_argument("--optimizers", nargs="+", default=[*PEERS, *OURS], help=CANDIDATE_HELP)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--dram", action="store_true", help="read DRAM bytes with Nsight Compute (slow)")
    parser.add_argument("--dry-run", action="store_true", help="small, on the CPU; no number counts")
    parser.add_argument("--one-step", help="internal: one step of this optimizer, for ncu")
    parser.add_argument("--out", type=Path, default=RESULTS / "step_gpu.jsonl")
    args = parser.parse_args(argv)
    if not torch.cuda.is_available() and not args.dry_run:
        raise SystemExit("step_gpu: no CUDA device here, nothing was measured. --dry-run checks the script.")
    if args.one_step:
        one_step(args.one_step, args.workload[0])
        return []
    device = "cpu" if args.dry_run else "cuda"
    if args.dry_run:
        args.workload, args.rounds = ["quick"], 2
    everything = []
    for workload in args.workload:
        rows = run(workload, args.optimizers, args.rounds, device, args.dram)
        for row in rows:
            append_row(args.out, row)
        title = " (dry run on a CPU: no number counts)" if args.dry_run else f", {rows[0]['gpu']}"
        print(f"\n### {workload}{title}\n\n{table(rows)}\n", flush=True)
        everything += rows
    return everything


if __name__ == "__main__":
    main()
