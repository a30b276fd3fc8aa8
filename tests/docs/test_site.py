"""The site: every page is in it, nothing is fetched from elsewhere, and where mkdocs is, it builds."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import automagic_cameamp as ac

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def site() -> ModuleType:
    spec = importlib.util.spec_from_file_location("site_script", ROOT / "scripts" / "site.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_page_is_in_the_navigation(site: ModuleType) -> None:
    nav = (ROOT / "mkdocs.yml").read_text("utf-8").split("\nnav:")[1]
    named = set(re.findall(r": ([\w./-]+\.md)$", nav, re.M))
    pages = {*site.PAGES, *(p.relative_to(ROOT).as_posix() for p in (ROOT / "docs").rglob("*.md"))}
    assert named == pages | {f"reference/{name}.md" for name in site.reference()}


def test_the_reference_has_every_public_name_and_option(site: ModuleType) -> None:
    text = "\n".join(site.reference().values())
    assert site.public() == [name for name in ac.__all__ if name != "__version__"]
    missing = [
        n
        for n in ac.__all__
        if n not in text and n not in ("OPTIMIZERS", "BITSANDBYTES_AVAILABLE", "__version__")
    ]
    assert not missing
    tables = site.tables()
    for name, cls in ac.OPTIMIZERS.items():
        shown = set(re.findall(r"^\| `(\w+)`", tables["shared"] + "\n" + tables[name], re.M))
        assert shown == {f.name for f in dataclasses.fields(cls.config_class)}, name  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ('<script src="https://cdn.example/x.js">', 1),
        ('<link rel="stylesheet" href="//fonts.example/x.css">', 1),
        ('<link href="https://fonts.example" rel="preconnect">', 1),
        ("<img alt=x src=https://example/x.png>", 1),
        ("@font-face{src:url(https://example/x.woff)}", 1),
        ('<a href="https://example/">x</a><script src="assets/x.js"><img src="../x.png">', 0),
        ('<link rel="canonical" href="https://example/">', 0),
    ],
)
def test_what_is_fetched_from_elsewhere_is_seen(
    site: ModuleType, tmp_path: Path, text: str, count: int
) -> None:
    (tmp_path / "x.html").write_text(text, "utf-8")
    assert len(list(site.fetched(tmp_path))) == count


def test_it_builds() -> None:
    for module in ("mkdocs", "material", "mkdocstrings", "latex2mathml", "jieba"):
        pytest.importorskip(module)
    command = [sys.executable, str(ROOT / "scripts" / "site.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stderr
    assert "no request leaves it" in done.stdout
    page = (ROOT / "site" / "docs" / "checkpoints" / "index.html").read_text("utf-8")
    assert "<math " in page and "arithmatex" not in page
    chinese = (ROOT / "site" / "README.zh-TW" / "index.html").read_text("utf-8")
    assert '<html lang="zh-TW"' in chinese
