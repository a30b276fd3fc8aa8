"""Tasks of `auto_rate.py` that begin at 0, or add to a trained diffusion model, which itself stays as it is.

Textual inversion: one vector stands for the demo's cats in the place of their captions (Gal et al. 2022,
arXiv 2208.01618, abstract read). Control: a copy of the model hears of a hint, through layers that begin at 0
(Zhang et al. 2023, arXiv 2302.05543, section 3.1).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.auto_tasks import Flow, pictures, seeded, trained
from benchmarks.solved_tasks import Classes

BASE_STEPS, BASE_LR, BASE_BATCH, BASE_SEED = 2000, 2e-3, 32, 4321
EVALUATION = 999_983


@lru_cache(maxsize=1)
def base() -> dict[str, Tensor]:
    """Weights of the flow network after some training without hints."""
    task = Flow(BASE_SEED)
    task.batch = BASE_BATCH
    return trained(task, "flow", BASE_STEPS, BASE_LR)


class Zeros(Classes):
    """Ten Gaussian classes, and a final layer of zeros, as in models that begin as the identity."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed, 0.6)
        with torch.no_grad():
            for p in self.model[-1].parameters():
                p.zero_()


class Control:
    """Flow matching of pictures whose bright half is known, four at a time."""

    steps, batch = 300, 4

    def __init__(self, seed: int) -> None:
        self.seed, self.base = seed, Flow(BASE_SEED)
        self.base.model.load_state_dict(base())
        self.copy = copy.deepcopy(self.base)
        self.base.model.requires_grad_(False)
        width = Flow.width
        self.hear, *self.tell = (nn.Linear(n, width) for n in (64, *[width] * len(self.base.layers)))
        with torch.no_grad():
            for layer in (self.hear, *self.tell):
                layer.weight.zero_()
                layer.bias.zero_()
        self.model = nn.ModuleList([self.copy.inner, self.copy.layers, self.hear, *self.tell])

    def parameters(self) -> Iterator[nn.Parameter]:
        return self.model.parameters()

    def _loss(self, generator: torch.Generator, count: int) -> Tensor:
        clean = F.avg_pool2d(pictures(count, generator)[0], 2).flatten(1)
        noise = torch.randn(clean.shape, generator=generator)
        time = torch.rand(count, 1, generator=generator)
        angle = time * torch.arange(1, 9) * 3.1416
        x = torch.cat([(1 - time) * clean + time * noise, angle.sin(), angle.cos()], 1)
        x, heard = self.base.inner(x), self.copy.inner(x) + self.hear((clean > 0).float())
        for layer, own, tell in zip(self.base.layers, self.copy.layers, self.tell, strict=True):
            heard = heard + own(heard)
            x = x + layer(x) + tell(heard)
        return F.mse_loss(self.base.outer(x), noise - clean)

    def loss(self, step: int) -> Tensor:
        return self._loss(seeded(self.seed, step), self.batch)

    @torch.no_grad()
    def evaluate(self) -> float:
        """Error of the velocity on pictures, noise and times that are the same for every seed."""
        return float(self._loss(seeded(EVALUATION), 4096))


def inversion(seed: int, text_cache: str | None):
    """The demo's cats by one vector, which begins as the mean of their captions' words."""
    from automagic_trainer.data import load_shipped
    from automagic_trainer.diffusion import v_loss
    from automagic_trainer.tasks import LoraTask
    from automagic_trainer.text import TextEmbeddings

    class Inversion(LoraTask):
        steps = 200

        def __init__(self) -> None:
            cache = Path(text_cache) if text_cache else None
            super().__init__(load_shipped("cats"), seed=seed, rank=None, batch=4, text_cache=cache)
            self.model.requires_grad_(False)
            vectors, mask = self.text.vectors, self.text.mask
            self.word = nn.Parameter((vectors * mask[..., None]).sum((0, 1)) / mask.sum())

        def parameters(self) -> Iterator[nn.Parameter]:
            return iter([self.word])

        def _loss(self, rows: Tensor, captions: Tensor, noise: Tensor, times: Tensor) -> Tensor:
            count = len(rows)
            mask = torch.ones(count, 1, dtype=self.text.mask.dtype)
            words = TextEmbeddings(self.word.expand(count, 1, -1), mask)
            return v_loss(self.denoise, self.schedule, self.latents[rows], noise, times, words)

    return Inversion()


TASKS: dict[str, Callable[[int], Zeros | Control]] = {"classes-zero": Zeros, "control": Control}
