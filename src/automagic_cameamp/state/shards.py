"""Sharded parameters: which part of one is here, and state that torch can reshard.

A parameter of FSDP2 (``torch.distributed.fsdp.fully_shard``) is a DTensor, cut along its first
dimension. Its state is cut with it: what has a value per element or per row is a DTensor with the
parameter's placements; what all processes know alike (column statistics, counts) is a plain tensor.
"""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..recipes import Hyper, has_mask
from ..storage import StateSpec
from ..types import Layout, Place
from ..validate import callers_depth, fail

SHARDED = "sharded"  # key of what is said once
# They look at neighbours in both directions or at the whole matrix, of which a process has rows.
NEIGHBOURS: dict[str, tuple[Any, str]] = {
    "frequency_penalty": (0.0, "damping of high frequencies"),
    "edge_suppression": (False, "damping of edges"),
    "lora_rank_penalty": (False, "low-rank penalty and emphasis"),
}
NEEDED: dict[str, tuple[tuple[str, ...], str]] = {
    "lr_mask_granularity": (("element",), "signs of other granularities are packed across rows"),
    "lr_level": (("fixed", "auto"), "the sample of the weights that it compares is of the whole tensor"),
}


class Shard(NamedTuple):
    """How a parameter is cut; equal for parameters of one shape on one mesh.

    Args:
        mesh: the processes.
        placements: of the parameter.
        layout: view of the part that is here.
        start: index in the first dimension of the first slice that is here.
    """

    mesh: Any
    placements: tuple[Any, ...]
    layout: Layout
    start: int


def shard_of(p: Tensor) -> Shard | None:
    """How a parameter is cut, or None where it is whole.

    Raises:
        RuntimeError: it is distributed in another way than along its first dimension over one
            dimension of processes.
    """
    if not is_distributed(p):
        return None
    mesh, placements = p.device_mesh, tuple(p.placements)  # type: ignore[attr-defined]
    if mesh.ndim != 1 or len(placements) != 1 or not placements[0].is_shard(0) or p.dim() == 0:
        raise RuntimeError(
            f"a parameter of shape {tuple(p.shape)} is distributed as {placements} over a mesh of "
            f"{mesh.ndim} dimensions; possible is Shard(dim=0) over a mesh of one dimension, as "
            "fully_shard(model) makes it. Hybrid sharding, tensor parallelism and other placements are "
            "not supported."
        )
    size, count, rank = p.shape[0], mesh.size(), mesh.get_local_rank()
    step = -(-size // count)  # as torch.chunk cuts: the last parts are shorter, or empty
    start = min(rank * step, size)
    length = min(step, size - start)
    local = tuple(local_of(p).shape)
    if local != (length, *p.shape[1:]):
        raise RuntimeError(
            f"a parameter of shape {tuple(p.shape)} has a part of shape {local} here, expected "
            f"{(length, *p.shape[1:])}: parts must be those of torch.chunk, as fully_shard makes them."
        )
    first = start * math.prod(p.shape[1:])
    split = 3 if p.dim() == 1 else 1 if p.dim() == 3 else 2
    place = Place(split, size, first, p.numel())
    return Shard(mesh, placements, Layout.of(local)._replace(place=place), start)


def is_distributed(x: Any) -> bool:
    """Whether a tensor is a DTensor; without importing them, which takes long."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(x, module.DTensor)


def local_of(x: Tensor) -> Tensor:
    """The part of a tensor that is here, sharing its memory."""
    return x.detach().to_local() if is_distributed(x) else x  # type: ignore[attr-defined]


def local_state(state: dict[str, Any]) -> dict[str, Any]:
    """The part of a state that is here, sharing its memory."""
    return {k: local_of(v) if isinstance(v, Tensor) else v for k, v in state.items()}


def local_parameter(p: Tensor) -> Tensor:
    """The part of a parameter that is here, with the part of its gradient."""
    part = local_of(p)
    if p.grad is not None:
        if tuple(getattr(p.grad, "placements", ())) != tuple(p.placements):  # type: ignore[attr-defined]
            raise RuntimeError(
                f"a parameter of shape {tuple(p.shape)} has a gradient that is not distributed like it: "
                f"{getattr(p.grad, 'placements', 'a plain tensor')} instead of {tuple(p.placements)}."  # type: ignore[attr-defined]
            )
        part.grad = local_of(p.grad)
    return part


def place_of(shard: Shard) -> Place:
    """Which part of the tensor is here."""
    assert shard.layout.place is not None
    return shard.layout.place


def is_cut(spec: StateSpec, shard: Shard) -> bool:
    """Whether a field of a parameter is cut with it."""
    return spec.extent in ("full", "row", "left") or (spec.extent == "col" and place_of(shard).split == 1)


def distributed(local: Tensor, shape: Sequence[int], shard: Shard) -> Tensor:
    """This process's part of a tensor of this shape as a DTensor."""
    from torch.distributed.tensor import DTensor

    stride = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
    return DTensor.from_local(
        local, shard.mesh, shard.placements, run_check=False, shape=torch.Size(shape), stride=tuple(stride)
    )


def wrap(
    state: dict[str, Any], fields: Sequence[Any], layout: Layout, compute: torch.dtype, shard: Shard
) -> None:
    """Turn the parts of a state (in place) into DTensors where they are cut.

    Args:
        state: name -> part of the plane that is here.
        fields: ``Field`` of each state field.
        layout: view of the whole parameter.
        compute: type of the arithmetic.
        shard: how the parameter is cut.
    """
    for field in fields:
        if is_cut(field.spec, shard):
            for plane in field.planes(layout, compute):
                key = field.spec.name + plane.suffix
                state[key] = distributed(state[key], plane.own_shape, shard)


def cut(whole: Tensor, shard: Shard) -> Tensor:
    """The part of a whole tensor that is here."""
    return whole.narrow(0, shard.start, shard.layout.shape[0])


def options(hp: Hyper, called: str, said: set[str]) -> Hyper:
    """Options as they hold for sharded parameters.

    Args:
        hp: the recipe's.
        called: name of the optimizer's class.
        said: what was said once already.

    Raises:
        ValueError: an option cannot be used with them.
    """
    for name, (allowed, why) in NEEDED.items():
        value = getattr(hp, name)
        if value not in allowed and (name != "lr_mask_granularity" or has_mask(hp)):
            only = " or ".join(map(repr, allowed))
            raise fail(name, value, f"only {only} with sharded parameters", f"Reason: {why}.")
    on = {name: off for name, (off, _) in NEIGHBOURS.items() if getattr(hp, name) != off}
    if on and SHARDED not in said:
        said.add(SHARDED)
        skipped = ", ".join(NEIGHBOURS[name][1] for name in on)
        text = (
            f"{called}: parameters are sharded, and {skipped} would need rows "
            "of other processes: left out for them."
        )
        warnings.warn(text, stacklevel=callers_depth())
    return hp._replace(**on)
