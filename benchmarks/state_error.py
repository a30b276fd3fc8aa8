"""One-shot quantisation error: a momentum coded once and decoded, by code, block size and correction.

    python -m benchmarks.state_error

The momentum is the mean (beta 0.8) of 50 of the synthetic gradients of `quant_update_error`. The
error is relative L2, ||decode(encode(m)) - m|| / ||m||. What the error does to the update after
hundreds of steps is another question; `quant_update_error` asks it.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import torch

from benchmarks.common import RESULTS, append_row, argument_parser, environment, markdown
from benchmarks.quant_update_error import DATA, SHAPE, gradients

# name -> (code, bits of error correction)
CODES = {
    "affine": ("affine", 0),
    "affine+4": ("affine", 4),
    "affine+8": ("affine", 8),
    "softsign": ("softsign", 0),
    "softsign+4": ("softsign", 4),
    "dynamic": ("dynamic", 0),
}
BLOCKS = [64, 128, 256, 512, 1024, 4096]
BETA, STEPS = 0.8, 50


def momentum(data: str, seed: int) -> torch.Tensor:
    mean = torch.zeros(SHAPE)
    for g in gradients(data, seed, STEPS):
        mean.lerp_(g, 1 - BETA)
    return mean


def error(code: str, bits: int, block: int, x: torch.Tensor) -> float:
    """Relative L2 error of one trip through the code."""
    from automagic_cameamp import storage

    coder = storage.SIGNED_CODES[code](block)
    if bits:
        coder = storage.ErrorCorrected(coder, bits)
    stack = x.view(1, 1, *x.shape)
    back = coder.decode(coder.encode(stack))
    return float((back.double() - stack.double()).norm() / stack.double().norm())


def table(rows: list[dict]) -> str:
    cells: dict[tuple[str, str], dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for r in rows:
        cells[r["data"], r["code"]][r["block_size"]].append(r["error_percent"])
    blocks = [b for b in BLOCKS if any(b in found for found in cells.values())]
    body = [[*key, *(mean_of(found.get(b)) for b in blocks)] for key, found in cells.items()]
    return markdown(["data", "code+bits of correction", *(f"{b}, %" for b in blocks)], body)


def mean_of(values: list[float] | None) -> str | None:
    return f"{sum(values) / len(values):.3f}" if values else None


def main(argv: list[str] | None = None) -> list[dict]:
    parser = argument_parser(__doc__)
    parser.add_argument("--data", nargs="+", default=list(DATA), choices=list(DATA))
    parser.add_argument("--codes", nargs="+", default=list(CODES), choices=list(CODES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=RESULTS / "state_error.jsonl")
    parser.add_argument("--quick", action="store_true", help="one seed, one kind of data: a smoke test")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    if args.quick:
        args.seeds, args.data = [0], args.data[:1]
    rows = []
    for data in args.data:
        for seed in args.seeds:
            x = momentum(data, seed)
            for name in args.codes:
                for block in BLOCKS:
                    row = {"bench": "state_error", "code": name, "block_size": block, "data": data}
                    row |= {"seed": seed, "error_percent": 100 * error(*CODES[name], block, x)}
                    rows.append({**row, **environment()})
                    append_row(args.out, rows[-1])
    print(table(rows))
    return rows


if __name__ == "__main__":
    main()
