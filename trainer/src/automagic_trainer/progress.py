"""What the terminal shows: a bar, or a line, for each piece of work, and a table at the end."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Column, Table

from .loop import RunResult
from .metrics import Row
from .report import human_bytes, optimizer_ms, state_of
from .session import Watcher


class Bars(Watcher):
    """A rich progress display; `on_row` feeds the bar of the optimizer that is running."""

    def __init__(self, console: Console) -> None:
        self.progress = Progress(
            TextColumn("{task.description}", style="bold"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(table_column=Column(no_wrap=True, min_width=7)),
            TextColumn("{task.fields[detail]}", style="dim", table_column=Column(no_wrap=True, min_width=37)),
            TimeRemainingColumn(compact=True),
            console=console,
        )
        self._task = TaskID(0)
        self._loss: float | None = None

    def __enter__(self) -> Bars:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def start(self, name: str, total: int) -> None:
        """Add a bar below the others."""
        self._loss = None
        self._task = self.progress.add_task(name, total=total, detail="")

    def on_row(self, row: Row) -> None:
        """Show one metrics line."""
        loss = row["loss"]
        if loss is not None:
            self._loss = loss if self._loss is None else 0.9 * self._loss + 0.1 * loss
        shown = "" if self._loss is None else f"loss {self._loss:.4f} "
        detail = f"{shown}lr {row['lr']:.1e} state {human_bytes(row['state_bytes'])}"
        self.progress.update(self._task, completed=row["step"], detail=detail)

    def tick(self) -> None:
        """One step of a bar that counts nothing but itself."""
        self.progress.advance(self._task)

    def say(self, words: str) -> None:
        """One line above the bars."""
        self.progress.console.print(words, highlight=False, markup=False, soft_wrap=True)


class Lines(Watcher):
    """A line for each piece of work, where bars would not be seen; begun and ended as the work is."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._open = False  # whether a line waits for its end
        self._began = 0.0
        self._row: Row | None = None
        self._said: list[str] = []

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def start(self, name: str, total: int) -> None:
        """End the line of the work before, and begin one."""
        self._end()
        self._began, self._row, self._open = time.perf_counter(), None, True
        self._write(f"{name}: {total} steps ...", end="")

    def on_row(self, row: Row) -> None:
        """Remember the newest metrics line that has a loss."""
        if row["loss"] is not None:
            self._row = row

    def say(self, words: str) -> None:
        """One line, after the one of this piece of work."""
        self._said.append(words)

    def _end(self) -> None:
        if self._open:
            loss = "" if self._row is None else f" loss {self._row['loss']:.4f},"
            self._write(f"{loss} {time.perf_counter() - self._began:.0f} s")
            self._open = False
        while self._said:
            self._write(self._said.pop(0))

    def _write(self, words: str, end: str = "\n") -> None:
        self.console.print(words, end=end, highlight=False, markup=False, soft_wrap=True)
        self.console.file.flush()


def progress(console: Console) -> Bars | Lines:
    """What this output can show."""
    return Bars(console) if console.is_terminal else Lines(console)


def summary(console: Console, out: Path, results: Sequence[RunResult], again: str) -> None:
    """The closing table, and where to look next."""
    table = Table(header_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("optimizer", overflow="fold", min_width=min(24, max(len(r.label) for r in results)))
    for name in ("held-out loss", "state", "of Adam", "ms/step", "time"):
        table.add_column(name, justify="right")
    for result in results:
        held, _, share = state_of(result)
        table.add_row(
            result.label,
            f"{result.before:.4f} → {result.after:.4f}",
            human_bytes(held),
            f"{share:.0%}",
            f"{optimizer_ms(result):.2f}",
            f"{result.rows[-1]['seconds']:.0f} s",
        )
    console.print(table)
    console.print(f"[bold]{out / 'report.html'}[/]  pictures, curves and memory; open it in a browser")
    console.print(f"[bold]{out / 'samples.png'}[/]  before and after")
    console.print(f"[bold]{out / 'adapter.safetensors'}[/]  the LoRA ({results[-1].label}); draw with it:")
    console.print(f"  {again}", highlight=False, soft_wrap=True)
