"""The plots of a report: each draws itself on one pair of axes. matplotlib's object interface, no display."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

INK, GRID, OURS, OTHER = "#010203", "#8a94a6", "#e8590c", "#8a94a6"
SERIES = ("#1c7ed6", "#2f9e44", "#9c36b5", "#f08c00")


class Panel(NamedTuple):
    """One plot: its title, and what draws it."""

    title: str
    draw: Callable[[Any], None]


def bars(labels: Sequence[str], values: Sequence[float], unit: str, ours: int = -1) -> Callable[[Any], None]:
    """Horizontal bars; number ``ours`` stands out (-1: all do)."""

    def draw(axes: Any) -> None:
        colours = [OURS if ours in (-1, i) else OTHER for i in range(len(values))]
        drawn = axes.barh(range(len(values)), values, color=colours, height=0.62)
        axes.set_yticks(range(len(values)), labels)
        axes.bar_label(drawn, [f"{v:,.3g}" for v in values], padding=4, color=INK, fontsize=9)
        axes.invert_yaxis()
        axes.set_xlabel(unit, color=INK)
        axes.margins(x=0.16)

    return draw


def lines(series: dict[str, Sequence[float]], steps: Sequence[int] | None, y: str) -> Callable[[Any], None]:
    """One line for each name."""

    def draw(axes: Any) -> None:
        for i, (name, values) in enumerate(series.items()):
            x = list(range(1, len(values) + 1)) if steps is None else list(steps)
            mark = "o" if len(values) == 1 else None
            axes.plot(x, values, color=SERIES[i % len(SERIES)], linewidth=1.6, marker=mark, label=name)
        axes.set_xlabel("step", color=INK)
        axes.set_ylabel(y, color=INK)
        if all(value >= 0 for values in series.values() for value in values):
            axes.set_ylim(bottom=0)
        if len(series) > 1:
            axes.legend(frameon=False, labelcolor=INK, fontsize=9)

    return draw


def histogram(edges: Sequence[float], counts: Sequence[float], x: str) -> Callable[[Any], None]:
    """Share of elements in each bin, on a logarithmic axis."""

    def draw(axes: Any) -> None:
        total = sum(counts) or 1
        axes.stairs([100 * c / total for c in counts], edges, fill=True, color=OURS, alpha=0.85)
        axes.set_xscale("log")
        axes.set_xlabel(x, color=INK)
        axes.set_ylabel("% of elements", color=INK)

    return draw


def figure(panels: Sequence[Panel], make: Callable[..., Any] | None = None) -> Any:
    """All panels in one figure, two beside each other; ``make`` builds the empty figure."""
    columns = min(2, max(1, len(panels)))
    rows = max(1, -(-len(panels) // columns))
    page = (make or _figure())(figsize=(6.4 * columns, 3.4 * rows), layout="constrained")
    grid = page.subplots(rows, columns, squeeze=False)
    for axes, panel in zip(grid.flat, panels, strict=False):
        _style(axes)
        panel.draw(axes)
        axes.set_title(panel.title, color=INK, fontsize=11, loc="left")
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    return page


def svg(panel: Panel) -> str:
    """One panel as SVG that takes its text colour from the page around it."""
    page = _figure()(figsize=(6.4, 3.2), layout="constrained")
    axes = page.subplots()
    _style(axes)
    panel.draw(axes)
    out = io.StringIO()
    from matplotlib import rc_context

    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "automagic"}):
        page.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
    return re.sub(r'(<svg[^>]*?) height="[^"]*"([^>]*?) width="[^"]*"', r"\1\2", text, count=1)


def pyplot_or_error() -> Any:
    """``matplotlib.pyplot``."""
    _figure()
    import matplotlib.pyplot

    return matplotlib.pyplot


def _figure() -> Any:
    """The class of figures that no window belongs to."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError("plots need matplotlib: pip install matplotlib", name="matplotlib") from None
    return Figure


def _style(axes: Any) -> None:
    axes.tick_params(colors=INK, which="both")
    for axis in (axes.xaxis, axes.yaxis):
        axis.get_offset_text().set_color(INK)
    axes.grid(color=GRID, alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)
    for name, spine in axes.spines.items():
        spine.set_visible(name in ("left", "bottom"))
        spine.set_color(GRID)
