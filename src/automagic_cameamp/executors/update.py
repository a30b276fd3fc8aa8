"""One chunk: gather, decode, update, encode, write. Knows no equation."""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..recipes import Hyper, Result, Shared, Steps, as_dict, make_state
from ..state import stacks, tensors
from ..state.chunks import Chunk
from ..state.fields import Field, compute_dtype, stack_params
from ..state.random_bits import random_bits, stochastic_round
from ..storage import CORRECTION
from ..storage.rounding import join, split
from ..types import Layout, Phase
from .work import Work


class Rows(NamedTuple):
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
        count = math.prod(shape[1:])
        return random_bits(self.keys ^ salt, self.step, count, self.first).view(shape)


class Text(NamedTuple):
    """What an update is, without its tensors: the same for every step of a chunk.

    Args:
        recipe: module with ``update``.
        fields: storage of each state field.
        hp: the recipe's options.
        layout: view of what is here of the parameters.
        dtype: type of the parameters.
        rounds: whether they are rounded stochastically.
    """

    recipe: ModuleType
    fields: list[Field]
    hp: Hyper
    layout: Layout
    dtype: torch.dtype
    rounds: bool

    @property
    def compute(self) -> torch.dtype:
        """Type of the arithmetic."""
        return compute_dtype(self.dtype)

    @property
    def corrected(self) -> bool:
        """Whether the weights have 24 bits, the last eight beside them."""
        return any(field.spec.name == CORRECTION.name for field in self.fields)


Planes = dict[str, tuple[Tensor, ...]]  # field -> its stacked planes


class Ended(NamedTuple):
    """What an update leaves: stacks to be written; None where a field stays as it is."""

    p: Tensor
    planes: dict[str, tuple[Tensor, ...] | None]
    ok: Tensor
    signals: Any


def begin(text: Text, p: Tensor, g: Tensor, planes: Planes, shared: Shared, phase: Phase) -> Steps[Result]:
    """Decode a stack and begin the recipe's update; what it yields are sums over whole tensors.

    Args:
        text: what is computed.
        p: [B,K,m,n] weights as they are held.
        g: [B,K,m,n] gradients as they came.
        planes: the stored state.
        shared: the recipe's scalars over all parameters.
        phase: where the whole stack stands, or MIXED.
    """
    compute = text.compute
    decoded: dict[str, Tensor] = {}
    for spec, codec in text.fields:
        if spec.name != CORRECTION.name:
            value = codec.decode(planes[spec.name]) if codec is not None else planes[spec.name][0]
            decoded[spec.name] = value.to(compute) if spec.dtype is None else value
    weights = join(p, planes[CORRECTION.name][0]) if text.corrected else p.to(compute)
    state = make_state(decoded)
    return text.recipe.update(weights, g.to(compute), state, shared, text.hp, phase, text.layout)


def end(
    text: Text, p: Tensor, planes: Planes, result: Result, keep: Tensor | None, keys: Tensor | None
) -> Ended:
    """Encode what the recipe returned, in the types in which it is held.

    Args:
        text, p, planes: as in ``begin``.
        result: what the steps returned.
        keep: [B,1,1,1] bool, False where nothing may change; None where all are usable.
        keys: [B] int32 random keys, or None where nothing is rounded stochastically.
    """
    new_p, new_state, ok, signals = result
    place = text.layout.place
    noise = (
        None if keys is None else Noise(keys, new_state.step.flatten(), 0 if place is None else place.first)
    )
    values = as_dict(new_state)
    rounding = noise if text.rounds else None
    if text.corrected:
        bits = None if rounding is None else rounding.bits(new_p.shape, 0)
        new_p, values[CORRECTION.name] = split(new_p, bits, text.dtype)
    elif rounding is not None:
        new_p = stochastic_round(new_p, rounding.bits(new_p.shape, 0), text.dtype)
    if keep is not None:
        new_p = torch.where(keep, new_p.to(p.dtype), p)
    written: dict[str, tuple[Tensor, ...] | None] = {}
    for number, (spec, codec) in enumerate(text.fields):
        value, old = values[spec.name], planes[spec.name]
        if codec is None and value is old[0]:
            written[spec.name] = None  # untouched in this phase
            continue
        if codec is None:
            stored: tuple[Tensor, ...] = (value,)
        else:
            bits = noise.bits(value.shape, number + 1) if noise is not None and codec.random else None
            stored = codec.encode(value, bits)
        if keep is not None:
            stored = tuple(
                torch.where(keep.view(-1, *[1] * (new.dim() - 1)), new.to(was.dtype), was)
                for new, was in zip(stored, old, strict=True)
            )
        written[spec.name] = stored
    return Ended(new_p, written, ok, signals)


