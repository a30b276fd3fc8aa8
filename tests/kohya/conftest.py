"""Runs the stand-in of sd-scripts, with and without the launcher, in this process."""

from __future__ import annotations

import json
import runpy
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from automagic_cameamp.kohya import launch
from automagic_cameamp.presets import every_name

FAKES = Path(__file__).resolve().parents[1] / "fakes"
Run = Callable[..., dict[str, Any]]


@pytest.fixture
def checkout(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of the stand-in, as the working directory; what a run leaves behind is undone."""
    folder = FAKES / "sd_scripts"
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield folder
    for name in [m for m in sys.modules if m.split(".")[0] == "library"]:
        del sys.modules[name]
    for name in every_name():
        if hasattr(torch.optim, name):
            delattr(torch.optim, name)


@pytest.fixture
def no_bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)


@pytest.fixture
def some_bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A module of that name that can be imported; importing the real one takes seconds."""
    fake = types.ModuleType("bitsandbytes")
    fake.optim = types.SimpleNamespace(AdamW8bit=torch.optim.AdamW)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "bitsandbytes", fake)


@pytest.fixture
def plain(checkout: Path, tmp_path: Path) -> Run:
    """``python train_network.py ...``, without any of us."""

    def run(*args: str, script: str = "train_network.py") -> dict[str, Any]:
        sys.argv = [script, *args, "--output_dir", str(tmp_path)]
        sys.path.insert(0, str(checkout))
        runpy.run_path(script, run_name="__main__")
        return json.loads((tmp_path / "out.json").read_text("utf-8"))

    return run


@pytest.fixture
def launched(checkout: Path, tmp_path: Path) -> Run:
    """``python -m automagic_cameamp.kohya train_network.py ...``."""

    def run(*args: str, script: str = "train_network.py") -> dict[str, Any]:
        code = launch.main([script, *args, "--output_dir", str(tmp_path)])
        assert code == 0, f"exit code {code}"
        return json.loads((tmp_path / "out.json").read_text("utf-8"))

    return run
