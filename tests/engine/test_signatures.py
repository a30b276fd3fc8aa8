"""Constructors as people and tools see them: how long, in step with the stub, known to a type checker."""

from __future__ import annotations

import dataclasses
import inspect
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from scripts import stubs

from automagic_cameamp import (
    OPTIMIZERS,
    Automagic_CameAMP,
    Automagic_CameAMP_Improved,
    OptimizerConfig,
    aliases,
    configs,
    factory,
)

MOST = {"Automagic_CameAMP": 24}
CONFIGS: list[Any] = [cls.config_class for cls in OPTIMIZERS.values()]


def one() -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(torch.ones(4, 4))]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_signature_can_be_read(name: str) -> None:
    shown = list(inspect.signature(OPTIMIZERS[name]).parameters.values())
    assert shown[-1].kind is shown[-1].VAR_KEYWORD and shown[0].name == "params"
    assert len(shown) - 2 <= MOST.get(name, 36)


def test_the_stub_is_in_step() -> None:
    assert stubs.STUB.read_text("utf-8") == stubs.text(), "run scripts/stubs.py"


PROGRAM = """
from automagic_cameamp import Automagic_CameAMP, Automagic_CameAMP_COptim, Automagic_CameAMP_Improved_8Bit
from torch.nn import Parameter
p = [Parameter()]
Automagic_CameAMP(p, 1e-4, weight_decay=0.1, use_tam=False, came_enabled=True, techniques="-tam,+agr")
Automagic_CameAMP(p, techniques={"tam": False, "tam_granularity": "row"}, engine="native", betas=[0.9, 0.99])
Automagic_CameAMP_COptim(p, edge_threshold=0.9, momentum_scales=[1, 5])
reveal_type(Automagic_CameAMP_Improved_8Bit.__init__)
reveal_type(Automagic_CameAMP_Improved_8Bit(p, edge_penalty=0.2).config.edge_penalty)
"""
WRONG = [
    ('Automagic_CameAMP(p, weight_decy=0.1)', "weight_decy"),
    ('Automagic_CameAMP(p, use_tma=False)', "use_tma"),
    ('Automagic_CameAMP(p, techniques={"tma": False})', "BaseTechniques"),
    ('Automagic_CameAMP(p, use_spd=False)', "use_spd"),
    ('Automagic_CameAMP(p, engine="nativ")', "nativ"),
    ('Automagic_CameAMP(p, warmup_steps="many")', "warmup_steps"),
    ('Automagic_CameAMP(p, enable_cache=True)', "enable_cache"),
]  # fmt: skip


def test_a_type_checker_knows_every_option(tmp_path: Path) -> None:
    """One run: what is right passes, each misspelling is an error in its line, types are shown."""
    right = PROGRAM.count("\n")
    (tmp_path / "program.py").write_text(PROGRAM + "\n".join(line for line, _ in WRONG) + "\n")
    source = str(Path(aliases.__file__).parents[1])
    (tmp_path / "pyrightconfig.json").write_text(json.dumps({"extraPaths": [source]}))
    command = [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable, "-p"]
    done = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True, cwd=tmp_path)
    if not done.stdout.startswith("{"):
        pytest.skip(f"pyright does not run here: {(done.stdout + done.stderr)[:200]}")
    found = json.loads(done.stdout)["generalDiagnostics"]
    errors = {d["range"]["start"]["line"]: d["message"] for d in found if d["severity"] == "error"}
    assert errors.keys() == set(range(right, right + len(WRONG))), errors
    for number, (_, word) in enumerate(WRONG, right):
        assert word in errors[number]
    shown = [d["message"] for d in found if d["severity"] == "information"]
    assert "edge_penalty: float = 0.1" in shown[0] and "optim_bits: Literal[4, 8, 32] = 8" in shown[0]
    assert 'is "float"' in shown[1]


def test_one_word_has_one_meaning() -> None:
    """Options of the same name say, check and start alike, but for blocks and codes of a class's own."""
    meanings: dict[str, set[tuple[str, str]]] = {}
    for config in CONFIGS:
        for f in dataclasses.fields(config):
            default = "" if f.name in ("blocksize", "state_code") else repr(aliases.default_of(f))
            meanings.setdefault(f.name, set()).add((f.metadata["doc"], default))
    assert {name: m for name, m in meanings.items() if len(m) > 1} == {}
    assert not meanings.keys() & aliases.DEAD.keys() - {"adaptation_rate"}
    dead = aliases.DEAD["adaptation_rate"].owners
    assert dead == ("Improved8BitOptimizerConfig",) and "controller" in aliases.DEAD["adaptation_rate"].reason


# ---------------------------------------------------------------- techniques


