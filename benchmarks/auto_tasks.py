"""Tasks of `auto_rate.py`: seconds to a minute each on one core, nothing to download.

Each is an object as `compare.py` drives it: ``parameters()``, ``loss(step)``, ``evaluate()``, ``steps``.
Batches are a function of seed and step alone, so every optimizer sees the same.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.charlm import ByteTransformer, CharLM, tensor_of
from benchmarks.compare import cosine

PRETRAIN_STEPS, PRETRAIN_LR = 1000, 3e-3
NEW_BYTES = 600_000  # of C++, which the model that was trained on Python learns


def seeded(*numbers: int) -> torch.Generator:
    """A generator of its own for each tuple of numbers."""
    value = 0
    for number in numbers:
        value = (value * 1_000_003 + number + 1) % (2**63 - 1)
    return torch.Generator().manual_seed(value)


# --- a language model that learns another language ------------------------------------------------------


@lru_cache(maxsize=1)
def headers() -> tuple[Tensor, Tensor, str]:
    """(train bytes, held-out bytes, digest) of C++ that comes with every torch."""
    root = Path(torch.__file__).parent / "include" / "c10"
    train, held_out = bytearray(), bytearray()
    for index, path in enumerate(sorted(root.rglob("*.h"))):
        (held_out if index % 8 == 0 else train).extend(path.read_bytes())
    del train[NEW_BYTES:]
    if len(train) < NEW_BYTES // 2:
        raise SystemExit(f"{root} holds only {len(train)} bytes of C++")
    return tensor_of(train), tensor_of(held_out), hashlib.sha256(train + held_out).hexdigest()[:12]


def trained(task, name: str, steps: int, lr: float) -> dict[str, Tensor]:
    """Weights of a task's model after so many steps of AdamW under a cosine; made once per machine."""
    name = f"{name}-{steps}-torch{torch.__version__}.pt"
    path = Path(tempfile.gettempdir()) / f"automagic-benchmarks-{os.getuid()}" / name
    if path.exists():
        return torch.load(path, weights_only=True)
    optimizer = torch.optim.AdamW(task.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: cosine(steps, step))
    for step in range(steps):
        optimizer.zero_grad()
        task.loss(step).backward()
        optimizer.step()
        schedule.step()
    path.parent.mkdir(exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}")
    torch.save(task.model.state_dict(), partial)
    partial.replace(path)
    return task.model.state_dict()


@lru_cache(maxsize=1)
def pretrained() -> dict[str, Tensor]:
    """Weights of the tiny byte transformer after some training on Python."""
    task = CharLM("tiny", seed=1234)
    return trained(task, f"byte-transformer-{task.digest}", PRETRAIN_STEPS, PRETRAIN_LR)


class Tuned(CharLM):
    """The pretrained transformer on C++: all of it, or a LoRA of this rank."""

    def __init__(self, rank: int | None, seed: int = 0) -> None:
        super().__init__("tiny", seed)
        self.train, self.held_out, self.digest = headers()
        self.model.load_state_dict(pretrained())
        if rank is None:
            return
        from peft import LoraConfig, inject_adapter_in_model  # the demo's library; not needed for the rest

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            config = LoraConfig(r=rank, lora_alpha=rank, target_modules=["qkv", "out", "up", "down"])
            adapted = inject_adapter_in_model(config, self.model)
        assert isinstance(adapted, ByteTransformer)
        self.model = adapted


# --- pictures that are drawn ----------------------------------------------------------------------------


def pictures(count: int, generator: torch.Generator, size: int = 16) -> tuple[Tensor, Tensor]:
    """[N,1,size,size] rings, bars and checks at random places, scales and contrasts, and their kinds [N]."""
    kinds = torch.randint(0, 8, (count,), generator=generator)
    where = torch.rand(count, 2, 1, 1, generator=generator) * 8 + 4
    pitch = torch.rand(count, 1, 1, generator=generator) * 0.6 + 0.7
    phase = torch.rand(count, 1, 1, generator=generator) * 6.3
    grid = torch.arange(size, dtype=torch.float32)
    y, x = grid.view(1, size, 1) - where[:, 0], grid.view(1, 1, size) - where[:, 1]
    radius = (x.square() + y.square()).sqrt()
    drawn = [
        (radius * pitch + phase).sin(),
        (x * pitch + phase).sin() + 0 * y,
        (y * pitch + phase).sin() + 0 * x,
        ((x + y) * pitch + phase).sin(),
        ((x - y) * pitch + phase).sin(),
        (x * pitch).sin() * (y * pitch).sin(),
        torch.exp(-radius.square() / (8 * pitch)) * 2 - 0.5,
        (x.abs().maximum(y.abs()) * pitch + phase).sin(),
    ]
    chosen = torch.stack(drawn, 1)[torch.arange(count), kinds]
    return chosen.unsqueeze(1), kinds


