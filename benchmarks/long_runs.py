"""Tables of docs/evidence/testing.md, from rows: fuzzed checkpoints, soaks, mutants, documented commands."""

from __future__ import annotations

from benchmarks.common import markdown
from benchmarks.rows import Rows


def fuzz(rows: Rows, language: str) -> str:
    """The last run, one line for each kind of input."""
    row = rows.all("fuzz_checkpoints")[-1]
    lines = [
        [
            name,
            row[f"{kind}_refused"] + row[f"{kind}_trained"],
            row[f"{kind}_refused"],
            row[f"{kind}_trained"],
        ]
        for kind, name in (("dict", "state dicts"), ("file", "files"))
    ]
    return markdown(["damaged", "loaded", "refused by our own error", "trained on, finite"], _plain(lines))


def soak(rows: Rows, language: str) -> str:
    """The last run of each class: what went wrong on purpose, and what grew."""
    last = {row["optimizer"]: row for row in rows.all("soak")}
    lines = []
    for name, row in last.items():
        faults = row["faults"]
        grown = [
            f"{row[key][0]:,} to {row[key][1]:,}"
            for key in ("tensors", "state_bytes", "python_blocks", "rss_kib")
        ]
        lines.append(
            [
                f"`{name}`",
                row["steps"],
                faults["bad"],
                faults["missing"],
                faults["rate"],
                faults["load"],
                *grown,
            ]
        )
    header = ["class", "steps", "bad gradients", "missing", "jumps of the rate", "loads"]
    return markdown([*header, "tensors", "bytes held", "Python blocks", "RSS, KiB"], _plain(lines))


def mutation(rows: Rows, language: str) -> str:
    """Every run, the oldest first."""
    lines = [
        [
            row["date"][:10],
            f"`{row['commit']}`",
            row["seed"],
            ", ".join(f"`{n}`" if n.endswith(".py") else f"`{n}/`" for n in row.get("of_modules") or ())
            or "all",
            f"{row['mutants']} of {row['of']:,}",
            row["noticed"] + row["late"],
            row["survived"],
            f"{100 * (row['noticed'] + row['late']) / row['mutants']:.0f}%",
        ]
        for row in rows.all("mutation")
    ]
    header = ["date", "commit", "seed", "of", "mutants", "noticed", "survived", "noticed, share"]
    return markdown(header, _plain(lines))


def commands(rows: Rows, language: str) -> str:
    """The last run of each documented command, page by page."""
    last = {row["command"]: row for row in rows.all("commands")}
    lines = []
    for row in last.values():
        how = (
            "ok"
            if row.get("rc") == 0
            else f"exit {row['rc']}"
            if "rc" in row
            else f"not run: {row['not run']}"
        )
        times = [f"{row[key]:.0f}" if key in row else "" for key in ("seconds", "processor_seconds")]
        lines.append([row["page"], f"`{row['command']}`", *times, how])
    return markdown(["page", "command", "seconds", "processors' seconds", "result"], lines)


def _plain(lines: list[list[object]]) -> list[list[object]]:
    """Whole numbers with commas."""
    return [[f"{cell:,}" if type(cell) is int else cell for cell in line] for line in lines]