@pytest.mark.parametrize(
    "words",
    [
        "-tam,+agr,final_clip:0.5",
        " agr , -tam, final_clip: 0.5 ",
        ["-tam", "agr", "final_clip:0.5"],
        {"tam": False, "agr": True, "final_clip": 0.5},
    ],
)
def test_techniques_are_said_in_words_or_in_a_mapping(words: Any) -> None:
    wanted = OptimizerConfig(use_tam=False, use_agr=True, final_clip=0.5)  # type: ignore[call-arg]
    assert Automagic_CameAMP(one(), techniques=words).config == wanted == OptimizerConfig(techniques=words)
    group = Automagic_CameAMP([{"params": one(), "techniques": words}]).param_groups[0]
    assert not group["use_tam"] and group["use_agr"] and "techniques" not in group
    config = OptimizerConfig()
    config.techniques = words  # type: ignore[misc]
    assert Automagic_CameAMP(one(), **config.__dict__).config == wanted


def test_techniques_on_a_command_line() -> None:
    for line in ("techniques=-tam,+agr,final_clip:0.5", "techniques='-tam,+agr,final_clip:0.5'",
                 "techniques={'tam': False, 'agr': True, 'final_clip': 0.5}"):  # fmt: skip
        made: Any = factory.build_optimizer("Automagic_CameAMP", one(), [line])
        assert made.config == OptimizerConfig(techniques="-tam,+agr,final_clip:0.5")
        assert line.count("=") == 1  # trainers split at it


def test_every_technique_can_be_set_by_its_word() -> None:
    for name, cls in OPTIMIZERS.items():
        config: Any = cls.config_class
        words = {word: aliases.default_of(f) for word, f in aliases.settings(config).items()}
        made: Any = cls(one(), techniques=words)  # type: ignore[call-arg]
        assert made.config == config(), name


@pytest.mark.parametrize(
    ("words", "kind", "message"),
    [
        ("tma", TypeError, "no technique 'tma'. Did you mean 'tam'"),
        ("+use_tam", TypeError, "Did you mean 'tam'"),
        ({3: True}, TypeError, "no technique 3. Known: lr_bump"),
        ("-final_clip", ValueError, "final_clip=False is not allowed: a number"),
        ("tam_granularity", ValueError, "tam_granularity=True is not allowed: one of 'tensor', 'row'"),
        ("-tam:row", ValueError, "techniques='-tam:row' is not allowed: words such as"),
        ("+", ValueError, "techniques='[+]' is not allowed"),
        (5, ValueError, "techniques=5 is not allowed: a mapping, or words"),
        ([1], ValueError, "techniques=.1. is not allowed"),
        ("spd", TypeError, "Automagic_CameAMP has no technique 'spd'"),
    ],
)
def test_what_is_no_technique_is_refused(words: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        Automagic_CameAMP(one(), techniques=words)


def test_techniques_win_over_a_default_and_contradict_nothing() -> None:
    given = {**OptimizerConfig().__dict__, "techniques": "-tam"}
    assert Automagic_CameAMP(one(), **given).config.use_tam is False
    with pytest.raises(TypeError, match="got use_agr=True, and techniques says False. Keep one"):
        Automagic_CameAMP(one(), use_agr=True, techniques="-agr")
    with pytest.raises(TypeError, match=r"'agr': it is a technique. Write techniques=\{'agr': True\}"):
        Automagic_CameAMP(one(), agr=True)  # type: ignore[call-arg]
    profile: dict[str, Any] = {"profile": "memory_optimized", "techniques": "lr_mask_granularity:element"}
    made: Any = factory.build_optimizer("Automagic_CameAMP_Improved_8Bit", one(), profile)
    assert made.config.lr_mask_granularity == "element"


def test_names_of_another_class_say_whose_they_are() -> None:
    for name in ("use_spd", "enable_cache", "force_8bit"):
        with pytest.raises(TypeError, match=f"no option '{name}': it is one of Automagic_CameAMP_"):
            Automagic_CameAMP(one(), **{name: True})  # type: ignore[arg-type]


def test_a_group_may_have_older_names_too() -> None:
    group = Automagic_CameAMP_Improved([{"params": one(), "came_enabled": False}]).param_groups[0]
    assert group["came"] is False and "came_enabled" not in group
    aliases._said.discard("enable_cache")
    with pytest.warns(UserWarning, match="enable_cache=False has no effect"):
        held = Automagic_CameAMP_Improved([{"params": one(), "enable_cache": False}]).param_groups[0]
    assert "enable_cache" not in held
    assert configs.in_group({"min_lr": 1.0}) == {"lr_floor": 1.0}


def test_a_checkpoint_with_an_option_that_is_gone_loads() -> None:
    """Groups of ``Improved_8Bit`` held ``adaptation_rate`` once."""
    cls: Any = OPTIMIZERS["Automagic_CameAMP_Improved_8Bit"]
    saved = cls(one(), lr=3e-4).state_dict()
    saved["param_groups"][0]["adaptation_rate"] = 0.1
    again = cls(one())
    again.load_state_dict(saved)
    assert again.param_groups[0]["lr"] == 3e-4 and "adaptation_rate" not in again.param_groups[0]
