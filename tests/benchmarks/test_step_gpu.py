"""The GPU benchmark works where there is no GPU, and says that it measured nothing there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from benchmarks.common import read_rows
from benchmarks.workloads import WORKLOADS

from benchmarks import step_gpu


def test_dry_run_writes_rows_that_say_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "rows.jsonl"
    step_gpu.main(
        ["--dry-run", "--optimizers", "adamw-fused", "came", "Automagic_CameAMP8bit", "--out", str(out)]
    )
    rows = read_rows(out)
    assert {row["optimizer"] for row in rows} >= {"adamw-fused", "Automagic_CameAMP8bit"}
    assert all(row["dry_run"] and row["ms"] > 0 and row["commit"] for row in rows)
    assert "no number counts" in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: it would be measured")
def test_without_a_gpu_it_refuses() -> None:
    with pytest.raises(SystemExit, match="nothing was measured"):
        step_gpu.main(["--workload", "quick"])


def test_the_bound_and_the_workloads() -> None:
    assert step_gpu.bound_bytes(torch.bfloat16) == 10
    assert set(step_gpu.DEFAULT) <= set(WORKLOADS)


def test_bytes_of_a_profile_are_added_up() -> None:
    text = (
        "==PROF== Connected\n"
        '"ID","Kernel Name","Metric Name","Metric Unit","Metric Value"\n'
        '"0","a","dram__bytes_read.sum","Mbyte","1.5"\n'
        '"0","a","dram__bytes_write.sum","byte","1,000"\n'
        '"0","a","other","byte","7"\n'
    )
    assert step_gpu.sum_of_metrics(text) == 1_501_000
