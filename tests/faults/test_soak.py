"""A short soak; scripts/soak.py is the long one, its rows are in benchmarks/results/soak.jsonl."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]


def script() -> Any:
    spec = importlib.util.spec_from_file_location("soak", ROOT / "scripts" / "soak.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    kept = sys.path[:]
    spec.loader.exec_module(module)
    sys.path[:] = kept
    return module


@pytest.mark.filterwarnings("ignore:the state dict holds no c_optim entry")
def test_five_hundred_steps_under_faults() -> None:
    row = script().soak("Automagic_CameAMP_COptim8bit", 500, seed=1)
    assert all(row["faults"][kind] > 0 for kind in ("bad", "missing", "rate", "group", "closure"))
    assert row["faults"]["group"] == 3 and row["largest_weight"] < 100
    assert row["state_bytes"][0] == row["state_bytes"][1]
    assert abs(row["tensors"][1] - row["tensors"][0]) <= 60  # how many rows share a stack depends on loads


def test_the_soak_sees_a_bad_weight() -> None:
    run = script().Soak("Automagic_CameAMP8bit", 10, 0)
    run.step(1)
    run.check(1)
    with torch.no_grad():
        run.params[0][3, 4] = float("inf")
    with pytest.raises(SystemExit, match="weight of parameter 0 is not finite"):
        run.check(2)
