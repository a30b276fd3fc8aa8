"""Loading: what was saved is taken bit for bit where it fits, and converted where it is the family's.

torch would cast every floating parameter's state, codes and counters included, to the parameter's
type. The engine checks everything first and changes nothing on an error. A state of another class
of the family, or of the same class with other codes, is decoded and encoded anew, one parameter at
a time.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterator, Mapping
from copy import deepcopy
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from ..recipes import Hyper, _carry, initial
from ..state import fits, memory, tensors
from ..state.chunks import Chunk
from ..state.counts import DIRECTIONS
from ..state.family import Family
from ..state.fields import Field, compute_dtype, new_rows, stack_params
from ..state.model import Model
from ..state.names import split_key
from ..state.shards import is_distributed, local_of
from ..types import Layout
from ..validate import fail
from . import rows as landing
from .groups import FORMAT_VERSION, merged, structure
from .remembered import take_out
from .saved import ADVICE, CheckpointError, SavedState, apart, check_family, check_values, refuse_foreign

__all__ = ["FORMAT_VERSION", "CheckpointError", "Fitted", "commit", "convert_state", "fit", "say"]

logger = logging.getLogger("automagic_cameamp")
Options = Literal["saved", "own"]
WHOLE = "Save it with StateDictOptions(full_state_dict=True), which gathers it."


class Fitted(NamedTuple):
    """A saved state in the form of an optimizer, not loaded yet.

    Args:
        groups: parameter groups with the optimizer's own parameters.
        states: index of the parameter -> its state; parameters that were never updated are absent.
        converted: number of parameters whose state had to be converted.
        fresh: fields that start anew somewhere.
        dropped: saved fields that are not needed.
        extra: saved state that belongs to no parameter.
        home: index of the parameter beside whose state the controller's memory was kept.
        memory: that memory.
        landed: keys of the chunks whose states are rows of tensors made for them.
        beside: index of the parameter -> entries of the program's own beside its state.
    """

    groups: list[dict[str, Any]]
    states: dict[int, dict[str, Tensor]]
    converted: int
    fresh: list[str]
    dropped: list[str]
    extra: dict[Any, Any]
    home: int | None = None
    memory: Tensor | None = None
    landed: frozenset[tuple[int, int]] = frozenset()
    beside: Mapping[int, dict[Any, Any]] = MappingProxyType({})


def fit(
    model: Model, state_dict: Mapping[str, Any], options: Options = "saved", *, foreign: bool = False
) -> Fitted:
    """Bring a state dict of any class of the family into the form of this optimizer.

    Args:
        model: that of an optimizer of the family; it is not changed.
        state_dict: what ``state_dict()`` of a member of the family gave.
        options: 'saved': options of the groups come from the checkpoint, as in torch;
            'own': they stay the optimizer's.
        foreign: the state was made from another optimizer's, which has no controller's memory.

    Raises:
        CheckpointError: it is of something else, or damaged.
    """
    if options not in ("saved", "own"):
        raise fail("options", options, "'saved' or 'own'")
    saved_groups, entries, extra = structure(model, state_dict)
    found = (None, None, set()) if foreign else take_out(model.controller, entries, state_dict)
    home, remembered, lost = found
    names = list(_names(model))
    for i, entry in entries.items():
        refuse_foreign(names[i], entry)
        entries[i] = tensors.plain_entry(entry)
    old = [
        merged(model, n, own, saved)
        for n, (own, saved) in enumerate(zip(model.groups, saved_groups, strict=True))
    ]
    groups = old
    if options == "own":
        groups = [{**own, "clock": saved["clock"]} for own, saved in zip(model.groups, old, strict=True)]
    order = {id(group): model.hyper(before, lora=False) for group, before in zip(groups, old, strict=True)}
    work = _Conversion(model, names, entries, _mask_mean(model, entries))
    for group, chunk in model.chunks(groups):
        work.add(group, chunk, order[id(group)])
    work.share_group_masks(groups)
    fresh, dropped = sorted(work.fresh), sorted(work.dropped | lost)
    landed = frozenset(work.landed)
    taken = home, remembered, landed, work.beside
    return Fitted(groups, work.states, work.converted, fresh, dropped, extra, *taken)


def commit(model: Model, fitted: Fitted) -> None:
    """Put a fitted state into the optimizer, as rows of one tensor per field and chunk.

    Rows that the optimizer holds are written anew, so that a load needs no second copy of them;
    all that has to be allocated is allocated before the first is written.
    """
    planned: list[tuple[list[Tensor], list[dict[str, Tensor]], list[dict[str, Tensor]]]] = []
    owners = [p for group in fitted.groups for p in group["params"]]
    state: dict[Any, dict[str, Tensor]] = {}
    apart = landing.overlaps({owners[i]: state for i, state in fitted.states.items()}, model.state)
    for group, chunk in model.chunks(fitted.groups):
        members = [(i, p) for i, p in zip(chunk.indices, chunk.params, strict=True) if i in fitted.states]
        if members:
            params = [p for _, p in members]
            saved = [fitted.states[i] for i, _ in members]
            fields = model.fields(group, chunk)
            if chunk.shard is not None:
                state.update(zip(params, landing.sharded_rows(saved, params, fields, chunk), strict=True))
                continue
            rows = saved if chunk.key in fitted.landed else None
            if rows is None and not apart:
                held = [model.state.get(p) for p in params]
                rows = landing.held_rows(held, params[0], fields, chunk.layout)
            if rows is None:
                rows, _ = new_rows(len(params), params[0], fields, chunk.layout)
            planned.append((params, saved, rows))
    for params, saved, rows in planned:
        for row, entry in zip(rows, saved, strict=True):
            landing.fill(row, entry)
        state.update(zip(params, rows, strict=True))
    for i, entries in fitted.beside.items():
        state[owners[i]].update({key: landing.copied(value, owners[i]) for key, value in entries.items()})
    model.owner.__setstate__(
        {"state": defaultdict(dict, {**state, **fitted.extra}), "param_groups": fitted.groups}
    )
    model.kept.skipped.clear()
    if model.controller is not None:
        model.controller.load(fitted.memory)
        homes = owners if fitted.home is None else [owners[fitted.home]]
        memory.keep(state, homes, model.controller.memory)
        model.kept.neutral = True  # said where the memory was missed
    model.kept.types = fits.types_of(owners)


def say(model: Model, fitted: Fitted) -> None:
    """One line about what was converted; silence where nothing was."""
    if fitted.converted or fitted.dropped:
        logger.warning(
            "%s: converted the saved state of %d parameters to its own form; started fresh: %s; dropped: %s",
            model.called,
            fitted.converted,
            ", ".join(fitted.fresh) or "nothing",
            (", ".join(fitted.dropped) or "nothing") + _lost_lora(model, fitted.dropped),
        )


def _lost_lora(model: Model, dropped: list[str]) -> str:
    """A hint where a saved run took parameters for a LoRA's that this one does not."""
    wanted = any(group.get("lora_rank_penalty") for group in model.groups)
    if not wanted or not set(DIRECTIONS) & set(dropped):
        return ""
    return (
        f". The saved run took more parameters for a LoRA's than this one ({model.lora_report()}): where "
        "marks were lost, call automagic_cameamp.mark_lora(model) before the optimizer is built"
    )


