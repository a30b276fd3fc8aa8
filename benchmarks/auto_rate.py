"""Does a rate have to be set? Ours without one, ours at fixed rates, and what people use today, task by task.

    python -m benchmarks.auto_rate --tasks flow lm-lora --only baseline     # one piece
    python -m benchmarks.auto_rate --jobs 16                                # all pieces but the next two
    python -m benchmarks.auto_rate --tasks flow lm-lora --only classes techniques
    python -m benchmarks.auto_rate --tasks flow@1 lm-lora@1                 # with batches of one
    python -m benchmarks.auto_rate --tasks classes classes-near policy head-first --only baseline fixed auto
    python -m benchmarks.auto_rate --tasks classes-zero control inversion --only baseline fixed auto
    python -m benchmarks.auto_rate --table
    python -m benchmarks.auto_rate --picture docs/images/rate.png

Opponents: AdamW at eight rates; Prodigy and ProdigyPlusScheduleFree from seven starts, adv_optm's Prodigy;
CAME and our own class at fixed rates; ours with nothing given, and from seven starts; Automagic v3, whose
votes move a rate that no schedule reaches, from its default and from 1e-4. Nothing else is set.
Every run is a row of `results/auto_rate.jsonl` as soon as it ends; a second start runs only what is missing.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from benchmarks.common import (
    FAMILY,
    RESULTS,
    argument_parser,
    available,
    label,
    markdown,
    parse_candidate,
    read_rows,
)
from benchmarks.compare import Job, run_jobs
from benchmarks.quality import mean

CHOSEN = ["charlm-tiny", "lm-lora", "lm-full", "flow"]  # tasks that the rule and its constants were chosen on
CONFIRMED = ["convnet", "cat_lora", "unet-full", "charlm-small", "inversion"]  # seen only afterwards
# Batches of one. The take-off's certainty was chosen on all of these, over 300 steps and with fewer seeds.
SMALL = ["lm-lora@1", "flow@1", "lm-full@1", "cat_lora@1", "unet-full@1"]
SCHEDULES = ["constant", "cosine"]
RATES = [1e-4, 3e-4, 1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2]
FIXED = [3e-4, 5e-4, 1e-3, 2e-3, 4e-3, 8e-3]
HIGH = {"inversion": [3.2e-3, 8e-3, 1.6e-2, 3.2e-2, 6.4e-2, 0.128, 0.256]}  # in the place of RATES and FIXED
STARTS = [1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2]
OURS = "Automagic_CameAMP8bit"
PEERS = ["prodigy", "prodigy-plus", "adv-prodigy"]

# One technique changed, the rate found; CHANGES of `ablation.py` are at fixed rates.
CHANGES = {
    "use_lr_mask=False": "no learning-rate mask",
    "lr_mask_granularity=row": "one mask value per row",
    "use_tam=False": "no torque-aware momentum",
    "use_grams=False": "no Grams mix",
    "final_clip=inf": "no final clip",
    "came=False": "AdaBelief instead of CAME",
    "factored=False": "second moments in full size",
    "weight_decay=0": "no weight decay",
    "weight_decay_phase=always": "weight decay to the end",
    "beta1_decay=1.0": "momentum and Grams mix do not decay",
    "beta1_follows_lr=False": "momentum decays to 0.4, whatever the schedule does",
    "full_finetune=True": "no ALLoRA row gain",
    "use_orthograd=True": "OrthoGrad on (off by default)",
    "use_agr=True": "AGR on (off by default)",
    "warmup_steps=100": "phases of 50 and 100 steps, not 250 and 500",
}


def pieces(ours: str, rates: list[float] | None = None) -> dict[str, list[tuple[str, float | None]]]:
    """Name of a piece -> (candidate, rate) of its runs; a peer's start is its d0, and its lr is 1.

    Args:
        ours: our candidate.
        rates: in the place of the usual ones.
    """
    split = ours + (";" if ":" in ours else ":")
    return {
        "baseline": [("adamw", lr) for lr in rates or RATES],
        "fixed": [(split + "lr_level=fixed", lr) for lr in rates or FIXED],
        "auto": [(ours, None)],
        "starts": [(split + "lr_level=auto", lr) for lr in STARTS],
        "peers": [(name, 1.0) for name in PEERS],
        "peer-starts": [(f"{name}:d0={d0:g}", 1.0) for name in PEERS[:2] for d0 in STARTS if d0 != 1e-6],
        "came": [("came", lr) for lr in (1e-4, 2e-4, 5e-4, 1e-3)],
        "v3": [("automagic-v3", lr) for lr in (1e-6, 1e-4)],
        "classes": [(name, None) for name in FAMILY if name != OURS],
        "techniques": [(split + change, None) for change in CHANGES],
    }


STANDARD = ["baseline", "fixed", "auto", "starts", "peers", "peer-starts", "came", "v3"]


def jobs(args) -> list[Job]:
    found = []
    for task in args.tasks:
        for schedule in args.schedules:
            for seed in args.seeds:
                for piece in args.only:
                    for text, lr in pieces(args.ours, HIGH.get(task))[piece]:
                        if args.rates and lr not in args.rates:
                            continue
                        name, options = parse_candidate(text)
                        if not available(name):
                            print(f"skipped: {name} cannot be imported here")
                            continue
                        found.append(Job(task, name, options, lr, seed, args.steps, schedule, plain=True))
    return found


def kind(row: dict) -> str:
    """What a row's losses are compared under: the candidate without its rate or start."""
    options = {k: v for k, v in row["options"].items() if k not in ("d0",)}
    return label(row["optimizer"], options)


