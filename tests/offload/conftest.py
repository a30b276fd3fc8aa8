from __future__ import annotations

import pytest

from automagic_cameamp.training import offload, ring
from offload.wild import Wild


@pytest.fixture
def wild(monkeypatch: pytest.MonkeyPatch) -> Wild:
    """A wild device for every optimizer that is built from here on."""
    device = Wild()
    monkeypatch.setattr(offload, "transfer_for", lambda _: device)
    monkeypatch.setattr(ring, "_SHARED", [])
    return device
