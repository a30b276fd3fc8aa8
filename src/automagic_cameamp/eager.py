"""Methods that ``torch.compile`` leaves to Python.

A compiler that looks into a step finds addresses, weak references and a call of foreign code: nothing it
could compile, and much that it would guard, and trace anew at every rate. To it, our methods are calls that
end a graph.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

import torch

C = TypeVar("C", bound=type)
F = TypeVar("F", bound=Callable[..., Any])
MARK = "_runs_eagerly"


def eager(function: F) -> F:
    """This function, never traced. The first call imports the compiler, as torch's own do."""
    if getattr(function, MARK, False):
        return function
    outside: Any = torch._disable_dynamo(function)
    setattr(outside, MARK, True)
    return outside


def eagerly(cls: C) -> C:
    """A class whose public methods are never traced.

    Those that are called for every tensor or by torch itself under names of their own are marked one by one;
    an optimizer's step is, once torch has laid its hooks around it.
    """
    for name, function in list(vars(cls).items()):
        if inspect.isfunction(function) and not name.startswith("_") and name != "step":
            setattr(cls, name, eager(function))
    return cls
