"""Every row of an answer has a command, which the launcher takes or Python can read."""

from __future__ import annotations

import ast
import importlib
from typing import Any

import pytest
import torch

from automagic_cameamp.fit import Answer, Question, Trace, answer, candidates, find, known
from automagic_cameamp.fit.commands import command
from automagic_cameamp.fit.trace import Trained
from automagic_cameamp.kohya.rewrite import rewrite

pytest.importorskip("diffusers")
pytest.importorskip("transformers")
INSTALLED = ("automagic_cameamp", "peft", "diffusers", "transformers")
pytestmark = pytest.mark.filterwarnings("ignore")  # of diffusers and transformers


def asked(name: str, **options: Any) -> Any:
    """An answer about a model with a name, without tracing it."""
    spec, question = find(name), Question(name, **options)
    trained = (Trained("blocks.0.attn.to_q.lora_down", (16, 64), torch.float32),)
    found = Trace(2**30, trained, 4096, 4096, 8192, ((4096, 1024),), ((2**20,) * 20, (2**19,) * 40))
    rows = [r for one in candidates.everyone() for r in answer._rows(question, spec, found, one)]
    return Answer(question, spec, question.sample(spec), found, tuple(rows))


@pytest.mark.parametrize("train", ["full", "lora", "lokr"])
@pytest.mark.parametrize("name", known())
def test_every_row_has_a_command(name: str, train: str) -> None:
    found = asked(name, train=train)
    for row in found.rows:
        words = command(found, row)
        if words.startswith("python"):
            script = words.split()[3 if " -m " in words else 1]
            assert script.endswith(".py") and "\n" not in words
            if row.optimizer.startswith("Automagic"):
                assert "--optimizer_type=" in " ".join(rewrite(words.split()[4:]).args)
            continue
        for node in ast.walk(ast.parse(words)):
            if isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] in INSTALLED:
                assert all(hasattr(importlib.import_module(str(node.module)), a.name) for a in node.names)


def test_commands_say_what_was_asked() -> None:
    found = asked("flux", base="fp8", swap=10, resolution=512, rank=32)
    line = command(found, next(r for r in found.rows if r.optimizer == "Automagic_CameAMP8bit"))
    for word in (
        "flux_train_network.py",
        "--fp8_base",
        "--blocks_to_swap=10",
        "--network_dim=32",
        "--resolution=512,512",
    ):
        assert word in line
    found = asked("sdxl", train="full")
    rows = {(r.optimizer, r.way): command(found, r) for r in found.rows}
    assert "--fused_backward_pass" in rows["Adafactor", "release"]
    assert "--fused_optimizer_groups=10" in rows["Automagic_CameAMP8bit", "release"]
    assert "offload=cpu" in rows["Automagic_CameAMP8bit", "offload"]
