"""The examples, started the way their first lines say."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from distributed.launch import ROOT, environment

EXAMPLES = ROOT / "examples"


def _run(*command: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *command],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def _fell(output: str) -> bool:
    first, last = re.search(r"loss ([\d.]+) -> ([\d.]+)", output).groups()  # type: ignore[union-attr]
    return float(last) < float(first)


def test_ddp_with_torchrun():
    output = _run("torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(EXAMPLES / "ddp.py"))
    assert "replicas equal: True" in output and _fell(output)


@pytest.mark.skipif(importlib.util.find_spec("accelerate") is None, reason="accelerate is not installed")
def test_ddp_with_accelerate(tmp_path: Path):
    # With --cpu alone accelerate starts one process; its launcher of several asks for no GPU.
    launch = ["accelerate.commands.accelerate_cli", "launch", "--multi_gpu", "--num_processes", "2"]
    fixed = [
        "--num_machines",
        "1",
        "--mixed_precision",
        "no",
        "--dynamo_backend",
        "no",
        "--main_process_port",
        "0",
    ]
    output = _run(*launch, *fixed, str(EXAMPLES / "ddp.py"))
    assert "replicas equal: True" in output and _fell(output)


def test_fsdp2_goes_on_with_another_number_of_processes(tmp_path: Path):
    start = ["torch.distributed.run", "--standalone", "--nproc-per-node"]
    first = _run(*start, "2", str(EXAMPLES / "fsdp2.py"), str(tmp_path))
    second = _run(*start, "1", str(EXAMPLES / "fsdp2.py"), str(tmp_path))
    assert "steps 0 to 40" in first and _fell(first)
    assert "steps 40 to 80" in second
    held = [int(re.search(r"(\d+) bytes", text).group(1)) for text in (first, second)]  # type: ignore[union-attr]
    assert held[0] < held[1]
