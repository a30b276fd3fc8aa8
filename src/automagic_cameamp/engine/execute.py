"""One chunk: gather, decode, update, encode, write. Knows no equation."""

from __future__ import annotations

from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import schedule, storage
from ..storage import CORRECTION
from ..storage.rounding import join, split
from ..types import Layout, Phase
from . import arena, tensors
from .buckets import Chunk
from .rounding import random_bits, stochastic_round


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


class Gathered(NamedTuple):
    """Rows of one plane, their stack, and whether the stack aliases the rows."""

    rows: list[Tensor]
    stack: Tensor
    in_place: bool


class Noise(NamedTuple):
    """Random bits of this step for the tensors of a stack; every use has its own salt."""

    keys: Tensor
    step: Tensor
    first: int = 0

    def bits(self, shape: torch.Size, salt: int) -> Tensor:
        """int32 bits of this shape."""
        count = shape.numel() // shape[0]
        return random_bits(self.keys ^ salt, self.step, count, self.first).view(shape)


def compute_dtype(p: Tensor) -> torch.dtype:
    """Type of the arithmetic: fp32, or fp64 for fp64 parameters."""
    return torch.float64 if p.dtype == torch.float64 else torch.float32


def fields_of(
    recipe: ModuleType, layout: Layout, hp: Any, policy: storage.Policy, by_rows: bool = False
) -> list[Field]:
    """Fields of a parameter of this layout under these options and this storage."""
    return [Field(spec, storage.choose(spec, layout, policy, by_rows)) for spec in recipe.specs(layout, hp)]


def stack_params(params: list[Tensor], layout: Layout, compute: torch.dtype) -> Tensor:
    """[B,K,m,n] in the type of the arithmetic; a copy, except of a single contiguous tensor."""
    shape = (len(params), *layout.view)
    if len(params) == 1:
        return tensors.plain(params[0]).reshape(shape).to(compute)
    return torch.stack([tensors.plain(p) for p in params]).reshape(shape).to(compute)


def allocate_state(
    states: list[dict[str, Any]], p: Tensor, fields: list[Field], layout: Layout
) -> dict[str, Tensor]:
    """Storage for fresh states, as rows of one tensor per plane; not filled yet.

    All of a model is allocated before anything is computed: planes that live for the whole run,
    laid between short-lived stacks, would leave the heap full of holes.
    """
    stacks: dict[str, Tensor] = {}
    for field in fields:
        for plane in field.planes(layout, compute_dtype(p)):
            stack = torch.empty((len(states), *plane.shape), dtype=plane.dtype, device=p.device)
            stacks[field.spec.name + plane.suffix] = stack
            for state, row in zip(states, arena.rows_of(stack, plane.own_shape), strict=True):
                state[field.spec.name + plane.suffix] = row
    return stacks


def fill_state(
    stacks: dict[str, Tensor],
    params: list[Tensor],
    recipe: ModuleType,
    fields: list[Field],
    layout: Layout,
) -> None:
    """First values of allocated states."""
    compute = compute_dtype(params[0])
    for field in fields:
        spec, codec = field
        planes = field.planes(layout, compute)
        if codec is None:
            value = recipe.initial(spec.name, params, layout)
            if value is None:
                stacks[spec.name].fill_(spec.initial)
            else:
                stacks[spec.name].copy_(value)
            continue
        # Every element starts alike, so one parameter's code serves all.
        shape = (1, *spec.stack_shape(layout))
        one = torch.full(shape, spec.initial, dtype=torch.float32, device=params[0].device)
        for plane, coded in zip(planes, codec.encode(one), strict=True):
            stacks[spec.name + plane.suffix].copy_(coded)


def check_complete(states: list[dict[str, Any]], fields: list[Field], layout: Layout) -> None:
    """Refuse options that ask for a field which the state, made under other options, does not have."""
    for field in fields:
        keys = {field.spec.name + plane.suffix for plane in field.planes(layout, torch.float32)}
        if any(not keys <= state.keys() for state in states):
            raise RuntimeError(
                f"the options of a group have changed and now need the state {field.spec.name!r}, which was "
                "not kept so far: change them with convert_state."
            )


def phase_on_host(step: Tensor, warmup_steps: int) -> Phase:
    """Common phase of the stack, where the host may know it without waiting for a device."""
    if warmup_steps == 0:
        return Phase.LATE
    if step.device.type != "cpu":
        return Phase.MIXED
    low, high = step.aminmax()
    return schedule.phase_between(float(low) + 1, float(high) + 1, warmup_steps)


