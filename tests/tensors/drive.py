"""Step with every kind of tensor: ``python drive.py CLASS ENGINE...``; a line of JSON per case.

A process of its own, because what fails here may be a segmentation fault. The case is printed before it
runs, so that the last line names the guilty one.
"""

from __future__ import annotations

import json
import sys
import warnings
from typing import Any

import torch
from torch import Tensor, nn

import automagic_cameamp as ac
from automagic_cameamp.optimizers import OPTIMIZERS
from tensors.kinds import KINDS, SHAPE, values


def options(engine: str) -> dict[str, Any]:
    return {"lr": 1e-2, "engine": engine, "warmup_steps": 2, "stochastic_rounding": False}


def bits(optimizer: torch.optim.Optimizer, weights: list[Tensor]) -> list[Any]:
    """All that must not change: weights and state."""
    state = [(k, v.clone()) for p in weights for k, v in sorted(optimizer.state.get(p, {}).items())]
    return [*(p.detach().clone() for p in weights), *state, [g["clock"] for g in optimizer.param_groups]]


def same(a: list[Any], b: list[Any]) -> bool:
    return len(a) == len(b) and all(
        torch.equal(x, y) if isinstance(x, Tensor)
        else x[0] == y[0] and torch.equal(x[1], y[1]) if isinstance(x, tuple)
        else x == y
        for x, y in zip(a, b, strict=True)
    )  # fmt: skip


def read(p: Tensor) -> Tensor:
    return (
        p.detach().dequantize() if hasattr(type(p), "inner") or type(p).__name__ == "Held" else p.detach() + 0
    )


def as_weight(name: str, engine: str, kind: str) -> str:
    make = KINDS[kind][0]
    x = values()
    twin = nn.Parameter(x.clone())
    other, third = (nn.Parameter(torch.ones(SHAPE)) for _ in range(2))
    if kind == "inside torch.func":  # a parameter made of it is one outside again
        return "stepped"
    try:
        weight = make(x.clone())
        if not isinstance(weight, nn.Parameter):
            weight = nn.Parameter(
                weight, requires_grad=weight.is_floating_point() and not weight.is_inference()
            )
    except (RuntimeError, TypeError, NotImplementedError) as error:
        return f"torch: {error}"
    g, h = values(), values()
    cls = OPTIMIZERS[name]
    try:
        optimizer = cls([("other", other), ("odd.weight", weight)], **options(engine))
    except ValueError as error:
        return "refused" if "odd.weight" in str(error) else f"unnamed: {error}"
    expected = cls([("other", third), ("odd.weight", twin)], **options("reference"))
    before: list[Any] = []
    try:
        for _ in range(3):
            other.grad, third.grad, twin.grad = h.clone(), h.clone(), g.clone()
            try:
                if hasattr(weight, "grad_dtype") and not weight.dtype.is_floating_point:
                    weight.grad_dtype = None
                weight.grad = make(g.clone()) if kind == "readable wrapper" else g.to(weight.device)
            except (RuntimeError, TypeError, AttributeError) as error:
                return f"torch: {error}"
            before = bits(optimizer, [other])
            optimizer.step()
            expected.step()
    except (ValueError, RuntimeError) as error:
        if "odd.weight" not in str(error):
            return f"unnamed: {error}"
        return "refused" if same(before, bits(optimizer, [other])) else f"half applied: {error}"
    if not torch.allclose(read(weight), twin.detach(), rtol=1e-5, atol=1e-6):
        return f"wrong by {float((read(weight) - twin.detach()).abs().max())}"
    return "stepped"


def as_gradient(name: str, engine: str, kind: str) -> str:
    make = KINDS[kind][0]
    cls = OPTIMIZERS[name]
    start = values()
    p, q, other, third = (
        nn.Parameter(x.clone()) for x in (start, start, torch.ones(SHAPE), torch.ones(SHAPE))
    )
    optimizer = cls([("other", other), ("odd.weight", p)], **options(engine))
    expected = cls([("other", third), ("odd.weight", q)], **options("reference"))
    odd = values()
    for t in range(5):
        g, h = values(), values()
        other.grad, third.grad, p.grad, q.grad = h.clone(), h.clone(), g.clone(), g.clone()
        if t in (0, 2, 3):  # without state, with a plan, and once more
            try:
                p.grad = None
                given = make(odd.clone())
                q.grad = _meaning(kind, odd)
                p.grad = given
            except (RuntimeError, TypeError, NotImplementedError) as error:
                return f"torch: {error}"
        before = bits(optimizer, [p, other])
        try:
            optimizer.step()
        except RuntimeError as error:
            if "odd.weight" not in str(error):
                return f"unnamed: {error}"
            if not same(before, bits(optimizer, [p, other])):
                return f"half applied: {error}"
            if t == 0:
                continue
            return "refused"
        if t == 0 and KINDS[kind][2] == "refused":
            return "stepped at first"
        expected.step()
    if not torch.allclose(p.detach(), q.detach(), rtol=1e-5, atol=1e-6):
        return f"wrong by {float((p - q).abs().max())}"
    return "stepped"


def _meaning(kind: str, x: Tensor) -> Tensor | None:
    """A plain gradient of the same values."""
    if kind == "zeros without memory":
        return torch.zeros(SHAPE)
    if kind in ("expanded", "overlapping"):
        return KINDS[kind][0](x.clone()).clone(memory_format=torch.contiguous_format)
    return x.clone()


def main(names: list[str]) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    for name in names:
        for engine in ("auto", "reference"):
            for kind in KINDS:
                for role, run in (("weight", as_weight), ("gradient", as_gradient)):
                    print(json.dumps([name, engine, kind, role]), end=" ", flush=True)
                    print(json.dumps(run(name, engine, kind)), flush=True)
    print("done", ac.__name__)


if __name__ == "__main__":
    main(sys.argv[1:] or list(OPTIMIZERS))
