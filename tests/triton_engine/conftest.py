"""Tests of this folder need Triton: its interpreter on a CPU, or a GPU."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip in the open where Triton cannot be imported."""
    if importlib.util.find_spec("triton") is not None:
        return
    skip = pytest.mark.skip(reason="Triton is not installed: pip install 'automagic-cameamp[triton]'")
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(skip)


@pytest.fixture(scope="session", autouse=True)
def _quick_interpreter() -> Iterator[None]:
    """The interpreter patches the language at every call of a device function: once a launch is enough."""
    if torch.cuda.is_available() or importlib.util.find_spec("triton") is None:
        yield
        return
    from triton.runtime import interpreter

    patch, call = interpreter._patch_lang, interpreter.GridExecutor.__call__
    done: dict[int, object] = {}

    def once(function: object) -> object:
        key = id(function.__globals__)  # type: ignore[attr-defined]
        if key not in done:
            done[key] = patch(function)
        return done[key]

    def launch(self: object, *args: object, **options: object) -> object:
        done.clear()
        return call(self, *args, **options)

    interpreter._patch_lang, interpreter.GridExecutor.__call__ = once, launch
    yield
    interpreter._patch_lang, interpreter.GridExecutor.__call__ = patch, call


@pytest.fixture(autouse=True)
def _large_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few, large tiles: the interpreter's time goes by operations. 64 rows still make bands of two."""
    if importlib.util.find_spec("triton") is not None:
        from automagic_cameamp.kernels import launch

        monkeypatch.setattr(launch, "BAND", (32, 64))
