"""The document of the contextual optimizer: every Python block in it runs, word for word."""

from __future__ import annotations

import re
import sys
import textwrap
import types
from pathlib import Path
from typing import Any

import pytest
import torch

import automagic_cameamp

DOCUMENT = Path(__file__).resolve().parents[3] / "shared" / "documents" / "001_683a66705c912caa.txt"
needs_document = pytest.mark.skipif(
    not DOCUMENT.is_file(), reason="the documents are not beside this checkout"
)


def blocks() -> list[str]:
    """The Python blocks of the document, those inside lists moved to the margin; nothing else changed."""
    text = DOCUMENT.read_text("utf-8", errors="replace")
    found = re.findall(r"^[ \t]*```python\n(.*?)^[ \t]*```", text, re.DOTALL | re.MULTILINE)
    return [textwrap.dedent(block) for block in found]


@pytest.fixture
def reader(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """What somebody who follows the document has around it: the import path, data, a loss, a folder."""
    shim = types.ModuleType("library.automagic_cameamp")
    shim.__dict__.update({name: getattr(automagic_cameamp, name) for name in automagic_cameamp.OPTIMIZERS})
    package = types.ModuleType("library")
    package.__path__ = []  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "library", package)
    monkeypatch.setitem(sys.modules, "library.automagic_cameamp", shim)
    monkeypatch.chdir(tmp_path)
    g = torch.Generator().manual_seed(0)
    batch = [(torch.randn(8, 784, generator=g), torch.randint(10, (8,), generator=g)) for _ in range(3)]
    return {
        "torch": torch,
        "num_epochs": 4,
        "dataloader": batch,
        "criterion": torch.nn.CrossEntropyLoss(),
        "base_lr": 1e-3,
    }


@needs_document
def test_every_block_runs(reader: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    programs = blocks()
    assert len(programs) >= 11, "the document has lost blocks"
    for number, program in enumerate(programs):
        exec(compile(program, f"{DOCUMENT.name}, block {number}", "exec"), reader)
        if "optimizer.step()" in program:
            model, data = reader["model"], reader["dataloader"]
            loss = sum(reader["criterion"](model(x), y) for x, y in data) / len(data)
            assert loss.item() < 1.2, "it runs, but does not learn"  # ln 10 = 2.3 at the start
    assert reader["momentum_scales"] == [1, 10, 25, 50]
    assert 0.5 <= reader["lr_multiplier"] <= 2 and reader["effective_lr"] == 1e-3 * reader["lr_multiplier"]
    assert -1 <= reader["consistency"] <= 1 and isinstance(reader["is_edge_case"], bool)
    text = capsys.readouterr().out
    assert text.count("Edge Case: False, LR Multiplier: ") == 4 and "梯度一致性: " in text


@needs_document
def test_its_table_of_options_is_ours() -> None:
    rows = re.findall(
        r"^\| `(\w+)` \| `([^`]+)` \|", DOCUMENT.read_text("utf-8", errors="replace"), re.MULTILINE
    )
    assert len(rows) >= 10
    config = automagic_cameamp.ContextualConfig8bit()
    for name, value in rows:
        assert getattr(config, name) == eval(value), name


@needs_document
def test_it_recommends_scales_that_work(reader: dict[str, Any]) -> None:
    for block in blocks():
        for scales in re.findall(r"momentum_scales ?= ?(\[[\d, ]+\])", block):
            p = torch.nn.Parameter(torch.ones(3, 4))
            optimizer = automagic_cameamp.Automagic_CameAMP_COptim8bit([p], momentum_scales=eval(scales))
            p.grad = torch.ones_like(p)
            optimizer.step()
            assert optimizer.param_groups[0]["momentum_scales"] == eval(scales)
