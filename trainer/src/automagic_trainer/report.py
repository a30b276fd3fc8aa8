"""report.html: one page with everything in it, for a browser without a network."""

from __future__ import annotations

import base64
import html
import io
import platform
from collections.abc import Sequence
from importlib import metadata, resources
from pathlib import Path

import numpy as np
import torch

from .gallery import Gallery
from .loop import RunResult
from .plots import colour, loss_plot, lr_plot
from .settings import TrainSettings

PACKAGES = ("automagic-cameamp", "torch", "diffusers", "peft", "transformers", "bitsandbytes", "numpy")
ADAM_BYTES = 8  # two fp32 moments for every parameter


def write_report(
    path: Path, title: str, gallery: Gallery, results: Sequence[RunResult], how: dict[str, str]
) -> None:
    """Fill the page's template and write it."""
    template = resources.files("automagic_trainer") / "assets" / "report.html"
    parts = {
        "TITLE": html.escape(title),
        "LEAD": _lead(results),
        "CARDS": "\n".join(_card(gallery, i) for i in range(len(gallery.captions))),
        "RESULTS": _table(*_results(results)),
        "LOSS": loss_plot(results),
        "LR": lr_plot(results),
        "SETTINGS": _table(*_settings(results)),
        "HOW": _table(["", ""], [[html.escape(k), html.escape(v)] for k, v in (how | _versions()).items()]),
    }
    page = template.read_text(encoding="utf-8")
    for name, value in parts.items():
        page = page.replace(f"<!--{name}-->", value)
    path.write_text(page, encoding="utf-8")


def state_of(result: RunResult) -> tuple[int, float, float]:
    """State bytes at the end, bytes per parameter, and the share of Adam's."""
    held = result.rows[-1]["state_bytes"]
    return held, held / result.parameters, held / (ADAM_BYTES * result.parameters)


def optimizer_ms(result: RunResult) -> float:
    """Median milliseconds of one optimizer step."""
    return float(np.median([row["optimizer_ms"] for row in result.rows if row["step"] > 0] or [0.0]))


def human_bytes(n: float) -> str:
    """1536 -> '1.5 KB'."""
    for unit in ("B", "KB", "MB", "GB"):
        if n < 1024 or unit == "GB":
            return f"{n:.0f} {unit}" if unit == "B" else f"{n:.1f} {unit}"
        n /= 1024
    raise AssertionError


def _lead(results: Sequence[RunResult]) -> str:
    one = results[-1]
    text = f"A LoRA of {one.parameters:,} parameters, {one.settings.steps} steps on {one.settings.data!r}."
    if len(results) > 1:
        text += " Every optimizer started from the same LoRA and saw the same pictures and the same noise."
    return html.escape(text)


def _data_uri(picture: np.ndarray) -> str:
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(picture).save(out, "png", optimize=True)
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()


def _card(gallery: Gallery, i: int) -> str:
    caption = html.escape(gallery.captions[i])
    cells = [("target", gallery.targets[i]), *((name, row[i]) for name, row in gallery.rows)]
    figures = "".join(
        f'<figure><img src="{_data_uri(picture)}" alt="{html.escape(name)}: {caption}">'
        f"<figcaption>{html.escape(name).replace('_', '_<wbr>')}</figcaption></figure>"
        for name, picture in cells
        if picture is not None
    )
    return f'<section class="card"><h3>{caption}</h3><div class="row">{figures}</div></section>'


def _name(i: int, result: RunResult) -> str:
    dot = f'<span class="dot" style="background:{colour(i)}"></span>'
    return f'<span class="name">{dot}{html.escape(result.label)}</span>'


def _results(results: Sequence[RunResult]) -> tuple[list[str], list[list[str]]]:
    head = ["optimizer", "held-out loss", "optimizer state", "bytes / param", "of Adam", "ms / step", "run"]
    rows = []
    for i, result in enumerate(results):
        held, per, share = state_of(result)
        loss = f'<span class="name">{result.before:.4f} → <b>{result.after:.4f}</b></span>'
        took = f"{result.rows[-1]['seconds']:.0f} s"
        ms = f"{optimizer_ms(result):.2f}"
        rows.append([_name(i, result), loss, human_bytes(held), f"{per:.2f}", f"{share:.0%}", ms, took])
    return head, rows


def _settings(results: Sequence[RunResult]) -> tuple[list[str], list[list[str]]]:
    names = [name for name in vars(results[0].settings) if name != "out"]
    rows = []
    for name in names:
        values = [html.escape(_shown(result.settings, name)) for result in results]
        same = len(set(values)) == 1
        rows.append([name.replace("_", " "), *(values[:1] if same else values)])
    return ["setting", *(_name(i, r) for i, r in enumerate(results))], rows


def _shown(settings: TrainSettings, name: str) -> str:
    value = getattr(settings, name)
    if name == "optimizer_args":
        return ", ".join(f"{k}={v}" for k, v in value.items()) or "none"
    if name == "lr" and value is None:
        return f"{settings.optimizer_args['lr']:g}" if "lr" in settings.optimizer_args else "its own default"
    return str(value)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str], tag: str) -> str:
        # a value that all runs share spans their columns
        span = f' colspan="{len(head) - 1}"' if len(cells) == 2 and len(head) > 2 else ""
        rest = "".join(f"<{tag}{span}>{cell}</{tag}>" for cell in cells[1:])
        return f'<tr><th scope="row">{cells[0]}</th>{rest}</tr>' if tag == "td" else _head(cells)

    def _head(cells: Sequence[str]) -> str:
        return "<tr>" + "".join(f'<th scope="col">{cell}</th>' for cell in cells) + "</tr>"

    top = f"<thead>{line(head, 'th')}</thead>" if any(head) else ""
    body = "".join(line(row, "td") for row in rows)
    return f'<div class="scroll"><table>{top}<tbody>{body}</tbody></table></div>'


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "system": f"{platform.system()} {platform.machine()}"}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    if "automagic-cameamp" not in found:  # run from a checkout that is not installed
        from automagic_cameamp import __version__

        found["automagic-cameamp"] = __version__
    found["torch threads"] = str(torch.get_num_threads())
    return found
