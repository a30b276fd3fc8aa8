"""How far the regularisers reach: one element is poked, and what moves must be what is declared.

The general machinery and the other techniques are in ``tests/techniques/test_locality.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from automagic_cameamp import techniques as T
from automagic_cameamp.types import Layout, Locality
from reference import draws

B, K, M, N = 3, 2, 5, 6
LAYOUT = Layout.of((K, M, N))


def full(seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return draws.stack((K, M, N), seed, B, dtype=dtype)


def positive(seed: int, *shape: int) -> Tensor:
    return draws.normal(shape, seed).abs() + 0.5


def as_pictures(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Called with [B,K,m,n]; the technique sees the pictures of that parameter."""

    def call(x: Tensor) -> Tensor:
        view = T.picture(x, LAYOUT, "all")
        assert view is not None
        return function(view).reshape(x.shape)

    return call


HALF = torch.full((B, 1, 1, 1), 0.5, dtype=torch.float64)
BASIS = T.top_basis(full(7), 2)

# name -> (function of one tensor per argument, its inputs)
CASES: dict[str, tuple[Callable[..., Tensor], list[Tensor]]] = {
    "background_gain": (lambda e: T.background_gain(e.pow(9)), [positive(0, B, K, M, 1)]),
    "edge_hits": (as_pictures(lambda x: T.edge_hits(x, x, 0.2)), [full(0)]),
    "emphasise": (lambda u: T.emphasise(u, BASIS[: u.shape[0]], 1.5), [full(0)]),
    "frequency_filter": (as_pictures(lambda x: T.frequency_filter(x, 0.5)), [full(0)]),
    "row_variance": (T.row_variance, [full(0)]),
    "variance_of": (T.variance_of, [full(0).square() + 9, full(1)]),
    "shrink_tail": (lambda w: T.shrink_tail(w, BASIS[: w.shape[0]], HALF[: w.shape[0]]), [full(0)]),
    "spatial_gain": (lambda v: T.spatial_gain(v, 0.3), [positive(0, B, K, M, 1)]),
    "spd": (lambda p, new, g: T.spd(p, new, g * (g * p).sign(), 0.5), [full(0), 2 * full(0), full(2)]),
}


def pokes(x: Tensor) -> Iterator[tuple[int, ...]]:
    for seed in range(8):
        generator = torch.Generator().manual_seed(seed)
        yield tuple(int(torch.randint(size, (), generator=generator)) for size in x.shape)


