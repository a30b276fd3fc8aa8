"""A step of this checkout against that of another one, in turn, and what of it Python takes.

    git worktree add ../old 5ba02f1 && python ../old/src/automagic_cameamp/kernels/build.py
    python -m benchmarks.against ../old --threads 2

One process per checkout, each with the same parameters and gradients, stepped in turn, round after round; the
ratio is taken within each round. What Python takes is the step without the call of the kernels. Rows go to
`results/against.jsonl`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import (
    RESULTS,
    ROOT,
    append_row,
    argument_parser,
    environment,
    label,
    markdown,
    median,
    parse_candidate,
    quantile,
)
from benchmarks.workloads import WORKLOADS, GradientPool, make_params

OPTIMIZERS = [
    "Automagic_CameAMP",
    "Automagic_CameAMP8bit",
    "Automagic_CameAMP_Improved_8Bit:profile=balanced;verbose=False",
]
PHASES = {"early": 10**6, "late": 0}  # warmup_steps


class Watched:
    """The kernels' library, whose steps are timed."""

    def __init__(self, library: Any) -> None:
        self.library, self.spent = library, 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.library, name)

    def automagic_step(self, *arguments: Any) -> None:
        start = time.perf_counter()
        self.library.automagic_step(*arguments)
        self.spent += time.perf_counter() - start


def child(candidate: str, phase: str, workload: str, threads: int) -> None:
    """Step as often as asked for on stdin; milliseconds of a step, and of its call of the kernels."""
    import automagic_cameamp
    from automagic_cameamp.kernels import native

    torch.set_num_threads(threads)
    name, options = parse_candidate(candidate)
    work = WORKLOADS[workload]
    params, pool = make_params(work), GradientPool(work)
    optimizer = getattr(automagic_cameamp, name)(params, lr=1e-6, warmup_steps=PHASES[phase], **options)
    watched = Watched(native.library())
    native.library = lambda: watched

    def step() -> tuple[float, float]:
        pool.redraw(params)
        watched.spent, start = 0.0, time.perf_counter()
        optimizer.step()
        return 1e3 * (time.perf_counter() - start), 1e3 * watched.spent

    for _ in range(4):
        step()
    print("ready", flush=True)
    for line in sys.stdin:
        times = [step() for _ in range(int(line))]
        whole, outside = [a for a, _ in times], [a - b for a, b in times]
        print(json.dumps([median(whole), median(outside)]), flush=True)


class Checkout:
    """A process that steps with the package of one folder."""

    def __init__(self, folder: Path, arguments: list[str]) -> None:
        path = os.pathsep.join([str(folder / "src"), str(ROOT)])
        command = [sys.executable, "-m", "benchmarks.against", "--child", *arguments]
        environ = {**os.environ, "PYTHONPATH": path, "OMP_WAIT_POLICY": "PASSIVE"}
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.answer()

    def answer(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.process.args}: it ended with {self.process.wait()}")
        return line

    def time(self, steps: int) -> tuple[float, float]:
        assert self.process.stdin is not None
        print(steps, file=self.process.stdin, flush=True)
        whole, outside = json.loads(self.answer())
        return whole, outside

    def close(self) -> None:
        self.process.kill()
        with self.process:  # its pipes
            pass


def measure(other: Path, candidate: str, phase: str, args: Any) -> dict[str, Any]:
    """One row: this checkout over the other one."""
    settings = [candidate, phase, args.workload, str(args.threads)]
    there, here = Checkout(other, settings), Checkout(ROOT, settings)
    try:
        rounds = [(there.time(args.steps), here.time(args.steps)) for _ in range(args.rounds)]
    finally:
        for checkout in (there, here):
            checkout.close()
    ratios = [new[0] / old[0] for old, new in rounds]
    name, options = parse_candidate(candidate)
    return {
        "bench": "against",
        "optimizer": name,
        "options": options,
        "phase": phase,
        "workload": args.workload,
        "against": revision(other),
        "ms": median([new[0] for _, new in rounds]),
        "python_ms": median([new[1] for _, new in rounds]),
        "python_ms_there": median([old[1] for old, _ in rounds]),
        "ratio": median(ratios),
        "ratio_p10": quantile(ratios, 0.1),
        "ratio_p90": quantile(ratios, 0.9),
        **environment(),
        "threads": args.threads,
        "isa": os.environ.get("AUTOMAGIC_CAMEAMP_ISA"),
    }


def revision(folder: Path) -> str:
    command = ["git", "-C", str(folder), "rev-parse", "--short=12", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def table(rows: list[dict]) -> str:
    body = [
        [
            f"`{label(row['optimizer'], row['options'])}`",
            f"{row['workload']} {row['phase']}",
            row["against"],
            f"{row['ratio']:.3f} ({row['ratio_p10']:.3f}-{row['ratio_p90']:.3f})",
            f"{row['python_ms_there']:.2f}",
            f"{row['python_ms']:.2f}",
        ]
        for row in rows
    ]
    columns = ["optimizer", "workload", "against", "ratio (p10-p90)", "Python ms there", "Python ms here"]
    return markdown(columns, body)


def main(argv: list[str] | None = None) -> list[dict]:
    parser = argument_parser(__doc__)
    parser.add_argument("other", type=Path, help="folder of another checkout, its kernels built")
    parser.add_argument("--optimizers", nargs="+", default=OPTIMIZERS)
    parser.add_argument("--phases", nargs="+", default=["late"], choices=list(PHASES))
    parser.add_argument("--workload", default="lora-sdxl", choices=list(WORKLOADS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--steps", type=int, default=12, help="of a round, in each checkout")
    parser.add_argument("--out", type=Path, default=RESULTS / "against.jsonl")
    args = parser.parse_args(argv)
    rows = []
    for candidate in args.optimizers:
        for phase in args.phases:
            rows.append(measure(args.other.resolve(), candidate, phase, args))
            append_row(args.out, rows[-1])
            print(table(rows[-1:]).splitlines()[-1], flush=True)
    print("\n" + table(rows))
    return rows


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(*sys.argv[2:5], int(sys.argv[5]))
    else:
        main()
