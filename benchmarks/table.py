"""Print markdown tables from committed rows.

python -m benchmarks.table benchmarks/results/step_cpu.jsonl
python -m benchmarks.table benchmarks/results/*.jsonl --last
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from benchmarks import (
    against,
    host_overlap,
    memory,
    model_memory,
    quality,
    quant_update_error,
    release_memory,
    resident,
    scaling,
    state_error,
    step_cpu,
)
from benchmarks.common import argument_parser, read_rows

PRINTERS = {
    "against": against.table,
    "scaling": scaling.table,
    "step_cpu": step_cpu.table,
    "memory": memory.table,
    "quant_update_error": quant_update_error.table,
    "resident": resident.table,
    "quality": quality.table,
    "model_memory": model_memory.table,
    "state_error": state_error.table,
    "host_overlap": host_overlap.table,
    "release_memory": release_memory.table,
}
# Rows of one benchmark are split by these fields: a table never mixes machines or thread counts.
SPLIT = ("bench", "workload", "cpu", "gpu", "threads", "allocator", "torch")


def newest(rows: list[dict]) -> list[dict]:
    """The last row of each measurement, in the order in which the measurements were last made."""
    last = {}
    for row in rows:
        # One measurement = one optimizer, its options, and what it was run on.
        names = ("optimizer", "options", "phase", "chunk", "case", "dtype", "data", "reference")
        names += ("reference_options", "task", "lr", "seed", "schedule", "steps", "evaluations")
        names += ("training", "code", "block_size", "release", "layers", "width", "against", "isa")
        key = tuple(str(row.get(name)) for name in (*SPLIT, *names))
        last.pop(key, None)
        last[key] = row
    return list(last.values())


def main(argv: list[str] | None = None) -> str:
    parser = argument_parser(__doc__)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--last", action="store_true", help="only the newest row of each measurement")
    args = parser.parse_args(argv)
    sections = defaultdict(list)
    for file in args.files:
        if not file.exists():
            raise SystemExit(f"{file}: no such file; run a benchmark first (see benchmarks/README.md)")
        rows = read_rows(file)
        for row in newest(rows) if args.last else rows:
            # Quality does not depend on the machine the way a duration does: one table for all of it.
            split = ("bench",) if row["bench"] == "quality" else SPLIT
            sections[tuple((name, row.get(name)) for name in split)].append(row)
    parts = []
    for key, rows in sections.items():
        title = ", ".join(
            str(value) for name, value in key if value is not None and name not in ("threads", "allocator")
        )
        threads = dict(key).get("threads")
        if rows[0]["bench"] == "step_cpu":
            title += f", {threads} thread(s), {rows[0].get('allocator')} allocator"
        commits = sorted({str(row.get("commit")) for row in rows})
        dates = sorted({row["date"][:10] for row in rows})
        printed = PRINTERS[rows[0]["bench"]](rows)
        parts.append(f"### {title}\n\nCommit {', '.join(commits)}; {', '.join(dates)}.\n\n{printed}\n")
    text = "\n".join(parts)
    print(text)
    return text


if __name__ == "__main__":
    main()
