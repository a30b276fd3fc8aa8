"""The stored state of a stack: which fields it has, how each is held, made and filled."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import storage
from ..recipes import Hyper, initial
from ..types import Layout
from . import stacks, tensors

LOW_PRECISION = (torch.bfloat16, torch.float16)
State = dict[str, Tensor]


class Field(NamedTuple):
    """One field of a recipe's state with its storage."""

    spec: storage.StateSpec
    codec: storage.Codec | None

    def planes(self, layout: Layout, compute: torch.dtype) -> tuple[storage.Plane, ...]:
        """Stored tensors of the field; a plain field is one plane."""
        if self.codec is not None:
            return self.codec.planes(layout)
        dtype = self.spec.dtype or compute
        return (storage.Plane("", self.spec.stack_shape(layout), self.spec.own_shape(layout), dtype),)


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Type of the arithmetic: fp32, or fp64 for fp64 parameters."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def fields_of(
    recipe: ModuleType, layout: Layout, hp: Hyper, policy: storage.Policy, by_rows: bool = False
) -> list[Field]:
    """Fields of a parameter of this layout under these options and this storage."""
    return [Field(spec, storage.choose(spec, layout, policy, by_rows)) for spec in recipe.specs(layout, hp)]


def stack_params(params: list[Tensor], layout: Layout, compute: torch.dtype | None) -> Tensor:
    """[B,K,m,n] in this type, or in their own; a copy, except of a single contiguous tensor.

    In the order of the indices, however the weights lie: sums then round alike on a device and on the host.
    """
    shape = (len(params), *layout.view)
    if len(params) == 1:
        stack = tensors.plain(params[0]).contiguous().reshape(shape)
    else:
        stack = torch.stack([tensors.plain(p) for p in params]).reshape(shape)
    return stack if compute is None else stack.to(compute)


def new_rows(
    count: int, p: Tensor, fields: Sequence[Field], layout: Layout
) -> tuple[list[State], dict[str, Tensor]]:
    """Unfilled states of ``count`` parameters like p, as rows of one tensor per plane; and these tensors.

    All of a model is allocated before anything is computed: planes that live for the whole run,
    laid between short-lived stacks, would leave the heap full of holes.
    """
    states: list[State] = [{} for _ in range(count)]
    planes: dict[str, Tensor] = {}
    for field in fields:
        for plane in field.planes(layout, compute_dtype(p.dtype)):
            key = field.spec.name + plane.suffix
            planes[key] = torch.empty((count, *plane.shape), dtype=plane.dtype, device=p.device)
            for state, row in zip(states, stacks.rows_of(planes[key], plane.own_shape), strict=True):
                state[key] = row
    return states, planes


def fill_state(
    held: dict[str, Tensor],
    params: list[Tensor],
    fields: list[Field],
    layout: Layout,
) -> None:
    """First values of allocated states."""
    compute = compute_dtype(params[0].dtype)
    for field in fields:
        spec, codec = field
        planes = field.planes(layout, compute)
        if codec is None:
            value = initial(spec.name, params, layout)
            if value is None:
                held[spec.name].fill_(spec.initial)
            else:
                held[spec.name].copy_(value)
            continue
        stored = [held[spec.name + plane.suffix] for plane in planes]
        if spec.extent == "full":
            storage.fill(stored, codec, spec.initial, layout)
            continue
        # Every element starts alike, so one parameter's code serves all.
        shape = (1, *spec.stack_shape(layout))
        one = torch.full(shape, spec.initial, dtype=torch.float32, device=params[0].device)
        for plane, coded in zip(stored, codec.encode(one), strict=True):
            plane.copy_(coded)


def check_complete(states: list[dict[str, Any]], fields: list[Field], layout: Layout) -> None:
    """Refuse options that ask for a field which the state, made under other options, does not have."""
    for field in fields:
        keys = {field.spec.name + plane.suffix for plane in field.planes(layout, torch.float32)}
        if any(not keys <= state.keys() for state in states):
            raise RuntimeError(
                f"the options of a group have changed and now need the state {field.spec.name!r}, which was "
                "not kept so far: change them with convert_state."
            )


def as_vector(values: list[tuple[Tensor, int]], like: Tensor) -> Tensor:
    """Numbers of many parameters as one vector on one device."""
    numbers = [v for v, _ in values]
    if not (like.is_cpu and all(v.is_cpu for v in numbers)):
        numbers = [v.to(like.device) for v in numbers]
    return torch.stack(numbers)
