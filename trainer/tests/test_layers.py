"""The shape of the trainer: which module may import which, and what it sees of the optimizers.

A module that is not named here yet has to be added to `TRAINER` before the suite is green again.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import automagic_cameamp
from test_layering import PACKAGE, TRAINER_PACKAGE, TRAINER_SRC, imports_of, modules

# The trainer, module by module: each imports only what stands in a row above it.
TRAINER = [
    {"__init__", "errors", "rng", "durable"},
    {"settings", "metrics", "text"},
    {"diffusion", "model", "presets"},
    {"data"},
    {"tasks", "checkpoint", "gallery"},
    {"loop"},
    {"plots"},
    {"report"},
    {"session"},
    {"demo", "progress"},
    {"commands"},
]
# What it may see of the optimizers: this, and the names in `automagic_cameamp.__all__`.
SHOWN = {"factory"}


def trainer_violations(module: str, source: str) -> list[str]:
    """What a module of the trainer imports and may not."""
    row = {name: i for i, names in enumerate(TRAINER) for name in names}
    if module not in row:
        return [f"{module}: a module that TRAINER in {Path(__file__).name} does not know"]
    is_package = module == "__init__"
    inside = "" if is_package else module
    own = imports_of(source, inside, is_package, of=TRAINER_PACKAGE, within=TRAINER_PACKAGE)
    wrong = [n for n in own if row.get(n or "__init__", len(TRAINER)) >= row[module]]
    wrong += imports_of(source, inside, is_package, within=TRAINER_PACKAGE) - SHOWN - {""}
    return [f"{module} imports {n}" for n in sorted(wrong)] + private_reaches(module, source)


def private_reaches(module: str, source: str) -> list[str]:
    """Names of `import automagic_cameamp` that it does not show, and underscored members of optimizers."""
    wrong = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module == PACKAGE:
            names = {a.name for a in node.names} - set(automagic_cameamp.__all__) - SHOWN
            wrong += [f"{module} imports {PACKAGE}.{name}, which is not public" for name in sorted(names)]
        if isinstance(node, ast.Attribute) and re.match(r"_(?!_|asdict$)", node.attr):
            owner = ast.unparse(node.value)
            if owner.split(".")[-1] not in ("self", "cls") and not owner.startswith("torch"):
                wrong.append(f"{module} reaches into {owner}.{node.attr}")
    return wrong


def test_the_trainer_is_a_customer_and_has_a_reading_order() -> None:
    found = [(module or "__init__", path) for module, path in modules(TRAINER_SRC)]
    assert {module for module, _ in found} == set().union(*TRAINER)
    wrong = [line for module, path in found for line in trainer_violations(module, path.read_text("utf-8"))]
    assert not wrong, "\n" + "\n".join(wrong)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("loop", "from automagic_cameamp.executors import work"),
        ("loop", "from automagic_cameamp.configs import OptimizerConfig"),
        ("loop", "from automagic_cameamp import state"),
        ("loop", "from automagic_cameamp import reference_step"),
        ("loop", "import automagic_cameamp.configs"),
        ("loop", "def f(optimizer):\n    return optimizer._plans"),
        ("loop", "from .session import Session"),
        ("data", "from automagic_trainer import loop"),
        ("brand_new_module", "import torch"),
    ],
)
def test_a_planted_violation_of_the_trainer_is_seen(module: str, source: str) -> None:
    assert trainer_violations(module, source)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("loop", "from automagic_cameamp.factory import build_optimizer\nfrom . import checkpoint"),
        ("loop", "import automagic_cameamp\nfrom automagic_cameamp import Automagic_CameAMP, factory"),
        ("commands", "def f():\n    from .session import Session"),
    ],
)
def test_what_the_trainer_may_do_passes(module: str, source: str) -> None:
    assert trainer_violations(module, source) == []
