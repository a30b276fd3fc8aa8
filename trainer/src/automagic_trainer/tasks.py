"""A learning task: pictures and captions, a base model with a LoRA or whole, a loss for every step.

`cat_lora` is the demo's task as one object that a benchmark can drive without files (`cat_full` trains all
of the base model instead):

    task = cat_lora(seed=0, device="cpu")
    optimizer = torch.optim.AdamW(task.parameters(), lr=2e-3)
    for step in range(150):
        task.loss(step).backward()
        optimizer.step()
        optimizer.zero_grad()
    print(task.evaluate())
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from . import diffusion, text
from .data import PictureSet, load_shipped
from .diffusion import v_loss
from .model import add_lora, load_base
from .rng import generator

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
EVAL_PICTURES = 32
EVAL_TIMES = 8
EVAL_BATCH = 24


class LoraTask:
    """The base model learns `data` through a LoRA, or with all its weights where `rank` is None.

    Everything random is named by (seed, step).
    """

    def __init__(
        self,
        data: PictureSet,
        *,
        seed: int = 0,
        device: torch.device | str = "cpu",
        precision: str = "fp32",
        rank: int | None = 8,
        batch: int = 16,
        caption_dropout: float = 0.0,
        text_cache: Path | None = None,
    ) -> None:
        self.data, self.seed, self.device = data, seed, torch.device(device)
        self.batch, self.caption_dropout = batch, caption_dropout
        captions = ["", *data.captions]  # row 0 is the empty caption
        embedded = text.TextEmbeddings.load(text_cache, captions) if text_cache else text.encode(captions)
        self.text = embedded.trimmed().to(self.device)
        self.latents = diffusion.to_latents(data.pictures).to(self.device)
        self.schedule = diffusion.scheduler()
        base = load_base(DTYPES[precision])
        if self.device.type == "cpu":  # the order that oneDNN's convolutions like best
            self.latents = self.latents.contiguous(memory_format=torch.channels_last)
            if rank is not None:  # what is trained, with gradients and state, keeps the usual one
                base = base.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        learner = base.requires_grad_(True) if rank is None else add_lora(base, rank, seed)
        self.model: nn.Module = learner.to(self.device)
        self.denoise = diffusion.denoiser(self.model)

    def parameters(self) -> Iterator[nn.Parameter]:
        """What learns: the LoRA matrices, or all weights."""
        return (p for p in self.model.parameters() if p.requires_grad)

    def rows(self, step: int, micro: int = 0, accumulate: int = 1) -> Tensor:
        """The pictures of one forward pass: every picture once before any comes again."""
        n = len(self.data)
        first = (step * accumulate + micro) * self.batch
        places = range(first, first + self.batch)
        orders = {
            epoch: torch.randperm(n, generator=generator(self.seed, "order", epoch))
            for epoch in range(places[0] // n, places[-1] // n + 1)
        }
        return torch.stack([orders[place // n][place % n] for place in places])

    def loss(self, step: int, micro: int = 0, accumulate: int = 1) -> Tensor:
        """The training loss of one forward pass, a scalar to call backward on."""
        rows = self.rows(step, micro, accumulate)
        g = generator(self.seed, "train", step, micro)
        noise = torch.randn(self.batch, *diffusion.SHAPE, generator=g)
        times = torch.randint(0, diffusion.TIMESTEPS, (self.batch,), generator=g)
        keep = torch.rand(self.batch, generator=g) >= self.caption_dropout
        return self._loss(rows, (rows + 1) * keep, noise, times)

    def _loss(self, rows: Tensor, captions: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        latents = self.latents[rows.to(self.device)]
        words = self.text[captions.to(self.device)]
        noise, times = noise.to(self.device), times.to(self.device)
        return v_loss(self.denoise, self.schedule, latents, noise, times, words)

    @torch.no_grad()
    def evaluate(self) -> float:
        """Mean v-prediction error on noise that training never draws; the same noise for every seed.

        EVAL_TIMES evenly spread noise levels for each picture, of at most EVAL_PICTURES pictures.
        """
        n = len(self.data)
        chosen = torch.linspace(0, n - 1, min(n, EVAL_PICTURES)).round().long()
        rows = chosen.repeat_interleave(EVAL_TIMES)
        # another offset for each picture, so that together they cover the whole range
        offset = (torch.arange(len(rows)) // EVAL_TIMES + 0.5) / len(chosen)
        level = (torch.arange(len(rows)) % EVAL_TIMES + offset) / EVAL_TIMES
        times = (level * diffusion.TIMESTEPS).long().clamp(max=diffusion.TIMESTEPS - 1)
        noise = torch.randn(len(rows), *diffusion.SHAPE, generator=generator(0, "held out"))
        total = 0.0
        for part in torch.arange(len(rows)).split(EVAL_BATCH):
            total += self._loss(rows[part], rows[part] + 1, noise[part], times[part]).item() * len(part)
        return total / len(rows)


def evaluate(task: LoraTask) -> float:
    """The held-out loss of a task as it stands."""
    return task.evaluate()


def cat_lora(
    seed: int = 0, device: torch.device | str = "cpu", *, batch: int = 16, text_cache: Path | None = None
) -> LoraTask:
    """The demo's task: nine cat faces.

    Args:
        seed: decides the LoRA's first matrices, the order of the pictures and the noise.
        device: where to train.
        batch: pictures in one step.
        text_cache: embeddings written by ``train_base.py --embed``, where MiniLM is not installed.
    """
    return LoraTask(load_shipped("cats"), seed=seed, device=device, batch=batch, text_cache=text_cache)


def cat_full(
    seed: int = 0, device: torch.device | str = "cpu", *, batch: int = 4, text_cache: Path | None = None
) -> LoraTask:
    """The demo's pictures, learned by the whole U-Net; arguments as of `cat_lora`."""
    pictures = load_shipped("cats")
    return LoraTask(pictures, seed=seed, device=device, batch=batch, rank=None, text_cache=text_cache)
