"""Sums over a whole tensor: they leave a technique as values and come back complete.

A tensor may lie on several processes, each holding some of its rows. What a technique can compute from the
rows that are here it does; a sum over the whole tensor it *yields* and gets back::

    [square] = yield [total(x.square())]

So a technique says what it needs to know and never who adds it up. ``alone`` answers with what this process
has, which is the whole where tensors are whole; the sharded step collects the sums of all tensors, adds them
over the processes at once, and sends them back. ``together`` runs techniques side by side, so that their sums
leave in one exchange. A function marked ``summing`` can be called as it is (its sums are those of this
process), and ``function.steps(...)`` is what a recipe drives with ``yield from``.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Generator
from typing import Any, NamedTuple, ParamSpec, Protocol, TypeVar, cast

import torch
from torch import Tensor

from ._reduce import col_sum, row_sum, tensor_sum

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
WHOLE, COLUMNS, ROWS = (1, 2, 3), (2,), (3,)


class Sum(NamedTuple):
    """A sum that is not complete yet where other processes hold a part of the tensor.

    Args:
        part: what this process adds to it.
        over: dimensions of [B,K,m,n] that are summed.
        counted: their lengths here.
        mean: divide by their number of elements in the whole tensor.
    """

    part: Tensor
    over: tuple[int, ...]
    counted: tuple[int, ...]
    mean: bool

    def complete(self, added: Tensor, counted: tuple[int, ...]) -> Tensor:
        """The sum or mean, from the parts of all processes and the lengths in the whole tensor."""
        return added / math.prod(counted) if self.mean else added


Steps = Generator["list[Sum]", "list[Tensor]", R]


def total(x: Tensor, like: Tensor | None = None, over: tuple[int, ...] = WHOLE) -> Sum:
    """Ask for a sum: over the tensor [B,1,1,1], over its rows [B,K,1,n], or within rows [B,K,m,1].

    Args:
        x: what is summed.
        like: [B,K,m,n]; x stands once for each of its elements where x is alike along a dimension.
        over: ``WHOLE``, ``COLUMNS`` (each column over all rows) or ``ROWS`` (each row).
    """
    part = col_sum(x) if over == COLUMNS else row_sum(x) if over == ROWS else tensor_sum(x)
    shape = x.shape if like is None else like.shape
    if like is not None and x.shape != like.shape:
        part = part * (math.prod(like.shape[1:]) / max(1, math.prod(x.shape[1:])))
    return Sum(part, over, tuple(shape[d] for d in over), mean=False)


def mean(x: Tensor, like: Tensor | None = None, over: tuple[int, ...] = WHOLE) -> Sum:
    """Ask for a mean; arguments as in ``total``."""
    return total(x, like, over)._replace(mean=True)


def elements(x: Tensor) -> Sum:
    """Ask for the number of elements of each whole tensor: [B,1,1,1]."""
    return total(torch.ones((x.shape[0], 1, 1, 1), dtype=x.dtype, device=x.device), like=x)


def exact(part: Tensor) -> Sum:
    """Ask for the sum over the processes of something that each has computed from its part."""
    return Sum(part, WHOLE, (), mean=False)


class Summing(Protocol[P, R_co]):
    """A technique whose sums leave it: complete when called, step by step through ``steps``."""

    @property
    def steps(self) -> Callable[P, Generator[list[Sum], list[Tensor], R_co]]: ...
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co: ...


def summing(steps: Callable[P, Generator[list[Sum], list[Tensor], R]]) -> Summing[P, R]:
    """Make a generator that yields sums callable like any function."""

    @functools.wraps(steps)
    def complete(*args: P.args, **kwargs: P.kwargs) -> R:
        return alone(steps(*args, **kwargs))

    complete.steps = steps  # type: ignore[attr-defined]
    return cast("Summing[P, R]", complete)


def alone(steps: Generator[list[Sum], list[Tensor], R]) -> R:
    """Run to the end with the sums that this process has: tensors are whole."""
    try:
        asked = next(steps)
        while True:
            asked = steps.send([s.complete(s.part, s.counted) for s in asked])
    except StopIteration as end:
        return end.value


def together(*several: Generator[list[Any], list[Tensor], Any]) -> Generator[list[Any], list[Tensor], Any]:
    """Run techniques side by side, so that their sums leave in one exchange; a list of their results."""
    results: list[Any] = [None] * len(several)
    waiting: dict[int, list[Any]] = {}

    def go_on(number: int, answers: list[Tensor] | None) -> None:
        steps = several[number]
        try:
            waiting[number] = next(steps) if answers is None else steps.send(answers)
        except StopIteration as end:
            waiting.pop(number, None)
            results[number] = end.value

    for number in range(len(several)):
        go_on(number, None)
    while waiting:
        members = sorted(waiting)
        counts = [len(waiting[number]) for number in members]
        answers = yield [s for number in members for s in waiting[number]]
        for number, count in zip(members, counts, strict=True):
            go_on(number, answers[:count])
            answers = answers[count:]
    return results


def nothing(value: R) -> Generator[list[Sum], list[Tensor], R]:
    """Steps without a sum, for a place where another option has some."""
    return value
    yield []  # makes it a generator
