"""Quality rows: from one row a run to tables. No training here; `compare.py` makes the rows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from benchmarks.common import label, markdown


def by_setting(rows: list[dict]) -> dict[tuple, dict[float, dict[int, float]]]:
    """(task, optimizer, options, schedule, steps) -> lr -> seed -> held-out loss."""
    found: dict[tuple, dict[float, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    for r in rows:
        setting = (r["task"], label(r["optimizer"], r["options"]), r["schedule"], r["steps"])
        found[setting][r["lr"]][r["seed"]] = r["held_out"]
    return found


def mean(values: Iterable[float]) -> float:
    values = list(values)
    return sum(values) / len(values)


def best_lr(losses: dict[float, dict[int, float]]) -> float:
    """Smallest mean over seeds, among the lrs that ran with the most seeds."""
    most = max(len(seeds) for seeds in losses.values())
    return min((lr for lr in losses if len(losses[lr]) == most), key=lambda lr: mean(losses[lr].values()))


def table(rows: list[dict]) -> str:
    """Per task: each optimizer at its best lr, and the difference from AdamW over the same seeds."""
    found = by_setting(rows)
    baseline = {}
    for (task, name, schedule, steps), losses in found.items():
        if name == "adamw":
            baseline[task, schedule, steps] = losses[best_lr(losses)]
    body = []
    for (task, name, schedule, steps), losses in sorted(found.items()):
        lr = best_lr(losses)
        values = losses[lr]
        reference = baseline.get((task, schedule, steps))
        grid = " ".join(f"{x:g}:{mean(losses[x].values()):.4f}" for x in sorted(losses))
        setting = [task, name, f"{schedule}, {steps}", f"{lr:g}"]
        body.append([*setting, spread(values.values()), difference(values, reference), grid])
    header = ["task", "optimizer", "schedule, steps", "best lr", "held-out loss: mean (min-max), seeds"]
    return markdown([*header, "minus AdamW, same seeds", "mean at every lr"], body)


def spread(values: Iterable[float]) -> str:
    values = list(values)
    return f"{mean(values):.4f} ({min(values):.4f}-{max(values):.4f}), {len(values)}"


def difference(values: dict[int, float], reference: dict[int, float] | None) -> str | None:
    """Mean and range of the per-seed differences: the seeds' own spread cancels."""
    if not reference or not set(values) & set(reference):
        return None
    deltas = [values[seed] - reference[seed] for seed in values if seed in reference]
    return f"{mean(deltas):+.4f} ({min(deltas):+.4f} to {max(deltas):+.4f})"


def ablation_table(rows: list[dict], base: str) -> str:
    found = by_setting(rows)
    body = []
    for (task, name, schedule, steps), losses in sorted(found.items()):
        reference_losses = found.get((task, base, schedule, steps))
        for lr in sorted(losses):
            reference = reference_losses.get(lr) if reference_losses else None
            change = None if name == base else difference(losses[lr], reference)
            body.append([task, name, f"{lr:g}", spread(losses[lr].values()), change])
    header = ["task", "setting", "lr", "held-out loss: mean (min-max), seeds", "minus base, same seeds"]
    return markdown(header, body)
