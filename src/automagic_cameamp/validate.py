"""Options: declared once, checked once, explained in one line."""

from __future__ import annotations

import dataclasses
import difflib
import math
import numbers
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, SupportsFloat

import numpy as np
import torch
from torch import Tensor

from .text import read

Check = Callable[[str, Any], Any]


def fail(name: str, value: object, allowed: str, advice: str = "") -> ValueError:
    """The one form of a complaint about a value."""
    return ValueError(f"{name}={value!r} is not allowed: {allowed}." + (f" {advice}" if advice else ""))


class Untouched(float):
    """A default that nobody has set, though it may have been passed on: equal to the number, shown as it."""


ROUNDED_AWAY = 1e-9  # of a learning rate below 0
LARGEST_EPS = 1e10  # squares of larger ones leave the range of float32
NICKNAMES = {"learning_rate": "lr", "wd": "weight_decay"}  # other programs' words


def _real(value: Any) -> float | None:
    """A real number, numpy's too, as Python has it; None for everything else, and for what no float holds."""
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        return None
    try:
        wide = float(value)
    except OverflowError:
        return None
    return value if isinstance(value, float) else wide


def number(
    low: float,
    high: float = math.inf,
    *,
    open_low: bool = False,
    open_high: bool = False,
    infinite: bool = False,
) -> Check:
    """A real number between low and high; an end is excluded where it is open, infinity mostly."""
    open_high = open_high or (math.isinf(high) and not infinite)
    left, right = "(" if open_low else "[", ")" if open_high else "]"
    allowed = f"a number in {left}{low:g}, {high:g}{right}"

    def check(name: str, value: Any) -> float:
        real = _real(value)
        good = real is not None and (real > low if open_low else real >= low)  # not a number is neither
        if real is None or not good or not (real < high if open_high else real <= high):
            raise fail(name, value, allowed)
        return real if isinstance(real, Untouched) else float(real)

    return check


def integer(low: int, high: float = math.inf, advice: str = "") -> Check:
    """A whole number between low and high; 500.0 counts as 500."""
    allowed = f"a whole number in [{low}, {high:g}]"

    def check(name: str, value: Any) -> int:
        real = _real(value)
        if real is None or not math.isfinite(real) or int(value) != value or not low <= value <= high:
            raise fail(name, value, allowed, advice)
        return int(value)

    return check


def flag(name: str, value: Any) -> bool:
    """True or False; 0 and 1 are understood, and numpy's."""
    if isinstance(value, (bool, np.bool_)) or (isinstance(value, int) and value in (0, 1)):
        return bool(value)
    raise fail(name, value, "True or False")


def choice(*allowed: object) -> Check:
    """One of a few values."""

    def check(name: str, value: Any) -> Any:
        if value is None and "none" in allowed:
            return "none"  # what a command line makes of the bare word
        for item in allowed:
            if type(value) is type(item) and value == item:
                return item
        near = difflib.get_close_matches(str(value), [str(a) for a in allowed], 1)
        hint = f"Did you mean {near[0]!r}?" if near else ""
        raise fail(name, value, "one of " + ", ".join(repr(a) for a in allowed), hint)

    check.words = allowed  # type: ignore[attr-defined]  # what signatures show
    return check


def optional(check: Check) -> Check:
    """None, or what ``check`` allows."""

    def either(name: str, value: Any) -> Any:
        return None if value is None else check(name, value)

    either.words = words_of(check)  # type: ignore[attr-defined]
    return either


def argument(name: str, value: Any, check: Check) -> Any:
    """The value of one argument, read if text, as ``check`` allows it."""
    return check(name, read(value))


def words_of(check: Check) -> tuple[object, ...]:
    """The few values that a check allows; nothing where they are many."""
    return getattr(check, "words", ())


def rate(name: str, value: Any) -> float | Tensor:
    """A learning rate: a number >= 0, or a tensor of one element."""
    if isinstance(value, Tensor):
        if value.numel() != 1:
            advice = f"Tensor {name} must be 1-element."  # torch's own words
            raise fail(name, tuple(value.shape), "a number or a tensor of one element", advice)
        if value.dtype is torch.bool or value.is_complex():
            raise fail(name, value, "a number or a tensor of one element, of a real type")
        number(0.0)(name, float(value))
        return value if value.dim() == 0 else value.reshape(())
    return number(0.0)(name, value)


def wide(lr: Any) -> Any:
    """A learning rate as arithmetic wants it: what it is divided by has no room in 16 bits.

    What a scheduler's rounding leaves below 0 at its end (torch's cosine) is 0.

    Raises:
        ValueError: a program has put a number there which is none, or below 0. A device's are not read.
    """
    if isinstance(lr, Tensor):
        plain = type(lr) is Tensor and lr.is_cpu and not torch.compiler.is_compiling()
        if plain and lr.numel() == 1 and -ROUNDED_AWAY < float(lr) < 0:
            return torch.zeros_like(lr, dtype=torch.float32)
        lr = rate("lr", lr) if plain or lr.numel() != 1 else lr
        return lr if lr.dtype in (torch.float32, torch.float64) else lr.float()
    if type(lr) is float and 0 <= lr < math.inf:
        return lr
    if isinstance(lr, SupportsFloat) and not isinstance(lr, bool):  # numpy's numbers too
        lr = float(lr)
        lr = 0.0 if -ROUNDED_AWAY < lr < 0 else lr
    return number(0.0)("lr", lr)


