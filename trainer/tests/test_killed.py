"""Killed at any moment, on a full disk, with a damaged checkpoint: the bits of an untroubled run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from automagic_trainer import checkpoint, durable

HERE = Path(__file__).resolve()
SOURCES = [HERE.parents[2] / "src", HERE.parents[1] / "src"]
PARTS = {name: 0 for name in checkpoint.PARTS}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes cannot be forked here")
def test_killed_runs_end_with_the_bits_of_the_run_that_was_not(tmp_path: Path) -> None:
    """SIGKILL inside a checkpoint write, around its fsyncs and renames, and at random moments."""
    command = [sys.executable, str(HERE.with_name("killed.py")), str(tmp_path), "1", "0"]
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(map(str, SOURCES))}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=variables)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert "resume check bitwise" in result["said"]
    kinds = {key.split()[0] for key in result["killed"]}
    assert kinds >= {"write", "fsync", "replace", "unlink", "random", "small"}
    for how, outcome in result["killed"].items():
        assert [key for key in outcome if outcome[key] != result["whole"][key]] == [], how
    small = result["small disk"]
    assert small["code"] == 1
    lines = [line for line in small["said"].splitlines() if line.startswith("automagic train: ")]
    [stage, error] = lines  # one line of the stage that was reached, and one of the fault
    assert stage.startswith("automagic train: loading the model")
    assert "File too large" in error and error.endswith("go on with --resume")


def payload(step: int) -> dict[str, Any]:
    return {**PARTS, "step": step, "lora": [torch.full((50, 50), float(step))]}


def folder_of(tmp_path: Path, *steps: int, keep: int = 3) -> Path:
    for step in steps:
        checkpoint.write(tmp_path, step, payload(step), keep)
    return tmp_path


def test_the_last_few_are_kept_and_named(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, 1, 2, 3, 4, 5)
    assert [p.name for p in checkpoint.every(folder)] == [f"step-{i:08d}.pt" for i in (3, 4, 5)]
    listed = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["checkpoints"]
    for entry in listed:
        assert durable.digest(folder / entry["file"]) == (entry["size"], entry["sha256"])
    assert len(list(folder.iterdir())) == 4


@pytest.mark.parametrize("harm", ["flip", "cut", "empty", "gone", "longer"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path: Path, harm: str) -> None:
    folder, said = folder_of(tmp_path, 2, 4), []
    newest = checkpoint.every(folder)[-1]
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    whole = newest.read_bytes()
    damaged = {"flip": bytes(content), "cut": whole[:1000], "empty": b"", "longer": whole + b"x"}
    newest.unlink() if harm == "gone" else newest.write_bytes(damaged[harm])
    found = checkpoint.newest(folder, said.append)
    assert found is not None and found[1]["step"] == 2
    (line,) = said
    assert "step-00000004.pt is damaged: " in line and line.endswith("going on from the one before")
    # Going on replaces the damaged one; it takes no good one's place.
    checkpoint.write(folder, 3, payload(3), keep=2)
    assert [p.name for p in checkpoint.every(folder)] == ["step-00000002.pt", "step-00000003.pt"]
    said.clear()
    assert checkpoint.newest(folder, said.append)[1]["step"] == 3  # type: ignore[index]
    assert said == []


def test_a_flipped_bit_that_torch_would_load_is_found(tmp_path: Path) -> None:
    """In the middle of the numbers: only the digest knows."""
    folder = folder_of(tmp_path, 2, 4)
    newest = checkpoint.every(folder)[-1]
    content = newest.read_bytes()
    place = content.index(torch.full((8,), 4.0).numpy().tobytes())
    newest.write_bytes(content[:place] + b"\x01" + content[place + 1 :])
    assert checkpoint.read(newest)["lora"][0][0, 0] != 4.0
    assert checkpoint.newest(folder, lambda words: None)[1]["step"] == 2  # type: ignore[index]


def test_all_damaged_no_manifest_and_a_file_that_was_never_finished(tmp_path: Path) -> None:
    folder, said = folder_of(tmp_path, 2, 4), []
    (folder / "step-00000006.pt").write_bytes(checkpoint.every(folder)[-1].read_bytes())
    assert checkpoint.newest(folder, said.append)[1]["step"] == 4  # type: ignore[index]
    assert not (folder / "step-00000006.pt").exists() and said == []
    (folder / "manifest.json").write_text("{", encoding="utf-8")
    assert checkpoint.newest(folder, said.append)[1]["step"] == 4  # type: ignore[index]
    assert "manifest.json is damaged" in said[0]
    (folder / "manifest.json").unlink()
    assert checkpoint.newest(folder, said.append)[1]["step"] == 4  # type: ignore[index]
    for path in folder.glob("step-*.pt"):
        path.write_bytes(b"nothing")
    with pytest.raises(checkpoint.DamagedCheckpoint, match="--overwrite"):
        checkpoint.newest(folder, said.append)
    assert checkpoint.newest(tmp_path / "empty", said.append) is None


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no device that is always full")
@pytest.mark.parametrize("name", ["step-00000006.pt.tmp", "manifest.json.tmp"])
def test_a_full_disk_leaves_the_checkpoints_as_they_were(tmp_path: Path, name: str) -> None:
    """The kernel's own ENOSPC, from a device that is always full."""
    folder = folder_of(tmp_path, 2, 4)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    (folder / name).symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        checkpoint.write(folder, 6, payload(6))
    found = checkpoint.newest(folder, lambda words: None)
    assert found is not None and found[1]["step"] == 4
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_file_is_whole_or_the_old_one(tmp_path: Path) -> None:
    target = tmp_path / "x"
    durable.replace(target, lambda sink: sink.write(b"old"))

    def half(sink: durable.Sink) -> None:
        sink.write(b"ne")
        raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        durable.replace(target, half)
    assert [p.name for p in tmp_path.iterdir()] == ["x"] and target.read_bytes() == b"old"
    assert durable.replace(target, lambda sink: sink.write(b"new")) == durable.digest(target)
