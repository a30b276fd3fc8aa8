"""Low-rank pairs among shapes: what a LoRA looks like to an optimizer that is given bare parameters.

A pair is r x n and m x r, with r at most 128 and below m and n; a convolution (o, i, kh, kw) counts as
o x (i kh kw). Ordinary networks hold such pairs too: bottlenecks, squeeze and excitation, MLPs of small
models. What sets a LoRA apart is that its rank is a size of nothing else. A bottleneck of width r has
biases, norms or further layers of that width; a LoRA's r exists between its two matrices only.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from fractions import Fraction
from statistics import median
from typing import NamedTuple

# Shapes of the parameters of a group, and whether each may be called a LoRA's.
Shapes = Sequence[tuple[tuple[int, ...], bool]]
MAX_RANK = 128
MOST = Fraction(2, 3)  # of all matrices are in pairs where shapes alone may say LoRA
TYPICAL = Fraction(1, 4)  # of the smaller side: the median rank is at most this
WIDE_INSIDE = Fraction(1, 8)  # the same for one pair whose first matrix is m x r: MLPs are built like that
OUTSIDERS = 4  # pairs of a rank for each other parameter of that width


class _Matrix(NamedTuple):
    """A parameter seen as a matrix, and where it is."""

    group: int
    position: int
    rows: int
    cols: int


class _Pair(NamedTuple):
    down: _Matrix  # r x n
    up: _Matrix  # m x r

    @property
    def rank(self) -> int:
        return self.down.rows

    @property
    def share(self) -> Fraction:
        """Rank over the smaller side of the product."""
        return Fraction(self.rank, min(self.up.rows, self.down.cols))


def low_rank(groups: Sequence[Shapes]) -> list[frozenset[int]]:
    """Positions of a LoRA's matrices in each group; none where the shapes are those of another network.

    Depends on the shapes and their order alone.

    Args:
        groups: per group of an optimizer, shape and whether it is a candidate.
    """
    found: list[set[int]] = [set() for _ in groups]
    matrices = [list(_matrices(number, shapes)) for number, shapes in enumerate(groups)]
    pairs = [pair for group in matrices for pair in _neighbours(group)]
    pairs += _across(matrices, pairs)
    ranks = _private(groups, pairs)
    pairs = [pair for pair in pairs if pair.rank in ranks]
    whole = sum(min(_sides(shape)) > 1 for shapes in groups for shape, _ in shapes if len(shape) > 1)
    members = {m for pair in pairs for m in pair if min(m.rows, m.cols) > 1 or pair.rank == 1}
    if not pairs or len(members) < MOST * max(whole, 1) or median(p.share for p in pairs) > TYPICAL:
        return [frozenset() for _ in groups]
    # Now that the ranks are known, also what is too narrow for them, in whatever order it comes.
    pairs += [pair for group in matrices for pair in _neighbours(group, ranks)]
    for pair in pairs:
        for matrix in pair:
            found[matrix.group].add(matrix.position)
        _add_magnitude(found, groups, pair)
    return [frozenset(positions) for positions in found]


def _sides(shape: tuple[int, ...]) -> tuple[int, int]:
    return shape[0], math.prod(shape[1:])


def _matrices(number: int, shapes: Shapes) -> Iterator[_Matrix]:
    for position, (shape, candidate) in enumerate(shapes):
        if len(shape) > 1 and candidate and math.prod(shape) > 0:
            yield _Matrix(number, position, *_sides(shape))


def _paired(one: _Matrix, other: _Matrix, ranks: frozenset[int] | None = None) -> _Pair | None:
    """The two as a pair, in the order (down, up) or (up, down)."""
    for pair in (_Pair(one, other), _Pair(other, one)):
        if pair.up.cols != pair.rank:
            continue
        if ranks is not None:
            if pair.rank in ranks:
                return pair
        elif pair.rank <= MAX_RANK and pair.share < 1 and (pair.down is one or pair.share < WIDE_INSIDE):
            return pair
    return None


def _neighbours(group: list[_Matrix], ranks: frozenset[int] | None = None) -> Iterator[_Pair]:
    """Pairs of parameters that follow each other, each parameter in at most one."""
    i = 0
    while i + 1 < len(group):
        one, other = group[i], group[i + 1]
        pair = _paired(one, other, ranks) if other.position == one.position + 1 else None
        if pair is not None:
            yield pair
        i += 1 if pair is None else 2


def _across(matrices: list[list[_Matrix]], pairs: list[_Pair]) -> Iterator[_Pair]:
    """Pairs over two groups, as LoRA+ makes them: every down in one, every up in the other, in one order."""
    taken = {matrix for pair in pairs for matrix in pair}
    rest = [[m for m in group if m not in taken] for group in matrices]
    for first, downs in enumerate(rest):
        for second, ups in enumerate(rest):
            if first == second or not downs or not ups:
                continue
            rank = Counter(m.rows for m in downs).most_common(1)[0][0]
            a, b = [m for m in downs if m.rows == rank], [m for m in ups if m.cols == rank]
            found = [_Pair(*both) for both in zip(a, b, strict=False)]
            if len(a) == len(b) and rank <= MAX_RANK and all(pair.share < 1 for pair in found):
                yield from found
                used = {matrix for pair in found for matrix in pair}
                rest[first] = downs = [m for m in downs if m not in used]
                rest[second] = [m for m in ups if m not in used]


def _private(groups: Sequence[Shapes], pairs: list[_Pair]) -> frozenset[int]:
    """Ranks that are, but for few exceptions, the width of nothing outside their pairs."""
    count = Counter(pair.rank for pair in pairs)
    inside = {(m.group, m.position): pair.rank for pair in pairs for m in pair}
    others: Counter[int] = Counter()
    for number, shapes in enumerate(groups):
        for position, (shape, _) in enumerate(shapes):
            own = inside.get((number, position))
            if own is None:
                middle = len(shape) > 2 and shape[0] == shape[1]  # of a convolution's LoRA: r x r kernels
                others.update(set() if middle else {*shape[:2], *(_sides(shape) if len(shape) > 1 else ())})
            else:  # the outer side of a pair may be another pair's rank
                others.update({*_sides(shape)} - {own})
    return frozenset(r for r, n in count.items() if r == 1 or OUTSIDERS * others[r] <= n)


def _add_magnitude(found: list[set[int]], groups: Sequence[Shapes], pair: _Pair) -> None:
    """DoRA's magnitude behind a pair, where it is a matrix or kernel of one row or column."""
    last = max(pair, key=lambda m: (m.group, m.position))
    if pair.down.group != pair.up.group or last.position + 1 >= len(groups[last.group]):
        return
    shape, candidate = groups[last.group][last.position + 1]
    if candidate and len(shape) > 1 and max(shape) == math.prod(shape) in (pair.up.rows, pair.down.cols):
        found[last.group].add(last.position + 1)
