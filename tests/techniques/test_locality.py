"""How far a technique reaches, and that a tensor of a stack never knows the others.

One element of one input is moved; the outputs that move must be those that the declared locality
allows, no more, and for the declared reach to mean anything some poke must go that far. Elements
of ``x`` stand for the technique's running argument; row and column statistics are poked too.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from automagic_cameamp import techniques as T
from automagic_cameamp.types import Locality
from reference import draws

SHAPE = (3, 4, 5)  # K matrices of m x n
B, K, M, N = 3, *SHAPE


def full(seed: int, batch: int = B, dtype: torch.dtype = torch.float64) -> Tensor:
    return draws.stack(SHAPE, seed, batch, dtype=dtype)


def positive(seed: int, *shape: int) -> Tensor:
    return draws.normal(shape, seed).abs() + 0.5


def counters(seed: int) -> Tensor:
    return (draws.normal((B, *SHAPE), seed) * 20).round().clamp(-40, 40).to(torch.int8)


def signs(seed: int) -> Tensor:
    return draws.normal((B, *SHAPE), seed).sign().to(torch.int8)


def per_tensor(seed: int) -> Tensor:
    return draws.normal((B, 1, 1, 1), seed).tanh()


def bases(seed: int) -> Tensor:
    return T.top_basis(full(seed), 2)


LIVE = torch.ones(B, 1, 1, 1, dtype=torch.bool)
ONE = torch.ones((), dtype=torch.float64)
LEVEL = T.Level.of(torch.tensor([4.0, 1, 0, 0, 0, 0, 0, 1]))

# name -> (function of tensors only, its inputs). Everything with a declared locality must be here.
CASES: dict[str, tuple[Callable[..., Any], list[Tensor]]] = {
    "adaptive_decay": (T.adaptive_decay, [full(0)]),
    "additive_mask": (lambda k: T.additive_mask(k, ONE.dtype, 1e-4, 3e-6, 1e-7, 1e-3), [counters(0)]),
    "agr": (T.agr, [full(0)]),
    "agreement": (lambda g, last: T.agreement(g, last, LIVE[: g.shape[0]]), [full(0), signs(1)]),
    "allora_gain": (lambda p: T.allora_gain(p, 2.0), [full(0)]),
    "belief_residual": (T.belief_residual, [full(0), full(1)]),
    "cautious": (T.cautious, [full(0), full(1)]),
    "count": (lambda k, bump: T.count(k, bump, T.GEOMETRIC), [counters(0), signs(1)]),
    "distance_evidence": (
        lambda r, s, g, x: T.distance_evidence(r[:, 0, 0, 0], s.flatten(1), g.flatten(1), x.flatten(1), ONE),
        [per_tensor(0), full(1), full(2), full(3)],
    ),
    "look_back": (
        lambda g, a, p: T.look_back(g, a[..., :2], p, LEVEL, torch.zeros(1)),
        [full(0), full(1), full(2)],
    ),
    "ema": (lambda old, new: T.ema(old, new, 0.7), [full(0), full(1)]),
    "factored_moment": (
        # the third result, the mean of the rows, stands once for a whole matrix
        lambda row, col, x: T.factored_moment(row, col, x, 0.9, 1e-30)[:2],
        [positive(0, B, K, M, 1), positive(1, B, K, 1, N), positive(2, B, *SHAPE)],
    ),
    "factored_rsqrt": (
        T.factored_rsqrt,
        [full(0), positive(1, B, K, M, 1), positive(2, B, K, 1, N), positive(3, B, K, 1, 1)],
    ),
    "geometric_mask": (lambda k: T.geometric_mask(k, ONE), [counters(0)]),
    "grams": (lambda out, g: T.grams(out, g, 0.7), [full(0), full(1)]),
    "majority": (lambda bump: T.majority(bump, "tensor"), [signs(0)]),
    "orthograd": (T.orthograd, [full(0), full(1)]),
    "push_sign": (lambda h, g: T.push_sign(h.to(torch.uint8), g), [counters(0).abs(), full(1)]),
    "rms_clip": (lambda x: T.rms_clip(x, 0.1), [full(0)]),
    "rms_gain": (lambda x: T.rms_gain(x, 0.1), [full(0)]),
    "sign_vote": (
        lambda h, u: T.sign_vote(h.to(torch.uint8) * 0, u, LIVE[: u.shape[0]].flatten()),
        [counters(0).abs(), full(1)],
    ),
    "torque": (T.torque, [per_tensor(0), full(1), full(2)]),
    # A11 to A16 and the contextual recipe
    "background_gain": (T.background_gain, [(3 * draws.normal((B, K, M, 1), 0)).exp()]),
    "edge_hits": (lambda g: T.edge_hits(g, g, 0.3), [full(0)]),
    "emphasise": (lambda u, basis: T.emphasise(u, basis, 1.2), [full(0), bases(1)]),
    "frequency_filter": (lambda g: T.frequency_filter(g, 0.3), [full(0)]),
    "multiscale": (
        lambda own, u, kept: T.multiscale(own, u, [kept], 0.8, [1, 5, 10]),
        [full(0), full(1), full(2)],
    ),
    "row_variance": (T.row_variance, [full(0)]),
    "variance_of": (T.variance_of, [full(0).square() + 1, full(1) / 9]),
    "shrink_tail": (T.shrink_tail, [full(0), bases(1), positive(2, B, 1, 1, 1) / 9]),
    "sketch": (T.sketch, [full(0)]),
    "spatial_gain": (lambda v: T.spatial_gain(v, 0.2), [positive(0, B, K, M, 1)]),
    "spd": (
        lambda p, new, g: T.spd(p, new, g, 0.3),
        [full(0), 1.5 * full(0), full(0) + 0.1 * full(1)],
    ),
}

DECLARED = {name: f.locality for name in T.__all__ if hasattr(f := getattr(T, name), "locality")}


def outputs(result: Any) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else list(result)


def extent(x: Tensor, index: tuple[int, ...]) -> dict[str, Any]:
    """Position (b, k, i, j) of an element; None where the tensor has no such axis."""
    b, *rest = index
    k, i, j = (rest + [None] * 3)[:3] if x.dim() == 4 else (None, None, None)
    size = x.shape[1:] if x.dim() == 4 else (1, 1, 1)
    return {
        "b": b,
        "k": k if size[0] > 1 else None,
        "i": i if size[1] > 1 else None,
        "j": j if size[2] > 1 else None,
    }


def same(a: Any, b: Any) -> bool:
    return a is None or b is None or a == b


def near(a: Any, b: Any) -> bool:
    return a is None or b is None or abs(a - b) <= 1


def allowed(reach: Locality, poke: dict[str, Any], moved: dict[str, Any]) -> bool:
    """Whether an output at ``moved`` may depend on an input at ``poke``."""
    if poke["b"] != moved["b"]:
        return False
    k, i, j = (same(poke[axis], moved[axis]) for axis in "kij")
    return {
        Locality.ELEMENT: k and i and j,
        Locality.ROW: k and i,
        Locality.COLUMN: k and j,
        Locality.CROSS: k and (i or j),
        Locality.STENCIL: k and near(poke["i"], moved["i"]) and near(poke["j"], moved["j"]),
        Locality.TENSOR: True,
    }[reach]


def moved_by(name: str, argument: int, index: tuple[int, ...]) -> list[tuple[Tensor, tuple[int, ...]]]:
    """Output elements that change when this element of this argument changes."""
    function, inputs = CASES[name]
    poked = [x.clone() for x in inputs]
    value = poked[argument][index]
    if not value.dtype.is_floating_point:
        poked[argument][index] = -value
    else:  # a change of sign too, because some techniques see nothing else; statistics stay positive
        flip = sum(index) % 2 and bool((poked[argument] < 0).any())
        poked[argument][index] = value * (-1.7 if flip else 1.7)
    result = []
    for x, y in zip(outputs(function(*inputs)), outputs(function(*poked)), strict=True):
        result += [(x, tuple(where)) for where in (x != y).nonzero().tolist()]
    return result


def pokes(name: str):
    """(argument, position) of a few elements of every argument."""
    for argument, x in enumerate(CASES[name][1]):
        for seed in range(6):
            g = torch.Generator().manual_seed(100 * argument + seed)
            yield argument, tuple(int(torch.randint(size, (), generator=g)) for size in x.shape)


def test_every_declared_technique_is_poked():
    assert len(DECLARED) >= 12
    assert not DECLARED.keys() - CASES.keys()


@pytest.mark.parametrize("name", sorted(DECLARED))
def test_nothing_moves_beyond_the_declared_locality(name):
    reach = DECLARED[name]
    for argument, index in pokes(name):
        poke = extent(CASES[name][1][argument], index)
        for x, where in moved_by(name, argument, index):
            assert allowed(reach, poke, extent(x, where)), (
                f"{name}: argument {argument} at {index} moves an output at {where}, beyond {reach.value}"
            )


NARROWER = {
    Locality.ELEMENT: [],
    Locality.ROW: [Locality.ELEMENT],
    Locality.COLUMN: [Locality.ELEMENT],
    Locality.CROSS: [Locality.ELEMENT, Locality.ROW, Locality.COLUMN],
    Locality.STENCIL: [Locality.ELEMENT, Locality.ROW, Locality.COLUMN, Locality.CROSS],
    Locality.TENSOR: [Locality.ELEMENT, Locality.ROW, Locality.COLUMN, Locality.CROSS, Locality.STENCIL],
}


def fits(poke: dict[str, Any], moved: list[dict[str, Any]], reach: Locality) -> bool:
    """Whether these movements lie in a narrower reach of some element that the poke stands for.

    A statistic that moves counts as beyond its elements.
    """
    sizes = dict(zip("kij", SHAPE, strict=True))
    places = [range(sizes[axis]) if poke[axis] is None else [poke[axis]] for axis in "kij"]
    for place in itertools.product(*places):
        origin = {"b": poke["b"], **dict(zip("kij", place, strict=True))}
        if all(None not in m.values() and allowed(reach, origin, m) for m in moved):
            return True
    return False


@pytest.mark.parametrize("name", sorted(DECLARED))
def test_the_declared_locality_is_reached(name):
    """A declaration that is wider than the truth would hide a regression."""
    narrower = set(NARROWER[DECLARED[name]])
    moved_at_all = False
    for argument, index in pokes(name):
        poke = extent(CASES[name][1][argument], index)
        moved = [extent(x, where) for x, where in moved_by(name, argument, index)]
        moved_at_all |= bool(moved)
        narrower = {reach for reach in narrower if fits(poke, moved, reach)}
    assert moved_at_all
    assert not narrower, f"{name} is declared {DECLARED[name].value}, but no poke goes beyond {narrower}"


@pytest.mark.parametrize("name", sorted(CASES))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_stacked_equals_looped(name, dtype):
    """Bit for bit: a stack is a loop that was written differently."""
    function, inputs = CASES[name]
    inputs = [x.to(dtype) if x.is_floating_point() else x for x in inputs]
    together = outputs(function(*inputs))
    for b in range(B):
        alone = outputs(function(*[x[b : b + 1] for x in inputs]))
        for x, y in zip(together, alone, strict=True):
            assert torch.equal(x[b : b + 1], y)


@pytest.mark.parametrize("shape", [(9,), (5000,), (3, 1), (1, 3), (7, 4099), (5, 3, 1, 1), (33, 1, 70)])
def test_stacked_equals_looped_on_awkward_shapes(shape):
    x, y = draws.stack(shape, 0, 4, dtype=torch.float32), draws.stack(shape, 1, 4, dtype=torch.float32)
    row, col = x.square().mean(-1, keepdim=True), x.square().mean(-2, keepdim=True)
    zero = torch.zeros(4, 1, 1, 1)

    def everything(x, y, row, col, zero):
        yield from (T.agr(x), T.adaptive_decay(x), T.cautious(x, y), T.orthograd(x, y), T.rms_clip(x, 0.3))
        level = row.mean(-2, keepdim=True)
        yield from (T.allora_gain(x, 2.0), T.factored_rsqrt(x, row, col, level), T.grams(x, y, 0.3))
        yield from T.factored_moment(row, col, y * y, 0.9, 1e-30)
        yield from T.torque(zero, x, y)
        yield from T.look_back(x, row, y, LEVEL, torch.zeros(1))
        yield from T.distance_evidence(zero.flatten(), T.sample(y) * 0, T.sample(x), T.sample(y), ONE.float())

    together = list(everything(x, y, row, col, zero))
    for b in range(4):
        alone = everything(*[z[b : b + 1] for z in (x, y, row, col, zero)])
        for i, (whole, part) in enumerate(zip(together, alone, strict=True)):
            assert torch.equal(whole[b : b + 1], part), f"result {i} of {shape}"


@pytest.mark.parametrize("name", sorted(CASES))
def test_no_technique_writes_into_its_arguments(name):
    function, inputs = CASES[name]
    before = [x.clone() for x in inputs]
    function(*inputs)
    for x, y in zip(inputs, before, strict=True):
        assert torch.equal(x, y)


@pytest.mark.parametrize("shape", draws.EMPTY)
def test_an_empty_tensor_stays_empty(shape):
    x = draws.stack(shape, 0, 2)
    for out in (T.agr(x), T.adaptive_decay(x), T.grams(x, x, 0.5), T.cautious(x, x), T.orthograd(x, x)):
        assert out.shape == x.shape
    assert T.ema(x, x, 0.5).shape == T.belief_residual(x, x).shape == x.shape
