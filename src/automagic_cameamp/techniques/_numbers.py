"""Functions of Python's numbers and of 0-D tensors alike.

A rule over the whole model is dozens of operations on single numbers. On a device they have to be tensors,
for nobody may wait for their values; in host memory a tensor costs 20 times what the number does. So such a
rule is written once, in these.
"""

from __future__ import annotations

import math
from typing import TypeAlias

import torch
from torch import Tensor

Number: TypeAlias = float | Tensor
Truth: TypeAlias = bool | Tensor


def where(condition: Truth, a: Number, b: Number) -> Number:
    """One of two, both of which are evaluated: a where the condition holds, else b."""
    if isinstance(condition, Tensor):
        if not isinstance(a, Tensor) and not isinstance(b, Tensor):  # else of the program's default type
            a = torch.full_like(condition, a, dtype=torch.float32)
        return torch.where(condition, a, b)
    return a if condition else b


def clamp(x: Number, low: float, high: float = math.inf) -> Number:
    """Keep x in [low, high]."""
    return x.clamp(low, high) if isinstance(x, Tensor) else min(max(x, low), high)


def maximum(a: Number, b: Number) -> Number:
    """The larger of two of a kind."""
    return torch.maximum(a, b) if isinstance(a, Tensor) and isinstance(b, Tensor) else max(a, b)


def exp2(x: Number) -> Number:
    """2 to the power of x."""
    return x.exp2() if isinstance(x, Tensor) else 2.0**x
