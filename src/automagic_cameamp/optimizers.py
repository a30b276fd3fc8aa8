"""The optimizers: a recipe, a storage, a set of options."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterable
from dataclasses import fields as dataclass_fields
from typing import Any, TypeVar

from torch import Tensor

from . import policies
from .aliases import PREFIX, is_dead, settings, understood
from .configs import (
    ContextualConfig,
    ContextualConfig8bit,
    Improved8BitOptimizerConfig,
    ImprovedOptimizerConfig,
    Optimizer8BitConfig,
    OptimizerConfig,
    OptimizerConfig8bit,
    SharedConfig,
)
from .control import ContextualController
from .foreign import SYNONYMS, settled
from .optimizer import CameAMPOptimizer
from .profiles import PROFILES
from .recipes import base, contextual, improved
from .validate import checked, default_of

C = TypeVar("C", bound=type)


def _homes(name: str) -> list[str]:
    """Classes of the family that take an option of this name."""
    every = ((cls, found.config_class) for cls, found in OPTIMIZERS.items())
    return [cls for cls, config in every if name in config.__dataclass_fields__ or is_dead(config, name)]


def _refuse(cls: type, name: str, value: Any) -> bool:
    """Refuse what is no option; True where a keyword may be left out, because it says what holds anyway."""
    called = cls.__name__
    if callable(getattr(cls, name, None)):  # such as record
        raise TypeError(
            f"{called} has no option {name!r}: it is a method. Build the optimizer, then call "
            f"optimizer.{name}(...)."
        )
    if name in settings(cls.config_class):  # type: ignore[attr-defined]
        advice = f"it is a technique. Write techniques={{{name!r}: {value!r}}}."
        raise TypeError(f"{called} has no option {name!r}: {advice}")
    return settled(called, name, value, _homes)


def signature(config_class: type[SharedConfig]) -> inspect.Signature:
    """What a class with this config shows; ``optimizers.pyi`` is written from it, and types ``**single``."""
    kinds = inspect.Parameter
    shown = [kinds("self", kinds.POSITIONAL_OR_KEYWORD), kinds("params", kinds.POSITIONAL_OR_KEYWORD)]
    for f in dataclass_fields(config_class):
        if not f.metadata["technique"]:
            kind = kinds.POSITIONAL_OR_KEYWORD if f.name == "lr" else kinds.KEYWORD_ONLY
            shown.append(kinds(f.name, kind, default=default_of(f), annotation=f.type))
    for other, name in SYNONYMS.items():  # a name of the documents, which can be read from a config as well
        if isinstance(getattr(config_class, other, None), property):
            shown.append(next(p for p in shown if p.name == name).replace(name=other))
    shown.append(kinds("techniques", kinds.KEYWORD_ONLY, default=None))
    return inspect.Signature([*shown, kinds("single", kinds.VAR_KEYWORD)])


def _configured(cls: C) -> C:
    """Give a final class its constructor: every option of its config as a keyword, checked.

    The signature lists all but single techniques; an unknown one raises TypeError with the nearest names.
    """
    config_class: Any = cls.config_class  # type: ignore[attr-defined]

    def __init__(self: Any, params: Iterable[Any], *args: Any, **options: Any) -> None:
        called = type(self).__name__
        if len(args) > 1:
            raise TypeError(f"{called} takes params and lr by position; all other options by name.")
        if args:
            if "lr" in options:
                raise TypeError(f"{called} got lr twice: by position and by name.")
            options["lr"] = args[0]
        options = understood(config_class, options, called)
        for name in options.keys() - config_class.__dataclass_fields__.keys():
            if _refuse(type(self), name, options[name]):
                del options[name]
        options = checked(config_class, options, called)
        if options.get("profile"):
            options = {**PROFILES[options["profile"]], **options}
        self._start(params, config_class(**options))

    __init__.__signature__ = signature(config_class)  # type: ignore[attr-defined]
    __init__.__qualname__ = f"{cls.__name__}.__init__"
    cls.__init__ = functools.wraps(__init__, assigned=("__qualname__",))(__init__)  # type: ignore[misc]
    every = {"params": "parameters, groups, or (name, parameter) pairs."}
    fields = dataclass_fields(config_class)
    said = {f.name: f"{f.metadata['doc']} (default {default_of(f)!r})." for f in fields}
    words = settings(config_class)
    every |= {name: line for name, line in said.items() if name.removeprefix(PREFIX) not in words}
    every["techniques"] = "settings of single techniques, '-tam,+agr,final_clip:0.5' or {'tam': False}:"
    lines = [f"    {name}: {line}" for name, line in every.items()]
    lines += [f"        {word}: {said[f.name]}" for word, f in words.items()]
    cls.__doc__ = inspect.cleandoc(cls.__doc__ or "") + "\n\nArgs:\n" + "\n".join(lines)
    return cls


@_configured
class Automagic_CameAMP(CameAMPOptimizer):
    """CAME with torque-aware momentum, a learned rate per element and Grams direction; fp32 state."""

    recipe = base
    config_class = OptimizerConfig
    policy = staticmethod(policies.full_precision)


@_configured
class Automagic_CameAMP8bit(CameAMPOptimizer):
    """``Automagic_CameAMP`` with its momentum in eight bits per element; the same arithmetic."""

    recipe = base
    config_class = OptimizerConfig8bit
    policy = staticmethod(policies.block_coded)


@_configured
class Automagic_CameAMP_Improved(CameAMPOptimizer):
    """``Automagic_CameAMP`` with regularisers for small data and LoRA; fp32 state."""

    recipe = improved
    config_class = ImprovedOptimizerConfig
    policy = staticmethod(policies.full_precision)


@_configured
class Automagic_CameAMP_8Bit(CameAMPOptimizer):
    """``Automagic_CameAMP_Improved`` with the documents' affine code and error correction."""

    recipe = improved
    config_class = Optimizer8BitConfig
    policy = staticmethod(policies.error_corrected)


