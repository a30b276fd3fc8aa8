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
from .model import Model

KEY = "c_optim"
NEUTRAL = "the controller starts neutral, with multiplier 1."


def keep(state: Mapping[Any, dict[str, Any]], params: Iterable[Tensor], memory: Tensor | None) -> None:
    """Put the memory to the first of these parameters that has state, wherever it was.

    Checkpoints that name every entry (torch's distributed ones) are loaded into an optimizer that has just
    been made: it must be where that one has it, though an earlier parameter may have got its state later.
    """
    first = True
    for own in filter(None, map(state.get, params)):
        if first and memory is not None:
            own[KEY] = memory
        elif KEY in own:
            del own[KEY]
        first = False


def adopt(model: Model) -> None:
    """Take over a memory that a program has put beside a parameter's state itself.

    ``ZeroRedundancyOptimizer`` loads by writing ``optimizer.state``. Where it joins the states of more
    processes than there are now, several memories arrive: the first parameter's is taken.

    Raises:
        RuntimeError: what is there is no memory; nothing was changed.
    """
    controller = model.controller
    if controller is None:
        return
    state = model.state
    owners = model.params()
    home = next((p for p in owners if p in state and KEY in state[p]), None)
    if home is None:
        filled = controller.memory is None and not model.kept.neutral
        if filled and any(state[p] for p in owners if p in state):
            model.kept.neutral = True
            text = f"optimizer.state was filled without a {KEY!r}: {NEUTRAL}"
            warnings.warn(text, stacklevel=callers_depth())
        return
    found = state[home][KEY]
    if found is controller.memory:
        return
    if not controller.is_memory(found):
        name = model.name(home)
        what = f"{found.dtype} {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
        raise RuntimeError(
            f"state {KEY!r} of parameter {name} is not the memory of a controller (torch.float32, 1-D), but "
            f"{what}: the program has cast or replaced it. Load a checkpoint. Nothing was changed."
        )
    controller.memory = state[home][KEY] = found.detach().clone()
    for own in state.values():
        if own is not state[home] and isinstance(own, dict):
            own.pop(KEY, None)
