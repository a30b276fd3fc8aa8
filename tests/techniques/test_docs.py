"""docs/techniques.md names every technique, with its true reach and its true defaults."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
from scripts import pages

from automagic_cameamp import configs
from automagic_cameamp import techniques as T

PAGE = Path(__file__).resolve().parents[2] / "docs" / "techniques.md"
TEXT = PAGE.read_text("utf-8")
FUNCTIONS = sorted(
    name
    for name in T.__all__
    if callable(getattr(T, name)) and not isinstance(getattr(T, name), type) and name != "Steps"
)
DECLARED = {
    name: getattr(T, name).locality.value for name in FUNCTIONS if hasattr(getattr(T, name), "locality")
}
SECTIONS = re.split(r"^## ", TEXT, flags=re.M)[1:]
TECHNIQUES = [s for s in SECTIONS if "* Functions: " in s]


def config_classes():
    return [c for c in vars(configs).values() if isinstance(c, type) and dataclasses.is_dataclass(c)]


def default_of(field):
    return field.default_factory() if field.default is dataclasses.MISSING else field.default


DEFAULTS = {f.name: [] for c in config_classes() for f in dataclasses.fields(c)}
for config in config_classes():
    for field in dataclasses.fields(config):
        DEFAULTS[field.name].append(default_of(field))


def test_the_lists_are_not_empty():
    assert len(FUNCTIONS) > 30 and len(DECLARED) > 15 and len(TECHNIQUES) > 10


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_public_function_is_documented(name):
    assert re.search(rf"`{name}`", TEXT), f"docs/techniques.md does not mention {name}"


@pytest.mark.parametrize("name", sorted(DECLARED))
def test_the_declared_reach_is_the_documented_one(name):
    stated = re.findall(rf"`{name}`\s+\(([a-z ]+)\)", TEXT)
    assert stated, f"docs/techniques.md says nowhere how far {name} reaches"
    assert set(stated) == {DECLARED[name]}


def test_no_function_is_documented_that_does_not_exist():
    named = set(re.findall(r"`([a-z_]+)`\s+\((?:element|row|column|row and column|tensor|stencil)\)", TEXT))
    assert named and not named - set(FUNCTIONS)


@pytest.mark.parametrize("section", TECHNIQUES, ids=lambda s: s.split("\n")[0][:40])
def test_every_technique_says_what_it_must(section):
    missing = [word for word in ("Formula", "Source", "Default", "Measured") if f"* {word}" not in section]
    if section.startswith(("The mask", "The level", "A2")):
        missing = [word for word in missing if word != "Formula"]  # a table of rules, or A1's, stands for it
    assert not missing
    assert "Deviations" in section or section.startswith(("The mask", "Angles"))


STATED = re.findall(
    r"`([a-z_0-9]+)=([^`]+)`", "\n".join(re.findall(r"\* Default: .*?(?=\n\* |\n\n)", TEXT, re.S))
)


@pytest.mark.parametrize(("name", "value"), STATED)
def test_the_stated_defaults_are_the_real_ones(name, value):
    assert name in DEFAULTS, f"{name} is no option"
    assert value in {repr(x) for x in DEFAULTS[name]}, f"{name} is {DEFAULTS[name]}, not {value}"


def test_the_page_is_in_step_with_the_docstrings():
    assert pages.text() == TEXT, "run scripts/pages.py"
    assert TEXT.count("<!-- functions: ") > 15


def test_enough_defaults_are_stated():
    assert len(STATED) > 30
