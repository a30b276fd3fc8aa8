"""State bytes per parameter, counted from the tensors an optimizer holds after two steps.

    python -m benchmarks.memory
    python -m benchmarks.memory --optimizers 'Automagic_CameAMP8bit:lr_mask_granularity=row'

Beside the count: what ``get_memory_stats()`` says, where the class has it, so that a wrong report shows.
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
    available,
    build,
    environment,
    label,
    markdown,
    parse_candidate,
)
from benchmarks.meters import state_bytes
from benchmarks.workloads import lora_pairs

CASES: dict[str, list[tuple[int, ...]]] = {
    "dense 4096x4096": [(4096, 4096)],
    "LoRA r=64": lora_pairs([(4096, 4096)] * 2, rank=64),
    "LoRA r=16": lora_pairs([(4096, 4096)] * 4, rank=16),
    "LoRA r=4": lora_pairs([(4096, 4096)] * 8, rank=4),
    "LoRA r=8, 1280 wide": lora_pairs([(1280, 1280)] * 16, rank=8),
    "LoRA r=4, 1280 wide": lora_pairs([(1280, 1280)] * 16, rank=4),
    "conv 3x3": [(640, 640, 3, 3)],
}
ADAM = 8.0  # bytes per parameter of fp32 Adam: what percentages refer to
OPTIMIZERS = ["adamw", "bnb-adamw8bit", "came", *FAMILY]


Shapes = list[tuple[int, ...]]


def measure(name: str, options: dict[str, Any], shapes: Shapes, dtype: torch.dtype) -> dict[str, Any]:
    """Two steps with tiny random gradients, then count."""
    generator = torch.Generator().manual_seed(0)
    params = [torch.nn.Parameter((torch.randn(s, generator=generator) * 0.02).to(dtype)) for s in shapes]
    optimizer = build(name, params, **{"lr": 1e-6, **options})
    for _ in range(2):
        for p in params:
            p.grad = (torch.randn(p.shape, generator=generator) * 1e-3).to(dtype)
        optimizer.step()
    numel = sum(p.numel() for p in params)
    row = {"bytes_per_param": state_bytes(optimizer) / numel, "reported": None, "numel": numel}
    if hasattr(optimizer, "get_memory_stats"):
        stats = optimizer.get_memory_stats()
        row["reported"] = (stats["total_quantized_memory"] + stats["total_high_precision_memory"]) / numel
    return row


def table(rows: list[dict]) -> str:
    cells: dict[str, dict[str, str]] = defaultdict(dict)
    for r in rows:
        percent = 100 * r["bytes_per_param"] / ADAM
        text = f"{r['bytes_per_param']:.2f} ({percent:.1f}%)"
        if r["reported"] is not None and abs(r["reported"] - r["bytes_per_param"]) > 0.005:
            text += f" reported {r['reported']:.2f}"
        dtype = "" if r["dtype"] == "float32" else f", {r['dtype']} parameters"
        cells[label(r["optimizer"], r["options"]) + dtype][r["case"]] = text
    names = [case for case in CASES if any(case in found for found in cells.values())]
    body = [[name, *(found.get(case) for case in names)] for name, found in cells.items()]
    return "State, bytes per parameter (% of Adam's 8)\n\n" + markdown(["optimizer", *names], body)


def main(argv: list[str] | None = None) -> list[dict]:
    parser = argument_parser(__doc__)
    parser.add_argument("--optimizers", nargs="+", default=OPTIMIZERS, help=CANDIDATE_HELP)
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--dtype", nargs="+", default=["float32"], choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--out", type=Path, default=RESULTS / "memory.jsonl")
    parser.add_argument("--quick", action="store_true", help="the two smallest cases only: a smoke test")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    if args.quick:
        args.cases = ["LoRA r=16", "LoRA r=4"]
    rows = []
    for text in args.optimizers:
        name, options = parse_candidate(text)
        if not available(name):
            print(f"skipped: {name} cannot be imported here")
            continue
        for case in args.cases:
            for dtype in args.dtype:
                row = {"bench": "memory", "optimizer": name, "options": options, "case": case, "dtype": dtype}
                row |= measure(name, options, CASES[case], getattr(torch, dtype))
                rows.append({**row, **environment()})
                append_row(args.out, rows[-1])
    print(table(rows))
    return rows


if __name__ == "__main__":
    main()
