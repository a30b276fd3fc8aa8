"""docs/contextual.md: its programs run, its options and reports exist, its numbers are the code's."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from automagic_cameamp import ContextualConfig8bit
from automagic_cameamp import techniques as T
from automagic_cameamp.control import ContextualController
from automagic_cameamp.control.signals import Memory

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = (DOCS / "contextual.md").read_text("utf-8")


def test_programs_run(capsys: pytest.CaptureFixture[str]) -> None:
    programs = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(programs) == 2
    printed = []
    for program in programs:
        exec(compile(program, "docs/contextual.md", "exec"), {})
        printed.append(capsys.readouterr().out)
    assert printed[0].startswith("False ")
    assert printed[1] == "True 1\n"


def section(title: str) -> str:
    return PAGE.split(f"## {title}\n")[1].split("\n## ")[0]


def test_table_of_options() -> None:
    rows = re.findall(r"^\| `(\w+)`.*? \| ([^|]+?) \|", section("Options"), re.MULTILINE)
    assert {name for name, _ in rows} == {
        *ContextualConfig8bit.CONTROLLER_OPTIONS,
        "momentum_scales",
        "blocksize",
    }
    for name, value in rows:
        assert getattr(ContextualConfig8bit(), name) == eval(value), name


def test_table_of_reports() -> None:
    cells = re.findall(r"^\| (`.*?`) \|", section("Reports"), re.MULTILINE)
    names = re.findall(r"`(\w+)(?:\(\))?`", " ".join(cells))
    assert len(names) == 11
    assert all(hasattr(ContextualController, name) for name in names)


def test_numbers() -> None:
    assert f"{round(4 * Memory.size(100) / 1000)} KB" in PAGE
    _, update, _ = T.scale_weights(0.8, [1, 5, 10, 25])
    assert "a quarter of the weight lies on the present update" in (DOCS / "techniques.md").read_text("utf-8")
    assert update == 0.25
    assert "0.015 bytes more" in PAGE and 4 / 256 - 4 / 4096 == pytest.approx(0.015, abs=5e-4)
