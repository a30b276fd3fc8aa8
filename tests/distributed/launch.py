"""Start a program on several processes of this machine, and wait for all of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
WORKER = HERE / "worker.py"
SECONDS = 270


def environment() -> dict[str, str]:
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT / "tests"), str(ROOT)])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}


def launch(world: int, folder: Path, checks: list[str]) -> list[dict[str, Any]]:
    """Run these checks on ``world`` processes; each one's results, by check."""
    store = folder / f"store-{uuid.uuid4().hex}"  # a file: no port can be taken by somebody else
    program, where = [sys.executable, "-W", "error", str(WORKER)], [str(store), str(folder)]
    ranks = [
        subprocess.Popen(
            [*program, str(rank), str(world), *where, *checks],
            env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(world)
    ]  # fmt: skip
    try:
        outputs = [process.communicate(timeout=SECONDS) for process in ranks]
    finally:
        for process in ranks:
            process.kill()
            process.communicate()
    # The process that failed by itself says why; the others only lost their connection to it.
    errors = [err for process, (_, err) in zip(ranks, outputs, strict=True) if process.returncode]
    errors.sort(key=lambda text: "Connection" in text or "timed out" in text.lower())
    assert not errors, errors[0][-4000:]
    return [json.loads(out.splitlines()[-1]) for out, _ in outputs]
