"""What an optimizer holds and does over a run, recorded and plotted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .panels import Panel, figure, lines, pyplot_or_error
from .read import error_norms, number, state_bytes, unwrap

HEADLESS = {"agg", "cairo", "pdf", "pgf", "ps", "svg", "template"}  # backends that open no window


class TrainingDashboard:
    """Records memory, compression, quantisation error and learning rate at each ``update``.

    Args:
        optimizer: one of ours.
    """

    def __init__(self, optimizer: Any) -> None:
        self.optimizer = optimizer
        self.steps: list[int] = []
        self.losses: list[float] = []
        self.metrics: dict[str, list[float]] = {
            "memory_usage": [],
            "compression_ratio": [],
            "quantization_errors": [],
            "learning_rates": [],
        }

    def update(self, step: int, loss: Any = None) -> None:
        """Record the state of step number ``step``.

        It waits for the device and decodes the quantised states, so call it every so many steps.

        Args:
            step: the number on the plots' x axis.
            loss: the loss of this step, to be plotted too; give it always or never.
        """
        if (loss is None) != (not self.losses) and self.steps:
            raise ValueError("loss=None is not allowed here: give the loss at every update, or at none")
        inner = unwrap(self.optimizer)
        stats = inner.get_memory_stats()
        seen = {
            "memory_usage": state_bytes(stats),
            "compression_ratio": stats["fraction_of_fp32"],
            "quantization_errors": sum(norm for _, _, norm in error_norms(inner)),
            "learning_rates": inner.get_avg_learning_rate(),
        }
        place, value = int(step), None if loss is None else number(loss)
        # From here on nothing can fail: an update is recorded whole or not at all.
        self.steps.append(place)
        if value is not None:
            self.losses.append(value)
        for name, one in seen.items():
            self.metrics[name].append(one)

    def panels(self) -> list[Panel]:
        """The plots: the four metrics, and the loss where it was given."""

        def panel(title: str, values: list[float], y: str) -> Panel:
            return Panel(title, lines({title: values}, self.steps, y))

        found = [
            panel("Memory Usage (bytes)", self.metrics["memory_usage"], "bytes of state"),
            panel("Compression Ratio", self.metrics["compression_ratio"], "of the same states in fp32"),
            panel("Quantization Errors", self.metrics["quantization_errors"], "norm held for correction"),
            panel("Learning Rate", self.metrics["learning_rates"], "mean rate applied"),
        ]
        return [*found, panel("Loss", self.losses, "loss")] if self.losses else found

    def plot_metrics(self) -> Any:
        """The plots as a matplotlib figure, shown in a window where there is a display."""
        pyplot = pyplot_or_error()
        page = figure(self.panels(), pyplot.figure)
        if pyplot.get_backend().lower() in HEADLESS:
            pyplot.close(page)
        else:
            pyplot.show()
        return page

    def save(self, path: str | Path) -> Path:
        """Write the plots: a page for .html, else a picture (.png, .svg, .pdf). Needs no display."""
        from .page import report, write_picture

        if Path(path).suffix.lower() in (".html", ".htm"):
            return report(self.optimizer, path, dashboard=self)
        return write_picture(self.panels(), Path(path))
