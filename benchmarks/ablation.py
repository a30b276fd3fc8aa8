"""Each technique on and off: what the quality rows say, as a table and as a picture.

    python -m benchmarks.compare --tasks cat_lora --lr 4e-3 --ablate use_tam=false final_clip=inf
    python -m benchmarks.ablation --picture docs/images/ablation.png

A cell is the held-out loss with one option changed minus the base's over the same seeds, in per
cent of the base's loss. Positive: the change hurts, so the technique's default is right there.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from benchmarks.claims import BASE, CATS, CHAR, CONTEXT, IMPROVED
from benchmarks.common import argument_parser, markdown
from benchmarks.quality import mean
from benchmarks.rows import BY_SEED, Rows

RATES = {CATS: 4e-3, CHAR: 2e-3}  # where the base class is best on each task


class Change(NamedTuple):
    """One option changed, in the words of the table."""

    option: str
    words: str
    tasks: tuple[str, ...] = (CATS, CHAR)


# What a task cannot show is left out: ALLoRA acts on LoRA alone.
CHANGES: dict[str, list[Change]] = {
    BASE: [
        Change("use_lr_mask=false", "no learning-rate mask"),
        Change("lr_mask_granularity=row", "one mask value per row, not per element"),
        Change("full_finetune=true", "no ALLoRA row gain", (CATS,)),
        Change("use_tam=false", "no torque-aware momentum"),
        Change("use_grams=false", "no Grams mix"),
        Change("final_clip=inf", "no final clip"),
        Change("came=false", "AdaBelief instead of CAME"),
        Change("factored=false", "second moments in full size"),
        Change("weight_decay=0", "no weight decay"),
        Change("beta1_decay=1.0", "momentum does not decay"),
        Change("use_orthograd=true", "OrthoGrad on (off by default)"),
        Change("use_agr=true", "AGR on (off by default)"),
    ],
    IMPROVED: [
        Change("edge_suppression=false", "no edge damping"),
        Change("background_regularization=false", "no background damping"),
        Change("spatial_awareness=false", "no spatial gain"),
        Change("frequency_penalty=0", "no frequency damping"),
        Change("lora_rank_penalty=false", "no rank penalty"),
        Change("rank_keep=4", "rank penalty that reaches a LoRA of rank 8", (CATS,)),
        Change("use_spd=false", "no selective projection decay"),
        Change("use_cautious=false", "no Cautious signs"),
        Change("d_coef=1", "mask bumps of 1, not 2"),
    ],
    CONTEXT: [
        Change("adaptation_rate=0", "controller off"),
        Change("momentum_scales=None", "one length of momentum"),
    ],
}


class Effect(NamedTuple):
    """Per-seed change in per cent of the base's loss."""

    percent: list[float]
    base: float

    @property
    def reading(self) -> str:
        if not any(self.percent):
            return "identical"
        if min(self.percent) > 0:
            return "hurts"
        return "helps" if max(self.percent) < 0 else "unclear"


def losses(rows: Rows, task: str, candidate: str, source: str | None = None) -> tuple[BY_SEED, str | None]:
    """Seed -> held-out loss, from runs of the code `source` if there are any; and the code they are of."""
    runs = rows.runs(task, candidate, RATES[task], source=source) if source else []
    runs = runs or rows.runs(task, candidate, RATES[task])
    sources = {r["source"] for r in runs}
    return {r["seed"]: r["held_out"] for r in runs}, sources.pop() if len(sources) == 1 else None


def effect(rows: Rows, task: str, base: str, change: Change) -> Effect | None:
    """None without rows of all the seeds that the change ran with."""
    if task not in change.tasks:
        return None
    changed, source = losses(rows, task, f"{base}:{change.option}")
    reference, _ = losses(rows, task, base, source)
    seeds = sorted(set(changed) & set(reference))
    if len(seeds) < 3:
        return None
    level = mean(reference[seed] for seed in seeds)
    return Effect([100 * (changed[s] - reference[s]) / level for s in seeds], level)


def cell(found: Effect | None) -> str:
    if found is None:
        return "-"
    low, high = min(found.percent), max(found.percent)
    return f"{mean(found.percent):+.1f} ({low:+.1f} to {high:+.1f}) {found.reading}"


def table(rows: Rows, base: str) -> str:
    """One row a change, one column a task."""
    body = []
    for change in CHANGES[base]:
        cells = [cell(effect(rows, task, base, change)) for task in RATES]
        body.append([f"`{change.option}`", change.words, *cells])
    header = ["change", "meaning", "demo LoRA, %", "byte transformer, %"]
    return markdown(header, body)


def picture(rows: Rows, path: Path) -> None:
    """A dot for every seed and a bar for the mean, one panel a base."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    sizes = [len(changes) for changes in CHANGES.values()]
    figure, axes = plt.subplots(
        len(CHANGES), 1, figsize=(8, 0.34 * sum(sizes) + 2.2), sharex=True, height_ratios=sizes
    )
    colours = {CATS: "#1f77b4", CHAR: "#d1761b"}
    names = {CATS: "demo LoRA", CHAR: "byte transformer"}
    for axis, (base, changes) in zip(axes, CHANGES.items(), strict=True):
        for place, change in enumerate(changes):
            for task, shift in ((CATS, -0.17), (CHAR, 0.17)):
                found = effect(rows, task, base, change)
                if found is None:
                    continue
                y = [place + shift] * len(found.percent)
                axis.plot(found.percent, y, "o", color=colours[task], alpha=0.55, markersize=4, linewidth=0)
                axis.plot(
                    mean(found.percent), place + shift, "|", color=colours[task], markersize=11, mew=2.2
                )
        axis.set_yticks(range(len(changes)), [change.words for change in changes])
        axis.set_ylim(len(changes) - 0.4, -0.6)
        axis.axvline(0, color="0.4", linewidth=0.8)
        axis.set_xscale("symlog", linthresh=2)
        axis.grid(axis="x", color="0.9")
        axis.set_axisbelow(True)
        axis.set_title(base, loc="left", fontsize=10)
    ticks = [-20, -5, -2, -1, 0, 1, 2, 5, 20]
    axes[-1].set_xticks(ticks, [f"{t:+d}" if t else "0" for t in ticks])
    axes[-1].set_xlabel("change of the held-out loss, % of the base's (right: the change hurts)")
    handles = [
        plt.Line2D([], [], marker="o", color=colours[task], linewidth=0, label=names[task]) for task in RATES
    ]
    figure.legend(handles=handles, loc="upper right", ncols=2, frameon=False, fontsize=9)
    figure.tight_layout(rect=(0, 0, 1, 0.98))
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(argv: list[str] | None = None) -> str:
    parser = argument_parser(__doc__)
    parser.add_argument("--picture", type=Path, help="also write the picture to this file")
    args = parser.parse_args(argv)
    rows = Rows()
    text = "\n\n".join(f"### {base}\n\n{table(rows, base)}" for base in CHANGES)
    print(text)
    if args.picture:
        picture(rows, args.picture)
    return text


if __name__ == "__main__":
    main()
