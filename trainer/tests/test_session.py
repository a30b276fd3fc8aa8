"""The demo from end to end: what it writes, and that the saved LoRA draws the pictures again."""

from __future__ import annotations

import json
import re
import xml.dom.minidom
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from PIL import Image
from safetensors.torch import load_file

from automagic_cameamp import cli
from automagic_trainer import diffusion, gallery, text
from automagic_trainer.data import load_shipped
from automagic_trainer.demo import demo_session
from automagic_trainer.errors import UserError
from automagic_trainer.gallery import Drawing, Gallery, draw, write_grid, write_sheet
from automagic_trainer.model import add_lora, load_adapter, load_base, save_adapter
from automagic_trainer.presets import DEMO_OPTIMIZERS, QUICK_OPTIMIZERS
from once import once

PROMPT = "cat face with sunglasses"


def picture_in(file: Path) -> np.ndarray:
    with Image.open(file) as opened:
        return np.asarray(opened.convert("RGB"))


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished demo of three steps, through the command line."""

    def run(folder: Path) -> None:
        torch.manual_seed(0)
        out = str(folder / "run")
        code = cli.main(
            ["demo", "--quick", "--steps", "3", "--out", out, "--prompt", PROMPT, "--threads", "1"]
        )
        assert code == 0

    return once(tmp_path_factory, "demo", run) / "run"


def test_the_demo_writes_everything(demo: Path) -> None:
    files = {p.name for p in demo.iterdir()}
    assert files == {
        "samples.png",
        "report.html",
        "metrics.jsonl",
        "session.json",
        "adapter.safetensors",
        "adapter_config.json",
        "adapters",
        "checkpoints",
    }
    assert {p.name for p in (demo / "adapters").iterdir()} == set(QUICK_OPTIMIZERS)
    rows = [json.loads(line) for line in (demo / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(r["optimizer"], r["step"]) for r in rows] == [(o, s) for o in QUICK_OPTIMIZERS for s in range(4)]
    starts = [row["held_out"] for row in rows if row["step"] == 0]
    assert len(set(starts)) == 1, "all start from the same LoRA"
    firsts = [row["loss"] for row in rows if row["step"] == 1]
    assert len(set(firsts)) == 1, "all see the same pictures and noise"


def test_the_adapter_draws_the_demos_pictures_again(demo: Path) -> None:
    """Through the file, through the PEFT folder, and through PEFT's own loader: bit for bit."""
    session = json.loads((demo / "session.json").read_text(encoding="utf-8"))
    how = Drawing(**session["drawing"])
    captions = [*load_shipped("cats").captions, PROMPT]
    last = QUICK_OPTIMIZERS[-1]
    drawn = draw(demo / "adapter.safetensors", captions, how)
    assert np.array_equal(drawn, draw(demo / "adapters" / last, captions, how))
    assert not np.array_equal(drawn, draw(None, captions, how))

    model = PeftModel.from_pretrained(load_base(), str(demo / "adapters" / last))  # pyright: ignore
    words = text.encode(["", *captions])
    again = diffusion.sample(
        diffusion.denoiser(model.eval()), words[1:], words[:1], seed=0, steps=how.steps, guidance=how.guidance
    )
    assert np.array_equal(drawn, again)
    # and they are the pictures of the sheet: the last row of samples.png holds them, three times enlarged
    sheet = picture_in(demo / "samples.png")
    top = 74 + (1 + len(session["runs"])) * 108
    for i, picture in enumerate(drawn):
        left = 28 + 190 + i * 108
        assert np.array_equal(sheet[top : top + 96 : 3, left : left + 96 : 3], picture), captions[i]


