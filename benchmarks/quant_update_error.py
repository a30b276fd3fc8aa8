"""How much does an 8-bit state change the update? Relative L2 against the 32-bit twin.

    python -m benchmarks.quant_update_error
    python -m benchmarks.quant_update_error --pair 'A8:opt=1' 'A:opt=1' --data heavy --steps 500

    python -m benchmarks.quant_update_error --shape 16 640 --pair ...

A 128 x 256 matrix (or --shape) gets synthetic gradients for 500 steps, the same for both optimizers. Each
moves its own copy of the parameters; before the last step the copies are made equal, and the
displacements of that step are compared: ||d8 - d32|| / ||d32||. The error is therefore what
quantised state, carried through 500 steps, does to the update, and nothing else.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import (
    CANDIDATE_HELP,
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

SHAPE = (128, 256)
# Standard deviation of the log of each scale factor (row, column, element), and the fraction of elements
# whose gradient is always exactly zero.
DATA: dict[str, tuple[float, float]] = {
    "homogeneous": (0.0, 0.0),
    "heavy": (1.0, 0.0),
    "heavy+dead": (1.0, 0.01),
    "very-heavy": (2.0, 0.0),
}
MEAN = 0.3  # of each element's own standard deviation, with a random sign
IMPROVED, EIGHT, PROFILED = (f"Automagic_CameAMP_{name}" for name in ("Improved", "8Bit", "Improved_8Bit"))
PROFILES = ["memory_optimized", "balanced", "quality_optimized"]
# Each eight-bit optimizer and its exact twin; block sizes and profiles as the documents' tables have them.
PAIRS = [
    ("Automagic_CameAMP8bit", "Automagic_CameAMP"),
    ("bnb-adamw8bit", "adamw"),
    *((f"{EIGHT}:block_size={size}", IMPROVED) for size in (128, 256, 512)),
    *((f"{EIGHT}:block_size={size};error_correction=false", IMPROVED) for size in (128, 256, 512)),
    *((f"{PROFILED}:profile={name}", f"{PROFILED}:profile={name};optim_bits=32") for name in PROFILES),
]


def gradients(data: str, seed: int, steps: int, shape: tuple[int, int] = SHAPE) -> Iterator[torch.Tensor]:
    """Noise with a constant mean per element; scales are lognormal over rows, columns and elements."""
    spread, dead = DATA[data]
    generator = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=generator)

    rows, columns = shape
    sigma = torch.exp(spread * (normal(rows, 1) + normal(1, columns) + normal(rows, columns))) * 1e-3
    sigma[torch.rand(shape, generator=generator) < dead] = 0.0
    mean = MEAN * sigma * normal(*shape).sign()
    for _ in range(steps):
        yield mean + sigma * normal(*shape)


def update_error(
    cls8: Any,
    kw8: dict[str, Any],
    cls32: Any,
    kw32: dict[str, Any],
    data: str = "heavy",
    seed: int = 0,
    steps: int = 500,
    lr: float = 1e-3,
    shape: tuple[int, int] = SHAPE,
) -> float:
    """Relative L2 difference of the update of step ``steps`` between two optimizers.

    ``cls8`` and ``cls32`` are names (see ``common.build``) or classes. The default lr is far above the
    rounding of fp32 parameters of size 0.02, so that the displacement is exact to about 1e-5.
    """
    start = torch.randn(shape, generator=torch.Generator().manual_seed(1000 + seed)) * 0.02
    params, optimizers = [], []
    for cls, kw in ((cls8, kw8), (cls32, kw32)):
        param = torch.nn.Parameter(start.clone())
        options = {"lr": lr, **kw}
        optimizers.append(build(cls, [param], **options) if isinstance(cls, str) else cls([param], **options))
        params.append(param)
    for step, gradient in enumerate(gradients(data, seed, steps, shape), start=1):
        if step == steps:
            with torch.no_grad():
                params[1].copy_(params[0])
            before = params[0].detach().clone()
        for param, optimizer in zip(params, optimizers, strict=True):
            param.grad = gradient.clone()
            optimizer.step()
    moved8, moved32 = ((p.detach().double() - before.double()) for p in params)
    return float((moved8 - moved32).norm() / moved32.norm())


def table(rows: list[dict]) -> str:
    cells: dict[tuple, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for r in rows:
        name = label(r["optimizer"], r["options"]), label(r["reference"], r["reference_options"])
        name = (*name, r["steps"], "x".join(str(side) for side in r.get("shape", SHAPE)))
        cells[name][r["data"]].append(r["error_percent"])

    def cell(values: list[float] | None) -> str | None:
        if not values:
            return None
        return f"{sum(values) / len(values):.2f} ({min(values):.2f}-{max(values):.2f})"

    body = [[*name, *(cell(found.get(d)) for d in DATA)] for name, found in cells.items()]
    return markdown(["8-bit", "against", "steps", "shape", *(f"{d}, %" for d in DATA)], body)


def main(argv: list[str] | None = None) -> list[dict]:
    parser = argument_parser(__doc__)
    parser.add_argument("--pair", nargs=2, action="append", metavar=("EIGHT", "FULL"), help=CANDIDATE_HELP)
    parser.add_argument("--data", nargs="+", default=list(DATA), choices=list(DATA))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--shape", nargs=2, type=int, default=list(SHAPE), metavar=("ROWS", "COLUMNS"))
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--out", type=Path, default=RESULTS / "quant_update_error.jsonl")
    parser.add_argument("--quick", action="store_true", help="20 steps, one seed: a smoke test")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    if args.quick:
        args.steps, args.seeds, args.data = 20, [0], args.data[:2]
    rows = []
    for eight, full in args.pair or PAIRS:
        (name8, kw8), (name32, kw32) = parse_candidate(eight), parse_candidate(full)
        missing = [name for name in (name8, name32) if not available(name)]
        if missing:
            print(f"skipped: {missing} cannot be imported here")
            continue
        for data in args.data:
            for seed in args.seeds:
                shape = args.shape[0], args.shape[1]
                error = update_error(name8, kw8, name32, kw32, data, seed, args.steps, shape=shape)
                row = {"bench": "quant_update_error", "optimizer": name8, "options": kw8, "reference": name32}
                row |= {"reference_options": kw32, "data": data, "seed": seed, "steps": args.steps}
                row["shape"] = args.shape
                rows.append({**row, "error_percent": 100 * error, **environment()})
                append_row(args.out, rows[-1])
    print(table(rows))
    return rows


if __name__ == "__main__":
    main()
