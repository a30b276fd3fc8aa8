"""Where loaded state lands: in rows of one tensor per plane, in the old rows' place where they fit.

A load may never need a second copy of the state. What has to be allocated is allocated before
anything is written, so that a lack of memory leaves the optimizer as it was.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

from ..state.chunks import Chunk
from ..state.fields import Field, State, compute_dtype, new_rows
from ..state.shards import cut, is_cut, is_distributed, local_of, wrap
from ..types import Layout


def held_rows(
    held: Sequence[Mapping[str, Any] | None], p: Tensor, fields: Sequence[Field], layout: Layout
) -> list[State] | None:
    """The states that these parameters have now, where new ones can be written into them.

    That is where every plane is one tensor of exactly these rows; otherwise None.
    """
    states: list[State] = [{} for _ in held]
    for field in fields:
        for plane in field.planes(layout, compute_dtype(p.dtype)):
            key = field.spec.name + plane.suffix
            rows = [own.get(key) if own else None for own in held]
            if not _is_whole_stack(rows, plane.own_shape, plane.dtype, p.device):
                return None
            for state, row in zip(states, rows, strict=True):
                state[key] = row  # type: ignore[assignment]
    return states


def _is_whole_stack(
    rows: Sequence[Any], shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> bool:
    for row in rows:
        if not isinstance(row, Tensor) or row.dtype != dtype or row.device != device:
            return False
        if tuple(row.shape) != shape or not row.is_contiguous():
            return False
    size = rows[0].numel() * rows[0].element_size()
    storage = rows[0].untyped_storage()
    start = storage.data_ptr()
    return storage.nbytes() == len(rows) * size and all(
        row.data_ptr() == start + i * size for i, row in enumerate(rows)
    )


def fill(row: State, saved: Mapping[str, Tensor]) -> None:
    """Write a saved state into its row; a tensor that is the row already stays."""
    for key, own in row.items():
        if not _same(own, saved[key]):
            own.copy_(saved[key].detach())


def copied(value: Any, p: Tensor) -> Any:
    """A program's own entry beside the state of p: a tensor keeps its type and moves to p."""
    return value.detach().to(p.device, copy=True) if isinstance(value, Tensor) else deepcopy(value)


def overlaps(saved: Mapping[Any, Mapping[str, Tensor]], held: Mapping[Any, Mapping[str, Any]]) -> bool:
    """Whether a saved tensor is held elsewhere in the optimizer than where it would be written.

    Args:
        saved: parameter -> state to be loaded.
        held: parameter -> state of the optimizer.
    """
    storages = {
        local_of(value).untyped_storage().data_ptr()
        for own in held.values()
        if isinstance(own, Mapping)
        for value in own.values()
        if isinstance(value, Tensor)
    }
    for p, state in saved.items():
        own = held.get(p) or {}
        for key, value in state.items():
            here = local_of(value)
            known = here.numel() > 0 and here.untyped_storage().data_ptr() in storages
            if known and not (isinstance(own.get(key), Tensor) and _same(local_of(own[key]), here)):
                return True
    return False


def sharded_rows(
    saved: list[dict[str, Any]], params: list[Tensor], fields: list[Field], chunk: Chunk
) -> list[dict[str, Any]]:
    """Saved states of a chunk, sharded or whole, as rows of one tensor per plane and as DTensors."""
    shard, compute = chunk.shard, compute_dtype(params[0].dtype)
    assert shard is not None
    parts: list[dict[str, Any]] = [{} for _ in saved]
    for field in fields:
        for plane in field.planes(chunk.layout, compute):
            key = field.spec.name + plane.suffix
            for part, state in zip(parts, saved, strict=True):
                value = local_of(state[key])
                whole = is_cut(field.spec, shard) and not is_distributed(state[key])
                part[key] = cut(value, shard) if whole else value
    rows, _ = new_rows(len(params), local_of(params[0]), fields, shard.layout)
    for state, part in zip(rows, parts, strict=True):
        fill(state, part)
        wrap(state, fields, chunk.layout, compute, shard)
    return rows


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are the same place in memory, read the same way."""
    return (
        a.data_ptr() == b.data_ptr()
        and a.device == b.device
        and a.dtype == b.dtype
        and a.shape == b.shape
        and a.stride() == b.stride()
    )
