"""The codec headers, compiled once for all tests of this folder."""

from __future__ import annotations

import pytest

from native import codec_library


@pytest.fixture(scope="session", params=codec_library.runnable())
def lib(request, tmp_path_factory) -> codec_library.Codecs:
    """Codecs of every instruction set that this processor has."""
    return codec_library.build(tmp_path_factory.mktemp("codecs"), request.param)
