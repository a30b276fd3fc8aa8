"""One run per engine from the same start with the same gradients, and what may differ between them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from automagic_cameamp.storage.rounding import join
from engine.helpers import draw

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# A matrix of two bands, a wide one, a batch of matrices, a kernel, vectors, a number.
SHAPES = [(70, 20), (12, 30), (2, 5, 7), (4, 3, 3, 3), (8,), (1300,), ()]
FEW = [(70, 20), (2, 5, 7), (1100,)]
REST = "weight_correction"
WARMUP = 5  # t = 1, 2 are early, 3, 4 in the middle, 5 is late

Hook = Callable[[Any, list[Tensor], int], None]


class By:
    """A quantisation strategy: block sizes by shape, and shapes that are not coded."""

    def __init__(self, sizes: dict[tuple[int, ...], int], plain: set[tuple[int, ...]] | None = None) -> None:
        self.sizes, self.plain = sizes, plain or set()

    def should_quantize(self, name: str, shape: Any, dtype: torch.dtype) -> bool:
        return tuple(shape) not in self.plain

    def get_block_size(self, shape: Any) -> int:
        return self.sizes.get(tuple(shape), 256)


def parameters(shapes: Any = SHAPES, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [torch.nn.Parameter(draw(7, i, shape=s).to(DEVICE, dtype)) for i, s in enumerate(shapes)]


def give(params: list[Tensor], step: int) -> None:
    for i, p in enumerate(params):
        shape = tuple(p.shape)
        g = 0.5 * draw(1, i, shape=shape) + draw(2, i, step, shape=shape)
        p.grad = g.to(p.device, p.dtype)


def build(cls: type, params: Any, engine: str, **options: Any) -> Any:
    return cls(
        params, **{"lr": 5e-4, "warmup_steps": WARMUP, "weight_decay": 0.1, "engine": engine, **options}
    )


def run(
    cls: type,
    engine: str,
    steps: int,
    shapes: Any = SHAPES,
    dtype: torch.dtype = torch.float32,
    hook: Hook | None = None,
    **options: Any,
) -> tuple[list[Tensor], Any]:
    """Train, and return parameters and optimizer."""
    params = parameters(shapes, dtype)
    optimizer = build(cls, params, engine, **options)
    for t in range(1, steps + 1):
        give(params, t)
        if hook is not None:
            hook(optimizer, params, t)
        optimizer.step()
    return params, optimizer


def runner(optimizer: Any, renewing: bool = False) -> Any:
    """The fused step behind an optimizer, None where the reference ran alone."""
    from automagic_cameamp.engine import fused

    whole = fused._STEPS.get(optimizer, {}).get(renewing)
    return whole if whole is not None and whole.members else None


def size(x: Tensor) -> float:
    return math.sqrt(float(x.double().square().sum()))


def full(p: Tensor, state: dict[str, Tensor]) -> Tensor:
    """Weights as fp32, with what 16 bits lose where it is kept."""
    w = p.detach()
    return join(w, state[REST]) if REST in state else w.float()


def differences(start: list[Tensor], a: Any, b: Any, codes: float = 0.003) -> list[str]:
    """Where two runs differ by more than rounding, in words.

    Args:
        start: weights before both runs.
        a, b: parameters and optimizer of each run.
        codes: share of the codes that may be off by one: rounding moves a value across a border.
    """
    found = []
    for i, (p, q) in enumerate(zip(a[0], b[0], strict=True)):
        name = f"{i} {tuple(p.shape)}"
        s, t = a[1].state[p], b[1].state[q]
        x, y = full(p, s), full(q, t)
        moved = size(x - start[i].detach().float())
        limit = 1e-3 * moved if p.dtype == torch.float32 or REST in s else 2e-2 * moved
        if not size(x - y) <= limit:
            found.append(f"weights {name}: {size(x - y):.2g} of {moved:.2g}")
        if s.keys() != t.keys():
            found.append(f"state {name}: {sorted(s.keys() ^ t.keys())}")
            continue
        for key in s:
            scale = f"{key}_scale"
            if s[key].dtype == torch.int16 and scale in s:
                found += _logarithms(f"{name} {key}", (s[key], s[scale]), (t[key], t[scale]))
            elif not (key.endswith("_scale") and s[key].dtype == torch.float16 or key == REST):
                found += _state(f"{name} {key}", s[key], t[key], codes)
    return found


def _logarithms(name: str, x: tuple[Tensor, Tensor], y: tuple[Tensor, Tensor]) -> list[str]:
    """Vectors in ``Log16``: their logarithms, as a last bit of ln moves both codes and their grid."""
    if (x[0].dtype, x[0].shape) != (y[0].dtype, y[0].shape):
        return [f"{name}: {x[0].dtype} {tuple(x[0].shape)} / {y[0].dtype} {tuple(y[0].shape)}"]
    logs = [(c.double() + 32767) * s[1].double() + s[0].double() for c, s in (x, y)]
    off, step = (logs[0] - logs[1]).abs(), float(torch.maximum(x[1][1], y[1][1]))
    off[(x[0] == -32768) & (y[0] == -32768)] = 0.0
    most, mean = float(off.max()), float(off.mean())
    # The other random bits would make them differ by a third of a step in the mean.
    if most > 1.01 * step + 1e-4 or mean > 0.05 * step + 5e-6:
        return [
            f"{name}: logarithms differ by up to {most:.2g}, {mean:.2g} in the mean, at a step of {step:.2g}"
        ]
    return []


def _state(name: str, x: Tensor, y: Tensor, codes: float) -> list[str]:
    if x.dtype != y.dtype or x.shape != y.shape:
        return [f"{name}: {x.dtype} {tuple(x.shape)} / {y.dtype} {tuple(y.shape)}"]
    if not x.dtype.is_floating_point:
        off = (x.int() - y.int()).abs()
        packed = name.endswith(("edge_history_q", "residual"))  # two numbers in a byte
        wrong = float((off > 0).float().mean())
        if wrong > max(codes, 2 / off.numel()) * (3 if packed else 1):
            return [f"{name}: {wrong:.2%} of the codes differ"]
        return [f"{name}: a code is off by {int(off.max())}"] if int(off.max()) > 1 and not packed else []
    error = size(x.float() - y.float()) / (size(x.float()) + 1e-30)
    return [f"{name}: relative error {error:.2g}"] if not error < 1e-3 else []
