"""State bytes for real trainings: LoRAs on SD 1.5, SDXL, Flux and an 8B LLM, and whole U-Nets.

    python -m benchmarks.model_memory

Nothing that large is allocated: the optimizer is asked which tensors it would hold for each
parameter (its own plan of planes, on the meta device) and their bytes are added. That the plan is
what is really held is tested on small models, to the byte.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import (
    CANDIDATE_HELP,
    FAMILY,
    RESULTS,
    append_row,
    argument_parser,
    build,
    environment,
    is_ours,
    label,
    markdown,
    parse_candidate,
)
from benchmarks.models import TRAININGS, count, shapes_of

OPTIMIZERS = ["adamw", *FAMILY]


def measure(name: str, options: dict[str, Any], shapes: tuple[tuple[int, ...], ...]) -> int:
    params = [torch.nn.Parameter(torch.empty(shape, device="meta")) for shape in shapes]
    if not is_ours(name):  # two fp32 tensors of the parameter's size and one fp32 step
        return 8 * count(shapes) + 4 * len(shapes)
    optimizer: Any = build(name, params, lr=1e-4, **options)
    return optimizer.planned_memory().state


def table(rows: list[dict]) -> str:
    cells: dict[str, dict[str, str]] = defaultdict(dict)
    for r in rows:
        percent = 100 * r["state_bytes"] / (8 * r["params"])
        name = label(r["optimizer"], r["options"])
        cells[name][r["training"]] = f"{r['state_bytes'] / 2**20:,.0f} ({percent:.1f}%)"
    names = [t for t in TRAININGS if any(t in found for found in cells.values())]
    body = [[name, *(found.get(t) for t in names)] for name, found in cells.items()]
    return "State, MiB (% of Adam's 8 bytes)\n\n" + markdown(["optimizer", *names], body)


def main(argv: list[str] | None = None) -> list[dict]:
    parser = argument_parser(__doc__)
    parser.add_argument("--optimizers", nargs="+", default=OPTIMIZERS, help=CANDIDATE_HELP)
    parser.add_argument("--trainings", nargs="+", default=list(TRAININGS), choices=list(TRAININGS))
    parser.add_argument("--out", type=Path, default=RESULTS / "model_memory.jsonl")
    parser.add_argument("--quick", action="store_true", help="two LoRAs: a smoke test")
    args = parser.parse_args(argv)
    if args.quick:
        args.trainings = args.trainings[:2]
    rows = []
    for training in args.trainings:
        try:
            shapes = shapes_of(training)
        except ImportError as error:
            print(f"skipped: {training} ({error})")
            continue
        assert count(shapes) == TRAININGS[training][1], training
        for text in args.optimizers:
            name, options = parse_candidate(text)
            row = {"bench": "model_memory", "optimizer": name, "options": options, "training": training}
            row |= {"params": count(shapes), "state_bytes": measure(name, options, shapes)}
            rows.append({**row, **environment()})
            append_row(args.out, rows[-1])
    print(table(rows))
    return rows


if __name__ == "__main__":
    main()
