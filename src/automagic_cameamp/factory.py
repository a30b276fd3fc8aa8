"""Optimizers by name: ours, torch's, bitsandbytes', or any dotted path.

    build_optimizer("Automagic_CameAMP8bit", model.parameters(), ["lr=1e-3", "betas=0.9,0.99"])
    build_optimizer("bitsandbytes.AdamW8bit", model.parameters(), {"lr": 1e-3})

`parse_optimizer_args` reads the key=value words of a command line, in the plain form
(``profile=balanced``) and in the quoted form that sd-scripts needs (``"profile='balanced'"``).
"""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch

from .text import read


class OptimizerArgumentError(ValueError):
    """A name or an argument that no optimizer can be built from; the message is one line."""


class OptimizerInfo(NamedTuple):
    """One row of `list_optimizers`."""

    name: str
    source: str
    summary: str


def parse_optimizer_args(args: Iterable[str]) -> dict[str, Any]:
    """Turn ``["lr=1e-4", "betas=0.9,0.99", "profile=balanced"]`` into keyword arguments."""
    parsed: dict[str, Any] = {}
    for arg in args:
        key, sign, value = arg.partition("=")
        key = key.strip().replace("-", "_")
        if not sign:
            raise OptimizerArgumentError(f"optimizer argument {arg!r} has no '='; write it as key=value")
        if not key.isidentifier():
            raise OptimizerArgumentError(f"optimizer argument {arg!r}: {key!r} is not a name")
        if not value.strip():
            raise OptimizerArgumentError(f"optimizer argument {arg!r} has no value; write {key}=value")
        if key in parsed:
            raise OptimizerArgumentError(f"optimizer argument {key!r} is given twice; keep one")
        parsed[key] = read(value)
    return parsed


def our_optimizers() -> dict[str, type[torch.optim.Optimizer]]:
    """The classes of this package by name."""
    from .optimizers import OPTIMIZERS

    return {name: cast("type[torch.optim.Optimizer]", cls) for name, cls in OPTIMIZERS.items()}


def torch_optimizers() -> dict[str, type[torch.optim.Optimizer]]:
    """The classes of torch.optim by name."""
    found = {}
    for name in dir(torch.optim):
        value = getattr(torch.optim, name)
        if isinstance(value, type) and issubclass(value, torch.optim.Optimizer):
            if value is not torch.optim.Optimizer and not name.startswith("_"):
                found[name] = value
    return found


def resolve_optimizer(name: str) -> type[torch.optim.Optimizer]:
    """The class called `name`: upper and lower case are the same, except in a dotted path."""
    if not isinstance(name, str) or not name.strip():
        raise OptimizerArgumentError(f"optimizer must be a name, got {name!r}; see `automagic optimizers`")
    name = name.strip()
    if "." in name:
        return _dotted(name)
    known = torch_optimizers() | our_optimizers()
    lowered = {key.lower(): key for key in known}
    if name.lower() in lowered:
        return known[lowered[name.lower()]]
    near = difflib.get_close_matches(name.lower(), lowered, n=4, cutoff=0.5)
    hint = f"did you mean {' or '.join(lowered[n] for n in near)}?" if near else "see `automagic optimizers`"
    if name.lower().endswith("8bit"):
        hint += f" (bitsandbytes' classes are written bitsandbytes.{name})"
    raise OptimizerArgumentError(f"no optimizer is called {name!r}; {hint}")


def _dotted(path: str) -> type[torch.optim.Optimizer]:
    module_name, _, class_name = path.rpartition(".")
    try:
        module = importlib.import_module(module_name)
        if not hasattr(module, class_name) and hasattr(module, "optim"):  # bitsandbytes.AdamW8bit
            module = module.optim
    except (ImportError, ValueError, TypeError) as error:  # '.', '.name', '..'
        missing = getattr(error, "name", None) or module_name
        raise OptimizerArgumentError(
            f"optimizer {path!r}: cannot import {missing!r} ({error}); install it, or use another optimizer"
        ) from None
    value = getattr(module, class_name, None)
    if not (isinstance(value, type) and issubclass(value, torch.optim.Optimizer)):
        classes = [n for n, v in vars(module).items() if isinstance(v, type)]
        near = difflib.get_close_matches(class_name, classes, n=4, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}?" if near else "check the spelling"
        what = "has no" if value is None else "holds no torch optimizer class"
        raise OptimizerArgumentError(f"optimizer {path!r}: {module_name} {what} {class_name}; {hint}")
    return value


def build_optimizer(
    name: str,
    params: Iterable[Any],
    args: Sequence[str] | Mapping[str, Any] | None = None,
    **defaults: Any,
) -> torch.optim.Optimizer:
    """Build the optimizer called `name`.

    Args:
        name: a class of ours, of torch.optim, or a dotted path.
        params: parameters or parameter groups.
        args: keyword arguments, as a mapping or as ``key=value`` words.
        defaults: keyword arguments that `args` may override (a learning rate, say).
    """
    cls = resolve_optimizer(name)
    if isinstance(args, Mapping):
        given = {key: read(value) for key, value in args.items()}
    else:
        given = parse_optimizer_args(args or ())
    options = defaults | given
    _check_names(cls, options)
    try:
        return cls(params, **options)
    except (TypeError, ValueError) as error:
        said = " ".join(str(error).split())
        said = said if said.startswith(cls.__name__) else f"{cls.__name__}: {said}"
        raise OptimizerArgumentError(said) from error


def _check_names(cls: type, options: Mapping[str, Any]) -> None:
    # Ours explain an unknown keyword themselves; torch's own message names no alternative.
    accepted = inspect.signature(cls).parameters
    if any(p.kind is p.VAR_KEYWORD for p in accepted.values()):
        return
    names = list(accepted)[1:]
    for key in options:
        if key not in names:
            near = difflib.get_close_matches(key, names, n=1)
            hint = f"did you mean {near[0]}?" if near else f"it takes {', '.join(names)}"
            raise OptimizerArgumentError(f"{cls.__name__} has no argument {key!r}; {hint}")


def list_optimizers() -> list[OptimizerInfo]:
    """Every optimizer that can be given by its bare name, ours first."""
    rows = []
    for source, classes in (("automagic-cameamp", our_optimizers()), ("torch.optim", torch_optimizers())):
        for name, cls in classes.items():
            rows.append(OptimizerInfo(name, source, _summary(cls)))
    return rows


def _summary(cls: type) -> str:
    lines = (inspect.getdoc(cls) or "").strip().splitlines()
    return lines[0].rstrip(".").replace("``", "") if lines else ""
