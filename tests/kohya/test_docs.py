"""docs/trainers.md: the launcher's command lines run, and the Chinese page is the same page."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE, TWIN = DOCS / "trainers.md", DOCS / "trainers.zh-TW.md"
FENCE = re.compile(r"^```(\w+)\n(.*?)^```", re.M | re.S)


def lines(language: str, start: str) -> list[str]:
    bodies = [body for info, body in FENCE.findall(PAGE.read_text("utf-8")) if info == language]
    return [line for body in bodies for line in body.splitlines() if start in line]


def test_launcher_lines_run(launched: Any, no_bitsandbytes: None) -> None:
    found = lines("bash", "-m automagic_cameamp.kohya")
    assert len(found) == 3
    for line in found:
        words = shlex.split(line.partition("automagic_cameamp.kohya")[2])
        script, *args = [w for w in words if w != "--show"]
        result = launched(*args, script=script)
        assert result["moved"] and result["lr"] == [float(re.findall(r"lr=(\S+)", line)[0])]


@pytest.mark.parametrize("line", lines("text", "--optimizer_type automagic_cameamp."))
def test_lines_without_the_launcher_run(plain: Any, no_bitsandbytes: None, line: str) -> None:
    assert plain(*shlex.split(line))["lr"] == [1e-4]


def test_twin_has_the_same_code_headings_and_links() -> None:
    page, twin = PAGE.read_text("utf-8"), TWIN.read_text("utf-8")
    assert FENCE.findall(page) == FENCE.findall(twin)
    levels = [re.findall(r"^(#+) ", FENCE.sub("", text), re.M) for text in (page, twin)]
    assert levels[0] == levels[1]
    rows = [len(re.findall(r"^\|", FENCE.sub("", text), re.M)) for text in (page, twin)]
    assert rows[0] == rows[1] > 0
    code = [sorted(set(re.findall(r"`([^`\n]+)`", FENCE.sub("", text)))) for text in (page, twin)]
    assert set(code[0]) == set(code[1]), set(code[0]) ^ set(code[1])
