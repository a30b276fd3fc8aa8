"""Render the small picture set that the trainer ships, from the Noto Color Emoji font.

Writes into trainer/src/automagic_trainer/assets:

* ``emoji.png``    one contact sheet, 32 tiles of 32x32 pixels a row, lossless;
* ``emoji.jsonl``  one line a tile, in the sheet's order: index, split, character, caption;
* ``OFL.txt``      the font's licence (SIL Open Font License 1.1), which covers the pictures.

The captions are the characters' Unicode names (nine of them corrected, see RENAMED). The split "base" is
what ``train_base.py`` learns to draw; "cats" are the nine cat faces of the demo. No picture of a cat is in
"base", so a LoRA really has something to learn.

Users never need this script, nor the font. To run it: ``apt-get install fonts-noto-color-emoji``, then
``python trainer/scripts/make_emoji.py``.
"""

from __future__ import annotations

import argparse
import json
import unicodedata
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

ASSETS = Path(__file__).resolve().parents[1] / "src" / "automagic_trainer" / "assets"
FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
COPYRIGHT = Path("/usr/share/doc/fonts-noto-color-emoji/copyright")
TILE, COLUMNS = 32, 32
STRIKE = 109  # the only bitmap size in the font

CATS = range(0x1F638, 0x1F641)
FACES = [
    *range(0x1F600, 0x1F638), *range(0x1F641, 0x1F645), *range(0x1F910, 0x1F918), *range(0x1F920, 0x1F930),
    *range(0x1F970, 0x1F972), *range(0x1F973, 0x1F977), 0x1F97A, 0x1F9D0, 0x2639, 0x263A,
]  # fmt: skip
OTHERS = [
    # animals, without tigers, leopards and lions
    *range(0x1F400, 0x1F405), *range(0x1F407, 0x1F42F), *range(0x1F430, 0x1F431), *range(0x1F432, 0x1F43D),
    0x1F980, *range(0x1F982, 0x1F9A3), 0x1F577, 0x1F54A,
    # plants and food
    *range(0x1F331, 0x1F338), *range(0x1F339, 0x1F33E), *range(0x1F340, 0x1F342), *range(0x1F344, 0x1F358),
    0x1F359, 0x1F35D, 0x1F35E, 0x1F35F, *range(0x1F366, 0x1F371), 0x1F373, *range(0x1F950, 0x1F957),
    0x1F95A, 0x1F95B, 0x1F95D, 0x1F95E, *range(0x1F965, 0x1F96B), 0x1F96D,
    # sky, parties, music, sport
    0x1F311, 0x1F315, 0x1F319, 0x1F31E, 0x1F31F, 0x1F308, 0x1F525, 0x1F4A7, 0x1F30A, 0x2600, 0x2601, 0x2B50,
    0x26A1, 0x2744, *range(0x1F380, 0x1F38B), 0x1F392, 0x1F393, *range(0x1F3A0, 0x1F3A3), 0x1F3A4,
    *range(0x1F3A7, 0x1F3AB), *range(0x1F3AE, 0x1F3B4), 0x1F3B5, *range(0x1F3B7, 0x1F3BC), 0x1F3BE, 0x1F3C0,
    0x26BD, 0x26BE, 0x1F3D0,
    # everyday things, fantasy, hearts, vehicles and houses
    0x1F451, 0x1F452, 0x1F453, 0x1F454, 0x1F455, 0x1F456, 0x1F457, 0x1F45F, 0x1F460, 0x1F47B, 0x1F47D,
    0x1F47E, 0x1F480, *range(0x1F494, 0x1F49D),
    0x2764, 0x1F48E, 0x1F4A1, 0x1F4A3, 0x1F4F7, 0x1F4DA, 0x1F511, 0x1F514,
    *range(0x1F680, 0x1F684), 0x1F697, 0x1F695, 0x1F68C, 0x1F6B2, 0x1F3E0, 0x1F3F0, 0x26F5, 0x2708,
    0x1F648, 0x1F649, 0x1F64A,
]  # fmt: skip
# Unicode named these after their first black-and-white drawings; the font draws them in colour.
RENAMED = {
    0x2600: "sun", 0x2601: "cloud", 0x2B50: "star", 0x26A1: "lightning bolt", 0x2764: "red heart",
    0x2639: "frowning face", 0x263A: "smiling face", 0x1F311: "new moon", 0x1F315: "full moon",
}  # fmt: skip