class Gathered:
    """The parameters, gradients and state of a chunk as stacks, and the way back.

    Args:
        chunk: parameters that all have a dense gradient.
        states: ``optimizer.state[p]`` of each, complete.
        fields: storage of each state field.
    """

    def __init__(self, chunk: Chunk, states: list[dict[str, Any]], fields: list[Field]) -> None:
        self.params, layout = chunk.params, chunk.layout
        self.wrapped = tensors.is_wrapper(chunk.params[0])
        first = self.params[0]
        self.p = stack_params(self.params, layout, first.dtype)
        self.g = stack_params([_gradient(q) for q in self.params], layout, None)
        self.rows: dict[str, list[Rows]] = {}
        for field in fields:
            rows = []
            for plane in field.planes(layout, compute_dtype(first.dtype)):
                held = [state[field.spec.name + plane.suffix] for state in states]
                rows.append(Rows(held, *stacks.stacked(held, plane.shape)))
            self.rows[field.spec.name] = rows

    @property
    def planes(self) -> Planes:
        """The stored state."""
        return {name: tuple(row.stack for row in rows) for name, rows in self.rows.items()}

    def write(self, ended: Ended, keep: Tensor | None) -> None:
        """Put an update into parameters and states; ``keep`` as in ``end``."""
        straight: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = {}  # one launch per type
        for name, stored in ended.planes.items():
            if stored is not None:
                for (rows, stack, in_place), new in zip(self.rows[name], stored, strict=True):
                    if in_place:
                        olds, news = straight.setdefault(stack.dtype, ([], []))
                        olds.append(stack)
                        news.append(new.view(stack.shape))
                    else:
                        stacks.write(rows, new)
        for olds, news in straight.values():
            torch._foreach_copy_(olds, news)
        if self.wrapped:
            _write_wrappers(self.params, ended.p, keep)
        else:
            write_params(self.params, ended.p, None)

    def write_back(self) -> None:
        """Put stacks that were changed in place into the parameters and states that they are copies of."""
        for rows in self.rows.values():
            for row in rows:
                if not row.in_place:
                    stacks.write(row.rows, row.stack)
        if self.p.data_ptr() != self.params[0].data_ptr():
            write_params(self.params, self.p, None)


class Update:
    """The update of one stack, begun: its tensors, and the recipe's steps.

    Args:
        work: what is to be done.
        chunk: other parameters in the place of its own, where given: the parts of sharded ones.
        states: other states in the place of its own.
    """

    def __init__(
        self, work: Work, chunk: Chunk | None = None, states: list[dict[str, Any]] | None = None
    ) -> None:
        chunk = work.chunk if chunk is None else chunk
        self.gathered = Gathered(chunk, work.states if states is None else states, work.fields)
        rounds = work.rounds and not self.gathered.wrapped  # those round by themselves
        self.text = Text(work.recipe, work.fields, work.hp, chunk.layout, chunk.params[0].dtype, rounds)
        self.planes = self.gathered.planes
        self.steps = begin(self.text, self.gathered.p, self.gathered.g, self.planes, work.scalars, work.phase)

    def finish(self, result: Result, keys: Tensor | None) -> tuple[Tensor, Any]:
        """Write the recipe's result into parameters and states.

        Args:
            result: what the steps returned.
            keys: [B] int32 random keys, or None where nothing is rounded stochastically.

        Returns:
            [B] bool, False where the gradient was not finite and nothing was changed; and the
            recipe's signals.
        """
        ok = result.ok
        # On CPU looking at the flag is free; elsewhere it would wait for the device.
        keep = None if ok.device.type == "cpu" and bool(ok.all()) else ok
        ended = end(self.text, self.gathered.p, self.planes, result, keep, keys)
        self.gathered.write(ended, keep)
        return ok.flatten(), ended.signals


def _gradient(p: Tensor) -> Tensor:
    """Gradient of p on p's device."""
    g = p.grad
    assert g is not None
    return g if g.device == p.device else g.to(p.device)


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
