"""Members of the family in many configurations, trained a little, and how to compare their state."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import automagic_cameamp
from automagic_cameamp.checkpoints.saved import decoded
from automagic_cameamp.types import Layout
from engine.helpers import parameters, train

WARMUP = 7
STEPS = 5
# Matrices large and small, a vector, a batch of matrices, a kernel, a number; every code shows on some.
SHAPES = [(80, 64), (8,), (40, 32), (3, 20, 30), (16, 8, 3, 3), (), (70, 61)]

# name -> (class, options)
MEMBERS: dict[str, tuple[str, dict[str, Any]]] = {
    "base": ("Automagic_CameAMP", {}),
    "base dynamic": ("Automagic_CameAMP8bit", {}),
    "base dynamic 64": ("Automagic_CameAMP8bit", {"blocksize": 64}),
    "base softsign": ("Automagic_CameAMP8bit", {"state_code": "softsign", "blocksize": 1024}),
    "contextual": ("Automagic_CameAMP_COptim", {}),
    "contextual 8bit": ("Automagic_CameAMP_COptim8bit", {"momentum_scales": [1, 5, 10]}),
    "improved": ("Automagic_CameAMP_Improved", {}),
    "affine": ("Automagic_CameAMP_8Bit", {}),
    "affine 8 residual bits": ("Automagic_CameAMP_8Bit", {"error_bits": 8, "block_size": 32}),
    "affine no residual": ("Automagic_CameAMP_8Bit", {"error_correction": False, "mixed_precision": False}),
    "softsign residual": ("Automagic_CameAMP_8Bit", {"state_code": "softsign", "block_size": 4096}),
    "sized": ("Automagic_CameAMP_Improved_8Bit", {}),
    "sized four bits": ("Automagic_CameAMP_Improved_8Bit", {"optim_bits": 4, "min_8bit_size": 1024}),
    "sized one block": ("Automagic_CameAMP_Improved_8Bit", {"block_wise": False, "min_8bit_size": 1}),
}


def make(member: str, params: Any, **options: Any) -> Any:
    name, own = MEMBERS[member]
    cls = getattr(automagic_cameamp, name)
    return cls(params, **{"lr": 5e-4, "warmup_steps": WARMUP, **own, **options})


def never(position: int, step: int) -> bool:
    return False


def trained(member: str, dtype: torch.dtype = torch.float32, **options: Any) -> tuple[Any, list[Tensor]]:
    params = parameters(dtype, SHAPES)
    optimizer = make(member, params, **options)
    train(optimizer, params, range(1, STEPS + 1), never)
    return optimizer, params


def fresh(member: str, dtype: torch.dtype = torch.float32, **options: Any) -> tuple[Any, list[Tensor]]:
    params = parameters(dtype, SHAPES)
    return make(member, params, **options), params


def values(optimizer: Any) -> list[dict[str, Tensor]]:
    """Decoded state of every parameter, in order."""
    found: dict[int, dict[str, Tensor]] = {}
    for group, chunk in optimizer.model.chunks():
        fields = optimizer.model.fields(group, chunk)
        for i, p in zip(chunk.indices, chunk.params, strict=True):
            found[i] = decoded(optimizer.state[p], fields, chunk.layout) if optimizer.state.get(p) else {}
    return [found[i] for i in sorted(found)]


def distance(a: Tensor, b: Tensor) -> float:
    """Relative L2 distance."""
    return float((a.double() - b.double()).norm() / b.double().norm().clamp(min=1e-30))


def goes_on(optimizer: Any, params: list[Tensor], steps: int = 4) -> None:
    """A few more steps leave everything finite and move the weights."""
    before = [p.detach().clone() for p in params]
    train(optimizer, params, range(STEPS + 1, STEPS + 1 + steps), never)
    for p, q in zip(params, before, strict=True):
        assert bool(p.isfinite().all())
        assert not torch.equal(p, q)
    for state in values(optimizer):
        for name, value in state.items():
            assert not value.is_floating_point() or bool(value.isfinite().all()), name


def view(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    return x.reshape(1, *Layout.of(shape).view)


def within_rms(x: Tensor) -> Tensor:
    return x / max(1.0, float(x.double().square().mean().sqrt()))


def check_moments(ours: dict[str, Tensor], square: Tensor, rtol: float = 1e-5) -> None:
    """Row and column means of a matrix, the whole of a vector."""
    if "exp_avg_sq" in ours:
        torch.testing.assert_close(ours["exp_avg_sq"], square, rtol=rtol, atol=0)
    else:
        torch.testing.assert_close(ours["exp_avg_sq_row"], square.mean(-1, keepdim=True), rtol=rtol, atol=0)
        torch.testing.assert_close(ours["exp_avg_sq_col"], square.mean(-2, keepdim=True), rtol=rtol, atol=0)
