"""What more cores would give a step on the host: computed from counted bytes and one core's measured time.

    python -m benchmarks.host_cores

No machine of ours has 8 or 16 cores. A step takes at least its processor time divided by the cores (rows of
``step_cpu``: one matrix of 67 million fp32 weights, after the warm-up), and at least its bytes (counted by
``traffic``, in the same rows) divided by what the memory delivers (bf16
weights and gradients move less); of the two the longer counts. What crosses the bus while backward goes on,
two bytes of weight and two of gradient there and two of weight back, is a third bound.
"""

from __future__ import annotations

import json
from typing import Any

from benchmarks.common import RESULTS, label, markdown
from benchmarks.rows import Rows
from benchmarks.traffic import MEMORY

CORES = (2, 8, 16)
BUS = 2 * 2 / 12.0  # ns: to the host, two bytes of each; back goes beside it
MODEL = 2.567e9  # parameters of SDXL's U-Net


def newest(rows: Rows) -> list[dict[str, Any]]:
    """The last row of each of our classes on one large matrix, late."""
    found: dict[str, dict[str, Any]] = {}
    for row in rows.all("step_cpu"):
        whose = (row["workload"], row["phase"], row["allocator"])
        if whose == ("one-big", "late", "warm") and "bytes_moved_per_param" in row:
            found[json.dumps([row["optimizer"], row["options"]])] = row
    return sorted(found.values(), key=lambda row: row["optimizer"])


def nanoseconds(row: dict[str, Any], cores: int, bandwidth: float) -> float:
    """Of a parameter, by the bound that holds."""
    moved = row["bytes_moved_per_param"]["all"] / bandwidth
    return max(row["cpu_ns_per_param"] / cores, moved, BUS)


def table(rows: Rows) -> str:
    """Seconds of a step of SDXL whole, per number of cores and kind of memory."""
    body = []
    for row in newest(rows):
        seconds = [
            f"{1e-9 * MODEL * nanoseconds(row, cores, bandwidth):.1f}"
            for bandwidth in MEMORY.values()
            for cores in CORES
        ]
        options = {k: v for k, v in row["options"].items() if k != "verbose"}
        moved = f"{row['bytes_moved_per_param']['all']:.1f}"
        body.append([label(row["optimizer"], options), f"{row['cpu_ns_per_param']:.2f}", moved, *seconds])
    heads = [f"{cores} cores, {name}" for name in MEMORY for cores in CORES]
    return markdown(["optimizer", "ns/param of a core", "bytes/param", *heads], body)


if __name__ == "__main__":
    print(table(Rows(RESULTS)))
