"""The documents that describe the family, where they stand beside this checkout: their code runs as written,
and what they define is in the library under the same names and with the same arguments."""

from __future__ import annotations

import ast
import contextlib
import inspect
import io
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from automagic_cameamp import monitor
from automagic_cameamp.kohya import shims

FOLDER = Path(__file__).resolve().parents[3] / "shared" / "documents"
NAMES = {
    "002": "002_249b4226969c1d8d.txt",
    "003": "003_329e73a4bc79002d.txt",
    "004": "004_803350be5f08193f.txt",
}
pytestmark = pytest.mark.skipif(
    not FOLDER.is_dir(), reason="the documents are not beside this checkout: nothing to compare with"
)

# Blocks that are no programs: pieces of pseudo-code, known by a line of theirs.
FRAGMENTS = (
    "use_8bit_quantization = True",  # an if without its tensor
    "error_accumulator += error",  # two formulas
    "F.quantize_8bit(tensor)",  # a function that bitsandbytes does not have
)


def blocks(document: str) -> list[tuple[int, str]]:
    """(line, body) of every Python block."""
    text = (FOLDER / NAMES[document]).read_text("utf-8")
    return [
        (text.count("\n", 0, m.start()) + 2, m[1])
        for m in re.finditer(r"^```python\n(.*?)^```", text, re.M | re.S)
    ]


def train_epoch(model: nn.Module, optimizer: Any, dataloader: Any) -> None:
    for x, y in dataloader:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()


def train_step(model: nn.Module, optimizer: Any, data: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(model(data), target)
    loss.backward()
    optimizer.step()
    return loss


def readers_names() -> dict[str, Any]:
    """What a reader would have: a model, data, a loss, and numpy, which the documents forget to import."""
    model = nn.Sequential(nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 10))
    data = [(torch.randn(8, 512), torch.randint(0, 10, (8,))) for _ in range(3)]
    return {
        "__name__": "__main__",
        "torch": torch,
        "np": np,
        "model": model,
        "dataloader": data,
        "train_loader": data,
        "num_epochs": 2,
        "compute_loss": lambda batch: nn.functional.cross_entropy(model(batch[0]), batch[1]),
        "train_epoch": train_epoch,
        "train_step": train_step,
        "analyzer": monitor,
    }


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A folder with our import files, on the path and as the working directory."""
    (tmp_path / "library").mkdir()
    shims.install(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in [m for m in sys.modules if m.split(".")[0] == "library"]:
        del sys.modules[name]


def run_all(document: str) -> tuple[dict[str, Any], int]:
    """Every program of a document, in order, in one namespace; also how many there were."""
    names, ran = readers_names(), 0
    for line, body in blocks(document):
        if any(piece in body for piece in FRAGMENTS):
            continue
        code = compile("\n" * (line - 1) + body, NAMES[document], "exec")
        exec(code, names)
        ran += 1
    return names, ran


@pytest.mark.parametrize(
    ("document", "programs", "fragments"), [("002", 19, 2), ("003", 7, 0), ("004", 23, 1)]
)
def test_every_program_runs_as_written(document: str, programs: int, fragments: int, checkout: Path) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        names, ran = run_all(document)
        call_what_they_define[document](names)
    assert (ran, len(blocks(document)) - ran) == (programs, fragments)


def call_002(names: dict[str, Any]) -> None:
    """The functions that document 002 defines and does not call itself."""
    model, optimizer = names["model"], names["optimizer"]
    for name in ("check_memory_leak", "check_quantization_quality", "monitor_learning_rates"):
        names[name](optimizer)
    names["progressive_quantization_training"](model, names["dataloader"], 4)
    p = nn.Parameter(torch.ones(32, 32))
    adaptive = names["AdaptiveOptimizer"]([p], names["get_recommended_config"](12))
    for _ in range(100):
        adaptive.step_with_adaptation(p.square().mean())
    strategy = names["CustomQuantizationStrategy"]
    chosen = names["Automagic_CameAMP_8Bit"]([p], lr=1e-4, quantization_strategy=strategy)
    p.square().mean().backward()
    chosen.step()
    assert chosen.get_memory_stats()["quantized_params"] == 0  # its threshold is 10,000 elements


def call_004(names: dict[str, Any]) -> None:
    model, optimizer = names["model"], names["optimizer"]
    names["analyze_memory_usage"](optimizer)
    assert names["benchmark_optimizer"](model, optimizer, 2) > 0
    names["progressive_quantization_training"](model, names["train_loader"], 5)
    assert names["check_training_health"](optimizer, [1.0] * 30)["status"] == "warning"


call_what_they_define = {"002": call_002, "003": lambda names: None, "004": call_004}


def defined(document: str) -> dict[str, ast.FunctionDef | ast.ClassDef]:
    """Functions and classes that the blocks define, but for the toy models."""
    found: dict[str, ast.FunctionDef | ast.ClassDef] = {}
    for _, body in blocks(document):
        for node in ast.parse(body).body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                found[node.name] = node
    for toy in ("SimpleLoRA", "LoRALayer", "_should_use_8bit"):
        found.pop(toy, None)
    return found


def agrees(node: ast.FunctionDef, function: Any, renamed: set[str]) -> None:
    """The document's parameters are the first of ours, by the same names, with the same defaults."""
    theirs = [a.arg for a in node.args.args if a.arg != "self"]
    ours = [p for p in inspect.signature(function).parameters.values() if p.name != "self"]
    positional = [p for p in ours if p.kind is p.POSITIONAL_OR_KEYWORD][: len(theirs)]
    for name, parameter in zip(theirs, positional, strict=True):
        assert parameter.name == name or name in renamed, f"{node.name}: {name}"
    values = [ast.literal_eval(value) for value in node.args.defaults]
    assert [p.default for p in positional[len(theirs) - len(values) :]] == values, node.name
    for extra in ours[len(theirs) :]:
        assert extra.default is not extra.empty or extra.kind is extra.VAR_KEYWORD, f"{node.name}: {extra}"


