"""The options of a run: types, limits, TOML, schedules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from automagic_trainer.errors import UserError
from automagic_trainer.settings import HELP, TrainSettings, build, lr_factor, read_toml


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"step": 3}, ["'step'", "steps"]),
        ({"optimiser": "AdamW"}, ["optimizer"]),
        ({"zzzzzzzzz": 1}, ["known keys", "steps"]),
        ({"steps": 0}, ["steps", "0", "from 1"]),
        ({"steps": 2.5}, ["whole number", "2.5"]),
        ({"steps": "many"}, ["whole number", "'many'"]),
        ({"steps": True}, ["whole number", "True"]),
        ({"lr": -1}, ["lr", "-1"]),
        ({"lr": float("nan")}, ["lr", "nan"]),
        ({"clip": float("inf")}, ["clip", "inf"]),
        ({"precision": "fp16"}, ["fp32, bf16", "'fp16'"]),
        ({"schedule": "cosin"}, ["did you mean cosine"]),
        ({"schedule": "warmup"}, ["warmup=50"]),
        ({"warmup": 500, "steps": 100}, ["500", "100"]),
        ({"optimizer": 3}, ["must be text"]),
        ({"optimizer_args": 3}, ["key=value"]),
        ({"optimizer_args": ["lr"]}, ["key=value"]),
        ({"eval-every": 3, "eval_every": 3}, ["twice"]),
        ({"caption_dropout": 1.5}, ["caption_dropout", "1.5", "to 1"]),
    ],
)
def test_bad_values_are_one_line_with_a_way_out(values: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        build(values, "here")
    for word in ["here", *words]:
        assert word in str(error.value)
    assert "\n" not in str(error.value)


def test_good_values() -> None:
    settings = build({"steps": 10.0, "eval-every": 5, "lr": 1, "optimizer_args": ["betas=0.9,0.99"]})
    assert (settings.steps, settings.eval_every, settings.lr) == (10, 5, 1.0)
    assert type(settings.steps) is int
    assert settings.optimizer_args == {"betas": (0.9, 0.99)}
    assert build({"optimizer_args": {"betas": [0.9, 0.99]}}).optimizer_args == {"betas": (0.9, 0.99)}


def test_every_option_has_a_help_text() -> None:
    fields = set(TrainSettings.__dataclass_fields__)
    assert set(HELP) == fields - {"optimizer_args"}


def test_toml(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text('steps = 7\noptimizer = "SGD"\n[optimizer_args]\nmomentum = 0.9\n', encoding="utf-8")
    settings = build(read_toml(file), str(file))
    assert (settings.steps, settings.optimizer, settings.optimizer_args) == (7, "SGD", {"momentum": 0.9})


@pytest.mark.parametrize("key", ["threads", "resume", "overwrite", "config"])
def test_what_only_a_command_line_can_say_is_named_so(key: str) -> None:
    with pytest.raises(UserError, match=f"run.toml: '{key}' belongs on the command line: --{key}"):
        build({key: 1}, "run.toml")


@pytest.mark.parametrize(("content", "word"), [(b"steps = = 3", "TOML"), (b"\xff\xfe", "cannot read")])
def test_bad_toml(tmp_path: Path, content: bytes, word: str) -> None:
    file = tmp_path / "run.toml"
    file.write_bytes(content)
    with pytest.raises(UserError, match=word):
        read_toml(file)
    with pytest.raises(UserError, match="no such file"):
        read_toml(tmp_path / "other.toml")


def test_schedules() -> None:
    constant = build({"steps": 10})
    assert [lr_factor(constant, s) for s in range(10)] == [1.0] * 10
    warm = build({"steps": 10, "schedule": "warmup", "warmup": 4})
    assert [lr_factor(warm, s) for s in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    cosine = build({"steps": 12, "schedule": "cosine", "warmup": 2})
    factors = [lr_factor(cosine, s) for s in range(13)]
    assert factors[:3] == [0.5, 1.0, 1.0]
    assert factors[7] == pytest.approx(0.5)
    assert factors[12] == pytest.approx(0.0, abs=1e-12)
    assert factors[2:] == sorted(factors[2:], reverse=True)
