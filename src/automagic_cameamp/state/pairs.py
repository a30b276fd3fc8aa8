"""Low-rank pairs among shapes: what a LoRA looks like to an optimizer that is given bare parameters.

A pair is r x n and m x r, with r at most 128 and below m and n; a convolution (o, i, kh, kw) counts as
o x (i kh kw). Ordinary networks hold such pairs too: bottlenecks, squeeze and excitation, MLPs of small
models. What sets a LoRA apart is that its rank is a size of nothing else. A bottleneck of width r has
biases, norms or further layers of that width; a LoRA's r exists between its two matrices only. Of rank 1 are
also vectors that another adapter writes as matrices: those of a LoRA come in pairs, and in pairs only.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import permutations
from typing import NamedTuple

# Shapes of the parameters of a group, and whether each may be called a LoRA's.
Shapes = Sequence[tuple[tuple[int, ...], bool]]
MAX_RANK = 128
MOST = 2 / 3  # of all matrices are in pairs where shapes alone may say LoRA
TYPICAL = 1 / 4  # of the smaller side: the median rank is at most this
WIDE_INSIDE = 1 / 8  # the same for one pair whose first matrix is m x r: MLPs are built like that
OUTSIDERS = 4  # pairs of a rank for each other parameter of that width


class _Matrix(NamedTuple):
    """A parameter seen as a matrix, and where it is: in its group, and among all parameters."""

    group: int
    position: int
    index: int
    alone: bool
    rows: int
    cols: int
    dims: int


class _Pair(NamedTuple):
    down: _Matrix  # r x n
    up: _Matrix  # m x r

    @property
    def rank(self) -> int:
        return self.down.rows

    @property
    def share(self) -> float:
        """Rank over the smaller side of the product."""
        return self.rank / min(self.up.rows, self.down.cols)


def low_rank(groups: Sequence[Shapes]) -> list[frozenset[int]]:
    """Positions of a LoRA's matrices in each group; none where the shapes are those of another network.

    Depends on the shapes and their order alone.

    Args:
        groups: per group of an optimizer, shape and whether it is a candidate.
    """
    found: list[set[int]] = [set() for _ in groups]
    matrices = list(_matrices(groups))
    every = [matrix for group in matrices for matrix in group]  # a group may hold one parameter only
    pairs = list(_neighbours(every))
    pairs += _across(matrices, pairs)
    ranks = _private(groups, pairs)
    pairs = [pair for pair in pairs if pair.rank in ranks]
    whole = sum(min(_sides(shape)) > 1 for shapes in groups for shape, _ in shapes if len(shape) > 1)
    members = {m for pair in pairs for m in pair if min(m.rows, m.cols) > 1 or pair.rank == 1}
    if not pairs or not _most(len(members), whole) or _median([p.share for p in pairs]) > TYPICAL:
        return [frozenset() for _ in groups]
    # Now that the ranks are known, also what is too narrow for them, in whatever order it comes.
    pairs += _neighbours(every, ranks)
    for pair in pairs:
        for matrix in pair:
            found[matrix.group].add(matrix.position)
        _add_magnitude(found, groups, pair)
    return [frozenset(positions) for positions in found]


def _most(part: int, whole: int) -> bool:
    return part >= MOST * whole - 1e-9


def _median(values: list[float]) -> float:
    return sorted(values)[(len(values) - 1) // 2]


def _sides(shape: tuple[int, ...]) -> tuple[int, int]:
    return shape[0], math.prod(shape[1:])


def _matrices(groups: Sequence[Shapes]) -> Iterator[list[_Matrix]]:
    first = 0
    for number, shapes in enumerate(groups):
        yield [
            _Matrix(number, position, first + position, len(shapes) == 1, *_sides(shape), len(shape))
            for position, (shape, candidate) in enumerate(shapes)
            if len(shape) > 1 and candidate and math.prod(shape) > 0
        ]
        first += len(shapes)


def _paired(one: _Matrix, other: _Matrix, ranks: frozenset[int] | None = None) -> _Pair | None:
    """The two as a pair, in the order (down, up) or (up, down)."""
    for pair in (_Pair(one, other), _Pair(other, one)):
        if pair.up.cols != pair.rank or (pair.rank == 1 and one.dims != other.dims):
            continue
        if ranks is not None:
            if pair.rank in ranks:
                return pair
        elif pair.rank <= MAX_RANK and pair.share < 1 and (pair.down is one or pair.share < WIDE_INSIDE):
            return pair
    return None


def _follows(one: _Matrix, other: _Matrix) -> bool:
    """Whether a parameter is the next one, in a group or of groups that hold one parameter each."""
    return other.index == one.index + 1 and (one.group == other.group or (one.alone and other.alone))


def _neighbours(matrices: list[_Matrix], ranks: frozenset[int] | None = None) -> Iterator[_Pair]:
    """Pairs of parameters that follow each other, each parameter in at most one."""
    i = 0
    while i + 1 < len(matrices):
        one, other = matrices[i], matrices[i + 1]
        pair = _paired(one, other, ranks) if _follows(one, other) else None
        if pair is not None:
            yield pair
        i += 1 if pair is None else 2


def _across(matrices: list[list[_Matrix]], pairs: list[_Pair]) -> Iterator[_Pair]:
    """Pairs over two groups, as LoRA+ makes them: every down in one, every up in the other, in one order."""
    taken = {matrix for pair in pairs for matrix in pair}
    rest = [[m for m in group if m not in taken] for group in matrices]
    sides = [_sides_of(group) for group in rest]
    # One of each follow each other, so who has one is of no interest: models may have a group per parameter.
    for first, second in permutations([number for number, group in enumerate(rest) if len(group) > 1], 2):
        before = len(taken)
        for rank, count in sides[first].downs:
            if count != sides[second].ups.get(rank):
                continue
            downs = [m for m in rest[first] if m.rows == rank]
            found = [
                _Pair(*both) for both in zip(downs, (m for m in rest[second] if m.cols == rank), strict=True)
            ]
            # A few may be too narrow for the rank, such as the first and the last convolution of a U-Net.
            limit = 1 if first < second else WIDE_INSIDE
            if _most(sum(pair.share < limit for pair in found), count):
                yield from found
                taken |= {matrix for pair in found for matrix in pair}
        for number in (first, second) if len(taken) > before else ():
            rest[number] = [m for m in rest[number] if m not in taken]
            sides[number] = _sides_of(rest[number])


class _Sides(NamedTuple):
    """Ranks that a group's matrices may have, and how many have them."""

    downs: list[tuple[int, int]]  # by rows, those of two at least, the most common first
    ups: dict[int, int]  # by columns, up to ``MAX_RANK``


