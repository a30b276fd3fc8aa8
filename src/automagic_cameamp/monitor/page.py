"""One page with everything that the other modules print."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from automagic_cameamp import __version__

from .health import check_training_health
from .panels import Panel, bars, figure, histogram, lines, svg
from .read import MB, error_norms, masks, names, number, state_bytes, unwrap

PICTURES = {".png", ".svg", ".pdf"}
PAGES = {".html", ".htm"}
BINS = 24
ROWS = 40  # parameters listed one by one
STYLE = """
:root { color-scheme: light dark; --ink: #1c2330; --soft: #596273; --page: #f4f5f7; --card: #fff;
  --line: #d9dce2; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ef; --soft: #9aa4b5; --page: #14181f;
  --card: #1d232d; --line: #323a47; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1080px; padding: 24px 16px 64px; background: var(--page);
  color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: 8px 0 2px; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 32px 0 10px; }
p { color: var(--soft); margin: 0 0 8px; max-width: 80ch; }
.grid { display: grid; gap: 12px; grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)); }
.box { background: var(--card); border: 1px solid var(--line); border-radius: 12px; overflow-x: auto; }
figure.box { margin: 0; padding: 12px; }
figcaption { font-size: .9rem; font-weight: 600; margin-bottom: 6px; }
svg { display: block; width: 100%; height: auto; }
table { border-collapse: collapse; width: 100%; font-size: .88rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 6px 12px; border-bottom: 1px solid var(--line); }
tbody tr:last-child > * { border-bottom: 0; }
thead th { color: var(--soft); }
tbody th { font-weight: 500; overflow-wrap: anywhere; }
.good { color: #2f9e44; } .bad { color: #e8590c; }
"""


def report(
    optimizer: Any,
    path: str | Path,
    *,
    losses: Sequence[Any] | None = None,
    dashboard: Any = None,
) -> Path:
    """Write one page about an optimizer: memory, learning rates, quantisation error, health, options.

    Args:
        optimizer: one of ours, after at least one step for anything to be seen.
        path: ends in .html (one file, readable without a network), or .png, .svg, .pdf: the plots alone.
        losses: one per step; adds their curve and the health check.
        dashboard: a ``TrainingDashboard`` whose curves are added.

    Returns:
        The path written.
    """
    path = Path(path)
    if path.suffix.lower() not in PICTURES | PAGES:
        allowed = ", ".join(sorted(PICTURES | PAGES))
        raise ValueError(f"path={str(path)!r} is not allowed: it must end in one of {allowed}")
    inner = unwrap(optimizer)
    panels = _panels(inner, losses, dashboard)
    if path.suffix.lower() in PICTURES:
        return write_picture(panels, path)
    path.write_text(_html(inner, panels, losses), encoding="utf-8")
    return path


def write_picture(panels: Sequence[Panel], path: Path) -> Path:
    """All panels as one picture."""
    if path.suffix.lower() not in PICTURES:
        allowed = ", ".join(sorted(PICTURES | PAGES))
        raise ValueError(f"path={str(path)!r} is not allowed: it must end in one of {allowed}")
    figure(panels).savefig(path, dpi=110, facecolor="white")
    return path


def _panels(inner: Any, losses: Sequence[Any] | None, dashboard: Any) -> list[Panel]:
    stats, efficiency = inner.get_memory_stats(), inner.get_memory_efficiency_report()
    held, ratio = state_bytes(stats), stats["fraction_of_fp32"]
    params = stats["quantized_params"] + stats["high_precision_params"]
    sizes = [8 * params / MB, held / ratio / MB if ratio else 0.0, held / MB]
    labels = ["Adam's state", "these states in fp32", "held"]
    found = [Panel("Memory of the optimizer state", bars(labels, sizes, "MB", ours=2))]
    parts = sorted(efficiency["states_breakdown"].items(), key=lambda item: -item[1])[:8]
    if parts:
        values = [size / 1024 for _, size in parts]
        found.append(Panel("Which state holds it", bars([name for name, _ in parts], values, "KB")))
    spread = _mask_histogram(inner)
    if spread is not None:
        found.append(Panel("Learning-rate mask over all elements", histogram(*spread, "rate")))
    if losses and not (dashboard is not None and dashboard.losses):
        found.append(Panel("Loss", lines({"loss": [number(v) for v in losses]}, None, "loss")))
    if dashboard is not None and dashboard.steps:
        found += dashboard.panels()
    return found


def _mask_histogram(inner: Any) -> tuple[list[float], list[float]] | None:
    """Bin edges and counts of all masks, on a logarithmic scale; None without a mask above 0."""
    low, high = math.inf, 0.0
    for _, mask in masks(inner):
        above = mask[mask > 0]
        if above.numel():
            low, high = min(low, float(above.min())), max(high, float(above.max()))
    if not high:
        return None
    start, stop = math.log10(low) - 0.02, math.log10(high) + 0.02
    counts = torch.zeros(BINS, device="cpu")
    for _, mask in masks(inner):
        logs = mask[mask > 0].float().log10().cpu()
        counts += torch.histc(logs, BINS, start, stop)
    edges = [10 ** (start + (stop - start) * i / BINS) for i in range(BINS + 1)]
    return edges, counts.tolist()


def _html(inner: Any, panels: Sequence[Panel], losses: Sequence[Any] | None) -> str:
    kind = html.escape(type(inner).__name__)
    plots = "".join(
        f'<figure class="box"><figcaption>{html.escape(p.title)}</figcaption>{svg(p)}</figure>'
        for p in panels
    )
    parts = [
        f"<h1>{kind}</h1><p>{_lead(inner)}</p>",
        _verdict(inner, losses) if losses else "",
        f'<h2>Plots</h2><div class="grid">{plots}</div>',
        "<h2>Memory</h2>" + _table(["what", "value"], _memory_rows(inner)),
        "<h2>Parameters</h2>" + _parameters(inner),
        "<h2>Options</h2>"
        + _table(["option", "value"], [[k, repr(v)] for k, v in vars(inner.config).items()]),
        f"<h2>Made with</h2><p>automagic-cameamp {__version__}, torch {torch.__version__}</p>",
    ]
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}<title>{kind}</title><style>{STYLE}</style></head>'
        f"<body>{''.join(parts)}</body></html>\n"
    )


def _lead(inner: Any) -> str:
    stats, health = inner.get_memory_stats(), inner.health()
    params = sum(p.numel() for g in inner.param_groups for p in g["params"])
    rates = ", ".join(f"{rate:.3g}" for rate in inner.get_learning_rates())
    return html.escape(
        f"{params:,} parameters in {len(inner.param_groups)} groups. State: "
        f"{state_bytes(stats) / MB:.3g} MB, {stats['bytes_per_parameter']:.2f} bytes per parameter, "
        f"{stats['fraction_of_adam']:.0%} of Adam's. Mean learning rate applied in each group: {rates}. "
        f"Updates skipped because of a gradient that was not finite: {health['skipped_updates']}."
    )


def _verdict(inner: Any, losses: Sequence[Any]) -> str:
    health = check_training_health(inner, losses)
    tone = "good" if health["status"] == "healthy" else "bad"
    rows = [list(row) for row in zip(health["issues"], health["suggestions"], strict=True)]
    table = _table(["issue", "suggestion"], rows) if rows else ""
    return f'<h2>Health: <span class="{tone}">{health["status"]}</span></h2>{table}'


def _memory_rows(inner: Any) -> list[list[str]]:
    stats, efficiency = inner.get_memory_stats(), inner.get_memory_efficiency_report()
    return [
        ["codes and their scales", f"{stats['total_quantized_memory']:,} bytes"],
        ["everything else", f"{stats['total_high_precision_memory']:,} bytes"],
        ["held, of the same states in fp32", f"{stats['fraction_of_fp32']:.1%}"],
        ["parameters with 8-bit state", f"{efficiency['8bit_parameters']:,}"],
        ["parameters with 32-bit state", f"{efficiency['32bit_parameters']:,}"],
        ["share with 8-bit state", f"{efficiency['8bit_fraction']:.1%}"],
        ["saved against fp32", f"{efficiency['memory_saved_mb']:.2f} MB"],
    ]


def _parameters(inner: Any) -> str:
    """One row for each of the largest parameters: shape, mask, error."""
    shapes = [tuple(p.shape) for g in inner.param_groups for p in g["params"]]
    order = sorted(range(len(shapes)), key=lambda i: -math.prod(shapes[i]))[:ROWS]
    spread = {i: mask for i, mask in masks(inner) if i in order}
    errors: dict[int, float] = {}
    for i, _, norm in error_norms(inner):
        errors[i] = errors.get(i, 0.0) + norm
    known = names(inner)
    rows = []
    for i in sorted(order):
        mask = spread.get(i)
        rates = ["", "", ""]
        if mask is not None:
            low, high = mask.aminmax()
            rates = [f"{float(v):.2e}" for v in (low, mask.mean(), high)]
        error = f"{errors[i]:.3g}" if i in errors else "32 bits"
        rows.append([known[i], " x ".join(map(str, shapes[i])) or "scalar", *rates, error])
    note = f"<p>The largest {ROWS} of {len(shapes)}.</p>" if len(shapes) > ROWS else ""
    head = ["parameter", "shape", "lowest rate", "mean", "highest", "norm held for error correction"]
    return note + _table(head, rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    top = "".join(f'<th scope="col">{html.escape(cell)}</th>' for cell in head)
    body = "".join(
        f'<tr><th scope="row">{html.escape(row[0])}</th>'
        + "".join(f"<td>{html.escape(cell)}</td>" for cell in row[1:])
        + "</tr>"
        for row in rows
    )
    return f'<div class="box"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'
