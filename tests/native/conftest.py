"""The codec headers, compiled once for all tests of this folder."""

from __future__ import annotations

import pytest

from native import codec_library
from once import once


@pytest.fixture(scope="session", params=codec_library.runnable())
def lib(request, tmp_path_factory) -> codec_library.Codecs:
    """Codecs of every instruction set that this processor has."""
    flavour: str = request.param
    folder = once(tmp_path_factory, flavour, lambda folder: codec_library.build(folder, flavour))
    return codec_library.load(folder, flavour)
