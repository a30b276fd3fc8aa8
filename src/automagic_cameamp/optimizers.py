"""The optimizers: a recipe, a storage, a set of options."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from dataclasses import MISSING
from dataclasses import fields as dataclass_fields
from typing import Any, TypeVar

from torch import Tensor

from .configs import OptimizerConfig, OptimizerConfig8bit
from .engine import CameAMPOptimizer
from .recipes import base
from .storage import Policy
from .validate import checked

C = TypeVar("C", bound=type)


def _configured(cls: C) -> C:
    """Give a final class its constructor: every option of its config as a keyword, checked.

    The signature lists them all (trainers filter keywords by it); an unknown one raises TypeError
    with the nearest names.
    """
    config_class: Any = cls.config_class  # type: ignore[attr-defined]

    def __init__(self: Any, params: Iterable[Any], *args: Any, **options: Any) -> None:
        if len(args) > 1:
            raise TypeError(f"{cls.__name__} takes params and lr by position; all other options by name.")
        if args:
            if "lr" in options:
                raise TypeError(f"{cls.__name__} got lr twice: by position and by name.")
            options["lr"] = args[0]
        config = config_class(**checked(config_class, options, cls.__name__))
        CameAMPOptimizer.__init__(self, params, config)

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


def _full_precision(config: Any, p: Tensor, name: Callable[[], str]) -> Policy:
    """Nothing is quantised."""
    return Policy()


def _block_coded(config: Any, p: Tensor, name: Callable[[], str]) -> Policy:
    """One code, one block size for all."""
    return Policy(config.state_code, config.blocksize)


@_configured
class Automagic_CameAMP(CameAMPOptimizer):
    """CAME with torque-aware momentum, a learned rate per element and Grams direction; fp32 state."""

    recipe = base
    config_class = OptimizerConfig
    policy = staticmethod(_full_precision)


@_configured
class Automagic_CameAMP8bit(CameAMPOptimizer):
    """``Automagic_CameAMP`` with its momentum in eight bits per element; the same arithmetic."""

    recipe = base
    config_class = OptimizerConfig8bit
    policy = staticmethod(_block_coded)


OPTIMIZERS: dict[str, Callable[..., CameAMPOptimizer]] = {
    cls.__name__: cls for cls in (Automagic_CameAMP, Automagic_CameAMP8bit)
}
