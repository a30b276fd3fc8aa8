"""The optimizers: a recipe, a storage, a set of options."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterable
from dataclasses import MISSING
from dataclasses import fields as dataclass_fields
from typing import Any, TypeVar

from torch import Tensor

from . import policies
from .configs import (
    ContextualConfig,
    ContextualConfig8bit,
    Improved8BitOptimizerConfig,
    ImprovedOptimizerConfig,
    Optimizer8BitConfig,
    OptimizerConfig,
    OptimizerConfig8bit,
)
from .control import ContextualController
from .engine import CameAMPOptimizer
from .foreign import settled, translated
from .profiles import PROFILES
from .recipes import base, contextual, improved
from .validate import checked

C = TypeVar("C", bound=type)


def _homes(name: str) -> list[str]:
    """Classes of the family that have an option of this name."""
    return [cls for cls, found in OPTIMIZERS.items() if name in found.config_class.__dataclass_fields__]


def _configured(cls: C) -> C:
    """Give a final class its constructor: every option of its config as a keyword, checked.

    The signature lists them all (trainers filter keywords by it); an unknown one raises TypeError
    with the nearest names.
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
        options = translated(called, options, config_class.__dataclass_fields__)
        for name in options.keys() - config_class.__dataclass_fields__.keys():
            if callable(getattr(cls, name, None)):  # such as record
                raise TypeError(
                    f"{called} has no option {name!r}: it is a method. Build the optimizer, then call "
                    f"optimizer.{name}(...)."
                )
            if settled(called, name, options[name], _homes):
                del options[name]
        options = checked(config_class, options, called)
        if options.get("profile"):
            options = {**PROFILES[options["profile"]], **options}
        config = config_class(**options)
        self._start(params, config)

    kinds = inspect.Parameter
    parameters = [kinds("self", kinds.POSITIONAL_OR_KEYWORD), kinds("params", kinds.POSITIONAL_OR_KEYWORD)]
    lines = []
    for f in dataclass_fields(config_class):
        default = f.default if f.default is not MISSING else f.default_factory()  # type: ignore[misc]
        kind = kinds.POSITIONAL_OR_KEYWORD if f.name == "lr" else kinds.KEYWORD_ONLY
        parameters.append(kinds(f.name, kind, default=default))
        lines.append(f"    {f.name}: {f.metadata['doc']} (default {default!r}).")
    __init__.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    __init__.__qualname__ = f"{cls.__name__}.__init__"
    cls.__init__ = functools.wraps(__init__, assigned=("__qualname__",))(__init__)  # type: ignore[misc]
    summary = inspect.cleandoc(cls.__doc__ or "")
    lines.insert(0, "    params: parameters, groups, or (name, parameter) pairs.")
    cls.__doc__ = summary + "\n\nArgs:\n" + "\n".join(lines)
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
    return ContextualController(**{name: getattr(config, name) for name in config.CONTROLLER_OPTIONS})


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
