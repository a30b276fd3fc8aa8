"""The recipes of examples/trainers: every card's version can be read, and its optimizer built.

Whether the programs themselves take them is scripts/check_recipes.py's business, in their environments.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from automagic_cameamp import presets
from automagic_cameamp.factory import parse_optimizer_args
from automagic_cameamp.text import split_args

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "trainers"
RECIPES = sorted(p for p in FOLDER.rglob("*") if p.suffix in (".toml", ".yaml", ".json"))


def tier() -> ModuleType:
    spec = importlib.util.spec_from_file_location("tier", FOLDER / "tier.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_line_for_a_card_takes_the_place_of_the_one_above() -> None:
    text = "a = 1\n#@16: a = 2\n#@8: a = 3\n  b: 1\n  #@12: b: 2\n# c\n#@8: c = 1\n"
    taken = tier().taken
    assert taken(text, 24) == "a = 1\n  b: 1\n# c\n"
    assert taken(text, 16) == "a = 2\n  b: 1\n# c\n"
    assert taken(text, 12) == "a = 2\n  b: 2\n# c\n"
    assert taken(text, 8) == taken(text, 6) == "a = 3\n  b: 2\nc = 1\n"
    assert tier().tiers(text) == {16, 12, 8}


def test_a_card_that_is_too_small_is_told_why() -> None:
    recipe = FOLDER / "ai-toolkit" / "flux_lora.yaml"
    text = recipe.read_text("utf-8")
    assert tier().refused(text, 12) is None and tier().refused("a = 1\n", 4) is None
    command = [sys.executable, FOLDER / "tier.py", recipe, "--gpu"]
    assert subprocess.run([*command, "12"], capture_output=True, check=True).stdout
    small = subprocess.run([*command, "8"], capture_output=True, text=True, check=False)
    assert small.returncode == 1 and small.stdout == ""
    assert "flux_lora.yaml: not for 8 GB, 12 are the least: while it loads" in small.stderr


def test_what_is_least_is_read_and_below_it_there_are_no_lines() -> None:
    for path in RECIPES:
        text = path.read_text("utf-8")
        least = [line for line in text.splitlines() if "@least" in line]
        assert len(least) <= 1 and len(least) == len(tier().LEAST.findall(text)), path
        assert all(tier().refused(text, card) is None for card in tier().tiers(text)), path


def test_there_are_recipes_for_every_trainer_and_model() -> None:
    found = {(path.parent.name, path.stem) for path in RECIPES}
    for trainer in ("ai-toolkit", "simpletuner", "diffusion-pipe"):
        for model in ("sdxl", "sd35", "flux", "qwen_image", "zimage", "wan"):
            assert (trainer, f"{model}_lora") in found
    for model in ("sdxl", "sd35", "flux"):
        assert {("sd-scripts", f"{model}_lora"), ("sd-scripts", f"{model}_full")} <= found
    assert {("trl", "qwen3_lora"), ("trl", "qwen3_full")} <= found
    assert {("ai-toolkit", "wan_full"), ("simpletuner", "wan_full")} <= found
    assert {"musubi-tuner", "onetrainer", "axolotl", "llama-factory"} <= {t for t, _ in found}


def test_the_table_says_which_recipes_there_are() -> None:
    files = {"SDXL": "sdxl", "FLUX.1": "flux", "SD 3.5": "sd35", "Z-Image": "zimage"}
    files |= {"Qwen-Image": "qwen_image", "Wan 2.1": "wan"}
    lines = (FOLDER / "README.md").read_text("utf-8").splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("| ")]
    header = [cell.lower() for cell in next(row for row in rows if row[0] == "")]
    said = set()
    for row in rows:
        for trainer, cell in zip(header[1:], row[1:], strict=True):
            if row[0] in files and "LoRA" in cell:
                name = files[row[0]] + "_kontext" * ("Kontext" in cell)
                said.add((trainer, f"{name}_lora"))
            if row[0] in files and "whole" in cell:
                said.add((trainer, f"{files[row[0]]}_full"))
    assert said == {(p.parent.name, p.stem) for p in RECIPES if p.parent.name in header}


@pytest.mark.parametrize(
    ("path", "gpu"),
    [(p, gpu) for p in RECIPES for gpu in (24, 16, 12, 8) if not tier().refused(p.read_text("utf-8"), gpu)],
    ids=lambda x: f"{x.parent.name}/{x.name}" if isinstance(x, Path) else str(x),
)
def test_recipe(path: Path, gpu: int) -> None:
    text = tier().taken(path.read_text("utf-8"), gpu)
    if path.suffix == ".json":
        assert json.loads(text)["optimizer"]["optimizer"] == "CAME_8BIT"
        return
    options: dict[str, Any]
    if path.suffix == ".toml":
        options = tomllib.loads(text)
    else:
        options = pytest.importorskip("yaml").safe_load(text)
    if "config" in options:  # ai-toolkit
        options = options["config"]["process"][0]["train"]
    section = options.get("optimizer")
    if isinstance(section, dict):  # diffusion-pipe
        name, given, lr = section.pop("type"), section, section.pop("lr")
        section.pop("gradient_release", None)
    else:
        name = options.get("optimizer_type") or options.get("optim") or section
        keys = ("optimizer_args", "optimizer_params", "optimizer_config", "optim_args")
        (given,) = [options[key] for key in keys if key in options]
        lr = options.get("learning_rate", options.get("lr"))
    if not isinstance(given, dict):
        given = parse_optimizer_args(split_args(given) if isinstance(given, str) else given)
    cls = presets.called(name)
    assert cls is not None, name
    optimizer = cls([torch.nn.Parameter(torch.zeros(4, 4))], lr=lr, **given)
    assert optimizer.config.warmup_steps == int(given["warmup_steps"])
