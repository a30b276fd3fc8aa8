"""docs/guide.md: twin, command lines, and agreement with what the library recommends."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from benchmarks.guide_tables import CARDS, FREE, GIB, PREFERRED, fitting, name_of, profile_of
from benchmarks.models import TRAININGS
from benchmarks.rows import Rows

from automagic_cameamp import Automagic_CameAMP_Improved_8Bit, configs
from automagic_cameamp.monitor import get_adaptive_config

# The stand-in of sd-scripts and the launcher, as tests/kohya uses them.
from kohya.conftest import checkout, launched, no_bitsandbytes, plain  # noqa: F401

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE, TWIN = DOCS / "guide.md", DOCS / "guide.zh-TW.md"
FENCE = re.compile(r"^```(\w+)\n(.*?)^```", re.M | re.S)
SCRIPTS = {"sdxl_train_network.py": "train_network.py", "flux_train_network.py": "train_network.py"}
SCRIPTS["sdxl_train.py"] = "train_db.py"


def prose(page: Path) -> str:
    return FENCE.sub("", page.read_text("utf-8"))


def table_after(page: Path, heading: str) -> list[list[str]]:
    """Cells of the first table behind a heading or marker, without its head."""
    lines = page.read_text("utf-8").partition(heading)[2].splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("|"))
    rows = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows[2:]


def test_twin_is_the_same_page() -> None:
    page, twin = PAGE.read_text("utf-8"), TWIN.read_text("utf-8")
    assert FENCE.findall(page) == FENCE.findall(twin)
    for pattern in (r"^(#+) ", r"<!-- .* -->", r"^\| *`"):
        found = [re.findall(pattern, prose(p), re.M) for p in (PAGE, TWIN)]
        assert found[0] == found[1] and found[0], pattern
    code = [set(re.findall(r"`([^`\n]+)`", prose(p))) for p in (PAGE, TWIN)]
    assert code[0] == code[1], code[0] ^ code[1]
    numbers = [
        [re.findall(r"\d+(?:[.,]\d+)*", c) for row in table_after(p, "\n## ") for c in row]
        for p in (PAGE, TWIN)
    ]
    assert numbers[0] == numbers[1]


def launcher_lines() -> list[str]:
    bodies = [body for info, body in FENCE.findall(PAGE.read_text("utf-8")) if info == "bash"]
    return [line for body in bodies for line in body.splitlines() if "-m automagic_cameamp.kohya" in line]


def test_there_is_a_line_for_each_kind_of_training() -> None:
    text = "\n".join(launcher_lines())
    scripts = ["sdxl_train_network.py", "flux_train_network.py", "train_db.py", "sdxl_train.py"]
    assert all(word in text for word in (*scripts, "algo=lokr"))


def plain_lines() -> list[str]:
    bodies = [body for info, body in FENCE.findall(PAGE.read_text("utf-8")) if info == "text"]
    return [
        line
        for body in bodies
        for line in body.splitlines()
        if line.startswith("--optimizer_type automagic_cameamp.")
    ]


@pytest.mark.parametrize("line", plain_lines())
def test_lines_without_the_launcher_run(plain: Any, no_bitsandbytes: None, line: str) -> None:  # noqa: F811
    assert plain(*shlex.split(line))["lr"] == [1e-4]


def test_there_are_lines_without_the_launcher() -> None:
    assert len(plain_lines()) == 3


@pytest.mark.parametrize("line", launcher_lines())
def test_command_lines_run(launched: Any, no_bitsandbytes: None, line: str) -> None:  # noqa: F811
    words = shlex.split(line.partition("automagic_cameamp.kohya")[2])
    script, *words = [word for word in words if word != "--show"]
    result = launched(*words, script=SCRIPTS.get(script, script))
    assert result["moved"] and result["lr"] == [float(re.findall(r" lr=(\S+)", line)[0])]


def test_gpu_table_agrees_with_the_library() -> None:
    """Row by row: the printed profile is the one that the library recommends."""
    rows = table_after(PAGE, "<!-- rows: cards -->")
    assert [row[0] for row in rows] == [f"{card} GB" for card in CARDS]
    for card, row in zip(CARDS, rows, strict=True):
        name = row[1].strip("`")
        named = Automagic_CameAMP_Improved_8Bit([_parameter()], profile=name).config
        chosen = get_adaptive_config(card * 0.98)
        assert {**vars(named), "profile": None} == vars(chosen)


def test_what_the_gpu_table_names_fits_and_what_comes_before_it_does_not() -> None:
    rows = Rows()
    for training in ("SD 1.5 U-Net, full", "SDXL U-Net, full"):
        for card in CARDS:
            named = fitting(rows, training, card)
            room = (1 - FREE) * card * GIB - 4 * TRAININGS[training][1]
            for candidate in PREFERRED:
                held = rows.state_bytes(candidate, training)
                if held is None:
                    continue
                assert (held <= room) == (named == name_of(candidate))
                if held <= room:
                    break
            else:
                assert named is None


def test_every_profile_is_recommended_for_some_card() -> None:
    assert {profile_of(card) for card in CARDS} == {"memory_optimized", "balanced", "quality_optimized"}


def test_options_and_defaults_that_the_guide_names_exist() -> None:
    classes = [c for c in vars(configs).values() if hasattr(c, "__dataclass_fields__")]
    fields = {name for c in classes for name in c.__dataclass_fields__}
    named = {w for w in re.findall(r"`(\w+)=", prose(PAGE))}
    assert named <= fields, named - fields
    defaults = configs.OptimizerConfig()
    assert (defaults.lr, defaults.max_lr, defaults.warmup_steps) == (1e-6, 1e-3, 500)
    assert defaults.max_lr / 4 == 2.5e-4  # the mask goes to four times the rate


def _parameter() -> Any:
    import torch

    return torch.nn.Parameter(torch.zeros(2, 2))
