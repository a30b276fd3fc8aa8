"""What a state dict must hold before any of it is loaded.

torch would cast every floating parameter's state, codes and counters included, to the parameter's
type; the engine loads rows as they are, after these checks.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class CheckpointError(ValueError):
    """A state dict that does not fit this optimizer."""


def check_state(
    name: str, state: dict[str, Any], expected: dict[str, tuple[tuple[int, ...], torch.dtype]]
) -> None:
    """Compare the saved state of one parameter with what this optimizer would keep for it.

    Args:
        name: how the parameter is called in messages.
        state: saved state; empty is a parameter that was never updated.
        expected: key -> shape and type.
    """
    if not state:
        return
    missing, foreign = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    if missing or foreign:
        raise CheckpointError(
            f"state of {name} does not belong to this optimizer and its options: missing "
            f"{missing or 'nothing'}, unknown {foreign or 'nothing'}. Build the optimizer with the class "
            "and options of the run that was saved. Nothing was loaded."
        )
    for key, (shape, dtype) in expected.items():
        value = state[key]
        if not isinstance(value, Tensor):
            raise CheckpointError(f"state {key!r} of {name} is a {type(value).__name__}, not a tensor.")
        if tuple(value.shape) != shape:
            raise CheckpointError(
                f"state {key!r} of {name} has shape {tuple(value.shape)}, this model needs {shape}: "
                "the checkpoint is of another model or of other options. Nothing was loaded."
            )
        if value.dtype != dtype:
            raise CheckpointError(
                f"state {key!r} of {name} is {value.dtype}, expected {dtype}: it was cast after "
                "saving (by a trainer, or by loading it through another optimizer). Nothing was loaded."
            )
