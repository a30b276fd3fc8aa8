"""What more threads would give a step: the work that each would get, from one thread's times.

    python -m benchmarks.scaling

No machine of ours has more than two cores. The kernels hand out a step in shares (tensors, bundles of small
ones, slabs of those that would keep one thread too long), and a thread that is free takes the next. So the
times of the shares that 2, 4 or 8 threads would get, all taken by one, say what each would have to do: they
are dealt out as the pool does it. What the kernels do between shares, and Python before and after them, no
thread can help with. That is the processors' bound; the memory's is the bytes of a step (``traffic``) at
what two channels of DDR4-3200 or DDR5-5600 deliver. The step is timed on two threads in the same run,
beside what is foretold for two.

`imbalance` is the time of the busiest thread over the mean of all; 1 is even. Rows go to
`results/scaling.jsonl`.
"""

from __future__ import annotations

import ctypes
import heapq
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from automagic_cameamp.kernels import native
from benchmarks.against import PHASES
from benchmarks.common import (
    CANDIDATE_HELP,
    RESULTS,
    append_row,
    argument_parser,
    build,
    environment,
    label,
    markdown,
    median,
    parse_candidate,
)
from benchmarks.step_cpu import FAMILY
from benchmarks.traffic import MEMORY, bytes_per_param
from benchmarks.workloads import WORKLOADS, GradientPool, make_params

THREADS = (2, 4, 8)
ROOM = 1 << 16
Sections = list[list[int]]  # of each parallel section, nanoseconds of its shares in order


class Watch:
    """The shares of one step, which one thread takes while this is open, as ``sections``."""

    def __enter__(self) -> Watch:
        self._rows = np.zeros((ROOM, 3), dtype=np.int64)
        self._library = native.library()
        self._library.automagic_watch.restype = ctypes.c_int64
        self._library.automagic_watch.argtypes = [ctypes.c_void_p, ctypes.c_int64]
        self._library.automagic_watch(self._rows.ctypes.data, ROOM)
        return self

    def __exit__(self, *exc: object) -> None:
        self._count = self._library.automagic_watch(None, 0)

    def sections(self) -> Sections:
        """What was noted."""
        if self._count > ROOM:
            raise RuntimeError(f"{self._count} shares, and room for {ROOM}")
        found: dict[int, dict[int, int]] = {}
        for section, index, taken in self._rows[: self._count].tolist():
            found.setdefault(section, {})[index] = taken
        return [[shares[i] for i in sorted(shares)] for _, shares in sorted(found.items())]


def deal(shares: Sequence[int], threads: int) -> list[int]:
    """What each thread does where a free one takes the next share."""
    busy = [0] * threads
    for share in shares:
        heapq.heapreplace(busy, busy[0] + share)
    return busy


def foretell(sections: Sections, total: float, threads: int) -> tuple[float, float]:
    """Nanoseconds of a step on so many threads, and how unevenly they share the work.

    Args:
        sections: the shares' times on one thread.
        total: nanoseconds of the whole step there.
        threads: how many.
    """
    work = sum(map(sum, sections))
    longest = sum(max(deal(shares, threads)) for shares in sections)
    return total - work + longest, longest * threads / max(work, 1)