def convert_state(
    state_dict: Mapping[str, Any], optimizer: Family, *, options: Options = "saved"
) -> dict[str, Any]:
    """State dict of any class of the family -> state dict that this optimizer loads as it is.

    Neither argument is changed. Tensors that need no conversion are those of ``state_dict``.

    Args:
        state_dict: what ``state_dict()`` of a member of the family gave.
        optimizer: the one that shall load it, with the same parameters.
        options: 'saved': the options of the groups come from ``state_dict``, as in loading;
            'own': the optimizer's own hold, so that learning rate, mask rule and granularity,
            factoring and the like can be changed in mid-run.

    Raises:
        CheckpointError: ``state_dict`` is of something else, or damaged.
    """
    fitted = fit(optimizer.model, state_dict, options)
    say(optimizer.model, fitted)
    groups, first = [], 0
    for group in fitted.groups:
        count = len(group["params"])
        plain = {k: deepcopy(v) for k, v in group.items() if k != "params"}
        groups.append({**plain, "params": list(range(first, first + count))})
        first += count
    other = {k: v for k, v in state_dict.items() if k not in ("state", "param_groups")}
    extra = {k: v for k, v in fitted.extra.items() if k not in range(first)}
    states: dict[Any, Any] = {**{i: {**s, **fitted.beside[i]} for i, s in fitted.states.items()}, **extra}
    if fitted.home is not None and fitted.memory is not None:
        states[fitted.home] = {**states[fitted.home], memory.KEY: fitted.memory}
    return {**other, "state": states, "param_groups": groups, "magic_version": FORMAT_VERSION}


