"""How many steps does each optimizer need to reach AdamW's final held-out loss?

    python -m benchmarks.compare --tasks charlm-tiny --evaluations 20 --extend 0 --lr 2e-3
    python -m benchmarks.convergence

Reads the learning curves that `compare --evaluations N` put into the quality rows; each optimizer
at its best learning rate with a curve. Seed by seed: the target is AdamW's final held-out loss with
that seed, between two points of the curve the step is interpolated.
"""

from __future__ import annotations

import math
from pathlib import Path

from benchmarks.common import RESULTS, argument_parser, label, markdown
from benchmarks.quality import mean
from benchmarks.rows import Rows

Curve = list[list[float]]


def steps_to(curve: Curve, target: float) -> float:
    """First step at which the curve is at or below the target; inf if it never is."""
    before: list[float] | None = None
    for step, loss in curve:
        if loss <= target:
            if before is None or before[1] <= loss:
                return step
            return before[0] + (step - before[0]) * (before[1] - target) / (before[1] - loss)
        before = [step, loss]
    return math.inf


def curves(rows: Rows, task: str, candidate: str) -> dict[int, Curve]:
    """Seed -> held-out curve, at the rate with the best final mean among those with curves."""
    runs = rows.runs(task, candidate, having="held_out_curve")
    finals: dict[float, list[float]] = {}
    for r in runs:
        finals.setdefault(r["lr"], []).append(r["held_out"])
    if not finals:
        return {}
    lr = min(finals, key=lambda lr: mean(finals[lr]))
    return {r["seed"]: r["held_out_curve"] for r in runs if r["lr"] == lr}


def steps_saved(rows: Rows, task: str, candidate: str, baseline: str = "adamw") -> list[float]:
    """Per seed, per cent of the baseline's steps that the candidate did not need; -inf: never got there."""
    ours, theirs = curves(rows, task, candidate), curves(rows, task, baseline)
    found = []
    for seed in sorted(set(ours) & set(theirs)):
        steps, target = theirs[seed][-1]
        found.append(100 * (1 - steps_to(ours[seed], target) / steps))
    return found


def table(rows: Rows) -> str:
    settings = dict.fromkeys(
        (r["task"], label(r["optimizer"], r["options"])) for r in rows.quality if r.get("held_out_curve")
    )
    body = []
    for task, name in sorted(settings):
        saved = steps_saved(rows, task, name)
        if saved and name != "adamw":
            body.append(
                [task, name, f"{mean(saved):.0f}% ({min(saved):.0f} to {max(saved):.0f})", len(saved)]
            )
    return markdown(["task", "optimizer", "steps saved to AdamW's final held-out loss", "seeds"], body)


def main(argv: list[str] | None = None) -> str:
    parser = argument_parser(__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the rows")
    text = table(Rows(parser.parse_args(argv).results))
    print(text)
    return text


if __name__ == "__main__":
    main()
