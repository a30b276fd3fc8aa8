"""What the pages say of this recipe: its code runs, their options exist, their table is the profiles'."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

import automagic_cameamp as package
from automagic_cameamp import techniques
from automagic_cameamp.profiles import PROFILES
from improved.test_memory import LIMITS, MINIMAL

DOCS = Path(__file__).resolve().parents[2] / "docs"
PROFILE_PAGE = (DOCS / "guide.md").read_text("utf-8").split("\n## Profiles\n")[1].split("\n## ")[0]
TECHNIQUES = (DOCS / "techniques.md").read_text("utf-8")


def test_the_code_of_the_profile_page_runs():
    programs = re.findall(r"```python\n(.*?)```", PROFILE_PAGE, re.S)
    assert programs
    for program in programs:
        exec(compile(program, "guide.md", "exec"), {})


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def test_the_table_of_profiles_is_what_they_set():
    table = [cells(line) for line in PROFILE_PAGE.splitlines() if line.startswith("|")]
    names = [cell.strip("`") for cell in table[0][1:]]
    assert names == ["minimal", "memory_optimized", "balanced", "quality_optimized"]
    configs = {name: getattr(package.OptimizationProfiles, name)() for name in names}
    spoken = {True: ("on", "True"), False: ("off", "False")}
    seen = set()
    for row in table[2:]:
        options = re.findall(r"`(\w+)`", row[0])
        for name, said in zip(names, row[1:], strict=False) if options else ():
            values = [getattr(configs[name], option) for option in options]
            if values[0] is False:
                assert said in spoken[False], (row, name)
            elif len(values) == 2:  # a switch and its strength
                assert values[0] is True and float(said) == values[1], (row, name)
            elif values[0] is True:
                assert said in spoken[True], (row, name)
            else:
                assert said == str(values[0]) or float(said) == values[0], (row, name)
        seen |= set(options) if options else set()
    assert {option for options in PROFILES.values() for option in options} <= seen


def test_the_promised_shares_are_the_tested_ones():
    row = next(cells(line) for line in PROFILE_PAGE.splitlines() if "share of Adam's eight bytes" in line)
    limits = [LIMITS[name] for name in ("memory_optimized", "balanced", "quality_optimized")]
    assert [float(re.search(r"\d+", said)[0]) for said in row[2:]] == limits  # type: ignore[index]
    assert [float(said) for said in re.findall(r"\d+", row[1])] == list(MINIMAL.values())


def test_every_option_of_the_recipe_is_explained():
    """On one of the pages."""
    text = TECHNIQUES + PROFILE_PAGE + (DOCS / "trainers.md").read_text("utf-8")
    own: set[str] = set()
    for cls in ("ImprovedOptimizerConfig", "Optimizer8BitConfig", "Improved8BitOptimizerConfig"):
        own |= {f.name for f in dataclasses.fields(getattr(package, cls))}
    shared = {f.name for f in dataclasses.fields(package.OptimizerConfig)}
    missing = {name for name in own - shared if name not in text}
    assert not missing


@pytest.mark.parametrize("entry", ["A11", "A12", "A13", "A14", "A15", "A16"])
def test_every_entry_is_complete(entry):
    section = re.search(rf"^## {entry} .*?(?=^## )", TECHNIQUES, re.M | re.S)
    assert section, entry
    for word in ("Function", "Formula", "Source", "Default", "Measured"):
        assert f"* {word}" in section[0], word
    line = next(line for line in section[0].splitlines() if line.startswith("* Function"))
    for name, reach in re.findall(r"`(\w+)`(?: \((\w+)\))?", line):
        function = getattr(techniques, name)
        if reach:
            assert function.locality.value == reach, name
    for path in re.findall(r"`(tests/[\w/]+\.py)`", section[0]):
        assert (DOCS.parent / path).is_file(), path
