"""A byte-level transformer trained on the Python sources of CPython's own standard library.

    python -m benchmarks.charlm --optimizer Automagic_CameAMP8bit --lr 1e-3 2e-3 --seeds 0 1 2 --jobs 2

Needs no download: the text is whatever interpreter runs this, read in a fixed order up to a fixed
budget. Its digest is in every row, since another Python version is another text.
"""

from __future__ import annotations

import hashlib
import math
import sysconfig
from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.common import CANDIDATE_HELP, argument_parser

SKIP = {"test", "tests", "idlelib", "lib2to3", "site-packages", "dist-packages", "pydoc_data", "encodings"}
TRAIN_BYTES, HELD_OUT_BYTES, FILE_BYTES = 3_000_000, 300_000, 40_000

SIZES = {
    "tiny": {"layers": 2, "width": 64, "context": 64, "batch": 16, "steps": 300, "windows": 256},
    "small": {"layers": 4, "width": 128, "context": 128, "batch": 16, "steps": 300, "windows": 128},
}


@lru_cache(maxsize=1)
def corpus() -> tuple[torch.Tensor, torch.Tensor, str]:
    """(train bytes, held-out bytes, digest). Every tenth file is held out, so no file is in both."""
    root = Path(sysconfig.get_paths()["stdlib"])
    paths = [p.relative_to(root) for p in root.rglob("*.py")]
    names = [p.as_posix() for p in paths if not SKIP & set(p.parts)]
    # Ordered by a hash of the name: a fixed order in which neighbours are unrelated.
    names.sort(key=lambda name: hashlib.sha1(name.encode()).hexdigest())
    train, held_out = bytearray(), bytearray()
    for index, name in enumerate(names):
        text = (root / name).read_bytes()[:FILE_BYTES]  # one huge file must not be the corpus
        part, budget = (held_out, HELD_OUT_BYTES) if index % 10 == 0 else (train, TRAIN_BYTES)
        part += text[: budget - len(part)]
    if len(train) < 500_000:
        raise SystemExit(f"only {len(train)} bytes of Python sources in {root}: use a Python that has them")
    digest = hashlib.sha256(train + held_out).hexdigest()[:12]
    return tensor_of(train), tensor_of(held_out), digest


def tensor_of(data: bytearray) -> torch.Tensor:
    return torch.frombuffer(data, dtype=torch.uint8).clone()


class Block(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [batch, time, width]
        b, t, c = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(b, t, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).reshape(b, t, c))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class ByteTransformer(nn.Module):
    def __init__(self, layers: int, width: int, context: int):
        super().__init__()
        self.token, self.position = nn.Embedding(256, width), nn.Embedding(context, width)
        self.blocks = nn.ModuleList(Block(width, heads=width // 16) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 256, bias=False)
        for name, p in self.named_parameters():
            if p.ndim == 2:
                # GPT-2's rule: what is added to the residual stream shrinks with depth
                scale = 1 / math.sqrt(2 * layers) if name.endswith(("out.weight", "down.weight")) else 1.0
                nn.init.normal_(p, std=0.02 * scale)
            elif "norm" not in name:
                nn.init.zeros_(p)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.token(tokens) + self.position(torch.arange(tokens.shape[1], device=tokens.device))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class CharLM:
    """One training task: ``parameters()``, ``loss(step)``, ``evaluate()``, ``accuracy()``, ``steps``."""

    def __init__(self, size: str = "tiny", seed: int = 0, device: str = "cpu"):
        spec = SIZES[size]
        self.steps, self.context, self.batch, self.windows = (
            spec[key] for key in ("steps", "context", "batch", "windows")
        )
        self.device = device
        self.train, self.held_out, self.digest = corpus()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.model = ByteTransformer(spec["layers"], spec["width"], spec["context"]).to(device)
        self.seed = seed

    def parameters(self):
        return self.model.parameters()

    def loss(self, step: int) -> torch.Tensor:
        """Loss of batch number ``step``: a function of seed and step alone, the same for every optimizer."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        starts = torch.randint(len(self.train) - self.context - 1, (self.batch,), generator=generator)
        return self._loss(self.train, starts)

    @torch.no_grad()
    def evaluate(self) -> float:
        """Mean loss per byte, in nats, on held-out files. The windows are the same for every seed."""
        losses = [float(self._loss(self.held_out, part)) * len(part) for part in self._held_out_windows()]
        return sum(losses) / self.windows

    @torch.no_grad()
    def accuracy(self) -> float:
        """Share of the bytes of those windows that the model's first guess names."""
        hits = 0
        for part in self._held_out_windows():
            inputs, targets = self._batch(self.held_out, part)
            hits += int((self.model(inputs).argmax(-1) == targets).sum())
        return hits / (self.windows * self.context)

    def _held_out_windows(self) -> tuple[torch.Tensor, ...]:
        starts = torch.linspace(0, len(self.held_out) - self.context - 2, self.windows).long()
        return starts.split(64)

    def _batch(self, data: torch.Tensor, starts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        windows = data[starts[:, None] + torch.arange(self.context + 1)].long().to(self.device)
        return windows[:, :-1], windows[:, 1:]

    def _loss(self, data: torch.Tensor, starts: torch.Tensor) -> torch.Tensor:
        inputs, targets = self._batch(data, starts)
        return F.cross_entropy(self.model(inputs).flatten(0, 1), targets.flatten())


def main(argv: list[str] | None = None) -> list[dict]:
    from benchmarks.compare import SCHEDULES, Job, run_jobs, table  # here: compare imports this module

    parser = argument_parser(__doc__)
    parser.add_argument("--size", default="tiny", choices=list(SIZES))
    parser.add_argument("--optimizer", nargs="+", default=["adamw"], help=CANDIDATE_HELP)
    parser.add_argument("--lr", nargs="+", type=float, default=[2e-3])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--steps", type=int, help="default: the size's own")
    parser.add_argument("--schedule", default="constant", choices=list(SCHEDULES))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--jobs", type=int, default=1, help="parallel processes, one thread each")
    parser.add_argument("--out", type=Path, help="append the rows to this file")
    parser.add_argument("--quick", action="store_true", help="five steps: a smoke test")
    args = parser.parse_args(argv)
    steps = 5 if args.quick else args.steps or SIZES[args.size]["steps"]
    jobs = [
        Job.parse(f"charlm-{args.size}", text, lr, seed, steps, args.schedule, args.device)
        for text in args.optimizer
        for lr in args.lr
        for seed in args.seeds
    ]
    rows = run_jobs(jobs, args.jobs, args.out)
    print(table(rows))
    return rows


if __name__ == "__main__":
    main()
