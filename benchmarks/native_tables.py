"""The tables of docs/executors.md: times of a step on the CPU, beside those of torch's fused AdamW."""

from __future__ import annotations

from benchmarks import scaling
from benchmarks.common import label, markdown
from benchmarks.rows import Rows, last, named
from benchmarks.step_cpu import FAMILY as CLASSES

PEERS = ["adamw-fused", "adamw-foreach", "bnb-adamw8bit", "torchao-adamw8bit", "came", "adafactor8bit"]
# Those that differ most.
FEWER = [
    *("Automagic_CameAMP", "Automagic_CameAMP8bit", "Automagic_CameAMP_COptim8bit"),
    *(name for name in CLASSES if "memory_optimized" in name or "balanced" in name),
]
COLUMNS = [
    ("lora-sdxl", "late"),
    ("lora-sdxl", "early"),
    ("full-124m", "late"),
    ("one-big", "late"),
    ("one-small", "late"),
]


def _cell(rows: Rows, candidate: str, workload: str, phase: str | None, threads: int) -> str | None:
    wanted = {"workload": workload, "phase": phase, "chunk": None, "threads": threads, **named(candidate)}
    row = last(rows.steps, wanted)
    return row and f"{row['ratio']:.2f} ({row['ns_per_param']:.2f})"


def _short(candidate: str) -> str:
    found = named(candidate)
    options = {name: value for name, value in found["options"].items() if name != "verbose"}
    return label(found["optimizer"], options)


def speed(rows: Rows, language: str) -> str:
    """Times fused AdamW in the same rounds, and nanoseconds a parameter, on two threads."""
    body = []
    for candidate in (*PEERS, *CLASSES):
        own = candidate in CLASSES
        cells = [_cell(rows, candidate, work, phase if own else None, 2) for work, phase in COLUMNS]
        if any(cells):
            body.append([f"`{_short(candidate)}`", *cells])
    return markdown(["optimizer", *(" ".join(column) for column in COLUMNS)], body)


def thread(rows: Rows, language: str) -> str:
    """The same on one thread, with the bytes of a step, its scratch memory and its first step."""
    body = []
    for candidate in ("adamw-fused", *CLASSES):
        phase = "late" if candidate in CLASSES else None
        wanted = {"workload": "lora-sdxl", "phase": phase, "chunk": None, "threads": 1, **named(candidate)}
        row = last(rows.steps, wanted)
        if row:
            moved = row.get("bytes_moved_per_param")
            body.append(
                [
                    f"`{_short(candidate)}`",
                    f"{row['ratio']:.2f} ({row['ns_per_param']:.2f})",
                    f"{moved['all']:.1f}" if moved else "28.0",
                    f"{moved['bound']:.1f}" if moved else "28.0",
                    f"{row['peak_rss_mib']:.1f}",
                    f"{row['first_s']:.2f}",
                ]
            )
    columns = ["optimizer", "x fused AdamW (ns/param)", "bytes/param", "bound", "scratch MiB", "first step s"]
    return markdown(columns, body)


def sets(rows: Rows, language: str) -> str:
    """Times fused AdamW in the same rounds, without and with AVX-512 on one processor."""
    body = []
    columns = [*COLUMNS, ("lora-sdxl-bf16", "late"), ("one-big-bf16", "late")]
    for candidate in (*PEERS, *CLASSES):
        found = named(candidate)
        own = candidate in CLASSES
        options = {"engine": "native", **found["options"]} if own else found["options"]
        cells = []
        for workload, phase in columns:
            wanted = {"optimizer": found["optimizer"], "options": options, "workload": workload}
            wanted |= {"phase": phase if own else None}
            both = [last(rows.sets, {**wanted, "isa": isa}) for isa in ("avx2", "avx512")]
            cells.append(" / ".join(f"{row['ratio']:.2f}" for row in both if row))
        if any(cells):
            body.append([f"`{_short(candidate)}`", *cells])
    return markdown(["optimizer", *(" ".join(column) for column in columns)], body)


def threads(rows: Rows, language: str) -> str:
    """What more threads would have to do, by the last row of each workload and of the fewer classes."""
    found = {(row["workload"], row["optimizer"], str(row["options"])): row for row in rows.all("scaling")}
    wanted = [named(candidate) for candidate in FEWER]
    return scaling.table(row for row in found.values() if {k: row[k] for k in wanted[0]} in wanted)


def without(rows: Rows, language: str) -> str:
    """Times fused AdamW in the same rounds, without AVX-512; nanoseconds; the slowest first step."""
    body = []
    for candidate in (*PEERS, *CLASSES):
        found = named(candidate)
        own = candidate in CLASSES
        options = {"engine": "native", **found["options"]} if own else found["options"]
        cells, first = [], []
        for workload in ("lora-sdxl", "one-big", "one-small"):
            for phase in ("late", "early") if own else (None,):
                wanted = {
                    "optimizer": found["optimizer"],
                    "options": options,
                    "workload": workload,
                    "phase": phase,
                }
                row = last(rows.all("step_cpu_avx2"), wanted)
                if row is not None:
                    first.append(row["first_s"])
                cells.append(row and f"{row['ratio']:.2f} ({row['ns_per_param']:.1f})")
            if not own:
                cells.append(None)
        if first:
            body.append([f"`{_short(candidate)}`", *cells, f"{max(first):.2f}"])
    columns = [
        f"{work} {phase}" for work in ("lora-sdxl", "one-big", "one-small") for phase in ("late", "early")
    ]
    return markdown(["optimizer", *columns, "slowest first step, s"], body)


def found(rows: Rows, language: str) -> str:
    """What it costs a step to find the rate: milliseconds where it is given, and where it is found."""
    columns = [(isa, work) for isa in ("avx2", "avx512") for work in ("lora-sdxl", "one-big", "one-small")]
    body = []
    for candidate in ("Automagic_CameAMP", "Automagic_CameAMP8bit", "Automagic_CameAMP_8Bit"):
        cells = []
        for isa, work in columns:
            wanted = {"optimizer": candidate, "workload": work, "phase": "late", "isa": isa}
            pair = [
                last(rows.all("step_cpu_auto"), {**wanted, "options": options})
                for options in ({}, {"lr_level": "auto"})
            ]
            cells.append(" / ".join(f"{row['ms']:.3g}" for row in pair if row is not None))
        body.append([f"`{candidate}`", *cells])
    return markdown(["optimizer", *(f"{work}, {isa}" for isa, work in columns)], body)


def peers(rows: Rows, language: str) -> str:
    """The same, late, of one run with more peers and bf16 weights."""
    found: dict[str, dict[str, str]] = {}
    for row in rows.all("step_cpu_peers"):
        options = {name: value for name, value in row["options"].items() if name != "engine"}
        cells = found.setdefault(label(row["optimizer"], options), {})
        cells[row["workload"]] = f"{row['ratio']:.2f} ({row['ns_per_param']:.2f})"
    works = ["lora-sdxl", "one-big", "one-small", "lora-sdxl-bf16", "one-big-bf16"]
    body = [[f"`{name}`", *map(cells.get, works)] for name, cells in found.items()]
    return markdown(["optimizer", *works], body)
