"""Documents 002, 003 and 004 against the library: each program on its own, each listing, each table.

``tests/monitor/test_documents.py`` runs the programs of a document one after the other, as somebody
who reads it from top to bottom would. Here each block stands alone, with the few names that its
reader would have; no block and no table row is passed over without a line that says why.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import io
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from automagic_cameamp import (
    Automagic_CameAMP_8Bit,
    Automagic_CameAMP_Improved_8Bit,
    Improved8BitOptimizerConfig,
    OptimizationProfiles,
    Optimizer8BitConfig,
    monitor,
)
from automagic_cameamp.kohya import shims
from automagic_cameamp.optimizer import CameAMPOptimizer
from automagic_cameamp.profiles import PROFILES

FOLDER = Path(__file__).resolve().parents[3] / "shared" / "documents"
FILES = {
    "002": "002_249b4226969c1d8d.txt",
    "003": "003_329e73a4bc79002d.txt",
    "004": "004_803350be5f08193f.txt",
}
pytestmark = pytest.mark.skipif(
    not FOLDER.is_dir(), reason="the documents are not beside this checkout: nothing to compare with"
)

# (document, number of the block) -> why it is not run as a program. Everything else is.
NOT_PROGRAMS = {
    ("002", 0): "formula: the block is cut out of a tensor X that no reader has; its law is tested below",
    ("002", 1): "formula: minimum and maximum of a block",
    ("002", 2): "formula: scales and zeros",
    ("002", 3): "formula: quantised values",
    ("002", 4): "formula: dequantised values; tested below",
    ("002", 5): "two formulas in Python's colours: error_accumulator grows from an undefined tensor",
    ("002", 6): "pseudo-code: an if over an undefined tensor and threshold",
    ("003", 0): "a listing of a profile; compared below",
    ("003", 1): "a listing of a profile; compared below",
    ("003", 2): "a listing of a profile; compared below",
    ("003", 3): "shell: three command lines",
    ("003", 4): "shell: three command lines",
    ("003", 5): "shell: one command line",
    ("003", 9): "shell: one option",
    ("003", 10): "shell: two command lines",
    ("003", 11): "shell: one command line",
    ("004", 0): "formula in words",
    ("004", 1): "calls F.quantize_8bit, which bitsandbytes does not have, on an undefined tensor",
    ("004", 3): "shell: three pip commands",
    ("004", 13): "shell: three pip commands",
}
# Blocks that import bitsandbytes itself: a skip with a line where it is not installed.
NEEDS_BITSANDBYTES = {("004", 24)}


def blocks(document: str) -> list[tuple[int, str, str]]:
    """(line, language, body) of every fenced block, whatever its language."""
    text = (FOLDER / FILES[document]).read_text("utf-8", errors="replace")
    found = re.finditer(r"^[ \t]*```(\w*)[ \t]*\n(.*?)^[ \t]*```[ \t]*$", text, re.M | re.S)
    return [(text.count("\n", 0, m.start()) + 2, m[1], m[2]) for m in found]


def every_block() -> list[tuple[str, int]]:
    if not FOLDER.is_dir():
        return []
    return [(document, number) for document in FILES for number in range(len(blocks(document)))]


PROGRAMS = [key for key in every_block() if key not in NOT_PROGRAMS]


# ------------------------------------------------------------------ a reader's surroundings


def train_step(model: nn.Module, optimizer: Any, data: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(model(data), target)
    loss.backward()
    optimizer.step()
    return loss


def train_epoch(model: nn.Module, optimizer: Any, loader: Any) -> None:
    for x, y in loader:
        train_step(model, optimizer, x, y)


# A thousand steps: its reader has one small matrix.
LONG = {("002", 12)}


def reader(document: str, small: bool = False) -> dict[str, Any]:
    """A model, data, an optimizer of the document's class after a step, and what it forgets to import."""
    model = nn.Sequential(nn.Linear(512, 16), nn.ReLU(), nn.Linear(16, 10))
    if small:
        model = nn.Sequential(nn.Linear(512, 10, bias=False))
    data = [(torch.randn(8, 512), torch.randint(0, 10, (8,))) for _ in range(3)]
    cls = Automagic_CameAMP_8Bit if document == "002" else Automagic_CameAMP_Improved_8Bit
    optimizer = cls(model.parameters(), lr=1e-4)
    loss = train_step(model, optimizer, *data[0])
    return {
        "__name__": "__main__",
        "torch": torch,
        "nn": nn,
        "np": np,
        "model": model,
        "optimizer": optimizer,
        "config": OptimizationProfiles.balanced(),
        "loss": loss,
        "losses": [1.0] * 30,
        "epoch": 3,
        "num_epochs": 2,
        "dataloader": data,
        "train_loader": data,
        "compute_loss": lambda batch: nn.functional.cross_entropy(model(batch[0]), batch[1]),
        "train_step": train_step,
        "train_epoch": train_epoch,
        # what earlier blocks of the same document define
        "Automagic_CameAMP_8Bit": Automagic_CameAMP_8Bit,
        "Automagic_CameAMP_Improved_8Bit": Automagic_CameAMP_Improved_8Bit,
        "Optimizer8BitConfig": Optimizer8BitConfig,
        "OptimizationProfiles": OptimizationProfiles,
        "analyzer": monitor,
        "benchmark_optimizer": lambda model, optimizer: None,
    }


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A folder with our import files, as `automagic sd-scripts --install` writes them."""
    (tmp_path / "library").mkdir()
    shims.install(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("MPLBACKEND", "Agg")
    yield tmp_path
    for name in [m for m in sys.modules if m.split(".")[0] == "library"]:
        del sys.modules[name]


# ------------------------------------------------------------------ programs


def test_the_documents_have_the_blocks_that_are_listed():
    """A new block must be run or listed; a listed one must exist and be what its reason says."""
    count = {document: len(blocks(document)) for document in FILES}
    assert count == {"002": 26, "003": 13, "004": 27}
    assert set(NOT_PROGRAMS) <= set(every_block())
    assert len(PROGRAMS) == 66 - len(NOT_PROGRAMS) == 46
    for (document, number), reason in NOT_PROGRAMS.items():
        language = blocks(document)[number][1]
        if reason.startswith("shell"):
            assert language == "bash", (document, number)
        elif reason.startswith("formula"):
            assert language == "", (document, number)
        else:
            assert language == "python", (document, number)
    assert all(blocks(document)[number][1] == "python" for document, number in PROGRAMS)


@pytest.mark.parametrize(("document", "number"), PROGRAMS)
def test_every_program_runs_on_its_own(document, number, checkout):
    if (document, number) in NEEDS_BITSANDBYTES:
        pytest.importorskip("bitsandbytes", reason="this block prints bitsandbytes' version")
    line, _, body = blocks(document)[number]
    names = reader(document, (document, number) in LONG)
    before = dict(names)
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        exec(compile("\n" * (line - 1) + body, FILES[document], "exec"), names)
    changed = {name: value for name, value in names.items() if before.get(name) is not value}
    made = [value for value in changed.values() if isinstance(value, CameAMPOptimizer)]
    for optimizer in made:
        check_optimizer(optimizer)
    # A program defines, builds, prints or trains something.
    assert set(changed) - {"__builtins__"} or output.getvalue()


def check_optimizer(optimizer: Any) -> None:
    """An optimizer that a block has made works, and stayed finite if it has run."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    for p in params:
        p.grad = torch.zeros_like(p) + 0.01
    optimizer.step()
    assert all(bool(torch.isfinite(p).all()) for p in params)
    assert optimizer.get_memory_stats()["bytes_per_parameter"] > 0


