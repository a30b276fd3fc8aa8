"""Files that are there whole or not at all, whatever happens while they are written."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple


class Written(NamedTuple):
    """What is in a file.

    Args:
        size: bytes.
        sha256: their digest, in hexadecimal digits.
    """

    size: int
    sha256: str


class Sink:
    """A file that counts and digests what is written; it remembers why it could not write.

    torch reports a full disk as a RuntimeError of its own; the reason is in ``error``.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.digest, self.size = file, hashlib.sha256(), 0
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        """Write all of it."""
        try:
            self.file.write(data)
        except OSError as error:
            self.error = error
            raise
        self.digest.update(data)
        self.size += len(data)
        return len(data)

    def flush(self) -> None:
        """Hand everything to the system."""
        self.file.flush()


def replace(target: Path, fill: Callable[[Any], object]) -> Written:
    """Write a file beside ``target``, wait until the disk has it, and give it that name.

    Args:
        target: the old file stays as it is until the new one is complete.
        fill: gets an object with ``write`` and writes all bytes to it.

    Raises:
        OSError: the file could not be written; nothing of it is left.
    """
    unfinished = target.with_name(target.name + ".tmp")
    try:
        with unfinished.open("wb") as file:
            sink = Sink(file)
            try:
                fill(sink)
            except Exception:
                if sink.error is not None:
                    raise sink.error from None
                raise
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, target)
    except BaseException:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)
        raise
    sync_folder(target.parent)
    return Written(sink.size, sink.digest.hexdigest())


def sync_folder(folder: Path) -> None:
    """Wait until the disk knows the names in a folder; not every system can."""
    if hasattr(os, "O_DIRECTORY"):
        number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


def digest(path: Path) -> Written:
    """Size and digest of what a file holds now."""
    found, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            found.update(part)
            size += len(part)
    return Written(size, found.hexdigest())