@pytest.mark.parametrize("document", ["002", "004"])
def test_what_they_define_is_in_the_library(document: str) -> None:
    found = defined(document)
    assert len(found) == {"002": 10, "004": 7}[document], sorted(found)
    for name, node in found.items():
        ours = getattr(monitor, name)
        if isinstance(node, ast.FunctionDef):
            agrees(node, ours, {"train_loader"})  # called dataloader in the other document
            continue
        for method in node.body:
            if isinstance(method, ast.FunctionDef):
                agrees(method, getattr(ours, method.name), set())


PURE = ["get_recommended_config", "adjust_config_for_model_size", "CustomQuantizationStrategy"]


def theirs(document: str, *names: str) -> dict[str, Any]:
    """These definitions of the document, executed with what they need."""
    space = readers_names()
    for _, body in blocks(document):
        for node in ast.parse(body).body:
            wanted = isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name in names
            if (
                wanted
                or isinstance(node, (ast.Import, ast.ImportFrom))
                and "library" not in ast.unparse(node)
            ):
                exec(compile(ast.Module([node], []), document, "exec"), space)
    return space


def test_the_same_configurations_as_theirs(checkout: Path) -> None:
    space = theirs("002", *PURE)
    for gpu in (0, 4, 7.99, 8, 12, 15.99, 16, 24, 80):
        assert monitor.get_recommended_config(gpu) == space["get_recommended_config"](gpu)
    for total in (1, 9_999_999, 10_000_000, 99_999_999, 100_000_000, 10**9):
        params, make = [torch.empty(total, device="meta")], space["Optimizer8BitConfig"]
        wanted = space["adjust_config_for_model_size"](make(), params)
        assert monitor.adjust_config_for_model_size(make(), params) == wanted
        shape, other = torch.Size([total]), space["CustomQuantizationStrategy"]
        strategy = monitor.CustomQuantizationStrategy
        assert strategy.get_block_size(shape) == other.get_block_size(shape)
        assert strategy.should_quantize("w", shape, torch.float32) == other.should_quantize("w", shape, None)
    space = theirs("004", "get_adaptive_config", "get_hardware_optimized_config")
    for name in ("get_adaptive_config", "get_hardware_optimized_config"):
        if not torch.cuda.is_available():
            assert getattr(monitor, name)() == space[name]()


def test_the_same_verdicts_as_theirs() -> None:
    """On losses above 0, where theirs is defined; and the same series on the dashboard."""
    from automagic_cameamp import Automagic_CameAMP_8Bit

    space = theirs("004", "check_training_health", "AdaptiveTrainingMonitor")
    model = nn.Linear(128, 64)
    optimizer = Automagic_CameAMP_8Bit(model.parameters(), lr=1e-4)
    mine, other = (
        monitor.TrainingDashboard(optimizer),
        theirs("002", "TrainingDashboard")["TrainingDashboard"],
    )
    other = other(optimizer)
    for step in range(3):
        model(torch.randn(4, 128)).square().mean().backward()
        optimizer.step()
        mine.update(step)
        other.update(step)
    for key in ("memory_usage", "compression_ratio", "quantization_errors"):
        assert mine.metrics[key] == pytest.approx(other.metrics[key], rel=1e-6)
    assert mine.metrics.keys() == other.metrics.keys()
    generator = torch.Generator().manual_seed(0)
    for trial in range(60):
        losses = (torch.rand(60, generator=generator) * (trial % 4) + 0.3).tolist()
        ours, wanted = (
            f(optimizer, losses) for f in (monitor.check_training_health, space["check_training_health"])
        )
        assert ours["status"] == wanted["status"] and len(ours["issues"]) == len(wanted["issues"])
        watchers = [monitor.AdaptiveTrainingMonitor(optimizer), space["AdaptiveTrainingMonitor"](optimizer)]
        for watcher in watchers:
            for loss in losses:
                watcher.update(loss if trial % 5 else 0.75)
        assert watchers[0].should_adjust_config() == watchers[1].should_adjust_config()
        assert watchers[0].loss_history == watchers[1].loss_history
