"""Pictures and captions, shipped and of the user's own."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from automagic_trainer.data import load, load_folder, load_shipped, read_picture
from automagic_trainer.diffusion import to_latents, to_pictures
from automagic_trainer.errors import UserError
from automagic_trainer.model import asset


def test_shipped_sets() -> None:
    cats, base = load_shipped("cats"), load_shipped("base")
    assert len(cats) == 9
    assert all("cat" in caption.split() for caption in cats.captions)
    assert not any("cat" in caption.split() for caption in base.captions)
    assert len(base) > 300
    assert sum(group == "face" for group in base.groups) >= 60
    for data in (cats, base):
        assert data.pictures.shape == (len(data), 32, 32, 3)
        assert data.pictures.dtype == np.uint8
        assert len(set(data.captions)) == len(data)
        # every picture shows something: a white ground and something else on it
        assert (data.pictures.reshape(len(data), -1).std(1) > 10).all()
        assert all((picture[0, 0] > 200).all() for picture in data.pictures)


def test_shipped_files_are_small_and_licensed() -> None:
    assert len(asset("emoji.png").read_bytes()) < 1_000_000
    assert len(asset("emoji-base.safetensors").read_bytes()) < 6_000_000
    licence = asset("OFL.txt").read_text(encoding="utf-8")
    assert "SIL OPEN FONT LICENSE Version 1.1" in licence
    assert "Copyright 2013-2017 Google Inc." in licence
    config = json.loads(asset("emoji-base.json").read_text(encoding="utf-8"))
    assert config["result"]["step"] == config["trained_with"]["steps"]


def test_pictures_survive_the_way_into_the_model_and_back() -> None:
    pictures = load_shipped("cats").pictures
    latents = to_latents(pictures)
    assert latents.shape == (9, 12, 16, 16)
    assert latents.dtype == torch.float32
    assert latents.abs().max() <= 1
    assert np.array_equal(to_pictures(latents), pictures)


def test_text_files(folder: Path) -> None:
    (folder / "notes.md").write_text("not a picture", encoding="utf-8")
    data = load(folder)
    assert data.captions == ["a blue square", "a red square"]
    assert (data.pictures[0] == (30, 30, 220)).all()
    assert (data.pictures[1] == (220, 30, 30)).all()


@pytest.mark.parametrize("name", ["captions.csv", "metadata.csv"])
@pytest.mark.parametrize("head", ["file,caption", "file_name,text", " file , caption "])
def test_csv(folder: Path, name: str, head: str) -> None:
    (folder / name).write_text(f'{head}\nred.png,"red, and square"\n', encoding="utf-8-sig")
    assert load_folder(folder).captions == ["red, and square"]


def test_jsonl(folder: Path) -> None:
    lines = ['{"file": "red.png", "caption": "rouge"}', "", '{"file_name": "blue.png", "text": "bleu  ciel"}']
    (folder / "captions.jsonl").write_text("\n".join(lines), encoding="utf-8")
    assert load_folder(folder).captions == ["rouge", "bleu ciel"]


def test_any_picture_becomes_a_whole_square_on_white(tmp_path: Path) -> None:
    file = tmp_path / "wide.png"
    Image.new("RGBA", (64, 32), (255, 0, 0, 255)).save(file)
    wide = read_picture(file)
    assert wide.shape == (32, 32, 3)
    assert (wide[:8] == 255).all() and (wide[24:] == 255).all()
    assert (wide[8:24] == (255, 0, 0)).all()
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(file)
    assert (read_picture(file) == 255).all()
    Image.new("L", (1, 300), 0).save(file)
    assert (read_picture(file)[:, 15:17] == 0).any()


def break_folder(folder: Path, how: str) -> None:
    if how == "empty":
        for file in folder.iterdir():
            file.unlink()
    elif how == "no caption":
        (folder / "red.txt").unlink()
    elif how == "no captions":
        (folder / "red.txt").unlink()
        (folder / "blue.txt").unlink()
    elif how == "blank caption":
        (folder / "red.txt").write_text(" \n", encoding="utf-8")
    elif how == "not utf-8":
        (folder / "red.txt").write_bytes(b"\xff\xff")
    elif how == "not a picture":
        (folder / "red.png").write_bytes(b"hello")
    elif how == "truncated picture":
        whole = (folder / "red.png").read_bytes()
        (folder / "red.png").write_bytes(whole[: len(whole) // 2])
    elif how == "missing picture":
        (folder / "captions.csv").write_text("file,caption\ngreen.png,x\n", encoding="utf-8")
    elif how == "other columns":
        (folder / "captions.csv").write_text("a,b\nred.png,x\n", encoding="utf-8")
    elif how == "empty sheet":
        (folder / "captions.csv").write_text("file,caption\n", encoding="utf-8")
    elif how == "not json":
        (folder / "captions.jsonl").write_text("{file}", encoding="utf-8")
    elif how == "not an object":
        (folder / "captions.jsonl").write_text("[1]", encoding="utf-8")
    elif how == "two sheets":
        (folder / "captions.jsonl").write_text("{}", encoding="utf-8")
        (folder / "captions.csv").write_text("", encoding="utf-8")


PROBLEMS = {
    "empty": ["no pictures", ".png"],
    "no caption": ["no caption for red.png", "red.txt", "captions.csv"],
    "no captions": ["blue.png and 1 more"],
    "blank caption": ["red.txt", "empty"],
    "not utf-8": ["cannot read", "red.txt"],
    "not a picture": ["red.png", "not a picture"],
    "truncated picture": ["cannot read the picture", "red.png"],
    "missing picture": ["captions.csv:2", "green.png", "does not exist"],
    "other columns": ["captions.csv:2", "file and caption", "a, b"],
    "empty sheet": ["captions.csv lists no pictures"],
    "not json": ["captions.jsonl:1", "not JSON"],
    "not an object": ["captions.jsonl:1", "object"],
    "two sheets": ["captions.csv", "captions.jsonl", "keep one"],
}


@pytest.mark.parametrize("how", PROBLEMS)
def test_bad_folders_are_explained_in_one_line(folder: Path, how: str) -> None:
    break_folder(folder, how)
    with pytest.raises(UserError) as error:
        load_folder(folder)
    for word in PROBLEMS[how]:
        assert word in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_folder_names_the_shipped_sets(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cats"):
        load(tmp_path / "nowhere")
