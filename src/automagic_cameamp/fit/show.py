"""An answer as text, as Markdown, and as a picture."""

from __future__ import annotations

import io
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .answer import GIB, HOST, Answer, Row, on_card
from .models import FitError

HEADER = ("optimizer", "way", "weights", "gradients", "state", "activations", "step", "peak", "host", "fits")
COLOURS = ("#4c78a8", "#f58518", "#54a24b", "#b279a2")


def cells(row: Row) -> list[str]:
    """A row in GiB."""
    sizes = (row.weights, row.gradients, row.state, row.activations, row.step, row.peak, row.host)
    numbers = [f"{size / GIB:.2f}" for size in sizes]
    return [row.optimizer, row.way, *numbers, "yes" if row.fits else "no"]


def markdown(rows: Sequence[Row]) -> str:
    """A table for a page, GiB."""
    lines = [
        "| " + " | ".join((*HEADER[:2], *(f"{h}, GiB" if h != "fits" else h for h in HEADER[2:]))) + " |"
    ]
    lines += ["|" + "---|" * len(HEADER)]
    return "\n".join(
        lines + ["| `" + "` | ".join(cells(r)[:1]) + "` | " + " | ".join(cells(r)[1:]) + " |" for r in rows]
    )


def text(answer: Answer, *, every: bool = False, colour: bool = False, width: int | None = None) -> str:
    """What ``automagic fit`` prints.

    Args:
        answer: what was found.
        every: all ways of every optimizer, not the best of each.
        colour: a table of rich's, where that is installed.
        width: of rich's table.
    """
    from .commands import command, note

    q, rows = answer.question, answer.rows if every else answer.best()
    count = sum(t.bytes // t.dtype.itemsize for t in answer.trace.trained)
    title = f"{answer.spec.title}, {q.train}: {count:,} trained parameters on {q.gpu:g} GiB (all in GiB)"
    table = _rich(title, rows, width) if colour else None
    lines = [title, "", *_plain(rows)] if table is None else [table]
    lines += ["", *(f"* {line}" for line in answer.assumptions()), ""]
    best = answer.recommended()
    if best is None:
        lines += [_what_lacks(answer)]
    else:
        lines += [f"Take {best.optimizer}, {best.way}:", "", *command(answer, best).splitlines()]
        lines += ["", note(answer, best)] if note(answer, best) else []
    return "\n".join(lines)


def _what_lacks(answer: Answer) -> str:
    """What nearly fits, and whether the card or the host is too small for it."""
    q = answer.question
    if q.host is not None and (there := [r for r in answer.rows if on_card(q, r.peak)]):
        row = min(there, key=lambda r: r.host)
        return (
            f"Nothing fits: {row.optimizer}, {row.way} has room on the card, and wants "
            f"{row.host / GIB:.2f} GiB of host memory beside {HOST:g} GiB for the program; "
            f"--host says {q.host:g}."
        )
    row = min(answer.rows, key=lambda r: r.peak)
    return f"Nothing fits; least is {row.optimizer}, {row.way}: {row.peak / GIB:.2f} GiB. {_advice(answer)}"


def _advice(answer: Answer) -> str:
    q = answer.question
    tried = []
    if not q.checkpointing:
        tried.append("--checkpointing")
    if q.accumulation > 1:
        tried.append("--accumulation 1")
    if q.train == "full":
        tried.append("--swap 20" if answer.spec.family in ("flux",) and not q.swap else "--train lora")
    elif not q.base:
        tried.append("--base fp8 or --base nf4")
    elif not q.swap:
        tried.append("--swap 16")
    if answer.batch.width > 512:
        tried.append("--resolution 512")
    return f"Try {', '.join(tried)}." if tried else "It needs a larger card."


def _plain(rows: Sequence[Row]) -> list[str]:
    body = [list(HEADER), *(cells(row) for row in rows)]
    widths = [max(len(line[i]) for line in body) for i in range(len(HEADER))]
    return [
        "  ".join(
            c.ljust(w) if i < 2 else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in body
    ]


def _rich(title: str, rows: Sequence[Row], width: int | None) -> str | None:
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        return None
    table = Table(title=title, title_justify="left")
    for i, name in enumerate(HEADER):
        table.add_column(name, justify="left" if i < 2 else "right", no_wrap=i != 0)
    for row in rows:
        table.add_row(*cells(row), style="green" if row.fits else "dim")
    out = io.StringIO()
    Console(file=out, force_terminal=True, width=width or max(100, shutil.get_terminal_size().columns)).print(
        table
    )
    return out.getvalue().rstrip("\n")


def _figure() -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise FitError('picture needs matplotlib: pip install "automagic-cameamp[fit]"') from None
    return Figure


def check_picture(path: str | Path) -> None:
    """Whether a picture could be written there: asked before anything is worked out.

    Raises:
        FitError: matplotlib is not installed, or it is the name of no picture.
    """
    kinds = _figure()().canvas.get_supported_filetypes()
    if Path(path).suffix[1:].lower() not in kinds:
        raise FitError(f"picture={str(path)!r} is not allowed: it must end in one of {', '.join(kinds)}")
    if not Path(path).absolute().parent.is_dir():
        raise FitError(f"picture={str(path)!r} cannot be written: there is no folder for it")


def picture(answer: Answer, path: str | Path) -> None:
    """Stacked bars of the best way of every optimizer, at the moment of its peak.

    Raises:
        FitError: matplotlib is not installed, or the file cannot be written.
    """
    Figure = _figure()
    check_picture(path)
    rows, q = answer.best()[::-1], answer.question
    figure: Any = Figure(figsize=(9, 1.6 + 0.36 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    labels = [f"{row.optimizer.replace('Automagic_', '')} ({row.way})" for row in rows]
    left = [0.0] * len(rows)
    for name, colour, sizes in zip(
        ("weights", "state", "gradients", "activations, step"),
        COLOURS,
        zip(*map(_parts, rows), strict=True),
        strict=True,
    ):
        axes.barh(labels, sizes, left=left, color=colour, label=name)
        left = [a + b for a, b in zip(left, sizes, strict=True)]
    for i, row in enumerate(rows):
        host = f" + {row.host / GIB:.1f} host" if row.host else ""
        words = f" {left[i]:.1f}{host}{'' if row.fits else '  does not fit'}"
        axes.text(left[i], i, words, va="center", fontsize=8, bbox={"fc": "white", "ec": "none", "pad": 0.5})
    axes.axvline(q.gpu, color="black", linestyle="--", linewidth=1)
    axes.set_xlim(0, 1.35 * max(q.gpu, *left))
    axes.margins(y=0.01)
    axes.set_xlabel(f"GiB on the card at the peak (dashed: {q.gpu:g} GiB)")
    axes.set_title(f"{answer.spec.title}, {q.train}", loc="left")
    figure.legend(loc="outside lower center", ncols=4, fontsize=8)
    try:
        figure.savefig(path, dpi=120)
    except (OSError, ValueError) as error:
        raise FitError(f"picture={str(path)!r} cannot be written: {error}") from error


def _parts(row: Row) -> tuple[float, ...]:
    """Weights, state, gradients and the rest; together the peak."""
    beside = row.peak - row.weights - row.state
    gradients = min(row.gradients, beside)
    return tuple(size / GIB for size in (row.weights, row.state, gradients, beside - gradients))
