"""No kind of tensor that torch accepts kills the process, or is stepped wrongly without a word."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from automagic_cameamp.optimizers import OPTIMIZERS
from once import once
from tensors.kinds import KINDS

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = once(tmp_path_factory, "kinds", lambda folder: (folder / "lines").write_text(driven(), "utf-8"))
    return (folder / "lines").read_text("utf-8").splitlines()


def driven() -> str:
    """What the driver prints; in a process of its own, for a crash would end all tests."""
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT / "tests")])
    program = [sys.executable, str(HERE / "drive.py"), *OPTIMIZERS]
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(program, env=environment, capture_output=True, text=True, timeout=280)
    last = done.stdout.splitlines()[-1:]
    assert done.returncode == 0, f"{done.returncode} at {last}\n{done.stderr[-2000:]}"
    return done.stdout


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_kind_is_stepped_right_or_refused_by_name(lines: list[str], name: str) -> None:
    found: dict[tuple[str, str, str], str] = {}
    for line in lines[:-1]:
        case, end = json.JSONDecoder().raw_decode(line)
        if case[0] == name:
            found[tuple(case[1:])] = json.loads(line[end:])
    assert len(found) == 2 * 2 * len(KINDS)
    wrong = {}
    for (engine, kind, role), result in found.items():
        expected = KINDS[kind][1 if role == "weight" else 2]
        if not (result.startswith("torch: ") if expected is None else result == expected):
            wrong[engine, kind, role] = (result, expected)
    assert not wrong
