"""``abi.h`` and ``kernels/layout.py`` hold the same structures and numbers, field by field."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from automagic_cameamp.kernels import layout, native

CPU = Path(native.__file__).parent / "cpu"
NAMES = {"dynamic": "DYNAMIC8", "softsign": "SOFTSIGN8", "affine": "AFFINE8", "log": "LOG8"}


def enum(name: str) -> dict[str, int]:
    """The names of an enum of abi.h."""
    text = re.search(rf"enum {name} {{(.*?)}}", (CPU / "abi.h").read_text())
    assert text is not None
    return {k: int(v) for k, v in re.findall(r"(\w+) = (\d+)", text[1])}


def test_fields_agree_one_by_one() -> None:
    theirs = native.fields_of(native.library())
    assert list(theirs) == list(layout.fields())
    assert theirs == layout.fields()
    assert native.difference(layout.fields(), theirs) is None


def test_every_field_of_the_header_is_compared() -> None:
    """What abi.h declares, as a reader of its text finds it: nothing hides from the list in fields.h."""
    text = re.sub(r"//.*", "", (CPU / "abi.h").read_text())
    declared = set()
    for structure, body in re.findall(r"struct (\w+) {(.*?)};", text, flags=re.DOTALL):
        for line in body.split(";"):
            names = re.sub(r"^\s*(const\s+)?\w+", "", line.strip())  # the type
            names = re.sub(r"\bconst\b|\[\w+\]|\*", "", names)
            declared |= {f"{structure}.{name}" for name in re.findall(r"\w+", names)}
    assert declared == set(layout.fields())


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("Options.low", {"offset": 16}),  # two fields of one size that changed places
        ("Options.scales", {"kind": "float64"}),  # same place, same size, another meaning
        ("Task.scale", {"size": 8}),
        ("Step.flavour", None),  # absent
    ],
)
def test_a_mismatch_names_the_field(name: str, change: dict | None) -> None:
    theirs = native.fields_of(native.library())
    theirs |= {} if change is None else {name: theirs[name]._replace(**change)}
    if change is None:
        del theirs[name]
    said = native.difference(layout.fields(), theirs)
    assert said is not None and said.startswith(f"{name} is ") and "in Python" in said
    assert native.difference(theirs, layout.fields()) is not None  # also where Python lacks it


def test_another_layout_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loader compares before a step is taken: an exchange of two fields keeps every size."""
    swapped = layout.fields()
    swapped["Options.lr"], swapped["Options.eta"] = swapped["Options.eta"], swapped["Options.lr"]
    monkeypatch.setattr(layout, "fields", lambda: swapped)
    native._opened.cache_clear()
    try:
        why = native.why_not()
        assert why is not None and "Options.lr is float64 at 0, 8 bytes in the library" in why
        with pytest.raises(native.Unavailable, match=r"Options\.lr"):
            native.library()
    finally:
        native._opened.cache_clear()


def test_numbers_agree() -> None:
    codes = enum("Code")
    assert codes.pop("PLAIN") == 0
    assert {NAMES.get(k, k.upper()): v for k, v in layout.CODES.items()} == codes
    assert f"MAX_SCALES = {layout.MAX_SCALES} " in (CPU / "abi.h").read_text()
    assert f"ABI_VERSION = {layout.ABI_VERSION} " in (CPU / "abi.h").read_text()
    assert f"SKETCH = {layout.SKETCH}," in (CPU / "mask.h").read_text()