@pytest.mark.parametrize(
    ("document", "text", "expected"),
    [
        ("002", "量化記憶體", {"量化記憶體": "MB", "高精度記憶體": "MB", "壓縮率": "%"}),
        ("003", "get_memory_efficiency_report", {"8bit": "%"}),
        ("004", "量化比例", {"量化比例": "%"}),
    ],
)
def test_what_they_print_is_a_number(document, text, expected, checkout):
    bodies = [body for n, (_, _, body) in enumerate(blocks(document)) if (document, n) in PROGRAMS]
    body = next(body for body in bodies if text in body and "print" in body)
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        exec(body, reader(document))
    for word, unit in expected.items():
        lines = [line for line in output.getvalue().splitlines() if word in line]
        assert lines and re.search(rf"\d+\.\d\d ?{unit}", lines[0]), output.getvalue()


# ------------------------------------------------------------------ listings and formulas


@pytest.mark.parametrize(
    ("number", "profile"), [(0, "memory_optimized"), (1, "quality_optimized"), (2, "balanced")]
)
def test_the_listed_profiles_are_ours(number, profile):
    listed = ast.literal_eval(blocks("003")[number][2])
    for name, value in listed.items():
        assert PROFILES[profile][name] == value, name
    beyond = PROFILES[profile].keys() - listed.keys()
    assert beyond == ({"lr_mask_granularity"} if profile == "memory_optimized" else set())


