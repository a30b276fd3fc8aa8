"""The report's curves, as SVG that takes its text colour from the page (so light and dark both read well)."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence

from .loop import RunResult

DASHES = ("-", "-", "--", "-.", ":")  # our two classes often lie on each other
COLOURS = ("#8a94a6", "#e8590c", "#1c7ed6", "#2f9e44", "#9c36b5", "#f08c00")
INK = "#010203"  # stands for the page's own text colour, see _svg


def colour(index: int) -> str:
    """The colour of the run number `index`, the same in every plot and table."""
    return COLOURS[index % len(COLOURS)]


def loss_plot(results: Sequence[RunResult]) -> str:
    """Training loss (pale, smoothed) and held-out loss (dots)."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    figure, axes = _axes("step", "v-prediction loss")
    for i, result in enumerate(results):
        rows = [row for row in result.rows if row["loss"] is not None]
        smooth = _smooth([row["loss"] or 0.0 for row in rows])
        axes.plot([row["step"] for row in rows], smooth, color=colour(i), alpha=0.35, linewidth=1.2)
        held = [(row["step"], row["held_out"]) for row in result.rows if row["held_out"] is not None]
        steps, values = zip(*held, strict=True)
        dash = DASHES[i % len(DASHES)]
        axes.plot(steps, values, dash, marker="o", color=colour(i), markersize=4, label=result.label)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.legend(frameon=False, labelcolor=INK, fontsize=10)
    return _svg(figure)


def lr_plot(results: Sequence[RunResult]) -> str:
    """The learning rate really applied."""
    figure, axes = _axes("step", "applied learning rate")
    for i, result in enumerate(results):
        rows = [row for row in result.rows if row["step"] > 0]
        steps, rates = [row["step"] for row in rows], [row["lr"] for row in rows]
        axes.plot(steps, rates, DASHES[i % len(DASHES)], color=colour(i), label=result.label)
    axes.set_ylim(bottom=0)
    axes.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    axes.legend(frameon=False, labelcolor=INK, fontsize=10)
    return _svg(figure)


def _axes(x: str, y: str):
    from matplotlib.figure import Figure  # the object interface: no global state, no display

    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.set_xlabel(x, color=INK)
    axes.set_ylabel(y, color=INK)
    axes.tick_params(colors=INK)
    axes.yaxis.get_offset_text().set_color(INK)
    axes.grid(color="#8a94a6", alpha=0.25, linewidth=0.6)
    for name, spine in axes.spines.items():
        spine.set_visible(name in ("left", "bottom"))
        spine.set_color("#8a94a6")
    return figure, axes


def _smooth(values: list[float], keep: float = 0.85) -> list[float]:
    smooth: list[float] = []
    for i, value in enumerate(values):
        smooth.append(value if i == 0 else keep * smooth[-1] + (1 - keep) * value)
    return smooth


def _svg(figure) -> str:
    import matplotlib

    out = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "automagic"}):
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
    return re.sub(r'(<svg[^>]*?) height="[^"]*"([^>]*?) width="[^"]*"', r"\1\2", text, count=1)
