"""What a run of the tests needs once, however many processes it has."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest


def once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """A folder that the first process to ask fills; the others wait for it.

    Args:
        factory: of the process.
        name: of the folder, the same in all of them.
        make: fills it.

    Raises:
        RuntimeError: it could not be filled, by another process.
    """
    base = factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder, done = base / name, base / f"{name}.done"
    try:
        folder.mkdir()
    except FileExistsError:
        while not done.exists():
            time.sleep(0.05)
        if error := done.read_text("utf-8"):
            raise RuntimeError(f"{name}, made by another process: {error}") from None
        return folder
    error = "it was stopped"
    try:
        make(folder)
        error = ""
    except BaseException as raised:
        error = f"{type(raised).__name__}: {raised}"
        raise
    finally:
        written = base / f"{name}.written"
        written.write_text(error, "utf-8")
        written.rename(done)  # at once, so that nobody reads half of it
    return folder
