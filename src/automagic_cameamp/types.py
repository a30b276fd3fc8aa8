"""Words shared by every layer: phases of a run, localities of a technique, the view of a tensor."""

from __future__ import annotations

import enum
import math
from collections.abc import Callable
from typing import NamedTuple, TypeVar

from torch import Tensor

F = TypeVar("F", bound=Callable[..., object])

# Of any weight's rate where the user gave none: the documents', or so many times the rate asked.
CAP, CAP_RATIO = 1e-3, 10.0

START = 1e-6  # learning rate where the user gave none: where the automatic level begins


class Phase(enum.Enum):
    """Where a stack of tensors stands in the warm-up; static, so that dead work is never traced.

    ``EARLY``: t < W/2.  ``MIDDLE``: W/2 <= t < W.  ``LATE``: t >= W.
    ``MIXED``: not known on the host (tensors of one stack differ, or the step counter lives on a
    device that may not be synchronised); every phase is computed and chosen by device flags.
    """

    EARLY = "early"
    MIDDLE = "middle"
    LATE = "late"
    MIXED = "mixed"

    @property
    def may_be_early(self) -> bool:
        """Whether some tensor of the stack may stand in the first half of the warm-up."""
        return self in (Phase.EARLY, Phase.MIXED)

    @property
    def may_warm_up(self) -> bool:
        """Whether some tensor of the stack may stand in the warm-up."""
        return self is not Phase.LATE


class Locality(enum.Enum):
    """What one input element may influence: the declared reach of a technique."""

    ELEMENT = "element"
    ROW = "row"
    COLUMN = "column"
    CROSS = "row and column"
    TENSOR = "tensor"
    STENCIL = "stencil"


def local(reach: Locality) -> Callable[[F], F]:
    """Declare the reach of a technique (a test pokes one element and sees which outputs move)."""

    def mark(function: F) -> F:
        function.locality = reach  # type: ignore[attr-defined]
        return function

    return mark


class Place(NamedTuple):
    """Which part of a tensor this process holds, where several hold one.

    Args:
        split: dimension of [B,K,m,n] that is split: 1, 2 or 3.
        size: its length in the whole tensor.
        first: flat index of the first element that is here.
        whole: elements of the whole tensor.
    """

    split: int
    size: int
    first: int
    whole: int


class Layout(NamedTuple):
    """The batch-first view ``[B, K, m, n]`` of same-shape parameters.

    A vector is ``(1, 1, n)``; a matrix ``(1, m, n)``; a 3-D tensor ``(K, m, n)``, a batch of
    matrices; a convolution ``(O, I, *kernel)`` is ``(1, O, I * prod(kernel))``.

    Args:
        shape: shape of the parameter.
        batch: K, number of matrices.
        rows: m.
        cols: n.
        matrix: False for 0-D and 1-D parameters, which are never factored.
        place: which part of a tensor it is the view of, or None where that is whole.
    """

    shape: tuple[int, ...]
    batch: int
    rows: int
    cols: int
    matrix: bool
    place: Place | None = None

    @classmethod
    def of(cls, shape: tuple[int, ...]) -> Layout:
        """View of a parameter with this shape."""
        shape = tuple(shape)
        if len(shape) < 2:
            return cls(shape, 1, 1, math.prod(shape), False)
        if len(shape) == 2:
            return cls(shape, 1, shape[0], shape[1], True)
        if len(shape) == 3:
            return cls(shape, shape[0], shape[1], shape[2], True)
        return cls(shape, 1, shape[0], math.prod(shape[1:]), True)

    @property
    def numel(self) -> int:
        """Number of elements of one parameter."""
        return self.batch * self.rows * self.cols

    @property
    def view(self) -> tuple[int, int, int]:
        """``(K, m, n)``."""
        return (self.batch, self.rows, self.cols)


class Scalars(NamedTuple):
    """What the step counter decides, one number per tensor of the stack.

    Args:
        t: [B,1,1,1] number of this update, from 1.
        beta1: [B,1,1,1] momentum coefficient of this update.
        grams_mix: [B,1,1,1] weight of the gradient's sign in the direction, in [0, 1].
        warmup_steps: W.
    """

    t: Tensor
    beta1: Tensor
    grams_mix: Tensor
    warmup_steps: int

    @property
    def early(self) -> Tensor:
        """[B,1,1,1] bool, t < W/2."""
        return self.t < self.warmup_steps / 2

    @property
    def warm(self) -> Tensor:
        """[B,1,1,1] bool, t < W."""
        return self.t < self.warmup_steps
