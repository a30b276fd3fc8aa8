"""A small model with every kind of parameter, all seven classes, and training loops around them."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn

from automagic_cameamp import OPTIMIZERS
from engine.helpers import differences, draw, snapshot

# Options that make warm-up, codes and refreshes visible within a few steps of a small model.
FAST: dict[str, dict[str, Any]] = {
    "Automagic_CameAMP": {},
    "Automagic_CameAMP8bit": {"blocksize": 64},
    "Automagic_CameAMP_COptim": {},
    "Automagic_CameAMP_COptim8bit": {"blocksize": 64},
    "Automagic_CameAMP_Improved": {"sync_frequency": 3},
    "Automagic_CameAMP_8Bit": {"sync_frequency": 3, "block_size": 64},
    "Automagic_CameAMP_Improved_8Bit": {"sync_frequency": 3, "min_8bit_size": 1},
}
assert FAST.keys() == OPTIMIZERS.keys()
NAMES = list(FAST)


class Model(nn.Module):
    """Embedding, convolution, norm, linear layers of two shapes, and a scalar."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 48)
        self.conv = nn.Conv1d(4, 4, 3, padding=1)
        self.norm = nn.LayerNorm(48)
        self.layers = nn.ModuleList([nn.Linear(48, 48) for _ in range(3)])
        self.gain = nn.Parameter(torch.ones(()))
        self.unused = nn.Linear(7, 3)
        self.head = nn.Linear(48, 5)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        x = x + self.conv(x)
        for layer in self.layers:
            x = x + torch.tanh(layer(self.norm(x)))
        return self.head(x.mean(1)) * self.gain


def model(dtype: torch.dtype = torch.float32) -> Model:
    made = Model()
    with torch.no_grad():
        for i, p in enumerate(made.parameters()):
            p.copy_(1 + 0.1 * draw(9, i, shape=tuple(p.shape)) if p.dim() < 2 else
                    0.3 * draw(9, i, shape=tuple(p.shape)))  # fmt: skip
    return made.to(dtype)


def loss_of(net: nn.Module, step: int, micro: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(1000 * step + micro)
    tokens = torch.randint(0, 11, (6, 4), generator=generator, device="cpu")
    target = torch.randint(0, 5, (6,), generator=generator, device="cpu")
    return nn.functional.cross_entropy(net(tokens).float(), target)


def groups_of(net: nn.Module) -> list[dict[str, Any]]:
    """Two groups, the second without decay and slower."""
    matrices = [p for p in net.parameters() if p.dim() > 1]
    vectors = [p for p in net.parameters() if p.dim() < 2]
    return [{"params": matrices}, {"params": vectors, "lr": 3e-4, "weight_decay": 0.0}]


def build(name: str, params: Any, **options: Any) -> Any:
    common = {"lr": 1e-3, "warmup_steps": 6, "weight_decay": 0.1, **FAST[name]}
    return OPTIMIZERS[name](params, **{**common, **options})


def told(name: str, step: int) -> float | None:
    """A loss for the classes with a controller, at some steps."""
    return 2.0 + math.sin(step) if "COptim" in name and step % 3 else None


def same(a: Any, b: Any) -> list[str]:
    """Where two optimizers differ: weights, state, groups, controller, counters."""
    found = differences(snapshot(a), snapshot(b))
    if a.health() != b.health():
        found.append(f"health {a.health()} / {b.health()}")
    for x, y in [(a.controller, b.controller)]:
        if x is not None and y is not None and not same_memory(x.memory, y.memory):
            found.append("controller")
    return found


def same_memory(a: Tensor | None, b: Tensor | None) -> bool:
    return (a is None) == (b is None) and (a is None or torch.equal(a, b))  # type: ignore[arg-type]


def twins(
    name: str, dtype: torch.dtype = torch.float32, where: str = "none", **options: Any
) -> list[tuple[Any, Any]]:
    """Two equal models with equal optimizers; the second may step on the host."""
    first = model(dtype)
    second = copy.deepcopy(first)
    return [
        (net, build(name, groups_of(net), offload=place, **options))
        for net, place in ((first, "none"), (second, where))
    ]


def plain(net: nn.Module, optimizer: Any, steps: range, accumulation: int = 1, **step: Any) -> None:
    """The ordinary loop."""
    for t in steps:
        for micro in range(accumulation):
            loss_of(net, t, micro).backward()
        optimizer.step(**step)
        optimizer.zero_grad()
