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

from ..checkpoints.saved import ADVICE, CheckpointError
from ..validate import callers_depth

KEY = "c_optim"
NEUTRAL = "the controller starts neutral, with multiplier 1."


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


def adopt(optimizer: Any) -> None:
    """Take over a memory that a program has put beside a parameter's state itself.

    ``ZeroRedundancyOptimizer`` loads by writing ``optimizer.state``. Where it joins the states of more
    processes than there are now, several memories arrive: the first parameter's is taken.

    Raises:
        RuntimeError: what is there is no memory; nothing was changed.
    """
    controller = optimizer.controller
    if controller is None:
        return
    state = optimizer.state
    owners = [p for group in optimizer.param_groups for p in group["params"]]
    home = next((p for p in owners if p in state and KEY in state[p]), None)
    if home is None:
        filled = controller.memory is None and not optimizer._neutral
        if filled and any(state[p] for p in owners if p in state):
            optimizer._neutral = True
            text = f"optimizer.state was filled without a {KEY!r}: {NEUTRAL}"
            warnings.warn(text, stacklevel=callers_depth())
        return
    found = state[home][KEY]
    if found is controller.memory:
        return
    if not controller.is_memory(found):
        name = next(n for n, p in optimizer._named() if p is home)
        what = f"{found.dtype} {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
        raise RuntimeError(
            f"state {KEY!r} of parameter {name} is not the memory of a controller (torch.float32, 1-D), but "
            f"{what}: the program has cast or replaced it. Load a checkpoint. Nothing was changed."
        )
    controller.memory = state[home][KEY] = found.detach().clone()
    for own in state.values():
        if own is not state[home] and isinstance(own, dict):
            own.pop(KEY, None)


def take_out(
    optimizer: Any, entries: dict[int, Any], state_dict: Mapping[str, Any]
) -> tuple[int | None, Tensor | None, set[str]]:
    """The controller's memory, taken out of the entries: where it was, itself, and what is dropped."""
    homes = [i for i, entry in entries.items() if KEY in entry]
    if optimizer.controller is None:
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
    home, remembered = take(entries, dict(state_dict), optimizer.controller)
    if remembered is not None and not bool(remembered.isfinite().all()):
        raise CheckpointError(f"state {KEY!r} holds NaN or infinities: it is damaged. {ADVICE}")
    return home, remembered, set()


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