@_configured
class Automagic_CameAMP_Improved_8Bit(CameAMPOptimizer):
    """``Automagic_CameAMP_Improved`` with bitsandbytes' code, from ``min_8bit_size`` elements on."""

    recipe = improved
    config_class = Improved8BitOptimizerConfig
    policy = staticmethod(policies.sized)


def _contextual_controller(config: Any) -> ContextualController:
    values = {name: getattr(config, name) for name in config.CONTROLLER_OPTIONS}
    return ContextualController(edge_threshold=values.pop("edge_case_threshold"), **values)


class _Contextual(CameAMPOptimizer):
    """What the two contextual classes share."""

    recipe = contextual
    controller_of = staticmethod(_contextual_controller)

    @property
    def c_optim(self) -> ContextualController:
        """The controller: edge cases, multiplier, consistency, histories."""
        assert isinstance(self.controller, ContextualController)
        return self.controller

    def record_loss(self, loss: float | Tensor) -> None:
        """Tell the controller the loss of the coming step; the same as ``c_optim.record_loss``."""
        self.c_optim.record_loss(loss)


@_configured
class Automagic_CameAMP_COptim(_Contextual):
    """``Automagic_CameAMP`` with momentum of several lengths and a contextual controller; fp32 state."""

    config_class = ContextualConfig
    policy = staticmethod(policies.full_precision)


@_configured
class Automagic_CameAMP_COptim8bit(_Contextual):
    """``Automagic_CameAMP_COptim`` with its momenta in eight bits per element; the same arithmetic."""

    config_class = ContextualConfig8bit
    policy = staticmethod(policies.block_coded)


def create_improved_8bit_optimizer(
    params: Iterable[Any], profile: str | None = None, **options: Any
) -> Automagic_CameAMP_Improved_8Bit:
    """``Automagic_CameAMP_Improved_8Bit`` with a profile ('balanced' if none is named)."""
    return Automagic_CameAMP_Improved_8Bit(params, **{"profile": profile or "balanced", **options})


def _made(config_class: type[SharedConfig]) -> inspect.Signature:
    """The constructor's options, all by name behind the profile."""
    shown = list(signature(config_class).parameters.values())[1:]
    first = [p.replace(kind=p.POSITIONAL_OR_KEYWORD) for p in shown if p.name in ("params", "profile")]
    rest = [p.replace(kind=p.KEYWORD_ONLY) if p.name == "lr" else p for p in shown]
    return inspect.Signature([*first, *(p for p in rest if p.name not in ("params", "profile"))])


create_improved_8bit_optimizer.__signature__ = _made(Improved8BitOptimizerConfig)  # type: ignore[attr-defined]

OPTIMIZERS: dict[str, type[CameAMPOptimizer]] = {
    cls.__name__: cls
    for cls in (
        Automagic_CameAMP,
        Automagic_CameAMP8bit,
        Automagic_CameAMP_COptim,
        Automagic_CameAMP_COptim8bit,
        Automagic_CameAMP_Improved,
        Automagic_CameAMP_8Bit,
        Automagic_CameAMP_Improved_8Bit,
    )
}