def watched(step: Any, rounds: int) -> tuple[Sections, float]:
    """The median step of some, by its whole time: its shares, and nanoseconds."""
    found = []
    for _ in range(rounds):
        with Watch() as watch:
            start = time.perf_counter_ns()
            step()
            taken = time.perf_counter_ns() - start
        found.append((taken, watch.sections()))
    taken, sections = sorted(found, key=lambda one: one[0])[len(found) // 2]
    return sections, taken


def timed(step: Any, rounds: int) -> float:
    """Nanoseconds of a step, the median."""
    found = []
    for _ in range(rounds):
        start = time.perf_counter_ns()
        step()
        found.append(time.perf_counter_ns() - start)
    return median(found)


def measure(workload: str, candidate: str, phase: str, rounds: int) -> dict[str, Any]:
    """One row."""
    work = WORKLOADS[workload]
    params, pool = make_params(work), GradientPool(work)
    name, options = parse_candidate(candidate)
    optimizer = build(name, params, **{"lr": 1e-6, **options, "warmup_steps": PHASES[phase]})

    step = optimizer.step
    pool.redraw(params)
    torch.set_num_threads(2)
    for _ in range(3):
        step()
    pair = timed(step, rounds)
    torch.set_num_threads(1)
    one = timed(step, rounds)
    found = {}
    for threads in THREADS:
        torch.set_num_threads(threads)
        sections, total = watched(step, rounds)
        taken, uneven = foretell(sections, total, threads)
        inside = sum(map(sum, sections))
        found[str(threads)] = {
            "speedup": one / taken,
            "imbalance": uneven,
            "serial_ms": (total - inside) / 1e6,
            "sections": len(sections),
            "shares": sum(map(len, sections)),
            "largest_share": max(max(shares, default=0) for shares in sections) / inside,
        }
    torch.set_num_threads(1)
    bytes_ = bytes_per_param(optimizer, phase)["all"]
    return {
        "bench": "scaling",
        "workload": workload,
        "optimizer": name,
        "options": options,
        "phase": phase,
        "ms": one / 1e6,
        "on": found,
        "measured_2": one / pair,
        "bytes_moved_per_param": bytes_,
        "memory_ms": {kind: bytes_ * work.numel / rate / 1e6 for kind, rate in MEMORY.items()},
        **environment(),
        "isa": native.flavour(),
    }


def cells(row: dict[str, Any]) -> list[str]:
    """Of one row of a table."""
    options = {name: value for name, value in row["options"].items() if name != "verbose"}
    most = row["on"][str(THREADS[-1])]

    def each(what: str) -> str:
        return " / ".join(f"{row['on'][str(n)][what]:.2f}" for n in THREADS)

    return [
        f"`{label(row['optimizer'], options)}`",
        f"{row['workload']} {row['phase']}",
        f"{row['ms']:.1f}",
        f"{most['serial_ms']:.1f}",
        f"{most['shares']:,} ({100 * most['largest_share']:.1f}%)",
        each("imbalance"),
        each("speedup"),
        f"{row['measured_2']:.2f}",
        " / ".join(f"{row['ms'] / limit:.1f}" for limit in row["memory_ms"].values()),
    ]


COLUMNS = [
    "optimizer",
    "workload",
    "ms, one thread",
    "serial ms",
    f"shares for {THREADS[-1]} (the largest)",
    "imbalance on 2 / 4 / 8",
    "times as fast on 2 / 4 / 8",
    "measured on 2",
    f"memory's limit, {' / '.join(MEMORY)}",
]


def table(rows: Iterable[dict[str, Any]]) -> str:
    """Of rows."""
    return markdown(COLUMNS, [cells(row) for row in rows])


def main(argv: list[str] | None = None) -> list[dict]:
    parser = argument_parser(__doc__)
    parser.add_argument("--workload", nargs="+", default=["lora-sdxl", "full-124m", "one-big"])
    parser.add_argument("--optimizers", nargs="+", default=FAMILY, help=CANDIDATE_HELP)
    parser.add_argument("--phases", nargs="+", default=["late"], choices=list(PHASES))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, default=RESULTS / "scaling.jsonl")
    parser.add_argument("--quick", action="store_true", help="a small workload: a smoke test")
    args = parser.parse_args(argv)
    if args.quick:
        args.workload, args.rounds = ["quick"], 3
    rows = []
    for workload in args.workload:
        for candidate in args.optimizers:
            for phase in args.phases:
                rows.append(measure(workload, candidate, phase, args.rounds))
                append_row(args.out, rows[-1])
                print(" | ".join(cells(rows[-1])), flush=True)
    return rows


if __name__ == "__main__":
    main()
