"""Optimizers by name, and their arguments from the command line."""

from __future__ import annotations

import sys
import types

import pytest
import torch

from automagic_cameamp import OPTIMIZERS
from automagic_cameamp.factory import (
    OptimizerArgumentError,
    build_optimizer,
    list_optimizers,
    parse_optimizer_args,
    resolve_optimizer,
)


def params() -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(torch.ones(4, 4))]


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("profile=balanced", "profile", "balanced"),
        ("profile='balanced'", "profile", "balanced"),
        ('profile="balanced"', "profile", "balanced"),
        ("lr=1e-4", "lr", 1e-4),
        ("warmup_steps=100", "warmup_steps", 100),
        ("warmup-steps=100", "warmup_steps", 100),
        ("betas=0.9,0.99", "betas", (0.9, 0.99)),
        ("betas=(0.9,0.99)", "betas", (0.9, 0.99)),
        ("betas=[0.9, 0.99]", "betas", [0.9, 0.99]),
        ("verbose=True", "verbose", True),
        ("verbose=true", "verbose", True),
        ("verbose=FALSE", "verbose", False),
        ("max_lr=None", "max_lr", None),
        ("max_lr=none", "max_lr", None),
        ("path=a=b", "path", "a=b"),
        ("eps=-1", "eps", -1),
        ("name=two words", "name", "two words"),
        ("name='True'", "name", "True"),
    ],
)
def test_arguments_parse(text: str, key: str, value: object) -> None:
    parsed = parse_optimizer_args([text])
    assert parsed == {key: value}
    assert type(parsed[key]) is type(value)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["lr"], ["'lr'", "key=value"]),
        (["=1"], ["not a name"]),
        (["two words=1"], ["not a name"]),
        (["lr="], ["no value", "lr=value"]),
        (["lr=1", "lr=2"], ["'lr'", "twice"]),
    ],
)
def test_bad_arguments_say_how_to_write_them(args: list[str], words: list[str]) -> None:
    with pytest.raises(OptimizerArgumentError) as error:
        parse_optimizer_args(args)
    for word in words:
        assert word in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["adamw", "AdamW", "ADAMW", " AdamW ", "torch.optim.AdamW"])
def test_torch_names(name: str) -> None:
    assert resolve_optimizer(name) is torch.optim.AdamW


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_our_names_in_any_case(name: str) -> None:
    assert resolve_optimizer(name) is OPTIMIZERS[name]
    assert resolve_optimizer(name.lower()) is OPTIMIZERS[name]
    assert resolve_optimizer(f"automagic_cameamp.{name}") is OPTIMIZERS[name]


def test_dotted_path_and_the_module_named_optim_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    class Mine(torch.optim.SGD):
        pass

    outer, inner = types.ModuleType("someones"), types.ModuleType("someones.optim")
    outer.optim, inner.Mine = inner, Mine  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "someones", outer)
    monkeypatch.setitem(sys.modules, "someones.optim", inner)
    assert resolve_optimizer("someones.optim.Mine") is Mine
    assert resolve_optimizer("someones.Mine") is Mine


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("AdamV", ["'AdamV'", "AdamW"]),
        ("Automagic_CamAMP8bit", ["Automagic_CameAMP8bit"]),
        ("AdamW8bit", ["bitsandbytes.AdamW8bit"]),
        ("zzzzzz", ["automagic optimizers"]),
        ("", ["must be a name"]),
        ("no_such_module.Thing", ["no_such_module", "install"]),
        ("torch.optim.AdamV", ["AdamW"]),
        ("torch.nn.Linear", ["holds no torch optimizer"]),
        ("torch.optim.lr_scheduler", ["holds no torch optimizer"]),
    ],
)
def test_unknown_names_are_explained(name: str, words: list[str]) -> None:
    with pytest.raises(OptimizerArgumentError) as error:
        resolve_optimizer(name)
    for word in words:
        assert word in str(error.value)
    assert "\n" not in str(error.value)


def test_build_takes_words_or_a_mapping_and_defaults_lose() -> None:
    by_words = build_optimizer("adamw", params(), ["lr=0.5", "betas=0.8,0.9"], lr=0.1)
    by_mapping = build_optimizer("adamw", params(), {"lr": 0.5, "betas": (0.8, 0.9)}, lr=0.1)
    by_text = build_optimizer("adamw", params(), {"lr": "0.5", "betas": "0.8,0.9", "amsgrad": "False"})
    for optimizer in (by_words, by_mapping, by_text):
        assert optimizer.param_groups[0]["lr"] == 0.5
        assert optimizer.param_groups[0]["betas"] == (0.8, 0.9)
    assert build_optimizer("SGD", params(), lr=0.1).param_groups[0]["lr"] == 0.1


def test_a_class_is_named_once() -> None:
    with pytest.raises(OptimizerArgumentError, match=r"^Automagic_CameAMP8bit has no option 'warmup'"):
        build_optimizer("Automagic_CameAMP8bit", params(), ["warmup=5"])
    with pytest.raises(OptimizerArgumentError, match=r"^Automagic_CameAMP8bit: lr=-1 is not allowed"):
        build_optimizer("Automagic_CameAMP8bit", params(), ["lr=-1"])


@pytest.mark.parametrize(
    ("name", "args", "words"),
    [
        ("AdamW", ["beta=0.9,0.99"], ["'beta'", "betas"]),
        ("AdamW", ["lr=-1"], ["AdamW", "-1"]),
        ("Automagic_CameAMP", ["lr=-1"], ["Automagic_CameAMP", "lr"]),
        ("Automagic_CameAMP", ["beta=3"], ["beta"]),
    ],
)
def test_impossible_arguments_name_the_class(name: str, args: list[str], words: list[str]) -> None:
    with pytest.raises(OptimizerArgumentError) as error:
        build_optimizer(name, params(), args)
    for word in words:
        assert word in str(error.value)
    assert "\n" not in str(error.value)


def test_every_listed_name_resolves_and_has_a_summary() -> None:
    rows = list_optimizers()
    assert {row.name for row in rows} >= {"AdamW", "SGD", *OPTIMIZERS}
    for row in rows:
        assert resolve_optimizer(row.name).__name__ == row.name
    assert all(row.summary for row in rows if row.name in OPTIMIZERS)


@pytest.mark.parametrize("name", [".", ".adamw", "..", "torch..AdamW"])
def test_a_path_with_empty_parts_is_refused_in_words(name: str) -> None:
    with pytest.raises(OptimizerArgumentError, match="optimizer '.*': (cannot import|.* has no )"):
        resolve_optimizer(name)
