"""Checkpoints: written whole or not at all, read without unpickling anything but tensors and numbers."""

from __future__ import annotations

import hashlib
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .data import PictureSet
from .errors import UserError

KEEP = 2


def write(folder: Path, step: int, payload: dict[str, Any]) -> Path:
    """Save `payload` as the checkpoint of `step`, then drop all but the newest KEEP."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"step-{step:08d}.pt"
    unfinished = target.with_suffix(".tmp")
    with unfinished.open("wb") as f:
        torch.save(payload, f)
        f.flush()
        os.fsync(f.fileno())
    os.replace(unfinished, target)
    for old in every(folder)[:-KEEP]:
        old.unlink()
    return target


def every(folder: Path) -> list[Path]:
    """The finished checkpoints, oldest first."""
    return sorted(folder.glob("step-*.pt"))


def read(path: Path) -> dict[str, Any]:
    """Load one checkpoint on the CPU."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # zip, pickle and torch errors, depending on where the file is damaged
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"cannot read the checkpoint {path}: {reason}; delete it to go on from the one before"
        ) from None


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
