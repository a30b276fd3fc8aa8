"""Version counters of tensors that were written through their address, which torch does not see.

Autograd compares them before it uses a tensor that it has kept for a backward pass: without them a pass after
a step would use the new weights where it needs the old ones, and say nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from ...state.names import is_ours


@lru_cache(maxsize=1)
def _takes_lists() -> bool:
    try:
        increment_version([torch.empty(0, device="cpu")])
    except (TypeError, RuntimeError):  # torch before lists were allowed
        return False
    return True


def moved(tensors: Sequence[Tensor]) -> None:
    """Say that these were written. Tensors without a counter (of inference mode) are passed over."""
    if _takes_lists():
        increment_version(tensors)
        return
    for x in tensors:
        if not x.is_inference():
            increment_version(x)


def counters(states: Iterable[dict[str, Any]]) -> list[Tensor]:
    """One tensor for each counter of a state: rows of one stack share that of the stack."""
    found: dict[int, Tensor] = {}
    for state in states:
        for name, x in state.items():
            if isinstance(x, Tensor) and is_ours(name):  # the program's own are not written
                found.setdefault(id(x if x._base is None else x._base), x)
    return list(found.values())
