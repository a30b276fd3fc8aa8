"""Where the pictures and captions come from: the shipped set, or a folder of the user's own."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .diffusion import SIZE
from .errors import UserError
from .model import asset

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")
SHEETS = ("captions.csv", "captions.jsonl", "metadata.csv", "metadata.jsonl")
SHIPPED = ("cats", "base")


@dataclass(frozen=True)
class PictureSet:
    """Pictures as uint8 [N, 32, 32, 3], a caption for each, and a name to print."""

    name: str
    pictures: np.ndarray
    captions: list[str]
    groups: list[str]

    def __len__(self) -> int:
        return len(self.captions)


def load_shipped(split: str) -> PictureSet:
    """The pictures in the package: "cats" (nine cat faces) or "base" (everything else)."""
    from PIL import Image

    rows = [json.loads(line) for line in asset("emoji.jsonl").read_text(encoding="utf-8").splitlines()]
    with asset("emoji.png").open("rb") as f:
        sheet = np.asarray(Image.open(f).convert("RGB"))
    columns = sheet.shape[1] // SIZE
    rows = [row for row in rows if row["split"] == split]
    corners = [(row["index"] // columns * SIZE, row["index"] % columns * SIZE) for row in rows]
    pictures = np.stack([sheet[y : y + SIZE, x : x + SIZE] for y, x in corners])
    return PictureSet(split, pictures, [row["caption"] for row in rows], [row["group"] for row in rows])


def load(source: str | Path) -> PictureSet:
    """`source` is the name of a shipped set or a folder."""
    if str(source) in SHIPPED and not Path(source).is_dir():
        return load_shipped(str(source))
    return load_folder(Path(source))


def load_folder(folder: Path) -> PictureSet:
    """Read a folder: a caption sheet if there is one, else a .txt file beside every picture."""
    if not folder.is_dir():
        raise UserError(
            f"--data {folder}: no such folder; give a folder of pictures with captions, or one of the "
            f"shipped sets ({', '.join(SHIPPED)})"
        )
    sheets = [folder / name for name in SHEETS if (folder / name).is_file()]
    if len(sheets) > 1:
        raise UserError(f"--data {folder} has both {sheets[0].name} and {sheets[1].name}; keep one")
    pairs = list(_from_sheet(sheets[0]) if sheets else _from_text_files(folder))
    if not pairs:
        where = f"{sheets[0].name} lists no" if sheets else "no"
        raise UserError(f"--data {folder}: {where} pictures (looked for {', '.join(SUFFIXES)})")
    pictures = np.stack([read_picture(file) for file, _ in pairs])
    return PictureSet(str(folder), pictures, [text for _, text in pairs], [file.stem for file, _ in pairs])


def _from_text_files(folder: Path) -> Iterator[tuple[Path, str]]:
    files = sorted(f for f in folder.iterdir() if f.suffix.lower() in SUFFIXES and f.is_file())
    missing = [f for f in files if not f.with_suffix(".txt").is_file()]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UserError(
            f"--data {folder}: no caption for {missing[0].name}{more}; write it to "
            f"{missing[0].with_suffix('.txt').name}, or list all in captions.csv (columns file,caption)"
        )
    for file in files:
        yield file, _caption(_text(file.with_suffix(".txt")), file.with_suffix(".txt"))


def _from_sheet(sheet: Path) -> Iterator[tuple[Path, str]]:
    for number, row in _rows(sheet):
        # Hugging Face image folders call the columns file_name and text
        name = row.get("file") or row.get("file_name")
        text = row.get("caption") or row.get("text")
        where = f"{sheet}:{number}"
        if not isinstance(name, str) or not isinstance(text, str):
            raise UserError(f"{where}: needs the columns file and caption, found {', '.join(map(str, row))}")
        file = sheet.parent / name
        if not file.is_file():
            raise UserError(f"{where}: the picture {name} does not exist")
        yield file, _caption(text, where)


def _rows(sheet: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    text = _text(sheet)
    if sheet.suffix == ".csv":
        reader = csv.DictReader(text.splitlines())
        for row in reader:
            yield reader.line_num, {str(k).strip(): v for k, v in row.items()}
        return
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{sheet}:{number}: not JSON: {error}") from None
        if not isinstance(row, dict):
            raise UserError(f"{sheet}:{number}: needs an object with file and caption, got {row!r}")
        yield number, row


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {file}: {error}") from None


def _caption(text: str, where: Path | str) -> str:
    words = " ".join(text.split())
    if not words:
        raise UserError(f"{where}: the caption is empty")
    return words


def read_picture(file: Path) -> np.ndarray:
    """Any picture as uint8 [32, 32, 3]: whole, centred in a white square, transparency on white."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(file) as opened:
            picture = _upright(opened)
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError, ValueError) as error:
        reason = "not a picture" if isinstance(error, UnidentifiedImageError) else str(error)
        raise UserError(f"cannot read the picture {file}: {reason}") from None
    picture.thumbnail((SIZE, SIZE), Image.Resampling.LANCZOS)
    if max(picture.size) < SIZE:  # thumbnail never enlarges
        scale = SIZE / max(picture.size)
        size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    square = Image.new("RGB", (SIZE, SIZE), "white")
    square.paste(picture, ((SIZE - picture.width) // 2, (SIZE - picture.height) // 2))
    return np.asarray(square)


def _upright(picture: Image) -> Image:
    from PIL import Image, ImageOps

    rgba = ImageOps.exif_transpose(picture).convert("RGBA")
    white = Image.new("RGBA", rgba.size, "white")
    return Image.alpha_composite(white, rgba).convert("RGB")
