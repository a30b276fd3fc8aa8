"""One rate for every rank and alpha? Ours without a rate against ours at the best of several, LoRA by LoRA.

    python -m benchmarks.auto_ranks              # all of it; a second start runs only what is missing
    python -m benchmarks.auto_ranks --table

A LoRA of rank r adds alpha / r times B A. Two conventions: alpha = r, so that the factor is 1 (PEFT's and the
demo's), and alpha = 1 (sd-scripts' default), so that it shrinks with the rank and the best rate grows.
Rows go to `results/auto_rate.jsonl`, tasks are called `lm-lora-RANK-alphaALPHA`.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks.auto_rate import OURS, best, settings
from benchmarks.auto_tasks import Tuned
from benchmarks.common import RESULTS, argument_parser, markdown, read_rows
from benchmarks.compare import Job, run_jobs

RANKS = [4, 16, 128]
RATES = [1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2]


class Ranked(Tuned):
    """`lm-lora` of this rank and alpha."""

    def __init__(self, rank: int, alpha: float, seed: int = 0) -> None:
        super().__init__(rank, seed)
        for module in self.model.modules():
            scaling = getattr(module, "scaling", None)
            if isinstance(scaling, dict):
                scaling["default"] = alpha / rank


def make(name: str, seed: int) -> Ranked:
    """The task of a name such as `lm-lora-16-alpha1`."""
    rank, alpha = name.removeprefix("lm-lora-").split("-alpha")
    return Ranked(int(rank), float(alpha), seed)


def tasks() -> list[str]:
    return [f"lm-lora-{rank}-alpha{alpha}" for rank in RANKS for alpha in (rank, 1)]


def jobs(args) -> list[Job]:
    runs = [({}, None), *(({"lr_level": "fixed"}, lr) for lr in args.rates)]
    return [
        Job(task, OURS, options, lr, seed, args.steps, args.schedule, plain=True)
        for task in args.only
        for seed in args.seeds
        for options, lr in runs
    ]


def table(rows: list[dict]) -> str:
    """Held-out losses: found rate, best of the fixed rates, and their ratio."""
    found, body = settings(rows), []
    for task in tasks():
        for (name, schedule, steps, kind), losses in sorted(found.items()):
            fixed = found.get((name, schedule, steps, f"{OURS}:lr_level=fixed"))
            if name != task or kind != OURS or fixed is None:
                continue
            lr, unit = best(fixed)
            value = best(losses)[1]
            body.append(
                [
                    task,
                    f"{schedule}, {steps}",
                    f"{value:.4f}",
                    f"{unit:.4f}",
                    f"{lr:g}",
                    f"{value / unit:.3f}",
                ]
            )
    return markdown(["LoRA", "schedule, steps", "no rate given", "best rate", "which", "ratio"], body)


def main(argv: list[str] | None = None) -> list[dict]:
    parser = argument_parser(__doc__)
    parser.add_argument("--only", nargs="+", default=tasks(), choices=tasks())
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--rates", nargs="+", type=float, default=RATES)
    parser.add_argument("--schedule", default="constant")
    parser.add_argument("--steps", type=int, default=0, help="0: the task's own number")
    parser.add_argument("--jobs", type=int, default=1, help="parallel processes, one thread each")
    parser.add_argument("--out", type=Path, default=RESULTS / "auto_rate.jsonl")
    parser.add_argument("--table", action="store_true", help="only print the table of the rows")
    args = parser.parse_args(argv)
    rows = read_rows(args.out) if args.table else run_jobs(jobs(args), args.jobs, args.out)
    print("\n" + table(rows))
    return rows


if __name__ == "__main__":
    main()
