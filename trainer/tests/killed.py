"""Runs of ``automagic train`` that die by SIGKILL, in processes forked from one that has imported everything.

    PYTHONPATH=src:trainer/src OMP_NUM_THREADS=1 python trainer/tests/killed.py FOLDER SEED MORE

Prints one line of JSON: what the uninterrupted run wrote, and what each run wrote that was killed and
resumed. Events are counted (writes, fsyncs, renames, deletions), so that a kill can hit any of them.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import random
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from automagic_cameamp import cli
from automagic_trainer import durable, gallery, metrics, progress, session, tasks, text
from automagic_trainer.data import load_folder

LINE = ["--steps", "5", "--batch", "1", "--rank", "1", "--save-every", "2", "--eval-every", "9"]
LINE += ["--lr", "1e-3", "--threads", "1"]
LABEL = "Automagic_CameAMP8bit"
TIMES = ("seconds", "optimizer_ms")


def prepare(folder: Path) -> list[str]:
    """One picture, short drawings, everything imported: what only costs time."""
    torch.set_num_threads(1)
    data = folder / "data"
    data.mkdir()
    Image.new("RGB", (32, 32), (200, 30, 30)).save(data / "red.png")
    (data / "red.txt").write_text("a red square", encoding="utf-8")
    tasks.EVAL_TIMES = 1
    encode = text.encode
    known = functools.cache(lambda captions: encode(list(captions)))
    text.encode = lambda captions: known(tuple(captions))  # type: ignore[assignment]
    session.write_report = lambda *_: None  # type: ignore[assignment]
    # Whatever is loaded here is loaded in every child. No backward pass: autograd cannot be forked after one.
    tasks.LoraTask(load_folder(data), rank=1, batch=1).evaluate()
    assert progress
    defaults = gallery.Drawing.__init__.__defaults__ or ()
    gallery.Drawing.__init__.__defaults__ = (defaults[0], 1, *defaults[2:])
    return ["train", "--data", str(data), "--optimizer", LABEL, "--optimizer-args", "warmup_steps=3", *LINE]


def forked(argv: list[str], before: Callable[[], object] = lambda: None, wait: float | None = None) -> Any:
    """Run the command in a process of its own; returns its wait status and what it said.

    Args:
        argv: command line.
        before: called in the child first.
        wait: seconds after which the child is killed; None to let it end.
    """
    read, write = os.pipe()
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        os.dup2(write, 1)
        os.dup2(write, 2)
        code = 70
        try:
            before()
            code = cli.main(argv)
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)
    os.close(write)
    if wait is not None:
        time.sleep(wait)
        os.kill(child, signal.SIGKILL)
    with os.fdopen(read, "rb") as pipe:
        said = pipe.read().decode()
    return os.waitpid(child, 0)[1], said


class Events:
    """Counts what reaches the disk; kills this process at one of them, or writes their number down."""

    def __init__(self, at: int, report: Path | None = None) -> None:
        self.at, self.count, self.report, self.names = at, 0, report, []

    def __call__(self) -> None:
        """Watch from here on."""
        for owner, name in ((os, "replace"), (os, "fsync"), (Path, "unlink"), (durable.Sink, "write")):
            setattr(owner, name, self.watched(name, getattr(owner, name)))
        append = metrics.MetricsFile.append

        def torn(file: Any, row: Any) -> None:
            self.happened("append")
            append(file, row)

        metrics.MetricsFile.append = torn  # type: ignore[method-assign]

    def watched(self, name: str, call: Any) -> Any:
        def wrapper(*args: Any, **options: Any) -> Any:
            if name == "write" and self.count + 1 == self.at:
                args[0].file.write(bytes(args[1])[: len(args[1]) // 2])  # half of it is on the disk
                args[0].file.flush()
            self.happened(name)
            return call(*args, **options)

        return wrapper

    def happened(self, name: str) -> None:
        self.count += 1
        self.names.append(name)
        if self.count == self.at:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.report is not None:
            self.report.write_text(json.dumps(self.names), encoding="utf-8")


def outcome(out: Path) -> dict[str, Any]:
    """Everything that must be the same to the bit."""
    checkpoints = out / "checkpoints" / LABEL
    payload = torch.load(checkpoints / "step-00000005.pt", weights_only=True)
    state = payload["optimizer"]
    tensors = [t for i in sorted(state["state"]) for _, t in sorted(state["state"][i].items())]
    digest = hashlib.sha256()
    for t in [*payload["lora"], *tensors, payload["rng"]["torch"]]:
        digest.update(f"{t.dtype}{tuple(t.shape)}".encode())
        digest.update(t.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    rows = metrics.MetricsFile(out / "metrics.jsonl").rows()
    return {
        "adapter": hashlib.sha256((out / "adapter.safetensors").read_bytes()).hexdigest(),
        "state": digest.hexdigest(),
        "groups": repr(state["param_groups"]),
        "rows": repr([{k: v for k, v in row.items() if k not in TIMES} for row in rows]),
        "files": sorted(f.name for f in checkpoints.iterdir()),
        "pictures": hashlib.sha256((out / "samples.png").read_bytes()).hexdigest(),
    }


def main(folder: Path, seed: int, more: int) -> dict[str, Any]:
    line, rng = prepare(folder), random.Random(seed)

    def whole(name: str, *more: str) -> list[str]:
        return [*line, "--out", str(folder / name), *more]

    report = folder / "events.json"
    started = time.monotonic()
    status, said = forked(whole("whole"), Events(0, report))
    took = time.monotonic() - started
    assert status == 0, said
    names = json.loads(report.read_text(encoding="utf-8"))
    result: dict[str, Any] = {
        "whole": outcome(folder / "whole"),
        "said": said,
        "killed": {},
        "events": len(names),
    }

    def again(name: str, argv: list[str]) -> list[str]:
        """The command that a user gives after a crash."""
        begun = (folder / name / "session.json").exists()
        return ["train", "--resume", "--out", str(folder / name)] if begun else argv

    # In the last checkpoint, which also deletes one: within its numbers, before and after its renaming,
    # within the manifest, before the manifest's renaming, at the deletion, within the adapter.
    last, manifest = [i for i, kind in enumerate(names, 1) if kind == "replace"][-3:-1]
    chosen = {last - 200, last - 1, last + 1, last + 2, manifest, manifest + 2, manifest + 3}
    chosen |= set(rng.sample(range(1, len(names) + 1), more))
    for at in sorted(chosen):
        name = f"event{at}"
        status, said = forked(whole(name), Events(at))
        assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, said
        status, said = forked(again(name, whole(name)))
        assert status == 0, said
        result["killed"][f"{names[at - 1]} {at}"] = outcome(folder / name)

    # Any moment, and again, and again.
    for number in range(1 + more // 4):
        name, kills = f"random{number}", 0
        for _ in range(2):
            status, _ = forked(again(name, whole(name)), wait=rng.uniform(0.2, 0.7) * took)
            kills += os.WIFSIGNALED(status)
        status, said = forked(again(name, whole(name)))
        assert status == 0, said
        result["killed"][f"random {number}, {kills} times"] = outcome(folder / name)

    # A disk that is full, for the system itself: the kernel refuses to let a file grow.
    limit = (folder / "whole" / "checkpoints" / LABEL / "step-00000005.pt").stat().st_size * 3 // 4
    status, said = forked(
        whole("small disk"), lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    )
    result["small disk"] = {"code": os.waitstatus_to_exitcode(status), "said": said}
    status, said = forked(again("small disk", []))
    assert status == 0, said
    result["killed"]["small disk"] = outcome(folder / "small disk")
    return result


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))
