"""Pictures of the documentation show the committed rows."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from benchmarks.rows import Rows

from benchmarks import memory_picture


def described(path: Path) -> str:
    image = pytest.importorskip("PIL.Image")
    with image.open(path) as picture:
        return str(picture.info["Description"])


def test_the_memory_picture_is_of_the_rows(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    shown = memory_picture.bars(Rows())
    assert described(memory_picture.PICTURE) == memory_picture.digest(shown), (
        "run: python -m benchmarks.memory_picture"
    )
    first = next(iter(shown.values()))
    assert all(sum(bar.parts) >= bar.peak - 0.02 for bar in first)
    changed = {**shown, "sdxl": [first[0]._replace(peak=1.0), *first[1:]]}
    memory_picture.draw(changed, tmp_path / "new.png")
    assert described(tmp_path / "new.png") != described(memory_picture.PICTURE)


@pytest.mark.parametrize("name", ["README.md", "README.zh-TW.md"])
def test_what_the_readme_says_of_it(name: str) -> None:
    alt = re.search(
        r"!\[([^\]]*)\]\(docs/images/memory\.png\)", (memory_picture.ROOT / name).read_text("utf-8")
    )
    assert alt
    sdxl, flux = memory_picture.bars(Rows()).values()
    ours = [bar.peak for bar in sdxl if bar.name in memory_picture.OURS]
    others = [bar.peak for bar in sdxl[:3]]
    wanted = [*others, min(ours), max(ours), min(b.peak for b in flux), max(b.peak for b in flux)]
    assert re.findall(r"\d+\.\d", alt[1]) == [f"{x:.1f}" for x in wanted]