def moved(name: str, argument: int, index: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Positions (b, k, i, j) of the outputs that change."""
    function, inputs = CASES[name]
    poked = [x.clone() for x in inputs]
    poked[argument][index] *= 1.7
    return [tuple(where) for where in (function(*inputs) != function(*poked)).nonzero().tolist()]


def inside(reach: Locality, poke: tuple[int, ...], where: tuple[int, ...], width: int) -> bool:
    """Whether the output at ``where`` may depend on the input at ``poke``."""
    (b, k, i, j), (b2, k2, i2, j2) = poke, where
    if b != b2:
        return False
    near = abs(i - i2) <= 1 and abs(j - j2) <= 1
    return {
        Locality.TENSOR: True,
        Locality.ROW: k == k2 and i == i2,
        Locality.STENCIL: k == k2 and near,
        Locality.ELEMENT: k == k2 and i == i2 and j == j2,
    }[reach]


def cases() -> Iterator[tuple[str, int]]:
    for name, (_, inputs) in CASES.items():
        for argument in range(len(inputs)):
            yield name, argument


def declared(name: str) -> Locality:
    return getattr(T, name).locality


@pytest.mark.parametrize(("name", "argument"), list(cases()))
def test_nothing_moves_beyond_the_declared_locality(name, argument):
    for index in pokes(CASES[name][1][argument]):
        for where in moved(name, argument, index):
            assert inside(declared(name), index, where, N), f"{index} moves {where}"


@pytest.mark.parametrize("name", CASES)
def test_the_declared_locality_is_reached(name):
    """A declaration wider than the truth would hide a regression."""
    narrower = {Locality.ELEMENT, Locality.ROW, Locality.STENCIL} - {declared(name)}
    if declared(name) is Locality.STENCIL:
        narrower = {Locality.ELEMENT}
    elif declared(name) is Locality.ROW:
        narrower = {Locality.ELEMENT}
    elif declared(name) is Locality.ELEMENT:
        narrower = set()
    far, changed = set(), 0
    for argument, x in enumerate(CASES[name][1]):
        for index in pokes(x):
            places = moved(name, argument, index)
            changed += len(places)
            # A row statistic stands for its whole row: only what leaves the row is beyond it.
            far |= {
                reach
                for reach in narrower
                if any(not inside(reach, index, (*w[:3], index[3]), N) for w in places)
            }
            if x.shape[-1] > 1 and any(w[3] != index[3] for w in places):
                far.add(Locality.ELEMENT)
    assert changed
    if declared(name) is not Locality.ROW:
        assert far == narrower


def test_row_variance_looks_at_the_whole_row():
    x = full(0)
    before = T.row_variance(x)
    for j in range(N):
        y = x.clone()
        y[1, 0, 2, j] += 1.0
        changed = (T.row_variance(y) != before).nonzero().tolist()
        assert changed == [[1, 0, 2, 0]]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_stacked_equals_looped(name, dtype):
    function, inputs = CASES[name]
    inputs = [x.to(dtype) for x in inputs]
    if name in ("emphasise", "shrink_tail"):
        basis = BASIS.to(dtype)
        half = HALF.to(dtype)
        whole = {"emphasise": lambda w, b, h: T.emphasise(w, b, 1.5), "shrink_tail": T.shrink_tail}[name]
        together = whole(inputs[0], basis, half)
        parts = [whole(inputs[0][b : b + 1], basis[b : b + 1], half[b : b + 1]) for b in range(B)]
    else:
        together = function(*inputs)
        parts = [function(*[x[b : b + 1] for x in inputs]) for b in range(B)]
    assert torch.equal(together, torch.cat(parts))


@pytest.mark.parametrize(
    "shape", [(33, 257), (257, 33), (16, 1280), (3, 12, 40), (64, 3, 3, 3), (1, 9), (9, 1)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_stacked_equals_looped_on_awkward_shapes(shape, dtype):
    layout = Layout.of(shape)
    w, u = (draws.stack(shape, i, 4, dtype=dtype) for i in range(2))
    keep = min(3, layout.rows, layout.cols)

    def everything(w: Tensor, u: Tensor) -> Iterator[Any]:
        basis = T.top_basis(w, keep)
        strength = torch.full((w.shape[0], 1, 1, 1), 0.1, dtype=dtype)
        view = T.picture(u, layout, "all")
        assert view is not None
        yield from (basis, T.emphasise(u, basis, 1.2), T.shrink_tail(w, basis, strength))
        yield from (T.edge_hits(view, u, 0.6), T.frequency_filter(view, 0.05).reshape(u.shape))
        yield from (T.background_gain(T.row_mean(u * u)), T.spatial_gain(T.row_variance(u), 0.8))
        yield T.spd(w, w + u, u, 0.1)

    together = list(everything(w, u))
    for b in range(4):
        for i, (whole, part) in enumerate(zip(together, everything(w[b : b + 1], u[b : b + 1]), strict=True)):
            assert torch.equal(whole[b : b + 1], part), f"result {i}"


@pytest.mark.parametrize("name", CASES)
def test_no_technique_writes_into_its_arguments(name):
    function, inputs = CASES[name]
    before = [x.clone() for x in inputs]
    function(*inputs)
    assert all(torch.equal(x, y) for x, y in zip(inputs, before, strict=True))


def test_every_new_technique_is_here():
    """What the improved recipe adds to the base recipe."""
    for name in CASES:
        assert hasattr(getattr(T, name), "locality"), f"{name} declares no locality"
    modules = {"decay", "lowrank", "spatial", "stencil"}
    found = {
        name
        for name in T.__all__
        if hasattr(f := getattr(T, name), "locality") and f.__module__.rsplit(".", 1)[1] in modules
    }
    assert found - {"adaptive_decay"} == CASES.keys()
