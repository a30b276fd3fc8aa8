"""One technique at a time, in plain Python loops over lists of numbers, from the papers' formulas."""

from __future__ import annotations

import math
from collections.abc import Sequence

Numbers = Sequence[float]


def agr(g: Numbers) -> list[float]:
    """Adaptive gradient regularisation (arXiv 2407.16944), the share capped at one half."""
    if len(g) < 2:
        return list(g)
    total = math.fsum(abs(x) for x in g)
    return [x * (1 - min(abs(x) / total, 0.5)) if total else x for x in g]


def cosine(a: Numbers, b: Numbers) -> float:
    dot = math.fsum(x * y for x, y in zip(a, b, strict=True))
    norms = math.sqrt(math.fsum(x * x for x in a)) * math.sqrt(math.fsum(x * x for x in b))
    return dot / norms if norms else 0.0


def torque(s: float, m: Numbers, u: Numbers) -> tuple[float, float]:
    """Torque-aware momentum (arXiv 2412.18790): the running cosine and the damping."""
    s = 0.9 * s + 0.1 * cosine(m, u)
    return s, 1 + s


def grams(out: Numbers, g: Numbers, mix: float) -> list[float]:
    """Grams (arXiv 2412.17107) mixed with the plain update; sign(0) follows the update."""
    result = []
    for x, y in zip(out, g, strict=True):
        sign = math.copysign(1.0, x) if y == 0 else math.copysign(1.0, y)
        result.append(mix * abs(x) * sign + (1 - mix) * x)
    return result


def cautious(out: Numbers, g: Numbers) -> list[float]:
    """Cautious Optimizers (arXiv 2411.16085), divided by the mean of the mask."""
    mask = [1.0 if x * y > 0 else 0.0 for x, y in zip(out, g, strict=True)]
    mean = max(sum(mask) / len(mask), 1e-3)
    return [x * keep / mean for x, keep in zip(out, mask, strict=True)]


def orthograd(d: Numbers, p: Numbers) -> list[float]:
    """The displacement without its part along the weights (arXiv 2501.04697), same length."""
    pp = math.fsum(x * x for x in p)
    if len(d) < 2 or pp == 0:
        return list(d)
    k = math.fsum(x * y for x, y in zip(p, d, strict=True)) / pp
    rest = [x - k * y for x, y in zip(d, p, strict=True)]
    length, left = (math.sqrt(math.fsum(x * x for x in v)) for v in (d, rest))
    return [x * min(length / left, 10.0) if left else 0.0 for x in rest]


def allora(row: Numbers, eta: float) -> float:
    """ALLoRA's gain of one row (arXiv 2410.09692)."""
    return 1 / math.sqrt(math.sqrt(math.fsum(x * x for x in row)) + 1 / eta**2)


def adadecay(g: Numbers, alpha: float = 4.0) -> list[float]:
    """AdaDecay (arXiv 1907.08931): strength of the decay of each weight of one layer."""
    if len(g) < 2:
        return [1.0] * len(g)
    size = [abs(x) for x in g]
    mean = math.fsum(size) / len(size)
    std = math.sqrt(math.fsum((x - mean) ** 2 for x in size) / len(size))
    return [2 / (1 + math.exp(-alpha * (x - mean) / (std + 1e-4 * mean + 1e-30))) for x in size]
