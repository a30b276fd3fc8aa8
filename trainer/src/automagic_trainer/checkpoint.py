"""Checkpoints: written whole or not at all, known by their digest, read without unpickling any code.

A folder holds the last few ``step-*.pt`` and ``manifest.json``, which is written after each of them
and says what they must contain. A file that the manifest does not name was never finished.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from . import durable
from .data import PictureSet
from .errors import UserError

KEEP = 2
MANIFEST = "manifest.json"
PARTS = {"step", "seconds", "data", "lora", "optimizer", "rng"}


class DamagedCheckpoint(UserError):
    """A file that is not what was written."""


def write(folder: Path, step: int, payload: dict[str, Any], keep: int = KEEP) -> Path:
    """Save `payload` as the checkpoint of `step`, then drop all but the newest `keep`.

    Raises:
        OSError: it could not be written; the checkpoints that were there are untouched.
    """
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"step-{step:08d}.pt"
    # Whatever claims to be of this step or a later one is of a run that was given up.
    entries = [e for e in _listed(folder) or _unlisted(folder) if e["step"] < step]
    written = durable.replace(target, lambda sink: torch.save(payload, sink))
    entries = [*entries, {"file": target.name, "step": step, **written._asdict()}][-keep:]
    text = json.dumps({"format": 1, "checkpoints": entries}, indent=1) + "\n"
    durable.replace(folder / MANIFEST, lambda sink: sink.write(text.encode()))
    _prune(folder, entries)
    return target


def _prune(folder: Path, entries: list[dict[str, Any]]) -> None:
    """Delete what the manifest does not name: old checkpoints, and those that were never finished."""
    kept = {entry["file"] for entry in entries}
    for old in [*folder.glob("step-*.pt"), *folder.glob("*.tmp")]:
        if old.name not in kept:
            old.unlink(missing_ok=True)


def every(folder: Path) -> list[Path]:
    """The finished checkpoints, oldest first."""
    return [folder / entry["file"] for entry in _listed(folder) or _unlisted(folder)]


def newest(folder: Path, say: Callable[[str], object]) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint that is whole; None where none was ever finished.

    Args:
        folder: where they are.
        say: is told, in one line each, what is damaged.

    Raises:
        DamagedCheckpoint: there are some, and none is whole.
    """
    entries = _listed(folder)
    if entries is None:
        entries = _unlisted(folder)
        if (folder / MANIFEST).exists():
            say(f"{folder / MANIFEST} is damaged: checkpoints are taken without comparing their digests")
    else:
        _prune(folder, entries)
    reasons = []
    for entry in reversed(entries):
        path = folder / entry["file"]
        try:
            if "sha256" in entry:
                _compare(path, entry)
            return path, read(path)
        except DamagedCheckpoint as error:
            reasons.append(str(error))
            before = "; going on from the one before" if len(reasons) < len(entries) else ""
            say(f"{error}{before}")
    if reasons:
        raise DamagedCheckpoint(f"no checkpoint in {folder} is whole: start the run anew with --overwrite")
    return None


def read(path: Path) -> dict[str, Any]:
    """Load one checkpoint on the CPU."""
    try:
        payload = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # zip, pickle and torch errors, depending on where the file is damaged
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DamagedCheckpoint(f"the checkpoint {path} is damaged: {reason}") from None
    if not isinstance(payload, dict) or not payload.keys() >= PARTS:
        raise DamagedCheckpoint(f"the checkpoint {path} is damaged: it is not one of this trainer")
    return payload


def _compare(path: Path, entry: dict[str, Any]) -> None:
    try:
        found = durable.digest(path)
    except OSError as error:
        raise DamagedCheckpoint(f"the checkpoint {path} is damaged: {error.strerror or error}") from None
    if found.size != entry["size"]:
        words = f"it has {found.size} bytes, {entry['size']} were written"
        raise DamagedCheckpoint(f"the checkpoint {path} is damaged: {words}")
    if found.sha256 != entry["sha256"]:
        words = "its SHA-256 is not that of what was written"
        raise DamagedCheckpoint(f"the checkpoint {path} is damaged: {words}")


def _listed(folder: Path) -> list[dict[str, Any]] | None:
    """What the manifest names, oldest first; None where there is none that can be read."""
    try:
        entries = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["checkpoints"]
        found = [
            {
                "file": Path(e["file"]).name,
                "step": int(e["step"]),
                "size": int(e["size"]),
                "sha256": str(e["sha256"]),
            }
            for e in entries
        ]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return sorted(found, key=lambda e: e["step"])


def _unlisted(folder: Path) -> list[dict[str, Any]]:
    """Files of a folder without a manifest, oldest first; nothing is known about them but their step."""
    found = []
    for path in sorted(folder.glob("step-*.pt")):
        number = path.stem.removeprefix("step-")
        if number.isdigit():
            found.append({"file": path.name, "step": int(number)})
    return found


def fingerprint(data: PictureSet) -> str:
    """Changes when a picture or a caption changes."""
    digest = hashlib.sha256(data.pictures.tobytes())
    digest.update("\n".join(data.captions).encode())
    return digest.hexdigest()


def rng_state() -> dict[str, Any]:
    """The global random states. Our own draws do not use them; an optimizer may."""
    name, keys, place, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "python": random.getstate(),
        "numpy": [str(name), np.asarray(keys).tolist(), int(place), int(has_gauss), float(cached)],
    }


def restore_rng(state: dict[str, Any]) -> None:
    """Undo what happened to the global random states since `rng_state`."""
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
    random.setstate(state["python"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))