def caption(code: int) -> str | None:
    """What the character shows, or None for an unassigned code point."""
    return RENAMED.get(code) or unicodedata.name(chr(code), "").lower() or None


def render(code: int, font: ImageFont.FreeTypeFont) -> Image.Image | None:
    """One character on white, 32x32; None if the font has no picture of it."""
    big = Image.new("RGB", (136, 136), "white")
    left, top, right, bottom = font.getbbox(chr(code))
    if right - left > 140 or right <= left:  # a missing glyph, or one drawn as text
        return None
    spot = ((136 - (right - left)) // 2 - left, (136 - (bottom - top)) // 2 - top)
    ImageDraw.Draw(big).text(spot, chr(code), font=font, embedded_color=True)
    colours = big.getcolors(maxcolors=8)
    if colours is not None and len(colours) == 1:
        return None
    return big.resize((TILE, TILE), Image.Resampling.LANCZOS)


def collect(font: ImageFont.FreeTypeFont) -> list[tuple[dict[str, object], Image.Image]]:
    """Every (caption row, picture), faces first, the nine cats last."""
    rows: list[tuple[dict[str, object], Image.Image]] = []
    seen: set[int] = set()
    for split, group, codes in (("base", "face", FACES), ("base", "other", OTHERS), ("cats", "cat", CATS)):
        for code in codes:
            text = caption(code)
            if code in seen or text is None or (split == "base" and "cat" in text.split()):
                continue
            seen.add(code)
            picture = render(code, font)
            if picture is not None:
                row = {"index": len(rows), "split": split, "group": group, "char": chr(code), "caption": text}
                rows.append((row, picture))
    return rows


def licence(text: str) -> str:
    """The SIL licence part of a Debian copyright file, as plain text."""
    start = text.rindex("License:   SIL-1.1")
    lines = [line[1:] if line.startswith(" ") else line for line in text[start:].splitlines()[1:]]
    body = "\n".join("" if line == "." else line for line in lines).strip()
    head = [
        "The pictures in emoji.png are renderings of the font Noto Color Emoji",
        "(https://github.com/googlefonts/noto-emoji).",
        "",
        "Copyright 2013-2017 Google Inc.",
        "Copyright Arjen Nienhuis <a.g.nienhuis@gmail.com>",
        "",
    ]
    return "\n".join([*head, body]) + "\n"


def main() -> None:
    """Render, write the sheet, the captions and the licence, and say how large they are."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--font", type=Path, default=FONT)
    parser.add_argument("--copyright", type=Path, default=COPYRIGHT)
    parser.add_argument("--out", type=Path, default=ASSETS)
    args = parser.parse_args()
    rows = collect(ImageFont.truetype(str(args.font), STRIKE))
    height = -(-len(rows) // COLUMNS) * TILE
    sheet = Image.new("RGB", (COLUMNS * TILE, height), "white")
    for i, (_, picture) in enumerate(rows):
        sheet.paste(picture, (i % COLUMNS * TILE, i // COLUMNS * TILE))
    args.out.mkdir(parents=True, exist_ok=True)
    sheet.save(args.out / "emoji.png", optimize=True)
    lines = [json.dumps(row, ensure_ascii=False) for row, _ in rows]
    (args.out / "emoji.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (args.out / "OFL.txt").write_text(licence(args.copyright.read_text(encoding="utf-8")), encoding="utf-8")
    counts = {g: sum(row["group"] == g for row, _ in rows) for g in ("face", "other", "cat")}
    size = (args.out / "emoji.png").stat().st_size / 1024
    print(f"{len(rows)} pictures {counts}, {size:.0f} KB in {args.out}")


if __name__ == "__main__":
    main()