def run(
    chunk: Chunk,
    states: list[dict[str, Any]],
    recipe: ModuleType,
    fields: list[Field],
    shared: Any,
    hp: Any,
    keys: Tensor | None,
    round_params: bool,
) -> tuple[Tensor, Any]:
    """Update the parameters and states of a chunk in place.

    Args:
        chunk: parameters that all have a dense gradient.
        states: ``optimizer.state[p]`` of each, complete.
        recipe: module with ``update``.
        fields: storage of each state field.
        shared: the recipe's scalars over all parameters.
        hp: the recipe's options.
        keys: [B] int32 random keys, or None where nothing is rounded stochastically.
        round_params: whether the weights are.

    Returns:
        [B] bool, False where the gradient was not finite and nothing was changed; and the
        recipe's signals.
    """
    params = chunk.params
    p, gathered, result = evaluate(chunk, states, recipe, fields, shared, hp)
    new_p, new_state, ok, signals = result

    # On CPU looking at the flag is free; elsewhere it would wait for the device.
    keep = None if ok.device.type == "cpu" and bool(ok.all()) else ok
    first = 0 if chunk.shard is None else chunk.shard.place.first
    noise = None if keys is None else Noise(keys, new_state.step.flatten(), first)
    values = recipe.as_dict(new_state)
    rounding = noise if round_params else None
    if CORRECTION.name in gathered:
        bits = None if rounding is None else rounding.bits(new_p.shape, 0)
        new_p, values[CORRECTION.name] = split(new_p, bits, params[0].dtype)
        rounding, p = None, stack_params(params, chunk.layout, params[0].dtype)
    _scatter(gathered, fields, values, keep, noise)
    if keep is not None:
        new_p = torch.where(keep, new_p, p)
    if tensors.is_wrapper(params[0]):
        _write_wrappers(params, new_p, keep)
    else:
        write_params(params, new_p, rounding)
    return ok.flatten(), signals


def evaluate(
    chunk: Chunk, states: list[dict[str, Any]], recipe: ModuleType, fields: list[Field], shared: Any, hp: Any
) -> tuple[Tensor, dict[str, list[Gathered]], Any]:
    """The stacked weights, the stored state, and what the recipe makes of them; nothing is written."""
    params, layout = chunk.params, chunk.layout
    compute = compute_dtype(params[0])
    p = stack_params(params, layout, compute)
    g = stack_params([_gradient(q) for q in params], layout, compute)
    gathered, decoded = _gather(states, fields, layout, compute)
    if (rest := decoded.pop(CORRECTION.name, None)) is not None:
        p = join(stack_params(params, layout, params[0].dtype), rest)
    phase = phase_on_host(decoded["step"], hp.warmup_steps)
    state = recipe.make_state(decoded)
    return p, gathered, recipe.update(p, g, state, shared, hp, phase, layout)


def _gradient(p: Tensor) -> Tensor:
    """Gradient of p on p's device."""
    g = p.grad
    assert g is not None
    return g if g.device == p.device else g.to(p.device)


def _gather(
    states: list[dict[str, Any]], fields: list[Field], layout: Layout, compute: torch.dtype
) -> tuple[dict[str, list[Gathered]], dict[str, Tensor]]:
    gathered: dict[str, list[Gathered]] = {}
    decoded: dict[str, Tensor] = {}
    for field in fields:
        spec, codec = field
        planes = []
        for plane in field.planes(layout, compute):
            rows = [state[spec.name + plane.suffix] for state in states]
            planes.append(Gathered(rows, *arena.stacked(rows, plane.shape)))
        gathered[spec.name] = planes
        value = codec.decode(tuple(g.stack for g in planes)) if codec is not None else planes[0].stack
        decoded[spec.name] = value.to(compute) if spec.dtype is None else value
    return gathered, decoded


def _scatter(
    gathered: dict[str, list[Gathered]],
    fields: list[Field],
    state: dict[str, Tensor],
    ok: Tensor | None,
    noise: Noise | None,
) -> None:
    for number, (spec, codec) in enumerate(fields):
        value = state[spec.name]
        if codec is None and value is gathered[spec.name][0].stack:
            continue  # untouched in this phase
        if codec is None:
            stored: tuple[Tensor, ...] = (value,)
        else:
            bits = noise.bits(value.shape, number + 1) if noise is not None and codec.random else None
            stored = codec.encode(value, bits)
        for (rows, stack, in_place), new in zip(gathered[spec.name], stored, strict=True):
            if ok is not None:
                flag = ok.view(-1, *[1] * (new.dim() - 1))
                new = torch.where(flag, new.to(stack.dtype), stack)
            arena.write(rows, stack, in_place, new)


def _write_wrappers(params: list[Tensor], new: Tensor, keep: Tensor | None) -> None:
    """Weights in a form of their own: they round by themselves, so one that is skipped is not written."""
    chosen = [True] * len(params)
    if keep is not None and keep.device.type == "cpu":  # elsewhere looking would wait, and it is rounded anew
        chosen = keep.flatten().tolist()
    for p, row, written in zip(params, new.unbind(0), chosen, strict=True):
        if written:
            p.copy_(row.view(p.shape))


def write_params(params: list[Tensor], new: Tensor, noise: Noise | None) -> None:
    """Stacked weights into the parameters, rounded stochastically where there is noise."""
    if noise is not None:
        new = stochastic_round(new, noise.bits(new.shape, 0), params[0].dtype)
    rows = [row.view(params[0].shape) for row in new.unbind(0)]
    if any(map(Tensor.is_neg, params)):  # lazily negated: torch writes these one by one only
        for p, row in zip(params, rows, strict=True):
            p.copy_(row)
        return
    torch._foreach_copy_(params, rows)


def as_vector(values: list[tuple[Tensor, int]], like: Tensor) -> Tensor:
    """Numbers of many parameters as one vector on one device."""
    numbers = [v for v, _ in values]
    if not (like.is_cpu and all(v.is_cpu for v in numbers)):
        numbers = [v.to(like.device) for v in numbers]
    return torch.stack(numbers)
