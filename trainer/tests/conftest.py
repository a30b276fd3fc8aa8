"""Small pictures, small runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from automagic_trainer import tasks
from automagic_trainer.data import load_folder
from automagic_trainer.loop import Run, RunResult, train
from automagic_trainer.metrics import MetricsFile
from automagic_trainer.presets import filled
from automagic_trainer.settings import build

CAPTIONS = {"red": "a red square", "blue": "a blue square"}
COLOURS = {"red": (220, 30, 30), "blue": (30, 30, 220)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two pictures with a text file beside each."""
    data = tmp_path / "pictures"
    data.mkdir()
    for name, caption in CAPTIONS.items():
        Image.new("RGB", (40, 40), COLOURS[name]).save(data / f"{name}.png")
        (data / f"{name}.txt").write_text(caption + "\n", encoding="utf-8")
    return data


@pytest.fixture(autouse=True)
def _short_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two noise levels for each picture instead of eight."""
    monkeypatch.setattr(tasks, "EVAL_TIMES", 2)


@pytest.fixture
def train_in(folder: Path, tmp_path: Path) -> Callable[..., tuple[RunResult, Run]]:
    """Train in a folder of tmp_path; returns the result and the run with its parameters and optimizer."""

    def go(
        name: str = "run", resume: bool = False, on_row: Any = lambda row: None, **options: Any
    ) -> tuple[RunResult, Run]:
        out = tmp_path / name
        values = {"batch": 2, "steps": 4, "eval_every": 2, "save_every": 2, "optimizer": "AdamW", "rank": 2}
        settings = filled(build(values | options | {"data": str(folder), "out": str(out)}))
        run = Run(settings, load_folder(folder), settings.optimizer, out)
        return train(run, MetricsFile(out / "metrics.jsonl"), on_row, resume=resume), run

    return go