# ---------------------------------------------------------------- state


def _mask_mean(model: Model, entries: dict[int, Any]) -> float:
    """Mean of the saved geometric mask over all parameters; 1 where none was saved."""
    params = model.params()
    total, count = 0.0, 0
    for i, entry in entries.items():
        value = entry.get("lr_mask_sum")
        usable = isinstance(value, Tensor) and value.dtype == torch.float32 and not value.is_meta
        if usable and value.numel() == 1:
            total, count = total + float(value), count + params[i].numel()
    return total / count if total > 0 else 1.0


def _names(model: Model) -> Iterator[str]:
    """What the parameters are called in messages."""
    number = 0
    for group in model.groups:
        given = group.get("param_names", [None] * len(group["params"]))
        for name in given:
            yield f"parameter {number}" + (f" ({name})" if name is not None else "")
            number += 1


class _Conversion:
    """The state of one parameter after the other, and what happened to it."""

    def __init__(self, model: Model, names: list[str], entries: dict[int, Any], mask_mean: float) -> None:
        self.model, self.names = model, names
        self.entries, self.mask_mean = entries, mask_mean
        self.states: dict[int, dict[str, Tensor]] = {}
        self.converted = 0
        self.fresh: set[str] = set()
        self.dropped: set[str] = set()
        self.new_masks: set[int] = set()  # parameters whose mask is of another granularity or rule
        self.landed: set[tuple[int, int]] = set()  # chunks that are in rows of their own already
        self.own: set[int] = set()  # parameters in them
        self.beside: dict[int, dict[Any, Any]] = {}  # what the program keeps there itself

    def add(self, group: dict[str, Any], chunk: Chunk, before: Hyper) -> None:
        """The saved members of a chunk."""
        members = [(i, p) for i, p in zip(chunk.indices, chunk.params, strict=True) if i in self.entries]
        if not members:
            return
        fields = self.model.fields(group, chunk)
        hp = self.model.options(group, chunk)
        rows: list[dict[str, Tensor]] | None = None
        for place, (i, p) in enumerate(members):
            name, state = self.names[i], self.entries[i]
            compute = compute_dtype(p.dtype)
            wanted = {key: form for field in fields for key, form in _forms(field, chunk.layout, compute)}
            state, self.beside[i] = apart(state, wanted.keys())
            cut = any(is_distributed(value) for value in state.values())
            if cut and chunk.shard is None:
                raise CheckpointError(f"state of {name} is sharded, the parameter is not. {WHOLE} {ADVICE}")
            check_family(name, state, list(wanted))
            if (
                state.keys() == wanted.keys()
                and all(_is(state[k], *form) for k, form in wanted.items())
                and all(_carry.same_meaning(f.spec.name, set(state), before, hp) for f in fields)
            ):
                for field in fields:
                    for key, _ in _forms(field, chunk.layout, compute):
                        check_values(name, key, local_of(state[key]), field.spec, chunk.layout, hp)
                self.states[i] = dict(state)
            elif cut:
                raise CheckpointError(
                    f"state of {name} is sharded and of another class or of other options: it cannot be "
                    f"converted in parts. {WHOLE} {ADVICE}"
                )
            else:
                if rows is None:
                    rows, _ = new_rows(len(members), p, fields, chunk.layout)
                # At once, so that no more than one parameter is held twice.
                landing.fill(rows[place], self._convert(i, state, p, fields, chunk, hp, before))
                self.states[i] = rows[place]
                self.converted += 1
        if rows is not None:
            for (i, _), row in zip(members, rows, strict=True):
                landing.fill(row, self.states[i])
                self.states[i] = row
                self.own.add(i)
            self.landed.add(chunk.key)

    def _convert(
        self,
        index: int,
        state: Mapping[str, Tensor],
        p: Tensor,
        fields: list[Field],
        chunk: Chunk,
        hp: Hyper,
        before: Hyper,
    ) -> dict[str, Tensor]:
        name, layout, compute = self.names[index], chunk.layout, compute_dtype(p.dtype)
        if chunk.shard is not None:  # what a fresh field looks at is its shape, type and device
            p = torch.zeros(p.shape, dtype=p.dtype, device=p.device)
        specs = [field.spec for field in fields]
        saved = SavedState(name, state, p, layout, chunk.policy.block_size)
        forms = _carry.readable(specs, layout, saved.packed)
        values = {n: v for n, form in forms.items() if (v := saved.value(form, before)) is not None}
        stack = stack_params([p], layout, compute)
        carried = _carry.carry(
            specs, values, stack, layout, hp, before, self.mask_mean, lambda n: initial(n, [p], layout)
        )
        if carried.missing:
            raise CheckpointError(
                f"state of {name} has no {carried.missing} and nothing to compute it from: it was saved with "
                f"other options (came, factored?) or is incomplete. It holds {sorted(saved.names)}. {ADVICE}"
            )
        self.fresh.update(carried.fresh)
        self.dropped.update(saved.names - forms.keys())
        meaning = {s.name: _carry.same_meaning(s.name, saved.names, before, hp) for s in specs}
        result: dict[str, Tensor] = {}
        for field in fields:
            field_forms = dict(_forms(field, layout, compute))
            own = {k: v for k, v in state.items() if split_key(k)[0] == field.spec.name}
            verbatim = own.keys() == field_forms.keys() and meaning[field.spec.name]
            if verbatim and all(_is(own[k], *form) for k, form in field_forms.items()):
                result.update(own)
            else:
                if field.spec.name == "lr_mask" and "lr_mask" in saved.names:
                    self.new_masks.add(index)
                result.update(_encoded(field, carried.values[field.spec.name], layout, compute))
        return result

    def share_group_masks(self, groups: list[dict[str, Any]]) -> None:
        """With granularity 'group' all counters of a group are one number: their mean."""
        first = 0
        for group in groups:
            params = group["params"]
            members = [(i, p) for i, p in enumerate(params, first) if "lr_mask" in self.states.get(i, {})]
            first += len(params)
            if group["lr_mask_granularity"] != "group" or not any(i in self.new_masks for i, _ in members):
                continue
            total = sum(float(self.states[i]["lr_mask"]) * p.numel() for i, p in members)
            mean = round(total / sum(p.numel() for _, p in members))
            for i, p in members:
                state, layout = self.states[i], Layout.of(tuple(p.shape))
                changed = {"lr_mask": torch.full_like(state["lr_mask"], mean)}
                if "lr_mask_sum" in state:
                    summed = _carry.mask_sum(changed["lr_mask"].view(1, 1, 1, 1), layout)
                    changed["lr_mask_sum"] = summed.view(())
                if i in self.own:
                    landing.fill({key: state[key] for key in changed}, changed)
                else:
                    state.update(changed)


def _forms(
    field: Field, layout: Layout, compute: torch.dtype
) -> Iterator[tuple[str, tuple[tuple[int, ...], torch.dtype]]]:
    """Keys of a field with shape and type."""
    for plane in field.planes(layout, compute):
        yield field.spec.name + plane.suffix, (plane.own_shape, plane.dtype)


def _is(value: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> bool:
    return tuple(value.shape) == shape and value.dtype == dtype


def _encoded(field: Field, value: Tensor, layout: Layout, compute: torch.dtype) -> dict[str, Tensor]:
    """A value [1, *stack_shape] as this field stores it."""
    spec, codec = field
    value = value.to(spec.dtype or compute)
    stored = codec.encode(value) if codec is not None else (value,)
    return {
        spec.name + plane.suffix: part.reshape(plane.own_shape)
        for plane, part in zip(field.planes(layout, compute), stored, strict=True)
    }
