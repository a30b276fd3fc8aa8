"""Reads the TOML file of ``--config_file`` the way sd-scripts and musubi-tuner do."""

from __future__ import annotations

import importlib
import shlex
from pathlib import Path
from typing import Any


class LauncherError(Exception):
    """Something the user has to correct; the message is one line."""


def read_config(name: str) -> dict[str, Any]:
    """Options of the file, its sections flattened.

    Args:
        name: as given to ``--config_file``; ".toml" may be left out.
    """
    path = Path(name if name.endswith(".toml") else name + ".toml")
    if not path.is_file():
        raise LauncherError(f"--config_file {name}: there is no file {path} (looked from {Path.cwd()})")
    try:
        options = _parser()(path.read_text("utf-8"))
    except (ValueError, UnicodeDecodeError) as error:  # every TOML library's error is a ValueError
        raise LauncherError(f"--config_file {path}: not readable as TOML: {error}") from None
    flat: dict[str, Any] = {}
    for key, value in options.items():
        flat.update(value if isinstance(value, dict) else {key: value})
    return flat


def words(value: Any) -> list[str]:
    """``optimizer_args`` of a file as key=value words: a list, or one string as on a command line."""
    if isinstance(value, str):
        return shlex.split(value)
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return list(value)
    raise LauncherError(
        f'optimizer_args={value!r} in the config file: it must be a list of texts, as in ["profile=balanced"]'
    )


def _parser() -> Any:
    """A TOML reader: Python's own (3.11), or one that the trainer's environment has."""
    for name in ("tomllib", "tomli", "toml"):
        try:
            return importlib.import_module(name).loads
        except ImportError:
            continue
    raise LauncherError("reading --config_file needs Python 3.11, or: pip install tomli")
