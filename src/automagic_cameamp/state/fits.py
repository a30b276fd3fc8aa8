"""Whether the state of each parameter still fits it: looked at before a step writes anything.

Programs prune a parameter and forget its state, index the state and forget its codes, cast state with
the model, or change the model's type. A plan (``native.Plan``) notices that something is another tensor;
this finds out what, and says it.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from operator import attrgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..storage import CORRECTION
from ..types import Layout
from ..validate import callers_depth
from . import memory, tensors
from .chunks import Chunk
from .fields import LOW_PRECISION, Field, compute_dtype
from .model import Model
from .shards import is_distributed

_DTYPE, _SHAPE, _DEVICE = map(attrgetter, ("dtype", "shape", "device"))
_WIDE = {torch.float32: torch.float64, torch.float64: torch.float32}
AFRESH = "start its state anew with optimizer.state.pop(parameter)"
Plan = list[tuple[dict[str, Any], Chunk]]
Types = dict[int, torch.dtype]


class Repair(NamedTuple):
    """What has to follow its parameter: (state of a parameter, key, type, device)."""

    state: dict[str, Any]
    key: str
    dtype: torch.dtype
    device: torch.device


class _Expected(NamedTuple):
    """One stored tensor as it has to be."""

    name: str
    shape: torch.Size
    dtype: torch.dtype
    follows: bool  # whether its type is that of the arithmetic, which is the parameter's business


def types_of(params: Iterable[Tensor]) -> Types:
    """Types of parameters, to be compared at a later step."""
    return {id(p): p.dtype for p in params}


def check(model: Model, plan: Plan, every: bool = False) -> None:
    """Refuse state that does not fit its parameter; carry it where the parameter changed its type.

    Args:
        model: its state is read; it is changed only where everything fits or can be carried.
        plan: all chunks of all groups.
        every: also look at parameters that have no gradient, but may get one before the step ends.

    Raises:
        RuntimeError: something does not fit; nothing was changed.
    """
    params = model.params()
    now = types_of(params)
    known: Types = model.kept.types
    changed = [] if known == now else [p for p in params if known.get(id(p), p.dtype) != p.dtype]
    changed = [p for p in changed if model.state.get(p)]
    _refuse_masters(model, changed, known)
    ids = set(map(id, changed))
    repairs: list[Repair] = []
    for group, chunk in plan:
        members = [
            (i, p)
            for i, p in zip(chunk.indices, chunk.params, strict=True)
            if (p.grad is not None or (every and p.requires_grad) or id(p) in ids) and model.state.get(p)
        ]
        if members:
            repairs += _check_chunk(model, group, chunk, members, known, ids)
    if changed:
        _announce(model, changed, known)
    for state, key, dtype, device in repairs:
        state[key] = state[key].to(device=device, dtype=dtype)
    model.kept.types = now


def _check_chunk(
    model: Model,
    group: dict[str, Any],
    chunk: Chunk,
    members: list[tuple[int, Tensor]],
    known: Types,
    changed: set[int],
) -> list[Repair]:
    states = [model.state[p] for _, p in members]
    first = chunk.params[0]
    expected = list(_expected(model.fields(group, chunk), chunk.layout, compute_dtype(first.dtype)))
    local = None if chunk.shard is not None else first.device
    if local is not None and all(_all_fit(states, plane, local) for plane in expected):
        return []
    repairs: list[Repair] = []
    for (i, p), state in zip(members, states, strict=True):
        name = model.name_at(i)
        may_follow = id(p) in changed or id(p) not in known
        repairs += _check_one(name, p, chunk.layout, state, expected, may_follow)
    return repairs


def _expected(fields: list[Field], layout: Layout, compute: torch.dtype) -> Iterable[_Expected]:
    for field in fields:
        follows = field.codec is None and field.spec.dtype is None
        for plane in field.planes(layout, compute):
            yield _Expected(field.spec.name + plane.suffix, torch.Size(plane.own_shape), plane.dtype, follows)


def _all_fit(states: list[dict[str, Any]], plane: _Expected, device: torch.device) -> bool:
    """Whether a plane is what it should be for all of these, without a loop of Python over them."""
    try:
        rows = [state[plane.name] for state in states]
        return (
            tensors.USUAL.issuperset(map(type, rows))
            and set(map(_SHAPE, rows)) == {plane.shape}
            and set(map(_DTYPE, rows)) == {plane.dtype}
            and set(map(_DEVICE, rows)) == {device}
            and 0 not in map(Tensor.data_ptr, rows)
        )
    except KeyError:
        return False


def _check_one(
    name: str,
    p: Tensor,
    layout: Layout,
    state: Mapping[str, Any],
    expected: list[_Expected],
    may_follow: bool,
) -> list[Repair]:
    """One parameter, slowly: what of its state is wrong, in words."""
    wanted = {plane.name: plane for plane in expected}
    for key, value in state.items():
        if key in wanted and not isinstance(value, Tensor):
            raise RuntimeError(
                f"state {key!r} of parameter {name} is a {type(value).__name__}, not a tensor: put back what "
                f"was there, or {AFRESH}. Nothing was changed."
            )
    held = {key: plane for key, plane in wanted.items() if key in state}
    for key, plane in held.items():
        if state[key].shape != plane.shape:
            raise _resized(name, p, key, state[key].shape, plane.shape)
    if len(held) < len(wanted):
        _refuse_leftovers(name, p, layout, state, wanted)
        return []  # the options have changed: ``check_complete`` says which field they need
    for key in held:
        if not is_distributed(state[key]) and (state[key].is_meta or not tensors.in_memory(state[key])):
            raise RuntimeError(
                f"state {key!r} of parameter {name} is a {type(state[key]).__name__} on "
                f"{state[key].device.type!r} that holds no values in memory: put the plain tensor back, or "
                f"{AFRESH}. Nothing was changed."
            )
    wrong = {key for key, plane in held.items() if state[key].dtype != plane.dtype}
    follow = {key for key, plane in held.items() if plane.follows}
    other = _WIDE[compute_dtype(p.dtype)]
    as_one = wrong == follow and all(state[key].dtype == other for key in wrong)
    if wrong and not (may_follow and as_one):
        key = min(wrong, key=list(held).index)
        raise RuntimeError(
            f"state {key!r} of parameter {name} has the type {state[key].dtype} instead of "
            f"{held[key].dtype}: the program has cast it since the last step, and what that lost cannot be "
            f"brought back. Cast the model only, never optimizer.state. Load a checkpoint, or {AFRESH}. "
            "Nothing was changed."
        )
    return [
        Repair(state, key, plane.dtype, p.device)  # type: ignore[arg-type]
        for key, plane in held.items()
        if key in wrong or (not is_distributed(state[key]) and state[key].device != p.device)
    ]


def _resized(name: str, p: Tensor, key: str, found: torch.Size, needed: torch.Size | None) -> RuntimeError:
    wants = "has no such state" if needed is None else f"needs shape {tuple(needed)}"
    return RuntimeError(
        f"parameter {name} has shape {tuple(p.shape)} now and its state does not fit: {key!r} has shape "
        f"{tuple(found)}, a parameter of this shape {wants}. A program that prunes or resizes a parameter "
        "has to do the same to every tensor of its state (codes of 8 bits cannot be cut: their blocks "
        f"and scales would not match), or {AFRESH}. Nothing was changed."
    )


def _refuse_leftovers(
    name: str, p: Tensor, layout: Layout, state: Mapping[str, Any], wanted: Mapping[str, Any]
) -> None:
    """Fields are missing: because the shape turned from a vector's to a matrix's, or the other way round?"""
    for key, value in state.items():
        if key in wanted or key == memory.KEY or not isinstance(value, Tensor):
            continue
        statistics = key.endswith(("_row", "_col")) and not layout.matrix
        full = key.endswith("_sq") and layout.matrix and value.shape != p.shape
        if statistics or full:
            raise _resized(name, p, key, value.shape, None)


def _refuse_masters(model: Model, changed: list[Tensor], known: Types) -> None:
    """Weights of 24 bits are two parts, of which only one changed its type."""
    if model.config.master_weight_bits != 24:
        return
    ids = {id(p) for p in changed if p.dtype in LOW_PRECISION or known[id(p)] in LOW_PRECISION}
    for name, p in model.named():
        if id(p) in ids:
            raise RuntimeError(
                f"parameter {name} has the type {p.dtype} now and had {known[id(p)]}: with "
                f"master_weight_bits=24 the rest of the weight ({CORRECTION.name!r}) belongs to the old "
                "type. Build a new optimizer after changing the type. Nothing was changed."
            )


def _announce(model: Model, changed: list[Tensor], known: Types) -> None:
    """Say once per change that state was carried over."""
    name = model.name(changed[0])
    more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
    warnings.warn(
        f"{model.called}: parameter {name}{more} changed its type in mid-run, from "
        f"{known[id(changed[0])]} to {changed[0].dtype}: its state is carried over, and checkpoints are of "
        "the new type from now on.",
        stacklevel=callers_depth(),
    )
