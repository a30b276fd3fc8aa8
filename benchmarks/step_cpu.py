"""Time and memory of one optimizer step on the CPU, against torch's fused AdamW.

    python -m benchmarks.step_cpu --workload lora-sdxl --threads 2
    python -m benchmarks.step_cpu --workload one-big --chunk tensor 131072 262144 all
    python -m benchmarks.step_cpu --family --engines native --threads 2

All candidates live in one process and are timed in turn, round after round, so that a drift of the
machine hits all of them; the ratio is taken within each round. They share parameters and
gradients: a step moves the parameters by about lr = 1e-6, which changes no timing.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from automagic_cameamp.kernels import native
from benchmarks.common import (
    CANDIDATE_HELP,
    RESULTS,
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
from benchmarks.meters import Neighbours, OpMeter, minor_faults, rss_peak_mib, state_bytes, warm_allocator
from benchmarks.traffic import bytes_per_param
from benchmarks.workloads import WORKLOADS, GradientPool, make_params

REFERENCE = "adamw-fused"
PEERS = [REFERENCE, "adamw-foreach", "bnb-adamw8bit", "came"]
OURS = ["Automagic_CameAMP", "Automagic_CameAMP8bit"]
# Peers whose step is compiled.
COMPILED = {"torchao-adamw8bit", "ao-adamw8bit", "sdnq-adamw", "heavyball-adamw"}
# All seven classes; the last one by its profiles too. ao-adamw8bit compiles for a minute: on request only.
FAMILY = [
    *OURS,
    "Automagic_CameAMP_COptim",
    "Automagic_CameAMP_COptim8bit",
    "Automagic_CameAMP_Improved",
    "Automagic_CameAMP_8Bit",
    *(
        f"Automagic_CameAMP_Improved_8Bit:profile={profile};verbose=False"
        for profile in ("minimal", "memory_optimized", "balanced", "quality_optimized")
    ),
]
# Both limits of chunking: every tensor for itself, and all tensors of one shape at once.
CHUNK_WORDS = {"tensor": 1, "all": 1 << 60}
NOISE_CORES = 0.2  # a round timed while others used more than this many cores is dropped


class Candidate:
    """One optimizer, how it was asked for, and its timings."""

    def __init__(self, name: str, options: dict[str, Any], phase: str | None, chunk: int | None):
        self.name, self.options, self.phase, self.chunk = name, options, phase, chunk
        self.times: list[float] = []
        self.ratios: list[float] = []
        self.cpu: list[float] = []
        self.faults: list[float] = []
        self.dropped = 0
        self.row: dict[str, Any] = {}

    @property
    def title(self) -> str:
        parts = [f"{k}={v}" for k, v in (("phase", self.phase), ("chunk", self.chunk)) if v is not None]
        return " ".join([label(self.name, self.options), *parts])

    def build(self, params: list[torch.nn.Parameter], rounds: int) -> None:
        options = {"lr": 1e-6, **self.options}
        self.lead = 2  # steps before anything but the first step is measured
        if self.phase is not None:
            # middle = the second half of the warm-up: run the first half untimed; 3 * rounds leaves room
            # for rounds that are dropped and repeated.
            half = 3 * rounds + 8
            options["warmup_steps"] = {"early": 10**6, "middle": 2 * half, "late": 0}[self.phase]
            self.lead = half if self.phase == "middle" else 2
        with chunk_elements(self.chunk):
            self.optimizer = build_optimizer(self.name, params, **options)

    def step(self) -> float:
        with chunk_elements(self.chunk):
            start, cpu, faults = time.perf_counter(), time.process_time(), minor_faults()
            self.optimizer.step()
            self.cpu.append(time.process_time() - cpu)
            self.faults.append(minor_faults() - faults)
            return time.perf_counter() - start


@contextmanager
def chunk_elements(elements: int | None):
    """Set how many elements our engine stacks at most; None leaves its own constant."""
    if elements is None:
        yield
        return
    from automagic_cameamp.state import chunks as buckets

    usual = buckets.CPU_CHUNK_ELEMENTS
    buckets.CPU_CHUNK_ELEMENTS = elements
    try:
        yield
    finally:
        buckets.CPU_CHUNK_ELEMENTS = usual


def with_engines(texts: list[str], engines: list[str]) -> list[str]:
    """Ours once per engine, the others as they are."""
    found = []
    for text in texts:
        if engines and is_ours(parse_candidate(text)[0]):
            found += [text + (";" if ":" in text else ":") + f"engine={engine}" for engine in engines]
        else:
            found.append(text)
    return found


def expand(texts: list[str], phases: list[str], chunks: list[int]) -> list[Candidate]:
    """Candidates asked for: ours once per phase and chunk size, the others once."""
    found = []
    for text in texts:
        name, options = parse_candidate(text)
        if not available(name):
            print(f"skipped: {name} cannot be imported here")
            continue
        variants: list[tuple[str | None, int | None]] = [(None, None)]
        if is_ours(name):
            wanted = [None] if "warmup_steps" in options else phases
            variants = [(phase, chunk) for phase in wanted for chunk in (chunks or [None])]
        found += [Candidate(name, options, phase, chunk) for phase, chunk in variants]
    return found


def prepare(candidate: Candidate, params, pool: GradientPool, rounds: int) -> None:
    """First step, warm-up, state size, peak memory, operator count."""
    candidate.build(params, rounds)
    pool.redraw(params)
    row = candidate.row
    row["first_s"] = candidate.step()
    for _ in range(candidate.lead):
        pool.redraw(params)
        usual = candidate.step()
    # Short steps are timed several times per round. Not in the middle phase, where steps are counted.
    candidate.repeat = 1 if candidate.phase == "middle" else min(50, max(1, int(0.01 / usual)))
    if is_ours(candidate.name) and candidate.options.get("engine") != "reference":
        row["bytes_moved_per_param"] = bytes_per_param(candidate.optimizer, candidate.phase)
    row["state_bytes_per_param"] = state_bytes(candidate.optimizer) / sum(p.numel() for p in params)
    pool.redraw(params)
    row["peak_rss_mib"] = rss_peak_mib(candidate.step)
    pool.redraw(params)
    if candidate.name in COMPILED:  # nothing can be counted inside a compiled step
        candidate.step()
        row.update(ops_per_step=None, peak_tensor_mib=None, alloc_mib=None)
    else:
        with OpMeter() as meter:
            candidate.step()
        mib = 2**20
        row.update(ops_per_step=meter.ops, peak_tensor_mib=meter.peak / mib, alloc_mib=meter.allocated / mib)
    candidate.cpu.clear()
    candidate.faults.clear()


def one_round(candidates: list[Candidate], params, pool: GradientPool, turn: int) -> tuple[list[float], bool]:
    """Seconds per step of every candidate, and whether neighbours disturbed the round."""
    neighbours = Neighbours()
    taken = [0.0] * len(candidates)
    for i in range(len(candidates)):
        k = (i + turn) % len(candidates)  # nobody always runs after the same one
        samples = []
        for _ in range(candidates[k].repeat):
            pool.redraw(params)
            samples.append(candidates[k].step())
        taken[k] = median(samples)
    # The kernel counts in 10 ms ticks, so a shorter round cannot be judged.
    long_enough = time.perf_counter() - neighbours.start[2] > 0.3
    return taken, long_enough and neighbours.cores() > NOISE_CORES


def run(
    workload: str, candidates: list[Candidate], rounds: int, seconds: float, keep_noisy: bool, warm: bool
):
    """Rows of all candidates on one workload."""
    work = WORKLOADS[workload]
    if warm:
        warm_allocator()
    params = make_params(work)
    pool = GradientPool(work)
    for candidate in candidates:
        prepare(candidate, params, pool, rounds)
        print(f"  ready: {candidate.title} (first step {candidate.row['first_s']:.2f} s)", flush=True)
    noise = {"rounds_dropped": 0, "rounds_noisy": 0}
    start = time.perf_counter()
    kept = 0
    while kept < rounds and (kept < 3 or time.perf_counter() - start < seconds):
        taken, noisy = one_round(candidates, params, pool, kept + noise["rounds_dropped"])
        # After many refusals the machine is simply busy: keep the rounds and say so in the row.
        if noisy and not keep_noisy and noise["rounds_dropped"] < 2 * rounds:
            noise["rounds_dropped"] += 1
            continue
        noise["rounds_noisy"] += noisy
        kept += 1
        for candidate, value in zip(candidates, taken, strict=True):
            candidate.times.append(value)
            candidate.ratios.append(value / taken[0])
    return [{**finish(c, work, "warm" if warm else "cold"), **noise} for c in candidates]


def finish(candidate: Candidate, work, allocator: str) -> dict[str, Any]:
    ms = [t * 1e3 for t in candidate.times]
    row = {
        "bench": "step_cpu",
        "workload": work.name,
        "optimizer": candidate.name,
        "options": candidate.options,
        "phase": candidate.phase,
        "chunk": candidate.chunk,
        "allocator": allocator,
        "ms": median(ms),
        "ms_p10": quantile(ms, 0.1),
        "ms_p90": quantile(ms, 0.9),
        "ns_per_param": median(ms) * 1e6 / work.numel,
        # user + system time of all threads: robust against neighbours where threads do not spin
        "cpu_ns_per_param": median(candidate.cpu) * 1e9 / work.numel,
        "faults": median(candidate.faults),
        "ratio": median(candidate.ratios),
        "ratio_p10": quantile(candidate.ratios, 0.1),
        "ratio_p90": quantile(candidate.ratios, 0.9),
        "rounds": len(ms),
    }
    row.update(candidate.row)
    isa = native.flavour() if native.why_not() is None else None
    return {**row, **environment(), "isa": isa}


CHUNK_NAMES = {1: "one tensor", CHUNK_WORDS["all"]: "all of a shape"}
COLUMNS = [
    "optimizer",
    "phase",
    "chunk",
    "ms/step (p10-p90)",
    "ns/param",
    "CPU ns/param",
    "x fused (p10-p90)",
]
COLUMNS += ["state B/param", "peak MiB (RSS)", "peak MiB (tensors)", "ops/step", "faults/step", "first s"]


def table(rows: list[dict]) -> str:
    body = []
    for r in rows:
        body.append(
            [
                label(r["optimizer"], r["options"]),
                r["phase"],
                CHUNK_NAMES.get(r["chunk"], r["chunk"]),
                f"{r['ms']:.3g} ({r['ms_p10']:.3g}-{r['ms_p90']:.3g})",
                f"{r['ns_per_param']:.2f}",
                f"{r['cpu_ns_per_param']:.2f}",
                f"{r['ratio']:.2f} ({r['ratio_p10']:.2f}-{r['ratio_p90']:.2f})",
                f"{r['state_bytes_per_param']:.2f}",
                None if r["peak_rss_mib"] is None else f"{r['peak_rss_mib']:.1f}",
                None if r["peak_tensor_mib"] is None else f"{r['peak_tensor_mib']:.1f}",
                r["ops_per_step"],
                int(r["faults"]),
                f"{r['first_s']:.2f}",
            ]
        )
    return markdown(COLUMNS, body)


def main(argv: list[str] | None = None) -> list[dict]:
    parser = argument_parser(__doc__)
    parser.add_argument("--workload", nargs="+", default=["lora-sdxl"], choices=list(WORKLOADS))
    parser.add_argument("--optimizers", nargs="+", default=[*PEERS, *OURS], help=CANDIDATE_HELP)
    parser.add_argument("--family", action="store_true", help="all classes and profiles, and the peers")
    parser.add_argument("--engines", nargs="+", default=[], help="engine=... of ours, one candidate each")
    parser.add_argument("--phases", nargs="+", default=["early", "late"], choices=["early", "middle", "late"])
    parser.add_argument(
        "--chunk", nargs="+", default=[], help="elements per chunk of ours, or tensor, or all"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=120.0, help="start no round after this long")
    parser.add_argument("--keep-noisy", action="store_true", help="keep rounds while others ran")
    parser.add_argument("--cold-allocator", action="store_true", help="as if nothing large was ever freed")
    parser.add_argument("--out", type=Path, default=RESULTS / "step_cpu.jsonl")
    parser.add_argument("--quick", action="store_true", help="a small workload, three rounds: a smoke test")
    args = parser.parse_args(argv)
    if args.quick:
        args.workload, args.rounds, args.keep_noisy = ["quick"], 3, True
    torch.set_num_threads(args.threads)
    if args.family:
        args.optimizers = [*PEERS, *FAMILY]
    args.optimizers = with_engines(args.optimizers, args.engines)
    chunks = [CHUNK_WORDS[c] if c in CHUNK_WORDS else int(c) for c in args.chunk]
    everything = []
    for workload in args.workload:
        names = [REFERENCE, *[o for o in args.optimizers if o != REFERENCE]]  # the reference comes first
        candidates = expand(names, args.phases, chunks)
        rows = run(workload, candidates, args.rounds, args.seconds, args.keep_noisy, not args.cold_allocator)
        for row in rows:
            append_row(args.out, row)
        print(f"\n### {workload}, {args.threads} thread(s)\n\n{table(rows)}\n", flush=True)
        everything += rows
    return everything


if __name__ == "__main__":
    main()
