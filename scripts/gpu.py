"""Everything that needs a GPU, in one command: tests, rows of the benchmark, a check of memory accesses.

    python scripts/gpu.py                  # all of it; rows are appended to benchmarks/results/step_gpu.jsonl
    python scripts/gpu.py --list           # the commands, and which tools are missing; needs no GPU
    python scripts/gpu.py --only rows
    python scripts/gpu.py --dry            # what of it can run on a CPU, to see that it works; no row is kept

A part whose tool is missing is left out, with a line that says so. Exit status 0: no part failed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
TESTS = [sys.executable, "-m", "pytest", "-q"]
ROWS = [sys.executable, "-m", "benchmarks.step_gpu"]
CHECKED = [shutil.which("compute-sanitizer") or "compute-sanitizer", "--tool", "memcheck"]


class Part(NamedTuple):
    """A command, the tool beside Python that it needs, and what stands for it on a CPU."""

    command: list[str]
    what: str
    tool: str | None = None
    settings: tuple[tuple[str, str], ...] = ()
    dry: list[str] | None = None


PARTS = {
    "tests": Part([*TESTS, "tests/gpu"], "no waiting, graphs, streams, repeated runs, scaler"),
    "compiled": Part(
        [*TESTS, "tests/compiled"],
        "compiled steps beside eager ones; on a GPU 'auto' takes them",
        dry=[*TESTS, "tests/compiled/test_inductor.py", "tests/compiled/test_failures.py"],
    ),
    "rows": Part(
        ROWS,
        "milliseconds, ratio to fused AdamW, launches, peak memory",
        dry=[*ROWS, "--dry-run", "--out", os.devnull],
    ),
    "bytes": Part([*ROWS, "--workload", "one-big-bf16", "--dram"], "DRAM bytes per parameter", "ncu"),
    "memcheck": Part(
        [*CHECKED, "--error-exitcode", "9", *TESTS, "tests/gpu", "-k", "repeats"],
        "every memory access of the kernels",
        "compute-sanitizer",
        # Every tensor gets memory of its own, so that an access past its end is seen.
        (("PYTORCH_NO_CUDA_MEMORY_CACHING", "1"),),
    ),
}


def missing(part: Part) -> bool:
    """Whether the part's tool is not installed."""
    return part.tool is not None and shutil.which(part.tool) is None


def lines() -> list[str]:
    """What would run."""
    found = []
    for name, part in PARTS.items():
        found += [f"{name}: {part.what}{' (left out: no ' + str(part.tool) + ')' if missing(part) else ''}"]
        found += ["    " + " ".join(["python" if word == sys.executable else word for word in part.command])]
    return found


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--list", action="store_true", help="say what would run")
    parser.add_argument("--dry", action="store_true", help="run on the CPU what of it can")
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    args = parser.parse_args(argv)
    if args.list:
        print("\n".join(lines()))
        return 0
    import torch

    if not torch.cuda.is_available() and not args.dry:
        raise SystemExit(
            "no CUDA device here, nothing was run. --list says what would be, --dry runs on the CPU what can."
        )
    folders = [str(ROOT / name) for name in (".", "src", "trainer/src")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(folders)}
    summary = {}
    for name in args.only:
        part = PARTS[name]
        if args.dry:
            part = part._replace(command=part.dry or [])
        if not part.command:
            summary[name] = "left out: needs a GPU"
            continue
        if missing(part):
            summary[name] = f"left out: no {part.tool}"
            continue
        print(f"== {' '.join(part.command)}", flush=True)
        settings = {**environment, **dict(part.settings)}
        code = subprocess.run(part.command, cwd=ROOT, env=settings, check=False).returncode
        summary[name] = "ok" if code == 0 else f"exit {code}"
    print("\n" + "\n".join(f"{name:9s} {said}" for name, said in summary.items()))
    return int(any(said.startswith("exit") for said in summary.values()))


if __name__ == "__main__":
    sys.exit(main())
