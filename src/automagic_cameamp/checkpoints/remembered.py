"""The controller's memory in a saved state: found, checked, taken out."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..state.contract import Controller
from ..state.memory import KEY, NEUTRAL
from ..validate import callers_depth
from .saved import ADVICE, CheckpointError


def take_out(
    controller: Controller | None, entries: dict[int, Any], state_dict: Mapping[str, Any]
) -> tuple[int | None, Tensor | None, set[str]]:
    """The controller's memory, taken out of the entries: where it was, itself, and what is dropped."""
    homes = [i for i, entry in entries.items() if KEY in entry]
    if controller is None:
        for i in homes:
            entries[i] = {k: v for k, v in entries[i].items() if k != KEY}
        return None, None, {KEY} if homes else set()
    for i in homes[1:]:  # ZeroRedundancyOptimizer has joined what several processes kept
        entries[i] = {k: v for k, v in entries[i].items() if k != KEY}
    if len(homes) > 1:
        warnings.warn(
            f"the state of {len(homes)} parameters holds a controller's memory each, as "
            "ZeroRedundancyOptimizer saves one per process: the first is taken.",
            stacklevel=callers_depth(),
        )
    home, remembered = take(entries, dict(state_dict), controller)
    if remembered is not None and not bool(remembered.isfinite().all()):
        raise CheckpointError(f"state {KEY!r} holds NaN or infinities: it is damaged. {ADVICE}")
    return home, remembered, set()


def take(
    saved: dict[int, dict[str, Any]], state_dict: dict[str, Any], controller: Controller
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
            warnings.warn(f"the state dict holds no c_optim entry: {NEUTRAL}", stacklevel=callers_depth())
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
