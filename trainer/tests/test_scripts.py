"""The two scripts that made the shipped files still run."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from automagic_trainer.data import PictureSet, load_shipped
from automagic_trainer.model import BASE_CONFIG, new_unet

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"


def script(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(sys, "path", list(sys.path))  # the script adds src
    spec = importlib.util.spec_from_file_location(f"script_{name}", SCRIPTS / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_train_base_learns_and_saves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train_base = script("train_base", monkeypatch)
    rows = [0, 1, 120]

    def few(split: str) -> PictureSet:
        data = load_shipped(split)
        names = [data.captions[i] for i in rows], [data.groups[i] for i in rows]
        return PictureSet(split, data.pictures[rows], *names)

    monkeypatch.setattr(
        train_base, "load_shipped", lambda split: few(split) if split == "base" else few("base")
    )
    cache = tmp_path / "captions.safetensors"
    monkeypatch.setattr(sys, "argv", ["train_base.py", "--embed", str(cache)])
    train_base.main()
    assert cache.is_file() and not (tmp_path / "emoji-base.json").exists()
    line = f"train_base.py --embeddings {cache} --steps 3 --batch 4 --out {tmp_path} --device cpu"
    monkeypatch.setattr(sys, "argv", line.split())
    train_base.main()
    weights = load_file(str(tmp_path / "emoji-base.safetensors"))
    assert {v.dtype for v in weights.values()} == {torch.float16}
    config = json.loads((tmp_path / "emoji-base.json").read_text(encoding="utf-8"))
    assert config["unet"] == BASE_CONFIG and config["result"]["step"] == config["trained_with"]["steps"] == 3
    new_unet(config["unet"]).load_state_dict(weights)


def test_train_base_draws_faces_more_often(monkeypatch: pytest.MonkeyPatch) -> None:
    train_base = script("train_base", monkeypatch)
    data = load_shipped("base")

    class Args:
        face_share, batch, seed = 0.55, 64, 0

    picked = torch.cat([train_base.pick(data, Args, step) for step in range(60)]).tolist()
    share = sum(data.groups[i] == "face" for i in picked) / len(picked)
    assert 0.5 < share < 0.6


def test_make_emoji_renders_and_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the font: what is drawn is a stand-in, what is chosen and how it is named is real."""
    make_emoji = script("make_emoji", monkeypatch)
    assert make_emoji.caption(0x1F600) == "grinning face"
    assert make_emoji.caption(0x2600) == "sun"
    assert make_emoji.caption(0x0378) is None

    def render(code: int, font: Any) -> Image.Image:
        return Image.new("RGB", (32, 32), (code & 255, 0, 0))

    monkeypatch.setattr(make_emoji, "render", render)
    rows = [row for row, _ in make_emoji.collect(None)]
    shipped = [*load_shipped("base").captions, *load_shipped("cats").captions]
    assert [row["caption"] for row in rows] == shipped
    assert [row["index"] for row in rows] == list(range(len(rows)))


def test_make_emoji_keeps_the_whole_licence(monkeypatch: pytest.MonkeyPatch) -> None:
    make_emoji = script("make_emoji", monkeypatch)
    copyright_file = "License:   Apache-2.0\n no\n\nLicense:   SIL-1.1\n First line.\n .\n  Second.\n"
    text = make_emoji.licence(copyright_file)
    assert text.endswith("First line.\n\n Second.\n") and "no" not in text.split("\n")
    assert text.startswith("The pictures in emoji.png are renderings of the font Noto Color Emoji")
