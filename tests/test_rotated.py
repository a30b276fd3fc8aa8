"""What always runs has every value of every axis in it, and no combination is lost."""

from __future__ import annotations

import pytest

from engine.helpers import CLASSES, EVERY, OPTIONS
from rotated import rotated


@pytest.mark.parametrize(
    "axes", [[3, 2], [5, 7], [2, 2, 7], [18, 3], [1, 4]], ids=lambda sizes: "x".join(map(str, sizes))
)
def test_every_value_runs(axes: list[int]) -> None:
    names = ", ".join("abc"[: len(axes)])
    mark = rotated(names, *map(range, axes)).mark
    assert mark.args[0] == names
    rows, usual = mark.args[1], [row for row in mark.args[1] if not row.marks]
    count = 1
    for size in axes:
        count *= size
    assert len({row.values for row in rows}) == len(rows) == count
    for place, size in enumerate(axes):
        assert {row.values[place] for row in usual} == set(range(size))
    assert len(usual) <= -(-count // min(axes)) + max(axes)


def test_every_option_meets_a_code() -> None:
    rows = EVERY.mark.args[1]
    assert len({row.id for row in rows}) == len(CLASSES) * len(OPTIONS)
    usual = [row.values for row in rows if not row.marks]
    assert {kind for kind, _ in usual} == set(CLASSES)
    assert all(any(options is given for _, given in usual) for options in OPTIONS.values())
