from __future__ import annotations

import pytest

from offload.wild import installed


@pytest.fixture(params=["none", "cpu"], ids=["device", "host"])
def where(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """``offload`` of the optimizer that is looked at; copies to and from the host come late."""
    if request.param == "cpu":
        installed(monkeypatch)
    return request.param