def test_the_formulas_of_002_are_what_the_state_holds():
    """Their dequantisation on our codes, scales and zeros gives the state to within half a step."""
    p = nn.Parameter(torch.randn(32, 64))
    optimizer = Automagic_CameAMP_8Bit([p], lr=1e-4, error_correction=False, block_size=256)
    p.grad = torch.randn(32, 64)
    optimizer.step()
    state = optimizer.quantized_states[0]["exp_avg"]
    law = blocks("002")[4][2].strip()
    assert law == "dequantized = quantized * scales + zeros"
    names = {
        "quantized": state.codes.view(8, 256).float(),
        "scales": state.scales.view(8, 1),
        "zeros": state.zeros.view(8, 1),
    }
    exec(law, names)
    torch.testing.assert_close(names["dequantized"].view(32, 64), state.dequantize(), rtol=0, atol=1e-6)
    law = blocks("002")[2][2]
    assert "scales = (max_vals - min_vals) / 255.0" in law and "zeros = min_vals" in law
    span = state.scales * 255
    blocks_ = state.dequantize().view(8, 256)
    reach = blocks_.amax(1).clamp(min=0) - blocks_.amin(1).clamp(max=0)
    torch.testing.assert_close(reach, span, rtol=0.01, atol=0)


def test_the_accumulated_error_of_002_does_not_grow():
    """error_accumulator += error, read as it must be: what the last encoding left, bounded by half a step."""
    assert "error_accumulator += error" in blocks("002")[5][2]
    p = nn.Parameter(torch.randn(32, 64))
    optimizer = Automagic_CameAMP_8Bit([p], lr=1e-4, warmup_steps=0, lora_rank_penalty=False)
    sizes = []
    for _ in range(60):
        p.grad = torch.randn(32, 64)
        optimizer.step()
        state = optimizer.quantized_states[0]["exp_avg"]
        assert float(state.error_accumulator.abs().max()) <= float(state.scales.max()) / 2 * (1 + 1e-5)
        sizes.append(float(torch.norm(state.error_accumulator)))
    assert sizes[-1] < 3 * sizes[10]


# ------------------------------------------------------------------ tables of options


def rows(document: str) -> list[list[str]]:
    text = (FOLDER / FILES[document]).read_text("utf-8", errors="replace")
    lines = [line.strip().strip("|") for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.split("|")] for line in lines]


@pytest.mark.parametrize(
    ("document", "config", "count"),
    [("002", Optimizer8BitConfig, 19), ("004", Improved8BitOptimizerConfig, 18)],
)
def test_the_tables_of_defaults_are_ours(document, config, count):
    defaults, seen = dataclasses.asdict(config()), 0
    for row in rows(document):
        name = re.fullmatch(r"`(\w+)`", row[0])
        if name and len(row) >= 3:
            assert defaults[name[1]] == ast.literal_eval(row[1]), name[1]
            seen += 1
    assert seen == count


def test_the_states_that_004_and_002_name_exist():
    """The two lists of states: eight-bit ones in quantized_states, the others in high_precision_states."""
    p = nn.Parameter(torch.randn(64, 64))
    p._is_lora_layer = True  # type: ignore[attr-defined]  # row_scaling is ALLoRA's
    optimizer = Automagic_CameAMP_8Bit([p], lr=1e-4, factored=False)
    p.grad = torch.randn(64, 64)
    optimizer.step()
    coded, exact = optimizer.quantized_states[0], optimizer.high_precision_states[0]
    text = "\n".join((FOLDER / FILES[d]).read_text("utf-8") for d in ("002", "004"))
    listed = set(re.findall(r"^  - `(\w+)`：", text, re.M))
    assert listed == {
        "exp_avg", "exp_avg_sq", "exp_avg_res", "s", "edge_history", "lr_mask", "last_polarity",
        "spatial_variance", "row_scaling",
    }  # fmt: skip
    # s is one number per tensor here, not one per element: there is nothing in it to quantise.
    assert {"exp_avg", "exp_avg_sq", "exp_avg_res", "edge_history"} == set(coded)
    assert listed - set(coded) <= set(exact)


def test_a_check_point_as_004_saves_it_loads_again(checkout):
    """Example 3, and then the same training goes on from both."""
    number = next(n for n, (_, _, body) in enumerate(blocks("004")) if "checkpoint_8bit.pth" in body)
    names = reader("004")
    with contextlib.redirect_stdout(io.StringIO()):
        exec(blocks("004")[number][2], names)
    assert names["start_epoch"] == 3 and (checkout / "checkpoint_8bit.pth").is_file()
