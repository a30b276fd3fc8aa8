"""TrainingDashboard and report: the numbers are right, the files are whole, no display is needed."""

from __future__ import annotations

import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

from automagic_cameamp import OPTIMIZERS
from automagic_cameamp.monitor import AdaptiveOptimizer, TrainingDashboard, report
from automagic_cameamp.monitor.read import error_norms, masks

from .conftest import train

KEYS = {"memory_usage", "compression_ratio", "quantization_errors", "learning_rates"}
VOID = {"meta", "link", "br", "path", "use", "rect"}


class Page(HTMLParser):
    """Text, tags, and what the page would fetch; fails on a tag that is never closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.fetched: list[str] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        assert self._open == [], f"never closed: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.fetched += [v for k, v in attrs if k in ("src", "href") and v and "://" in v]
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def recorded(make: Any, model: nn.Module, with_loss: bool = True) -> TrainingDashboard:
    optimizer = make()
    dashboard = TrainingDashboard(optimizer)
    for step in range(4):
        (loss,) = train(model, optimizer, 1, start=step)
        dashboard.update(10 * step, loss if with_loss else None)
    return dashboard


def test_dashboard_records_what_the_optimizer_says(make: Any, model: nn.Module) -> None:
    dashboard = recorded(make, model)
    optimizer, metrics = dashboard.optimizer, dashboard.metrics
    assert metrics.keys() == KEYS and dashboard.steps == [0, 10, 20, 30]
    assert {len(v) for v in metrics.values()} == {4} == {len(dashboard.losses)}
    stats = optimizer.get_memory_stats()
    assert metrics["memory_usage"][-1] == (
        stats["total_quantized_memory"] + stats["total_high_precision_memory"]
    )
    assert metrics["compression_ratio"][-1] == stats["compression_ratio"]
    assert metrics["learning_rates"][-1] == optimizer.get_avg_learning_rate()
    assert metrics["quantization_errors"][-1] == pytest.approx(sum(n for *_, n in error_norms(optimizer)))
    assert metrics["quantization_errors"][-1] > 0


def test_loss_always_or_never(make: Any, model: nn.Module) -> None:
    dashboard = recorded(make, model)
    with pytest.raises(ValueError, match="at every update, or at none"):
        dashboard.update(4)
    without = recorded(make, model, with_loss=False)
    with pytest.raises(ValueError, match="at every update, or at none"):
        without.update(4, 1.0)
    assert without.steps == [0, 10, 20, 30]


def test_an_update_that_fails_is_not_recorded_in_part(make: Any, model: nn.Module, tmp_path: Path) -> None:
    dashboard = recorded(make, model)
    for step, loss in ((4, torch.ones(2)), (None, 1.0)):
        with pytest.raises((ValueError, TypeError)):
            dashboard.update(step, loss)  # type: ignore[arg-type]
    dashboard.update(50, 0.5)
    lengths = {len(v) for v in (dashboard.steps, dashboard.losses, *dashboard.metrics.values())}
    assert lengths == {5}
    dashboard.save(tmp_path / "page.png")


def test_plot_metrics_needs_no_display(make: Any, model: nn.Module) -> None:
    import matplotlib.pyplot as plt

    figure = recorded(make, model).plot_metrics()
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles[:3] == ["Memory Usage (bytes)", "Compression Ratio", "Quantization Errors"]
    assert list(figure.axes[0].lines[0].get_xdata()) == [0, 10, 20, 30]
    assert plt.get_fignums() == []


def test_plot_metrics_shows_where_there_is_one(
    make: Any, model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    import matplotlib.pyplot as plt

    shown = []
    monkeypatch.setattr(plt, "get_backend", lambda: "TkAgg")
    monkeypatch.setattr(plt, "show", lambda: shown.append(len(plt.get_fignums())))
    recorded(make, model).plot_metrics()
    plt.close("all")
    assert shown == [1]


@pytest.mark.parametrize("name", ["d.png", "d.PNG", "d.svg", "d.pdf", "d.html"])
def test_dashboard_saves(make: Any, model: nn.Module, tmp_path: Path, name: str) -> None:
    path = recorded(make, model).save(tmp_path / name)
    assert path == tmp_path / name
    check(path)


def check(path: Path) -> None:
    kind = path.suffix.lower()
    if kind == ".png":
        with Image.open(path) as picture:
            picture.load()
            assert len(picture.convert("L").getcolors(1 << 20) or []) > 20  # something is drawn
    elif kind == ".html":
        Page(path.read_text("utf-8"))
    else:
        assert path.read_bytes()[:5] in (b"%PDF-", b"<?xml")


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_report_of_every_class(make: Any, model: nn.Module, tmp_path: Path, name: str) -> None:
    optimizer = make(name)
    losses = train(model, optimizer, 6)
    page = Page(report(optimizer, tmp_path / "r.html", losses=losses).read_text("utf-8"))
    words = " ".join(page.words)
    stats, efficiency = optimizer.get_memory_stats(), optimizer.get_memory_efficiency_report()
    assert name in words and "0.weight" in words and "64 x 96" in words
    assert f"{stats['bytes_per_parameter']:.2f} bytes per parameter" in words
    assert f"{stats['total_quantized_memory']:,} bytes" in words
    assert f"{efficiency['8bit_parameters']:,}" in words
    mask = dict(masks(optimizer))[0]
    assert f"{float(mask.mean()):.2e}" in words
    assert "warmup_steps" in words and "Health:" in words
    assert page.tags.count("svg") == 4 and page.fetched == []


def test_report_as_a_picture_with_a_dashboard(make: Any, model: nn.Module, tmp_path: Path) -> None:
    dashboard = recorded(make, model)
    check(report(dashboard.optimizer, tmp_path / "r.png", dashboard=dashboard))
    page = Page(report(dashboard.optimizer, str(tmp_path / "r.html"), dashboard=dashboard).read_text("utf-8"))
    assert page.tags.count("svg") == 3 + 5


def test_report_before_the_first_step_and_of_a_wrapper(make: Any, tmp_path: Path) -> None:
    text = report(make(), tmp_path / "r.html").read_text("utf-8")
    assert "0.00 bytes per parameter" in " ".join(Page(text).words)
    check(report(make(), tmp_path / "r.png"))


def test_report_escapes_names(tmp_path: Path, model: nn.Module) -> None:
    from automagic_cameamp import Automagic_CameAMP

    optimizer = Automagic_CameAMP([("<script>x</script>", p) for p in [next(model.parameters())]], lr=1e-3)
    text = report(optimizer, tmp_path / "r.html").read_text("utf-8")
    assert "<script>" not in text and "&lt;script&gt;" in text


def test_report_lists_the_largest_parameters_of_many(tmp_path: Path) -> None:
    import torch

    from automagic_cameamp import Automagic_CameAMP

    params = [(f"p{i}", nn.Parameter(torch.ones(2, i + 1))) for i in range(60)]
    words = " ".join(Page(report(Automagic_CameAMP(params), tmp_path / "r.html").read_text("utf-8")).words)
    assert (
        "The largest 40 of 60." in words and " p59 " in words.replace("p59", " p59 ") and "p19 " not in words
    )


@pytest.mark.parametrize("name", ["r.txt", "r", "r.jpeg"])
def test_other_endings_are_refused(make: Any, model: nn.Module, tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="must end in one of .htm, .html, .pdf, .png, .svg"):
        report(make(), tmp_path / name)
    with pytest.raises(ValueError, match="must end in one of"):
        recorded(make, model).save(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_adaptive_optimizer_can_be_reported(model: nn.Module, tmp_path: Path) -> None:
    from automagic_cameamp import Optimizer8BitConfig

    adaptive = AdaptiveOptimizer(model.parameters(), Optimizer8BitConfig(lr=1e-4))
    assert "Automagic_CameAMP_8Bit" in report(adaptive, tmp_path / "r.html").read_text("utf-8")


def test_importing_the_package_imports_no_matplotlib() -> None:
    program = (
        "import sys, automagic_cameamp.monitor\n"
        "print([m for m in ('matplotlib', 'rich', 'bitsandbytes', 'PIL') if m in sys.modules])\n"
    )
    src = Path(__file__).resolve().parents[2] / "src"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=src, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


def test_without_matplotlib_the_message_says_what_to_do(
    make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match="pip install matplotlib"):
        report(make(), tmp_path / "r.png")