def _filled(name: str, value: Any, default: Sequence[float], check: Check) -> tuple[float, ...]:
    items = list(value) if isinstance(value, Iterable) else [value]
    if not 1 <= len(items) <= len(default):
        raise fail(name, value, f"1 to {len(default)} numbers")
    return tuple(check(f"{name}[{i}]", x) for i, x in enumerate([*items, *default[len(items) :]]))


def betas(name: str, value: Any) -> tuple[float, ...]:
    """Two or three decays; the third is the document's where only two are given."""
    if not isinstance(value, (list, tuple)) or len(value) < 2:
        raise fail(name, value, "two or three numbers in [0, 1)", "For example betas=(0.8, 0.99, 0.999).")
    return _filled(name, value, (0.8, 0.99, 0.999), number(0.0, 1.0, open_high=True))


def decays(value: Any) -> tuple[float, ...]:
    """A group's betas as they are now: what a program has put there may be a list, an array or tensors."""
    if type(value) is tuple and len(value) == 3 and all(type(x) is float and 0 <= x < 1 for x in value):
        return value
    try:
        ordered = isinstance(value, Iterable) and not isinstance(value, (set, frozenset, dict, str))
        return betas("betas", [float(beta) for beta in value] if ordered else value)
    except (TypeError, ValueError):
        return betas("betas", value)  # which says so


_STRENGTH, _BOUND = number(0.0), number(0.0, infinite=True)


def strength(value: Any) -> Any:
    """A group's weight decay as it is now; a tensor is not read."""
    return value if isinstance(value, Tensor) else _STRENGTH("weight_decay", value)


def switch(value: Any) -> bool:
    """A group's ``hard_min_lr`` as it is now."""
    return flag("hard_min_lr", value)


def bound(value: Any) -> Any:
    """A group's bound of the rate as it is now; None where there is none, a tensor is not read."""
    return value if value is None or isinstance(value, Tensor) else _BOUND("lr_floor or lr_cap", value)


def epsilons(name: str, value: Any) -> tuple[float, ...]:
    """Up to three floors: squared gradient, residual, denominator; one number is the denominator's.

    The first two stand under a square root in a denominator: 0 would divide an absent gradient by 0.
    """
    floor, under_root = number(0.0, LARGEST_EPS), number(1e-38, LARGEST_EPS)
    if not isinstance(value, (list, tuple)):
        return (1e-30, 1e-16, floor(name, value))
    first, second, third = _filled(name, value, (1e-30, 1e-16, 1e-8), floor)
    return (under_root(f"{name}[0]", first), under_root(f"{name}[1]", second), third)


def power_of_two(low: int, high: int) -> Check:
    """A power of two between low and high."""
    whole = integer(low, high)

    def check(name: str, value: Any) -> int:
        value = whole(name, value)
        if value & (value - 1):
            nearest = 1 << (value.bit_length() - 1)
            raise fail(name, value, f"a power of two in [{low}, {high}]", f"Use {nearest}.")
        return value

    return check


def option(default: Any, check: Check, doc: str, technique: bool = False) -> Any:
    """A field of a config: default, check, one line of explanation; whether ``techniques`` speaks of it."""
    metadata = {"check": check, "doc": doc, "technique": technique}
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def technique(default: Any, check: Check, doc: str) -> Any:
    """An option that sets a single technique: no argument of its own, but a word of ``techniques``."""
    return option(default, check, doc, technique=True)


def default_of(field: dataclasses.Field[Any]) -> Any:
    """The default of a field of a config, made anew where it is a list."""
    made = field.default_factory
    return field.default if made is dataclasses.MISSING else made()


def callers_depth() -> int:
    """Stack level of the nearest frame outside this package and torch, for warnings."""
    depth, frame = 1, sys._getframe(1)
    inside = (__name__.partition(".")[0], "torch.")
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(inside):
        depth, frame = depth + 1, frame.f_back
    return depth


def unknown_option(owner: str, name: str, known: Iterable[str]) -> TypeError:
    """The complaint about a keyword that does not exist."""
    names = sorted(known)
    said = str(name).lower()
    said = NICKNAMES.get(said, said)
    near = [n for n in names if said in (n.lower(), "".join(word[:1] for word in n.split("_")))]
    near = near or difflib.get_close_matches(said, names, 3, 0.5)
    hint = f"Did you mean {', '.join(repr(n) for n in near)}?" if near else f"Known: {', '.join(names)}."
    return TypeError(f"{owner} has no option {name!r}. {hint}")


def checked(config_class: type, values: dict[str, Any], owner: str) -> dict[str, Any]:
    """Values that were given, read if text, checked and converted; unknown names raise TypeError."""
    fields = {f.name: f for f in dataclasses.fields(config_class)}
    for name in values:
        if name not in fields:
            raise unknown_option(owner, name, fields)
    return {name: argument(name, value, fields[name].metadata["check"]) for name, value in values.items()}
