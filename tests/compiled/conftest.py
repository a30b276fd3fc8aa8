"""A fresh executor for each test; what it has said before does not silence it."""

from __future__ import annotations

import importlib
from collections.abc import Iterator

import pytest

from automagic_cameamp.executors import compiled, said


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[compiled.Compiled]:
    executor = compiled.Compiled()
    monkeypatch.setattr(compiled, "COMPILED", executor)
    monkeypatch.setattr(said, "SAID", set())
    yield executor
    importlib.import_module("torch._dynamo").reset()
