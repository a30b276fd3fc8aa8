from __future__ import annotations

import pytest

from offload.wild import Wild, installed


@pytest.fixture
def wild(monkeypatch: pytest.MonkeyPatch) -> Wild:
    """A wild device for every optimizer that is built from here on."""
    return installed(monkeypatch)