class Convnet:
    """Kinds of noisy pictures, told apart by a small residual network from scratch."""

    steps, batch = 300, 32

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.stem = nn.Conv2d(1, 24, 3, padding=1)
            self.blocks = nn.ModuleList(
                nn.Sequential(
                    nn.GroupNorm(4, 24), nn.SiLU(), nn.Conv2d(24, 24, 3, padding=1),
                    nn.GroupNorm(4, 24), nn.SiLU(), nn.Conv2d(24, 24, 3, padding=1),
                )
                for _ in range(3)
            )  # fmt: skip
            self.head = nn.Linear(24, 8)
        self.model = nn.ModuleList([self.stem, self.blocks, self.head])

    def parameters(self) -> Iterator[nn.Parameter]:
        return self.model.parameters()

    def _loss(self, generator: torch.Generator, count: int) -> Tensor:
        clean, kinds = pictures(count, generator)
        x = self.stem(clean + torch.randn(clean.shape, generator=generator) * 1.2)
        for i, block in enumerate(self.blocks):
            x = x + block(x)
            x = F.avg_pool2d(x, 2) if i < 2 else x
        return F.cross_entropy(self.head(x.mean((2, 3))), kinds)

    def loss(self, step: int) -> Tensor:
        return self._loss(seeded(self.seed, step), self.batch)

    @torch.no_grad()
    def evaluate(self) -> float:
        """Cross-entropy on pictures that are the same for every seed."""
        return float(self._loss(seeded(999_983), 2048))


class Flow:
    """Flow matching of the same pictures by a small network, four at a time: a loss that is mostly noise."""

    steps, batch, width = 300, 4, 192

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.inner = nn.Linear(64 + 16, self.width)
            self.layers = nn.ModuleList(
                nn.Sequential(
                    nn.LayerNorm(self.width), nn.Linear(self.width, 2 * self.width), nn.GELU(),
                    nn.Linear(2 * self.width, self.width),
                )
                for _ in range(2)
            )  # fmt: skip
            self.outer = nn.Linear(self.width, 64)
        self.model = nn.ModuleList([self.inner, self.layers, self.outer])

    def parameters(self) -> Iterator[nn.Parameter]:
        return self.model.parameters()

    def _loss(self, generator: torch.Generator, count: int) -> Tensor:
        clean = F.avg_pool2d(pictures(count, generator)[0], 2).flatten(1)
        noise = torch.randn(clean.shape, generator=generator)
        time = torch.rand(count, 1, generator=generator)
        angle = time * torch.arange(1, 9) * 3.1416
        x = torch.cat([(1 - time) * clean + time * noise, angle.sin(), angle.cos()], 1)
        x = self.inner(x)
        for layer in self.layers:
            x = x + layer(x)
        return F.mse_loss(self.outer(x), noise - clean)

    def loss(self, step: int) -> Tensor:
        return self._loss(seeded(self.seed, step), self.batch)

    @torch.no_grad()
    def evaluate(self) -> float:
        """Error of the velocity on pictures, noise and times that are the same for every seed."""
        return float(self._loss(seeded(999_983), 4096))


def make(name: str, seed: int):
    """The task of this name."""
    if name == "lm-full":
        return Tuned(None, seed)
    if name.startswith("lm-lora"):  # lm-lora, lm-lora-64
        return Tuned(int(name.removeprefix("lm-lora").strip("-") or 8), seed)
    if name == "unet-full":
        from automagic_trainer.tasks import cat_full

        return cat_full(seed)
    return {"convnet": Convnet, "flow": Flow}[name](seed)
