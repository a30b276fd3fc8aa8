"""The learning-rate mask, element by element, in plain Python.

What it should do: a counter per element goes up by one when the gradient's sign is the sign it had
when it was last not zero, down by one when it is the other sign, and does not move otherwise. It
stops at its limits, and for good at the end of the warm-up.
"""

from __future__ import annotations

import math
from collections.abc import Sequence


class Mask:
    """Counters of one tensor.

    Args:
        count: number of elements.
        warmup_steps: W; updates t < W move the counters.
    """

    low, high = -(10**9), 10**9

    def __init__(self, count: int, warmup_steps: int) -> None:
        self.k = [0] * count
        self.last = [0] * count  # 0: no gradient seen yet
        self.warmup_steps = warmup_steps
        self.t = 0

    def see(self, g: Sequence[float]) -> None:
        self.t += 1
        if self.t >= self.warmup_steps:
            return
        for i, x in enumerate(g):
            if x == 0:
                continue
            sign = 1 if x > 0 else -1
            if self.t > 1:
                self.k[i] = min(max(self.k[i] + sign * self.sign(i), self.low), self.high)
            self.last[i] = sign

    def sign(self, i: int) -> int:
        """Sign last seen. An element whose gradients were all zero so far counts as positive."""
        return self.last[i] or 1


class Geometric(Mask):
    """mu = 64 ** (k / 127), held inside [1/16, 4]."""

    low, high = -84, 42

    def values(self) -> list[float]:
        return [min(max(math.exp(k * math.log(64) / 127), 1 / 16), 4.0) for k in self.k]


class Additive(Mask):
    """rate = clamp(lr + k * bump, low, high), relative to lr."""

    def __init__(self, count: int, warmup_steps: int, lr: float, bump: float, low: float, high: float):
        super().__init__(count, warmup_steps)
        self.lr, self.bump, self.least, self.most = lr, bump, low, high
        self.low = -math.ceil(max(lr - low, 0) / bump)
        self.high = math.ceil(max(high - lr, 0) / bump)

    def values(self) -> list[float]:
        return [min(max(self.lr + k * self.bump, self.least), self.most) / self.lr for k in self.k]
