"""The GPU benchmark works where there is no GPU, and says that it measured nothing there."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from benchmarks.common import build, parse_candidate, read_rows
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


def test_the_default_candidates_can_be_built() -> None:
    for text in step_gpu.OURS:
        name, options = parse_candidate(text)
        params = [torch.nn.Parameter(torch.zeros(4, 4, dtype=torch.bfloat16))]
        assert build(name, params, lr=1e-6, **options).param_groups


def test_one_command_for_everything(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All parts are named; one whose tool is missing is left out, and a failed one is not hidden."""
    from scripts import gpu

    monkeypatch.setattr(gpu.shutil, "which", lambda name: None)
    assert gpu.main(["--list"]) == 0
    said = capsys.readouterr().out
    assert "python -m benchmarks.step_gpu --workload one-big-bf16 --dram" in said
    assert "left out: no ncu" in said and "left out: no compute-sanitizer" in said
    for part in gpu.PARTS.values():
        paths = [word for word in part.command if word.startswith("tests/")]
        assert all((gpu.ROOT / path).exists() for path in paths)
    if not torch.cuda.is_available():
        with pytest.raises(SystemExit, match="nothing was run"):
            gpu.main([])
    ran = []

    def run(command: list[str], **options: Any) -> Any:
        ran.append(command)
        return SimpleNamespace(returncode=len(ran) - 1)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu.subprocess, "run", run)
    assert gpu.main(["--only", "tests", "bytes"]) == 0
    assert gpu.main(["--only", "rows"]) == 1
    assert ran == [gpu.PARTS["tests"].command, gpu.PARTS["rows"].command]
    assert "exit 1" in capsys.readouterr().out


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
