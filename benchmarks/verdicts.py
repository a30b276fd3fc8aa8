"""What a claim can come to, decided by numbers: the same rule for every row of docs/evidence/claims.md."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

from benchmarks.quality import mean

HOLDS, BETTER, FAILS, PART = "holds", "holds better", "does not hold", "holds in part"
NOT_MEASURED, UNTESTABLE = "not measured yet", "cannot be tested here"
VERDICTS = (HOLDS, BETTER, FAILS, PART, NOT_MEASURED, UNTESTABLE)


class Result(NamedTuple):
    """The measured number in words, and the verdict."""

    measured: str
    verdict: str


def absent(command: str) -> Result:
    return Result("no rows", f"{NOT_MEASURED}: `{command}`")


def untestable(why: str) -> Result:
    return Result("-", f"{UNTESTABLE}: {why}")


def at_most(value: float | None, limit: float, text: str, command: str, better: float = 0.75) -> Result:
    """The claim is an upper limit; 'better' below that fraction of it.

    Args:
        value: what was measured, None without rows.
        limit: what the document promises.
        text: the measured value in words.
        command: what makes the rows.
        better: fraction of the limit below which the claim is beaten clearly.
    """
    if value is None:
        return absent(command)
    if not value <= limit:
        return Result(text, FAILS)
    return Result(text, BETTER if value <= better * limit else HOLDS)


def at_least(value: float | None, limit: float, text: str, command: str) -> Result:
    """The claim is a lower limit."""
    if value is None:
        return absent(command)
    return Result(text, HOLDS if value >= limit else FAILS)


def in_range(value: float | None, low: float, high: float, text: str, command: str) -> Result:
    """The claim is a range in which less is better: below it is better, above it the claim fails."""
    if value is None:
        return absent(command)
    if value > high:
        return Result(text, FAILS)
    return Result(text, BETTER if value < low else HOLDS)


def both(first: Result, second: Result) -> Result:
    """Two measurements of one claim, such as two tasks: it holds where both hold."""
    good = [r.verdict in (HOLDS, BETTER) for r in (first, second)]
    text = "; ".join(dict.fromkeys((first.measured, second.measured)))
    for r in (first, second):
        if r.verdict.startswith((NOT_MEASURED, UNTESTABLE)):
            return Result(text, r.verdict)
    if all(good):
        return Result(text, HOLDS if HOLDS in (first.verdict, second.verdict) else BETTER)
    return Result(text, PART if any(good) else FAILS)


def percent(value: float | None, digits: int = 1) -> str:
    return "-" if value is None else f"{value:.{digits}f}%"


def spread(values: Iterable[float], digits: int = 1, unit: str = "%") -> str:
    """Mean and range; a run that never arrived is said as such."""
    values = list(values)
    if any(math.isinf(v) for v in values):
        return f"not reached by {sum(map(math.isinf, values))} of {len(values)} seeds"
    low, high = min(values), max(values)
    return f"{mean(values):.{digits}f}{unit} ({low:.{digits}f} to {high:.{digits}f})"
