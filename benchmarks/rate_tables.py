"""Tables of `docs/evidence/rate.md`, from the rows of `auto_rate.py` and `auto_ranks.py`.

A ratio is of mean held-out losses over the seeds that both have run with; tuned means the rate with the
lowest mean among those that have run with the most seeds. Classes and techniques stand beside the run of the
base class that is nearest in time, lest a change of the rule in between be taken for theirs.
"""

from __future__ import annotations

from collections import defaultdict
from datetime import datetime

from benchmarks import auto_ranks
from benchmarks.auto_rate import CHANGES, CHOSEN, CONFIRMED, OURS, PEERS, SMALL, best, kind, settings
from benchmarks.common import FAMILY, markdown
from benchmarks.compare import ADAPTED, SOLVED
from benchmarks.quality import mean
from benchmarks.rows import Rows

NAMES = {
    "flow": "noisy flow matching",
    "lm-lora": "LoRA of a byte transformer",
    "lm-full": "the whole byte transformer",
    "charlm-tiny": "byte transformer from scratch",
    "convnet": "convnet from scratch",
    "cat_lora": "the demo's LoRA",
    "unet-full": "the demo's whole U-Net",
    "charlm-small": "larger byte transformer",
    "classes": "ten classes, far apart",
    "classes-near": "ten classes, nearer",
    "classes-zero": "ten classes, nearer, final layer of zeros",
    "policy": "policy gradient",
    "head-first": "regression, its head first",
    "control": "layers from 0 beside a trained flow",
    "inversion": "textual inversion of the demo's base",
}
CHEAP = ["flow", "lm-lora", "lm-full", "charlm-tiny"]


def over(value: dict[int, float], reference: dict[int, float]) -> tuple[float, int] | None:
    """Ratio of the means over the seeds that both have, and how many those are."""
    seeds = value.keys() & reference.keys()
    if not seeds:
        return None
    return mean(value[s] for s in seeds) / mean(reference[s] for s in seeds), len(seeds)


def shown(found: tuple[float, int] | None) -> str:
    return "-" if found is None else f"{found[0]:.3f} ({found[1]})"


def summary(rows: Rows) -> str:
    """Without a rate, against tuned AdamW, our own tuned rate and the peers; how far the start matters."""
    found, body = settings(rows.all("auto_rate")), []
    looked_at = [*CHOSEN, *SMALL, *SOLVED, *(task for task in ADAPTED if task not in CONFIRMED)]
    for group, tasks in (("chosen on", looked_at), ("confirmed on", CONFIRMED)):
        for task in tasks:
            for schedule, steps in sorted({(s, n) for t, s, n, _ in found if t == task}):
                here = {
                    kind: losses
                    for (t, s, n, kind), losses in found.items()
                    if (t, s, n) == (task, schedule, steps)
                }
                if OURS not in here or "adamw" not in here:
                    continue
                value, rate = here[OURS][None], best(here["adamw"])[0]
                name, _, batch = task.partition("@")
                name = f"{NAMES[name]}, batches of {batch}" if batch else NAMES[name]
                cells = [f"{name} ({group})", f"{schedule}, {steps}", f"{rate:g}"]
                cells.append(shown(over(value, here["adamw"][rate])))
                own = here.get(f"{OURS}:lr_level=fixed")
                cells.append(shown(over(value, own[best(own)[0]])) if own else "-")
                starts = here.get(f"{OURS}:lr_level=auto", {})
                ratios = [over(losses, here["adamw"][rate]) for losses in starts.values()]
                spread = [r[0] for r in ratios if r is not None]
                cells.append(f"{min(spread):.3f} to {max(spread):.3f}" if spread else "-")
                for peer in PEERS:
                    started = here.get(peer, {})
                    cells.append(shown(over(started[1e-6], here["adamw"][rate])) if 1e-6 in started else "-")
                came = here.get("came")
                cells.append(shown(over(came[best(came)[0]], here["adamw"][rate])) if came else "-")
                voted = here.get("automagic-v3", {})
                cells.append(shown(over(voted[1e-6], here["adamw"][rate])) if 1e-6 in voted else "-")
                body.append(cells)
    header = [
        "task",
        "schedule, steps",
        "AdamW's best rate",
        "no rate / AdamW (seeds)",
        "no rate / our best rate",
    ]
    peers = [
        f"{name} / AdamW"
        for name in (
            "Prodigy",
            "ProdigyPlus",
            "adv_optm's Prodigy",
            "CAME's best rate of four",
            "Automagic v3",
        )
    ]
    return markdown([*header, "starts 1e-8 to 1e-2 / AdamW", *peers], body)


def classes(rows: Rows) -> str:
    """Every class and profile at its defaults, against the 8-bit base class."""
    found, body = _found(rows), []
    for name in FAMILY:
        for schedule in ("constant", "cosine"):
            cells = [shown(over(*_beside_base(found, task, schedule, name))) for task in CHEAP]
            if any(cell != "-" for cell in cells) and name != OURS:
                body.append([f"`{name}`", schedule, *cells])
    return markdown(["class", "schedule", *CHEAP], body)


def ablation(rows: Rows) -> str:
    """One technique changed, the rate found: change of the loss in per cent, and its range over the seeds."""
    found, body = _found(rows), []
    for option, words in CHANGES.items():
        cells = [_percent(*_beside_base(found, task, "constant", f"{OURS}:{option}")) for task in CHEAP]
        if any(cell != "-" for cell in cells):
            body.append([f"`{option}`", words, *cells])
    return markdown(["change", "meaning", *(f"{task}, %" for task in CHEAP)], body)


def ranks(rows: Rows) -> str:
    return auto_ranks.table(rows.all("auto_rate"))


def _found(rows: Rows) -> dict[tuple, dict[int, list[dict]]]:
    """(task, schedule, candidate) -> seed -> rows of 300 steps in which the rate was found, oldest first."""
    found: dict[tuple, dict[int, list[dict]]] = defaultdict(lambda: defaultdict(list))
    for row in sorted(rows.all("auto_rate"), key=lambda row: row["date"]):
        if row["steps"] == 300 and row["lr"] is None:
            found[row["task"], row["schedule"], kind(row)][row["seed"]].append(row)
    return found


def _beside_base(found: dict, task: str, schedule: str, name: str) -> tuple[dict, dict]:
    """Loss of the newest row of each seed, and that of the base class's nearest in time."""
    newest = {seed: ran[-1] for seed, ran in found.get((task, schedule, name), {}).items()}
    bases = found.get((task, schedule, OURS), {})
    nearest = {
        seed: min(bases[seed], key=lambda base: abs(_time(base) - _time(row)))
        for seed, row in newest.items()
        if seed in bases
    }
    return _losses(newest), _losses(nearest)


def _time(row: dict) -> float:
    return datetime.fromisoformat(row["date"].replace("Z", "+00:00")).timestamp()


def _losses(rows: dict[int, dict]) -> dict[int, float]:
    return {seed: row["held_out"] for seed, row in rows.items()}


def _percent(changed: dict[int, float], base: dict[int, float]) -> str:
    percents = [100 * (changed[s] / base[s] - 1) for s in changed.keys() & base.keys()]
    if not percents:
        return "-"
    return f"{mean(percents):+.1f} ({min(percents):+.1f} to {max(percents):+.1f})"