def _sides_of(group: list[_Matrix]) -> _Sides:
    downs = [(rank, count) for rank, count in Counter(m.rows for m in group).most_common() if count > 1]
    return _Sides(downs, dict(Counter(m.cols for m in group if m.cols <= MAX_RANK)))


def _private(groups: Sequence[Shapes], pairs: list[_Pair]) -> frozenset[int]:
    """Ranks that are, but for few exceptions, the width of nothing outside their pairs."""
    count = Counter(pair.rank for pair in pairs)
    inside = {(m.group, m.position): pair.rank for pair in pairs for m in pair}
    others: Counter[int] = Counter()
    scales = 0  # of one row or column, in no pair: IA3's, for what is rank 1 to a LoRA is a vector to others
    for number, shapes in enumerate(groups):
        for position, (shape, _) in enumerate(shapes):
            own = inside.get((number, position))
            if own is None:
                scales += len(shape) > 1 and min(_sides(shape)) == 1
                middle = len(shape) > 2 and shape[0] == shape[1]  # of a convolution's LoRA: r x r kernels
                others.update(set() if middle else {*shape[:2], *(_sides(shape) if len(shape) > 1 else ())})
            else:  # the outer side of a pair may be another pair's rank
                others.update({*_sides(shape)} - {own})
    others[1] = scales
    return frozenset(r for r, n in count.items() if OUTSIDERS * others[r] <= n)


def _add_magnitude(found: list[set[int]], groups: Sequence[Shapes], pair: _Pair) -> None:
    """DoRA's magnitude behind a pair, where it is a matrix or kernel of one row or column."""
    last = max(pair, key=lambda m: (m.group, m.position))
    if pair.down.group != pair.up.group or last.position + 1 >= len(groups[last.group]):
        return
    shape, candidate = groups[last.group][last.position + 1]
    if candidate and len(shape) > 1 and max(shape) == math.prod(shape) in (pair.up.rows, pair.down.cols):
        found[last.group].add(last.position + 1)
