"""All benchmarks, one after the other, and their tables.

python benchmarks/run_all.py --quick    # every script, seconds each, rows to a temporary folder
python benchmarks/run_all.py --full     # the rows that the documentation quotes (an hour on 2 cores)
python benchmarks/run_all.py --full --jobs 16 --only compare
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def commands(full: bool, threads: int, jobs: int, out: Path) -> list[tuple[str, list[str]]]:
    """(name, module and arguments) of every measurement."""

    def to(name: str) -> list[str]:
        return ["--out", str(out / f"{name}.jsonl")]

    if not full:
        return [
            ("step_cpu", ["benchmarks.step_cpu", "--quick", *to("step_cpu")]),
            ("scaling", ["benchmarks.scaling", "--quick", *to("scaling")]),
            ("memory", ["benchmarks.memory", "--quick", *to("memory")]),
            ("resident", ["benchmarks.resident", "--quick", *to("resident")]),
            ("quant_update_error", ["benchmarks.quant_update_error", "--quick", *to("quant_update_error")]),
            ("release_memory", ["benchmarks.release_memory", "--quick", *to("release_memory")]),
            ("host_overlap", ["benchmarks.host_overlap", "--quick", *to("host_overlap")]),
            ("state_error", ["benchmarks.state_error", "--quick", *to("state_error")]),
            ("model_memory", ["benchmarks.model_memory", "--quick", *to("model_memory")]),
            ("fit_check", ["benchmarks.fit_check", "--quick", *to("fit_check")]),
            ("charlm", ["benchmarks.charlm", "--quick"]),
            ("compare", ["benchmarks.compare", "--quick", *to("quality")]),
        ]
    chunks = ["--chunk", "tensor", "131072", "262144", "524288", "all", "--phases", "early"]
    ours = ["--optimizers", "Automagic_CameAMP", "Automagic_CameAMP8bit"]
    step = ["benchmarks.step_cpu", "--threads", str(threads), *to("step_cpu")]
    phases = ["--phases", "early", "middle", "late"]
    return [
        ("step_cpu", [*step, "--workload", "lora-sdxl", "one-small", *phases]),
        ("step_cpu", [*step, "--workload", "lora-sdxl-bf16", "full-124m", "one-big", "--rounds", "7"]),
        ("step_cpu", [*step, "--workload", "lora-sdxl", "one-big", "--rounds", "5", *chunks, *ours]),
        ("scaling", ["benchmarks.scaling", *to("scaling")]),
        ("memory", ["benchmarks.memory", "--dtype", "float32", "bfloat16", *to("memory")]),
        ("resident", ["benchmarks.resident", *to("resident")]),
        ("release_memory", ["benchmarks.release_memory", *to("release_memory")]),
        ("host_overlap", ["benchmarks.host_overlap", *to("host_overlap")]),
        ("host_overlap", ["benchmarks.host_overlap", "--ns", "5", *ours[:2], *to("host_overlap")]),
        ("quant_update_error", ["benchmarks.quant_update_error", *to("quant_update_error")]),
        ("state_error", ["benchmarks.state_error", *to("state_error")]),
        ("model_memory", ["benchmarks.model_memory", *to("model_memory")]),
        ("fit_check", ["benchmarks.fit_check", *to("fit_check")]),
        ("fit_recipes", ["benchmarks.fit_recipes", *to("fit_recipes")]),
        ("compare", ["benchmarks.compare", "--jobs", str(jobs), *to("quality")]),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--full", action="store_true", help="real sizes; rows go to benchmarks/results")
    parser.add_argument("--quick", action="store_true", help="smoke test (the default)")
    parser.add_argument("--only", nargs="+", help="scripts to run: step_cpu, memory, compare, ...")
    parser.add_argument("--threads", type=int, default=1, help="threads of the step benchmark")
    parser.add_argument("--jobs", type=int, default=1, help="processes of the quality comparison")
    parser.add_argument("--out", type=Path, help="folder for the rows")
    args = parser.parse_args()
    if args.full and args.quick:
        parser.error("--quick and --full exclude each other")
    default = ROOT / "benchmarks" / "results" if args.full else Path(tempfile.mkdtemp(prefix="bench-"))
    out = args.out or default
    folders = [str(ROOT / name) for name in (".", "src", "trainer/src")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(folders)}
    failed, summary = [], []
    for name, arguments in commands(args.full, args.threads, args.jobs, out):
        if args.only and name not in args.only:
            continue
        print(f"== python -m {' '.join(arguments)}", flush=True)
        start = time.perf_counter()
        code = subprocess.run([sys.executable, "-m", *arguments], cwd=ROOT, env=environment).returncode
        took = time.perf_counter() - start
        summary.append(f"{'ok' if code == 0 else f'exit {code}':8s} {took:7.1f} s  {arguments[0]}")
        if code:
            failed.append(name)
    print("\n" + "\n".join(summary) + f"\nrows: {out}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
