"""Other names of the classes: without the ending "8bit", and with a profile already chosen.

Trainers that follow sd-scripts import bitsandbytes for every optimizer whose name ends in "8bit", and read
``profile=balanced`` as a Python literal. Neither can be helped from here, but names can:

    automagic_cameamp.kohya.Automagic_CameAMP_Improved_Q8
    automagic_cameamp.memory_optimized.Automagic_CameAMP_Improved_Q8
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from dataclasses import fields as dataclass_fields
from typing import Any

from .aliases import settings, understood
from .optimizers import OPTIMIZERS
from .profiles import PROFILES

ENDING = "8bit"
OUR_MODULES = {"automagic_cameamp", "automagic_cameamp_8bit"}
OUR_MODULES |= {"automagic_cameamp_improved", "automagic_cameamp_improved_8bit"}


def q8_name(name: str) -> str:
    """The same name with another ending: ``Automagic_CameAMP8bit`` -> ``Automagic_CameAMPQ8``."""
    return name[: -len(ENDING)] + "Q8" if name.lower().endswith(ENDING) else name


def aliases() -> dict[str, Any]:
    """Q8 name -> class, for every class whose own name ends in "8bit"."""
    return {q8_name(name): cls for name, cls in OPTIMIZERS.items() if q8_name(name) != name}


def every_name() -> dict[str, Any]:
    """Every name of every class."""
    return {**OPTIMIZERS, **aliases()}


def canonical(given: str) -> str | None:
    """Name, or dotted name with a profile, of the class that is meant by any spelling; None: not ours.

    Args:
        given: upper or lower case, "-" for "_", dotted or bare: ``automagic_cameamp8bit``,
            ``library.automagic_cameamp.Automagic_CameAMP``, ``minimal.Automagic_CameAMP_Improved_Q8``.

    Raises:
        ValueError: it can only be one of ours, and is none; with the nearest names.
    """
    module, _, last = given.strip().replace("-", "_").rpartition(".")
    profile = module.rpartition(".")[2]
    if module and module != profile and module.removeprefix("library.").split(".")[0] not in OUR_MODULES:
        return None
    if module == profile and module not in OUR_MODULES | PROFILES.keys() | {""}:
        return None
    names = {name.lower(): name for name in every_name()}
    if last.lower() not in names:
        if not module and not last.lower().startswith("automagic_"):
            return None
        near = difflib.get_close_matches(last.lower(), names, 3, 0.5) or sorted(names)
        raise ValueError(
            f"{given}: there is no such class; did you mean {', '.join(names[n] for n in near)}?"
        )
    name = names[last.lower()]
    return f"automagic_cameamp.{profile}.{name}" if profile in PROFILES else name


def called(given: str) -> Any:
    """The class that is meant by any spelling of a name, None for one that is not ours; see `canonical`."""
    name = canonical(given)
    if name is None:
        return None
    module, _, last = name.rpartition(".")
    return preset_class(module.rpartition(".")[2], last) if module else every_name()[last]


def preset_options(cls: Any, profile: str) -> dict[str, Any]:
    """What a profile means for a class: its ``profile``, else those of the profile's options that it has."""
    known = {f.name for f in dataclass_fields(cls.config_class)}
    if "profile" in known:
        return {"profile": profile}
    options = {name: value for name, value in PROFILES[profile].items() if name in known}
    if PROFILES[profile].get("optim_bits") == 4 and "blocksize" in known:
        options["state_code"] = "softsign4"
    return options


def has_profile(cls: Any, profile: str) -> bool:
    """Whether a profile says anything about this class: each does about the improved ones."""
    return bool(preset_options(cls, profile).keys() - {"verbose"})


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
    if cls is None or not has_profile(cls, profile):
        why = "has no such profile" if cls is not None else "is unknown"
        known = ", ".join(n for n, c in every_name().items() if has_profile(c, profile))
        raise AttributeError(f"module {module!r}: {name!r} {why}. It has {known}.")
    key = (profile, cls.__name__)  # one class for both names, so that it can be pickled
    if key not in _MADE:
        _MADE[key] = _made(cls, profile, module)
    return _MADE[key]


def with_profiles() -> dict[str, Any]:
    """``minimal.Automagic_CameAMP8bit`` and the like -> class, where a profile says anything about it."""
    return {
        f"{profile}.{name}": preset_class(profile, name)
        for profile in PROFILES
        for name, cls in OPTIMIZERS.items()
        if has_profile(cls, profile)
    }


def namespace(module: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """``__getattr__`` and ``__dir__`` of the module named after a profile."""
    profile = module.rpartition(".")[2]

    def __getattr__(name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        return preset_class(profile, name)

    def __dir__() -> list[str]:
        return [name for name, cls in every_name().items() if has_profile(cls, profile)]

    return __getattr__, __dir__
