"""What the model draws: targets, before, and after each optimizer, as one table of pictures."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from . import diffusion, text
from .data import PictureSet
from .model import load_adapter, load_base

CHUNK = 16


@dataclasses.dataclass(frozen=True)
class Drawing:
    """How pictures are drawn."""

    seed: int = 0
    steps: int = diffusion.SAMPLE_STEPS
    guidance: float = diffusion.GUIDANCE


@dataclasses.dataclass(frozen=True)
class Gallery:
    """`rows` are (name, pictures), one picture for each caption; a missing target is None."""

    captions: list[str]
    targets: list[np.ndarray | None]
    rows: list[tuple[str, np.ndarray]]


def draw(
    adapter: Path | None,
    prompts: Sequence[str],
    how: Drawing,
    device: torch.device | str = "cpu",
    on_step: Callable[[], object] = lambda: None,
) -> np.ndarray:
    """Pictures of `prompts`, uint8 [N, 32, 32, 3], by the base model or with a saved adapter on it.

    Always in fp32, so that a saved adapter draws what it drew before, bit for bit on the same machine.
    """
    model = load_base() if adapter is None else load_adapter(load_base(), adapter)
    denoise = diffusion.denoiser(model.to(device))
    words = text.encode(["", *prompts]).to(device)
    empty, rest = words[:1], words[1:]
    options = {"seed": how.seed, "steps": how.steps, "guidance": how.guidance, "on_step": on_step}
    parts = []
    for first in range(0, len(prompts), CHUNK):
        part = rest[first : first + CHUNK]
        parts.append(diffusion.sample(denoise, part, empty, first=first, **options))
    return np.concatenate(parts)


def chosen_targets(data: PictureSet, most: int = 9) -> list[int]:
    """At most `most` pictures of the set, evenly spread."""
    return np.linspace(0, len(data) - 1, min(len(data), most)).round().astype(int).tolist()


def make_gallery(
    data: PictureSet,
    prompts: Sequence[str],
    adapters: Sequence[tuple[str, Path]],
    how: Drawing,
    device: torch.device | str = "cpu",
    on_step: Callable[[], object] = lambda: None,
) -> Gallery:
    """Draw the captions of the training set, then the user's prompts, before and after each adapter."""
    rows = chosen_targets(data)
    captions = [*(data.captions[i] for i in rows), *prompts]
    targets = [*(data.pictures[i] for i in rows), *(None for _ in prompts)]
    drawn = [("before", draw(None, captions, how, device, on_step))]
    for label, adapter in adapters:
        drawn.append((f"after {label}", draw(adapter, captions, how, device, on_step)))
    return Gallery(captions, targets, drawn)


def write_sheet(gallery: Gallery, path: Path, title: str, scale: int = 3) -> None:
    """samples.png: one column for each caption, one row for each model, pixels enlarged as they are."""
    from PIL import Image, ImageDraw, ImageFont

    tile, gap, left, margin = 32 * scale, 12, 190, 28
    head, foot = 74, 78
    n, names = len(gallery.captions), ["target", *(name for name, _ in gallery.rows)]
    width = margin * 2 + left + n * (tile + gap) - gap
    height = head + len(names) * (tile + gap) + foot
    sheet = Image.new("RGB", (width, height), "#f4f5f7")
    pen = ImageDraw.Draw(sheet)
    big, small, tiny = (ImageFont.load_default(size) for size in (24, 17, 13))
    pen.text((margin, 24), title, font=big, fill="#1c2330")
    pictures = [gallery.targets, *(list(row) for _, row in gallery.rows)]
    for r, (name, row) in enumerate(zip(names, pictures, strict=True)):
        y = head + r * (tile + gap)
        lines = wrap(name, small, left - 16)
        for i, line in enumerate(lines):
            top = y + tile / 2 + (i - len(lines) / 2) * 21
            pen.text((margin, top), line, font=small, fill="#1c2330")
        for c, picture in enumerate(row):
            x = margin + left + c * (tile + gap)
            if picture is None:
                continue
            pen.rounded_rectangle(
                (x - 4, y - 4, x + tile + 3, y + tile + 3), 8, fill="white", outline="#d9dce2"
            )
            enlarged = Image.fromarray(picture).resize((tile, tile), Image.Resampling.NEAREST)
            sheet.paste(enlarged, (x, y))
    for c, caption in enumerate(gallery.captions):
        x = margin + left + c * (tile + gap)
        for i, line in enumerate(wrap(caption, tiny, tile)[:4]):
            y = height - foot + 2 + i * 16
            pen.text((x + tile / 2, y), line, font=tiny, fill="#596273", anchor="ma")
    sheet.save(path, optimize=True)


def wrap(caption: str, font, width: float) -> list[str]:
    """Break at spaces and underscores so that every line fits, as far as it can."""
    lines = [""]
    for word in caption.replace("_", "_ ").split(" "):
        joined = lines[-1] + ("" if not lines[-1] or lines[-1].endswith("_") else " ") + word
        if lines[-1] and font.getlength(joined) > width:
            lines.append(word)
        else:
            lines[-1] = joined
    return lines


def write_grid(pictures: np.ndarray, prompts: Sequence[str], path: Path, scale: int = 8) -> None:
    """Pictures side by side with their prompts below, for `automagic sample`."""
    from PIL import Image, ImageDraw, ImageFont

    tile, gap, foot = 32 * scale, 16, 56
    columns = min(len(prompts), 4)
    lines = -(-len(prompts) // columns)
    size = (gap + columns * (tile + gap), gap + lines * (tile + foot))
    sheet = Image.new("RGB", size, "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(max(11, 2 * scale))
    for i, (picture, prompt) in enumerate(zip(pictures, prompts, strict=True)):
        x, y = gap + i % columns * (tile + gap), gap + i // columns * (tile + foot)
        sheet.paste(Image.fromarray(picture).resize((tile, tile), Image.Resampling.NEAREST), (x, y))
        for k, line in enumerate(wrap(prompt, font, tile)[:2]):
            spot = (x + tile / 2, y + tile + 4 + k * 20)
            pen.text(spot, line, font=font, fill="#333", anchor="ma")
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, optimize=True)
