"""One state, one gradient, two engines; and how far apart they may end.

Both engines evaluate the same formulas in fp32; they differ in the order of sums, in fused products
and in a polynomial for 2^x instead of a table. With eps = 2^-24:

* a sum of n positive terms, taken in lanes, is off by about sqrt(n / 16) eps of itself, at most 2e-5
  for n = 2^20 and 2e-6 for the sizes here (LINE); a running mean of it, its root and its reciprocal
  keep that order; a quotient of two (the confidence) doubles it;
* a direction is a product of at most eight such factors: DIRECTION = 2e-5 of the move it makes. The
  surprise (u - m)^2 loses digits where u and m agree, so RESIDUAL is larger than LINE;
* a weight is rounded once: half a unit in its last place on top of that;
* directions of the weights are searched in fp64, in weights that differ as above; what that turns them
  by, over the gap between two singular values, is less than a step of what holds them (bf16, or 1/127),
  so that a projection on them differs by such a step per factor, and a rounding;
* a code differs by one where the value lies within that distance of a midpoint; error correction makes
  up for it, so its decoded value differs by at most two of its own steps.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from automagic_cameamp import OPTIMIZERS
from automagic_cameamp.storage import CORRECTION, ErrorCorrected
from automagic_cameamp.storage.rounding import join
from automagic_cameamp.types import Layout

LINE, RESIDUAL, DIRECTION = 4e-6, 3e-5, 2e-5
BASIS = {torch.int8: 2.5 / 127, torch.bfloat16: 2.5 * 2.0**-8}  # of a projection, after a search
# An element whose edge lies at the threshold may be hit by one executor and not by the other: that moves the
# mean rate of a tensor of thousands (seen: by .034 of one element of 7,800), by no more than this.
HIT = 2e-6
RARE = 0.01  # share of the codes of a field that may lie so close to a midpoint
EXACT = ("step", "lr_mask", "last_polarity", "lowrank_basis", "lowrank_tail")

SHAPES: list[tuple[int, ...]] = [
    (), (1,), (7,), (300,), (5000,),
    (16, 640), (640, 16), (1, 50), (50, 1), (33, 65), (13, 600), (100, 1030), (41, 200), (21, 64), (9, 8),
    (3, 17, 19), (8, 4, 3, 3), (5, 3, 2, 2, 3),
]  # fmt: skip


def make(name: str, shapes: Any, dtype: torch.dtype, engine: str, **options: Any) -> tuple[Any, list[Any]]:
    """An optimizer and its parameters, all of a LoRA, the same for every engine."""
    draw = torch.Generator().manual_seed(0)
    params = [torch.nn.Parameter((torch.randn(s, generator=draw) * 0.05).to(dtype)) for s in shapes]
    for p in params:
        p._is_lora_layer = True  # type: ignore[attr-defined]
    return OPTIMIZERS[name](params, **{"lr": 1e-3, "engine": engine, **options}), params


def gradients(params: list[Any], step: int) -> list[Tensor]:
    draw = torch.Generator().manual_seed(1000 + step)
    found = [(torch.randn(p.shape, generator=draw) * 0.01).to(p.dtype) for p in params]
    for g in found:
        g.view(-1)[::11] = 0  # signs of exactly 0 matter to the mask
    return found


def take(optimizer: Any, params: list[Any], step: int) -> None:
    for p, g in zip(params, gradients(params, step), strict=True):
        p.grad = g
    optimizer.step()


def twin(
    name: str, shapes: Any, dtype: torch.dtype, before: int, engine: str = "native", **options: Any
) -> list[tuple[Any, list[Any]]]:
    """The same run, ``before`` steps old, for the reference and for another executor."""
    reference, params = make(name, shapes, dtype, "reference", **options)
    for step in range(before):
        take(reference, params, step)
    native, others = make(name, shapes, dtype, engine, **options)
    for p, q in zip(params, others, strict=True):
        q.data.copy_(p.data)
    if before:
        native.load_state_dict(copy.deepcopy(reference.state_dict()))
    return [(reference, params), (native, others)]


def weights(optimizer: Any, p: Any) -> Tensor:
    """A parameter, with the bits beside it where it has some."""
    rest = optimizer.state[p].get(CORRECTION.name)
    return p.detach().clone() if rest is None else join(p.detach(), rest.view(p.shape))


def off_by(a: Tensor, b: Tensor) -> float:
    """Largest distance, in units of the largest element."""
    a, b = a.double(), b.double()
    return float((a - b).abs().max() / a.abs().max().clamp(min=1e-30)) if a.numel() else 0.0


def compare_state(
    optimizer: Any, p: Any, other: Any, q: Any, fields: Any, renewed: bool = False, line: float = LINE
) -> None:
    layout = Layout.of(tuple(p.shape))
    mine, theirs = optimizer.state[p], other.state[q]
    assert list(mine) == list(theirs)
    for spec, codec in fields:
        where = f"{spec.name} of {tuple(p.shape)}"
        if spec.name == CORRECTION.name:
            continue  # a part of the weight, which is compared whole
        if codec is None:
            a, b = mine[spec.name], theirs[spec.name]
            assert a.dtype == b.dtype and a.shape == b.shape
            if renewed and spec.name.startswith("lowrank_") and spec.count:
                q, r = (x.double() / (127 if x.dtype == torch.int8 else 1) for x in (a, b))
                assert float((q @ q.mT - r @ r.mT).abs().max()) <= BASIS[a.dtype], where
                assert float((a != 0).double().mean()) > 0.5, where  # something was found
                continue
            if spec.name in EXACT:
                assert torch.equal(a, b), where
                continue
            limit = RESIDUAL if "res" in spec.name or spec.name == "s" else line
            if spec.name == "avg_lr" and "edge_history_q" in mine and p.numel() >= 5000:
                limit += HIT
            assert off_by(a, b) <= limit, (where, off_by(a, b))
            continue
        planes = [
            tuple(s[spec.name + pl.suffix].reshape(pl.shape).unsqueeze(0) for pl in codec.planes(layout))
            for s in (mine, theirs)
        ]
        a, b = (codec.decode(held) for held in planes)
        inner = codec.code if isinstance(codec, ErrorCorrected) else codec
        if isinstance(codec, ErrorCorrected):
            width = inner.half_step(planes[0][:-1]) / codec.levels
            assert bool(((a - b).abs() <= 2.1 * width + 1e-12).all()), where
            continue
        if spec.name == "edge_history":  # four bits to a byte's half
            assert float((a - b).abs().max()) <= 1 / 15 + 1e-6
            assert float(((a - b).abs() > 1e-6).float().mean()) <= RARE
            continue
        codes = [held[0].to(torch.int32) for held in planes]
        if inner.name == "softsign4":  # two to a byte
            codes = [torch.stack([x & 15, x >> 4]) for x in codes]
        apart = (codes[0] - codes[1]).abs()
        if inner.name == "log16":  # one step of the code, whose size is its second number
            step = float(planes[0][1].flatten()[1])
            assert off_by(a, b) <= 1.1 * step + RESIDUAL, (where, off_by(a, b), step)
            continue
        assert int(apart.max()) <= 1, (where, int(apart.max()))
        assert float((apart > 0).float().mean()) <= max(RARE, 1.5 / apart.numel()), where


def compare(
    runs: list[tuple[Any, list[Any]]], before: list[Tensor], renewed: bool = False, line: float = LINE
) -> None:
    """Whether the other executor ended where the reference did, parameter by parameter."""
    (reference, params), (native, others) = runs
    model = reference.model
    fields = {id(p): model.fields(g, c) for g, c in model.chunks() for p in c.params}
    for p, q, old in zip(params, others, before, strict=True):
        compare_state(reference, p, native, q, fields[id(p)], renewed, line)
        a, b = weights(reference, p).double(), weights(native, q).double()
        move = (a - old.double()).abs()
        if CORRECTION.name in reference.state[p]:  # as many bits more; each may be clamped by one
            step = a.abs() * (2.0**-15 if p.dtype == torch.bfloat16 else 2.0**-18) + 2.0**-32
            assert bool(((a - b).abs() <= DIRECTION * move.max() + 2.01 * step).all()), tuple(p.shape)
        elif p.dtype == torch.float32:
            ulp = a.abs().clamp(min=1e-30) * 2.0**-23
            assert bool(((a - b).abs() <= DIRECTION * move.max() + 1.01 * ulp).all()), tuple(p.shape)
        else:  # one rounding may fall the other way
            step = a.abs() * (2.0**-7 if p.dtype == torch.bfloat16 else 2.0**-10) + 2.0**-24
            assert bool(((a - b).abs() <= step).all()), tuple(p.shape)
            assert float((a != b).double().mean()) <= max(RARE, 1.5 / a.numel()), tuple(p.shape)


def check(name: str, dtype: torch.dtype, before: int, shapes: Any = SHAPES, **options: Any) -> None:
    runs = twin(name, shapes, dtype, before, **options)
    old = [weights(runs[0][0], p) for p in runs[0][1]]
    for optimizer, params in runs:
        take(optimizer, params, before)
    assert runs[1][0].stepper.plans.current is not None, "the kernels did not take this"
    compare(runs, old, renewed=before % options.get("sync_frequency", 100) == 0)
