"""Where the controller's memory is kept: beside the state of one parameter.

A checkpoint has room for parameters and groups only; torch's distributed checkpoints drop every
other entry, and compare group values with ``==``. So the memory is one more tensor of the first
parameter that has state. ``state_dict()`` shows it once more, readable, at the top.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from ..validate import callers_depth
from .saved import CheckpointError

KEY = "c_optim"


def keep(state: Mapping[Any, dict[str, Any]], params: Iterable[Tensor], memory: Tensor | None) -> None:
    """Put the memory where it was, or to the first of these parameters that has state."""
    home = None
    for p in params:
        own = state.get(p)
        if own and (home is None or KEY in own):
            home = own
            if KEY in own:
                break
    if home is not None and memory is not None:
        home[KEY] = memory


def take(
    saved: dict[int, dict[str, Any]], state_dict: dict[str, Any], controller: Any
) -> tuple[int | None, Tensor | None]:
    """Take the memory out of a state dict that is being loaded.

    Args:
        saved: id of a parameter -> its saved state; replaced there by a copy without the memory.
        state_dict: the whole, for the entry at its top.
        controller: says what it can load.

    Returns:
        The parameter that kept it, and the memory; None and None where there is none.

    Raises:
        CheckpointError: the memory is damaged.
    """
    home = next((key for key, own in saved.items() if KEY in own), None)
    if home is not None:
        memory = saved[home][KEY]
        saved[home] = {name: value for name, value in saved[home].items() if name != KEY}
    else:
        entry = state_dict.get(KEY)
        memory = entry.get("memory") if isinstance(entry, Mapping) else None
    if memory is None:
        if any(saved.values()):
            warnings.warn(
                "the state dict holds no c_optim entry: the controller starts neutral, with multiplier 1.",
                stacklevel=callers_depth(),
            )
        return None, None
    if not controller.is_memory(memory):
        found = (
            f"{memory.dtype} {tuple(memory.shape)}" if isinstance(memory, Tensor) else type(memory).__name__
        )
        raise CheckpointError(
            f"state {KEY!r} is not the memory of a controller, but {found}: it was cast or cut after "
            "saving. Nothing was loaded."
        )
    return home, memory
