"""docs/images/memory.png: what is on the card at the peak, from the committed rows of `automagic fit`.

    python -m benchmarks.memory_picture

The picture carries a digest of the numbers it shows; a test compares it with the rows.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.common import ROOT, argument_parser
from benchmarks.rows import Rows

PICTURE = ROOT / "docs" / "images" / "memory.png"
OTHERS = ["Prodigy", "AdamW", "AdamW8bit", "Adafactor"]
OURS = [
    "Automagic_CameAMP8bit",
    "Automagic_CameAMP8bit memory_optimized",
    "Automagic_CameAMP_Improved_8Bit minimal",
]
PANELS = {
    "sdxl": ("SDXL, all weights, 1024 px, batch 1", 12),
    "flux lora": ("FLUX.1-dev, LoRA of rank 16, 768 px, fp8 base, 28 blocks swapped", 8),
}
PARTS = ("weights", "gradients", "state", "activations", "step")
COLOURS = ("#9aa5b1", "#e0a458", "#2f6690", "#c9d6df", "#7a9e7e")


class Bar(NamedTuple):
    """A row, in GiB: its parts, each their own most; the peak; what waits on the host; whether it fits."""

    name: str
    way: str
    parts: tuple[float, ...]
    peak: float
    host: float
    fits: bool


def bars(rows: Rows) -> dict[str, list[Bar]]:
    """The rows of every panel, in the order in which they are drawn."""
    tables = {row["recipe"]: row["table"] for row in rows.all("fit_recipes")}
    found = {}
    for recipe in PANELS:
        by_name = {}
        for line in tables[recipe].splitlines()[2:]:
            name, way, *numbers, fits = (cell.strip(" `") for cell in line.strip("|").split("|"))
            *parts, peak, host = map(float, numbers)
            by_name[name] = Bar(name, way, tuple(parts), peak, host, fits == "yes")
        found[recipe] = [by_name[name] for name in OTHERS + OURS]
    return found


def digest(found: dict[str, list[Bar]]) -> str:
    """Of everything that is shown."""
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()[:16]


def draw(found: dict[str, list[Bar]], path: Path) -> None:
    """Stacked bars, one panel per recipe."""
    from matplotlib.figure import Figure

    figure: Any = Figure(figsize=(9, 6.2), layout="constrained")
    for axes, (recipe, (title, card)) in zip(figure.subplots(2, 1), PANELS.items(), strict=True):
        for i, bar in enumerate(reversed(found[recipe])):
            # The parts need not coincide: what is drawn adds up to the peak, the step's share last.
            left = 0.0
            for size, colour, name in zip(bar.parts, COLOURS, PARTS, strict=True):
                shown = min(size, bar.peak - left)
                axes.barh(i, shown, left=left, color=colour, label=name if i == 0 else None)
                left += shown
            host = f" + {bar.host:.1f} host" if bar.host else ""
            words = f" {bar.peak:.1f}{host}{'' if bar.fits else '  does not fit'}"
            white = {"fc": "white", "ec": "none", "pad": 0.5}
            axes.text(bar.peak, i, words, va="center", fontsize=8, bbox=white)
        names = [f"{b.name.replace('Automagic_', '')} ({b.way})" for b in reversed(found[recipe])]
        axes.set_yticks(range(len(names)), names, fontsize=8)
        axes.axvline(card, color="black", linestyle="--", linewidth=1)
        axes.set_xlim(0, 1.3 * max(card, *(b.peak for b in found[recipe])))
        axes.set_title(title, loc="left", fontsize=10)
        axes.set_xlabel(f"GiB on the card at the peak, computed; dashed: {card} GiB", fontsize=8)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, fontsize=8)
    figure.savefig(path, dpi=110, metadata={"Description": digest(found)})


def main(argv: list[str] | None = None) -> int:
    parser = argument_parser(__doc__)
    parser.add_argument("--out", type=Path, default=PICTURE)
    args = parser.parse_args(argv)
    draw(bars(Rows()), args.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
