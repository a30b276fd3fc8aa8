"""Parameters that need not meet all others at every run."""

from __future__ import annotations

import itertools
from collections.abc import Collection
from typing import Any

import pytest


def rotated(names: str, *axes: Collection[Any]) -> pytest.MarkDecorator:
    """All combinations of some axes, of which most are slow.

    What always runs has every value of every axis in it: combinations whose places add up to a multiple
    of the shortest axis' length. The others run under ``pytest -m slow``.

    Args:
        names: as ``pytest.mark.parametrize`` takes them.
        axes: the values of each name.
    """
    shortest = min(map(len, axes))
    rows = []
    for row in itertools.product(*map(enumerate, axes)):
        usual = sum(place for place, _ in row) % shortest == 0
        values = [value for _, value in row]
        words = "-".join(getattr(value, "__name__", str(value)) for value in values)
        rows.append(pytest.param(*values, id=words, marks=[] if usual else [pytest.mark.slow]))
    return pytest.mark.parametrize(names, rows)
