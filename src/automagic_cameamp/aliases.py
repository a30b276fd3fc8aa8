"""What a keyword may also be called: words of ``techniques``, older names, names without effect."""

from __future__ import annotations

import difflib
import functools
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import Field, dataclass, fields
from typing import TYPE_CHECKING, Any, NamedTuple

from .foreign import SYNONYMS, translated
from .text import read
from .validate import callers_depth, default_of, fail

TechniqueWords = str | Mapping[str, Any] | Iterable[str] | None
PREFIX = "use_"


class Dead(NamedTuple):
    """A name of the public original that changes nothing here.

    Args:
        owners: the configs that take it.
        default: the value of which nothing is said.
        reason: why it has no effect.
    """

    owners: tuple[str, ...]
    default: Any
    reason: str


_IMPROVED, _SIZED = ("ImprovedOptimizerConfig",), ("Improved8BitOptimizerConfig",)
_DUAL = "it belongs to dual momentum, which is in no document and not implemented"
DEAD = {
    "enable_cache": Dead(_IMPROVED, True, "no step computes anything that another could reuse"),
    "max_cache_size": Dead(_IMPROVED, 100, "there is no cache that could grow"),
    "use_approximate_svd": Dead(_IMPROVED, True, "directions come from a small Gram matrix, exactly"),
    "enable_dual_momentum": Dead(_IMPROVED, False, _DUAL),
    "long_term_beta": Dead(_IMPROVED, 0.99, _DUAL),
    "alpha_mix_ratio": Dead(_IMPROVED, None, _DUAL),
    "tam_correlation_method": Dead(_IMPROVED, "auto", "torque takes the cosine, whatever the size"),
    "tam_large_tensor_threshold": Dead(_IMPROVED, 1000, "torque takes the cosine, whatever the size"),
    "tam_use_inplace_ops": Dead(_IMPROVED, True, "memory is handled by the engine"),
    "fused_adam": Dead(_SIZED, False, "all parameters are updated together already"),
    "adaptation_rate": Dead(_SIZED, 0.1, "only the COptim classes have a controller that adapts"),
}
REFUSED = {"enable_dual_momentum": True}  # what must not pass as if it were done
_said: set[str] = set()


def is_dead(config_class: type, name: str) -> bool:
    """Whether this config takes a name without effect."""
    return name in DEAD and any(cls.__name__ in DEAD[name].owners for cls in config_class.__mro__)


def _say(name: str, value: Any) -> None:
    dead = DEAD[name]
    if name in REFUSED and value == REFUSED[name]:
        raise fail(name, value, f"only {dead.default!r}", dead.reason.capitalize() + ".")
    if value != dead.default and name not in _said:
        _said.add(name)
        warnings.warn(
            f"{name}={value!r} has no effect: {dead.reason}. It is accepted so that old configurations load.",
            stacklevel=callers_depth(),
        )


# ---------------------------------------------------------------- techniques


def settings(config_class: Any) -> dict[str, Field[Any]]:
    """Word of ``techniques`` -> the option it sets: its name, less the ``use_`` of a switch."""
    return {f.name.removeprefix(PREFIX): f for f in fields(config_class) if f.metadata["technique"]}


def _words(text: str) -> dict[str, Any]:
    """``"-tam, +agr, final_clip:0.5"`` as a mapping."""
    found: dict[str, Any] = {}
    for word in filter(None, map(str.strip, text.split(","))):
        name, colon, value = word.lstrip("+-").partition(":")
        if colon and word[0] in "+-" or not name:
            raise fail("techniques", word, "words such as '+agr', '-tam', 'final_clip:0.5', with commas")
        found[name.strip()] = read(value) if colon else word[0] != "-"
    return found


def _spoken(config_class: Any, value: TechniqueWords, owner: str) -> dict[str, Any]:
    """Options that ``techniques`` sets, by their own names."""
    value = read(value)
    if value is None:
        return {}
    if not isinstance(value, (str, Mapping)):
        if not isinstance(value, Iterable) or not all(isinstance(word, str) for word in value):
            advice = "For example techniques='-tam,+agr' or techniques={'tam': False}."
            raise fail("techniques", value, "a mapping, or words in a string", advice)
        value = ",".join(value)
    known = settings(config_class)
    named = _words(value) if isinstance(value, str) else dict(value)
    for name in named:
        if name not in known:
            near = difflib.get_close_matches(str(name).removeprefix(PREFIX), known, 3, 0.5)
            hint = f"Did you mean {', '.join(map(repr, near))}?" if near else f"Known: {', '.join(known)}."
            raise TypeError(f"{owner} has no technique {name!r}. {hint}")
    return {known[name].name: setting for name, setting in named.items()}


def understood(config_class: Any, given: Mapping[str, Any], owner: str) -> dict[str, Any]:
    """Keywords by the names that options have: ``techniques`` spelled out, dead names said and left out.

    What ``techniques`` says wins over a keyword at its default, as it stands in ``config.__dict__``.
    """
    values = {name: value for name, value in given.items() if not is_dead(config_class, name)}
    for name in given.keys() - values.keys():
        _say(name, given[name])
    options = config_class.__dataclass_fields__
    for other in values.keys() & SYNONYMS.keys() - options.keys():
        if SYNONYMS[other] in options:  # checked here, so that a complaint has the name that was given
            options[SYNONYMS[other]].metadata["check"](other, read(values[other]))
    values = translated(owner, values, options)
    for name, value in _spoken(config_class, values.pop("techniques", None), owner).items():
        if name in values and values[name] not in (value, default_of(options[name])):
            raise TypeError(f"{owner} got {name}={values[name]!r}, and techniques says {value!r}. Keep one.")
        values[name] = value
    return values


if TYPE_CHECKING:
    config = dataclass
else:

    def config(cls):
        """A dataclass whose constructor understands what the optimizers' does."""
        cls = dataclass(cls)
        plain = cls.__init__

        @functools.wraps(plain)
        def __init__(self, *args, **given):
            plain(self, *args, **understood(cls, given, cls.__name__))

        cls.__init__ = __init__
        return cls