def test_sample_draws_them_again_too(demo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    captions, out = load_shipped("cats").captions[:2], tmp_path / "new" / "x.png"
    adapter = str(demo / "adapter.safetensors")
    code = cli.main(
        ["sample", "--adapter", adapter, "--prompt", *captions, "--out", str(out), "--steps", "4"]
    )
    assert code == 0
    assert capsys.readouterr().out.strip() == str(out)
    expected = draw(demo / "adapter.safetensors", captions, Drawing(steps=4))
    sheet = picture_in(out)
    for i, picture in enumerate(expected):
        left = 16 + i * (256 + 16)
        assert np.array_equal(sheet[16 : 16 + 256 : 8, left : left + 256 : 8], picture)


class Page(HTMLParser):
    """Collects what a browser would load, and checks that the tags nest."""

    VOID = {"meta", "img", "br", "hr", "link", "input", "wbr"}

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.images: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        values = dict(attrs)
        self.loads += [values[k] or "" for k in ("src", "href", "xlink:href") if k in values]
        if tag == "img":
            self.images.append(values["alt"] or "")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_report_is_one_whole_page_that_needs_no_network(demo: Path) -> None:
    source = (demo / "report.html").read_text(encoding="utf-8")
    page = Page()
    page.feed(source)
    assert page.open == []
    assert all(load.startswith(("data:image/png;base64,", "#")) for load in page.loads)
    assert not page.tags & {"script", "link", "iframe"}
    assert not re.search(r"url\((?!#)|@import", source)
    assert "<!--" not in source.split("<svg")[0], "a placeholder was left"
    assert 'name="viewport"' in source and "prefers-color-scheme: dark" in source
    # nine cats with a target, one prompt without; before and two after
    assert len(page.images) == 9 * 4 + 3
    assert f"before: {PROMPT}" in page.images and f"target: {PROMPT}" not in page.images
    for optimizer in QUICK_OPTIMIZERS:
        assert optimizer in source
    assert f"{torch.__version__}".split("+")[0] in source
    for svg in re.findall(r"<svg.*?</svg>", source, re.S):
        xml.dom.minidom.parseString(svg)
        assert "currentColor" in svg and "#010203" not in svg
    assert source.count("<svg") == 2


def test_words_of_the_user_are_escaped_in_the_report(demo: Path, tmp_path: Path) -> None:
    from automagic_trainer.report import _card

    pictures = np.zeros((1, 32, 32, 3), dtype=np.uint8)
    card = _card(Gallery(['<b>"x" & y'], [None], [("before", pictures)]), 0)
    assert "<b>" not in card and "&lt;b&gt;&quot;x&quot; &amp; y" in card


def test_more_pictures_than_one_pass_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture's noise is named by its place, whatever the size of the pass."""
    seen: list[torch.Tensor] = []

    def sample(denoise: object, words: text.TextEmbeddings, empty: object, **options: int) -> np.ndarray:
        seen.append(torch.tensor([options["first"], len(words), options["seed"]]))
        return np.zeros((len(words), 32, 32, 3), dtype=np.uint8)

    monkeypatch.setattr(diffusion, "sample", sample)
    drawn = draw(None, ["a"] * 20, Drawing(seed=5, steps=1))
    assert len(drawn) == 20
    assert [s.tolist() for s in seen] == [[0, 16, 5], [16, 4, 5]]


def test_adapters_that_do_not_fit_are_refused(demo: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is missing"):
        load_adapter(load_base(), tmp_path / "none.safetensors")
    with pytest.raises(UserError, match="is missing"):
        load_adapter(load_base(), tmp_path)
    (tmp_path / "adapter_config.json").write_bytes((demo / "adapter_config.json").read_bytes())
    (tmp_path / "bad.safetensors").write_bytes(b"nothing")
    with pytest.raises(UserError, match="not a readable adapter"):
        load_adapter(load_base(), tmp_path / "bad.safetensors")
    from safetensors.torch import save_file

    weights = load_file(str(demo / "adapter.safetensors"))
    name = sorted(weights)[0]
    save_file({k: v for k, v in weights.items() if k != name}, str(tmp_path / "part.safetensors"))
    with pytest.raises(UserError, match="does not fit"):
        load_adapter(load_base(), tmp_path / "part.safetensors")
    save_file({k: v[:1].contiguous() for k, v in weights.items()}, str(tmp_path / "shape.safetensors"))
    with pytest.raises(UserError, match="does not fit") as error:
        load_adapter(load_base(), tmp_path / "shape.safetensors")
    assert "\n" not in str(error.value)
    (tmp_path / "adapter_config.json").write_text("{}", "utf-8")
    with pytest.raises(UserError, match="not a readable adapter: .*names no target_modules"):
        load_adapter(load_base(), tmp_path / "shape.safetensors")


def test_a_saved_adapter_holds_what_was_trained(tmp_path: Path) -> None:
    model = add_lora(load_base(), 2, seed=0)
    for p in model.parameters():
        if p.requires_grad:
            p.data.normal_()
    save_adapter(model, tmp_path)
    again = load_adapter(load_base(), tmp_path)
    trained = {k: v for k, v in model.state_dict().items() if "lora_" in k}
    loaded = {k: v for k, v in again.state_dict().items() if "lora_" in k}
    assert trained.keys() == loaded.keys()
    assert all(torch.equal(trained[k], loaded[k]) for k in trained)
    config = json.loads((tmp_path / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["r"] == 2 and config["peft_type"] == "LORA"


def test_sheets_and_grids_hold_the_pictures(tmp_path: Path) -> None:
    pictures = np.random.default_rng(0).integers(0, 255, (5, 32, 32, 3), dtype=np.uint8)
    captions = [f"a caption that is long enough to break {i}" for i in range(5)]
    targets = [*pictures[:4], None]
    shown = Gallery(captions, targets, [("before", pictures), ("after X", pictures)])
    write_sheet(shown, tmp_path / "s.png", "Title", scale=1)
    sheet = picture_in(tmp_path / "s.png")
    for row in range(3):
        for i, picture in enumerate(pictures):
            y, x = 74 + row * 44, 28 + 190 + i * 44
            hit = np.array_equal(sheet[y : y + 32, x : x + 32], picture)
            assert hit == (not (row == 0 and i == 4))
    write_grid(pictures, captions, tmp_path / "g.png", scale=2)
    assert picture_in(tmp_path / "g.png").shape[1] == 16 + 4 * 80


def test_targets_of_a_large_set_are_spread() -> None:
    base = load_shipped("base")
    chosen = gallery.chosen_targets(base)
    assert len(chosen) == len(set(chosen)) == 9
    assert (chosen[0], chosen[-1]) == (0, len(base) - 1)


def test_the_default_demo_compares_ours_with_adamw() -> None:
    session = demo_session("somewhere")
    assert tuple(session.labels) == DEMO_OPTIMIZERS
    first = session.runs[0]
    for run in session.runs:
        assert (run.seed, run.batch, run.steps, run.data, run.rank) == (
            first.seed,
            first.batch,
            first.steps,
            "cats",
            8,
        )
