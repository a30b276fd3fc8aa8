"""The worked example of CONTRIBUTING.md, applied to a copy: it acts in every executor that should."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import torch
from automagic_cameamp import Automagic_CameAMP8bit
from automagic_cameamp.executors import compiled

compiled.BACKEND = "eager"  # traced, and run by torch: no compiler is needed
ends = {}
for engine in ("reference", "compiled", "auto"):
    for word in ("", "+centralization"):
        torch.manual_seed(0)
        p = torch.nn.Parameter(torch.randn(16, 24))
        optimizer = Automagic_CameAMP8bit([p], lr=1e-3, engine=engine, techniques=word)
        for _ in range(3):
            p.grad = torch.randn(16, 24) + 1
            optimizer.step()
        ends[engine, bool(word)] = p.detach()
        row = optimizer.engine_report().rows[0]
        print(engine, bool(word), row.engine, row.reason)
assert torch.equal(ends["reference", True], ends["compiled", True])
assert torch.equal(ends["reference", True], ends["auto", True])
assert not torch.equal(ends["reference", True], ends["reference", False])
"""


def example() -> dict[str, list[tuple[str, str]]]:
    """File -> hunks (before, after) of the diff in CONTRIBUTING.md."""
    [text] = re.findall(r"```diff\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text("utf-8"), re.S)
    files: dict[str, list[tuple[str, str]]] = {}
    for part in re.split(r"^--- a/.*\n\+\+\+ b/", text, flags=re.M)[1:]:
        name, _, hunks = part.partition("\n")
        files[name] = []
        for hunk in hunks.split("@@\n")[1:]:
            lines = hunk.rstrip("\n").split("\n")
            before = "".join(line[1:] + "\n" for line in lines if not line.startswith("+"))
            after = "".join(line[1:] + "\n" for line in lines if not line.startswith("-"))
            files[name].append((before, after))
    return files


def test_the_worked_example_works(tmp_path: Path) -> None:
    leave = shutil.ignore_patterns("__pycache__")
    for name in ("src", "tests"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=leave)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    files = example()
    assert len(files) == 6  # technique and its name, stage, option and its field, row
    for name, hunks in files.items():
        path = tmp_path / name
        text = path.read_text("utf-8")
        for before, after in hunks:
            assert text.count(before) == 1, f"{name} has changed: write the example in CONTRIBUTING.md anew"
            text = text.replace(before, after)
        path.write_text(text, "utf-8")

    env = {**os.environ, "PYTHONPATH": str(tmp_path / "src"), "OMP_NUM_THREADS": "1"}
    program = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=env, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert program.returncode == 0, program.stderr
    lines = program.stdout.splitlines()
    assert "compiled True compiled torch.compile of the recipe" in lines
    assert "auto True reference the kernels do not take use_centralization=True" in lines
    rows = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/matrix"]
        + ["-k", "use_centralization or row or sees_every"],
        env=env,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert rows.returncode == 0, rows.stdout[-3000:]
    assert re.search(r"\b8 passed", rows.stdout), rows.stdout[-300:]
