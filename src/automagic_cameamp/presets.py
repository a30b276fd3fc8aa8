"""Other names of the classes: without the ending "8bit", and with a profile already chosen.

Trainers that follow sd-scripts import bitsandbytes for every optimizer whose name ends in "8bit", and read
``profile=balanced`` as a Python literal. Neither can be helped from here, but names can:

    automagic_cameamp.kohya.Automagic_CameAMP_Improved_Q8
    automagic_cameamp.memory_optimized.Automagic_CameAMP_Improved_Q8
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import fields as dataclass_fields
from typing import Any

from .aliases import settings, understood
from .optimizers import OPTIMIZERS
from .profiles import PROFILES

ENDING = "8bit"


def q8_name(name: str) -> str:
    """The same name with another ending: ``Automagic_CameAMP8bit`` -> ``Automagic_CameAMPQ8``."""
    return name[: -len(ENDING)] + "Q8" if name.lower().endswith(ENDING) else name


def aliases() -> dict[str, Any]:
    """Q8 name -> class, for every class whose own name ends in "8bit"."""
    return {q8_name(name): cls for name, cls in OPTIMIZERS.items() if q8_name(name) != name}


def every_name() -> dict[str, Any]:
    """Every name of every class."""
    return {**OPTIMIZERS, **aliases()}


def preset_options(cls: Any, profile: str) -> dict[str, Any]:
    """What a profile means for a class: its ``profile``, else those of the profile's options that it has."""
    known = {f.name for f in dataclass_fields(cls.config_class)}
    if "profile" in known:
        return {"profile": profile}
    return {name: value for name, value in PROFILES[profile].items() if name in known}


def has_profiles(cls: Any) -> bool:
    """Whether profiles say anything about this class: they set the options of the improved ones."""
    return "edge_suppression" in {f.name for f in dataclass_fields(cls.config_class)}


def _made(cls: Any, profile: str, module: str) -> Any:
    """Subclass of the same name whose defaults are the profile's; a keyword of the user's wins."""
    preset = preset_options(cls, profile)

    def __init__(self: Any, params: Any, *args: Any, **options: Any) -> None:
        given = understood(cls.config_class, options, cls.__name__)
        cls.__init__(self, params, *args, **{**preset, **given})

    words = settings(cls.config_class)
    own = {word: preset[f.name] for word, f in words.items() if f.name in preset}
    defaults = {**preset, "techniques": own or None}
    signature = inspect.signature(cls.__init__)
    shown = [p.replace(default=defaults.get(p.name, p.default)) for p in signature.parameters.values()]
    __init__.__signature__ = signature.replace(parameters=shown)  # type: ignore[attr-defined]
    body = {"__init__": __init__, "__module__": module, "__qualname__": cls.__name__}
    body["__doc__"] = f"``{cls.__name__}`` with the profile {profile!r}."
    return type(cls.__name__, (cls,), body)


_MADE: dict[tuple[str, str], Any] = {}


def preset_class(profile: str, name: str) -> Any:
    """The class of that name with a profile as its defaults; AttributeError where there is none."""
    cls = every_name().get(name)
    module = f"automagic_cameamp.{profile}"
    if cls is None or not has_profiles(cls):
        why = "has no profiles" if cls is not None else "is unknown"
        known = ", ".join(n for n, c in every_name().items() if has_profiles(c))
        raise AttributeError(f"module {module!r}: {name!r} {why}. It has {known}.")
    key = (profile, cls.__name__)  # one class for both names, so that it can be pickled
    if key not in _MADE:
        _MADE[key] = _made(cls, profile, module)
    return _MADE[key]


def namespace(module: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """``__getattr__`` and ``__dir__`` of the module named after a profile."""
    profile = module.rpartition(".")[2]

    def __getattr__(name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        return preset_class(profile, name)

    def __dir__() -> list[str]:
        return [name for name, cls in every_name().items() if has_profiles(cls)]

    return __getattr__, __dir__