def settings(rows: list[dict]) -> dict[tuple, dict[float | None, dict[int, float]]]:
    """(task, schedule, steps, candidate) -> rate or start -> seed -> held-out loss; the newest row counts."""
    found: dict[tuple, dict] = defaultdict(lambda: defaultdict(dict))
    for row in sorted(rows, key=lambda row: row["date"]):
        x = row["options"].get("d0", 1e-6 if row["optimizer"] in PEERS else row["lr"])
        found[row["task"], row["schedule"], row["steps"], kind(row)][x][row["seed"]] = row["held_out"]
    return found


def best(losses: dict[float | None, dict[int, float]]) -> tuple[float | None, float]:
    """The rate with the lowest mean, among those that ran with the most seeds, and that mean."""
    most = max(map(len, losses.values()))
    means = {x: mean(seeds.values()) for x, seeds in losses.items() if len(seeds) == most}
    x = min(means, key=lambda x: means[x])
    return x, means[x]


def table(rows: list[dict]) -> str:
    """Mean held-out losses in units of AdamW's at its best rate."""
    found, body = settings(rows), []
    for (task, schedule, steps, name), losses in sorted(found.items()):
        tuned = found.get((task, schedule, steps, "adamw"))
        if tuned is None:
            continue
        lr, unit = best(tuned)
        x, value = best(losses)
        parts = [f"{k:g}: {mean(v.values()) / unit:.3f}" for k, v in sorted(losses.items(), key=str) if k]
        seeds = max(map(len, losses.values()))
        body.append([task, f"{schedule}, {steps}", name, f"{value / unit:.3f}", seeds, " ".join(parts)])
    return markdown(["task", "schedule, steps", "candidate", "loss", "seeds", "at each rate or start"], body)


SHOWN = {
    "flow": "noisy flow matching",
    "lm-lora": "LoRA of a byte transformer",
    "lm-full": "the whole byte transformer",
}
CURVES = {
    "adamw": ("AdamW: rate", "#888888"),
    "prodigy": ("Prodigy: d0", "#d1902b"),
    "prodigy-plus": ("ProdigyPlusScheduleFree: d0", "#b3578f"),
    f"{OURS}:lr_level=auto": ("ours: start", "#2a6fbb"),
}
WORST = 1.4  # of AdamW's best loss; what is above is drawn there


def picture(rows: list[dict], path: Path) -> None:
    """Loss against what each optimizer was started from, constant schedule, in units of AdamW's best."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    found = settings([row for row in rows if row["schedule"] == "constant"])
    figure, axes = plt.subplots(1, len(SHOWN), figsize=(11, 3.4), sharey=True, layout="constrained")
    for axis, (task, title) in zip(axes, SHOWN.items(), strict=True):
        here = {name: losses for (t, _, steps, name), losses in found.items() if t == task and steps == 300}
        unit = best(here["adamw"])[1]
        for name, (words, colour) in CURVES.items():
            points = sorted((x, mean(seeds.values()) / unit) for x, seeds in here.get(name, {}).items() if x)
            xs, ys = [x for x, _ in points], [min(y, WORST) for _, y in points]
            axis.plot(xs, ys, "o-", color=colour, label=words, linewidth=2, markersize=4)
        axis.set(xscale="log", title=title, ylim=(0.95, WORST + 0.01), xlim=(6e-9, 5e-2))
        axis.axhline(1, color="#cccccc", linewidth=0.8, zorder=0)
    axes[0].set_ylabel("held-out loss / AdamW at its best rate")
    axes[1].set_xlabel("where it was started")
    axes[0].legend(fontsize=8, loc="upper center")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main(argv: list[str] | None = None) -> list[dict]:
    parser = argument_parser(__doc__)
    parser.add_argument("--tasks", nargs="+", default=[*CHOSEN, *CONFIRMED])
    parser.add_argument("--schedules", nargs="+", default=SCHEDULES)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", default=STANDARD, choices=list(pieces(OURS)))
    parser.add_argument("--rates", nargs="+", type=float, default=[], help="of the rates only these")
    parser.add_argument("--ours", default=OURS, help="the class, with options: Name:key=value;key=value")
    parser.add_argument("--steps", type=int, default=0, help="0: the task's own number")
    parser.add_argument("--jobs", type=int, default=1, help="parallel processes, one thread each")
    parser.add_argument("--out", type=Path, default=RESULTS / "auto_rate.jsonl")
    parser.add_argument("--table", action="store_true", help="only print the table of the rows")
    parser.add_argument("--picture", type=Path, help="only draw loss against start to this file")
    parser.add_argument("--quick", action="store_true", help="three steps of one task: a smoke test")
    args = parser.parse_args(argv)
    if args.quick:
        args.tasks, args.schedules, args.seeds, args.steps = ["flow"], ["constant"], [0], 3
        args.only = ["baseline", "auto"]
    drawn = args.table or args.picture is not None
    rows = read_rows(args.out) if drawn else run_jobs(jobs(args), args.jobs, args.out)
    if args.picture is not None:
        picture(rows, args.picture)
    print("\n" + table(rows))
    return rows


if __name__ == "__main__":
    main()
