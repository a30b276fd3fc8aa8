"""The parameters of an optimizer as the family sees them: groups, stacks, fields, options, state."""

from __future__ import annotations

import functools
import itertools
import warnings
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..recipes import LAGGED, Hyper, Shared, one_of, rescale, share
from ..storage import CORRECTION, Policy
from ..validate import bound, callers_depth, decays, fail, strength, switch, wide
from . import shards
from .adapters import LoraReport
from .chunks import Chunk, chunks
from .contract import Controller, Owner
from .fields import (
    LOW_PRECISION,
    Field,
    as_vector,
    check_complete,
    compute_dtype,
    fields_of,
    fill_state,
    new_rows,
)
from .kept import Kept
from .limit import LIMIT, level_limit
from .random_bits import parameter_key

if TYPE_CHECKING:
    from ..configs import SharedConfig

Group = dict[str, Any]
Members = tuple[Group, Chunk, list[int]]  # a chunk, with the places in it that are meant
# Options for which a program may put something else there than the constructor did.
AS_IT_IS_NOW = (
    ("betas", decays), ("lr", wide), ("weight_decay", strength), ("hard_min_lr", switch),
    ("lr_floor", bound), ("lr_cap", bound),
)  # fmt: skip
RAISED = "raised"  # key of what is said once
CAPPED = "above max_lr"
FAR_ABOVE = 100.0  # times what was found: no run survives it
Lagged = list[dict[str, list[tuple[Tensor, int]]]]


class Model:
    """What is optimized. A view that holds nothing of its own: it is made where it is needed.

    Args:
        owner: the optimizer.
    """

    def __init__(self, owner: Owner) -> None:
        self.owner = owner

    @property
    def groups(self) -> list[Group]:
        """Parameter groups."""
        return self.owner.param_groups

    @property
    def state(self) -> Any:
        """Parameter -> its state, as torch keeps it."""
        return self.owner.state

    @property
    def config(self) -> SharedConfig:
        """Options of the whole optimizer."""
        return self.owner.config

    @property
    def recipe(self) -> ModuleType:
        """The algorithm."""
        return self.owner.recipe

    @property
    def controller(self) -> Controller | None:
        """Who watches the whole model, if anybody does."""
        return self.owner.controller

    @property
    def kept(self) -> Kept:
        """Caches and counters."""
        return self.owner.kept

    @property
    def called(self) -> str:
        """Name of the optimizer's class."""
        return type(self.owner).__name__

    # ---------------------------------------------------------------- parameters and their names

    def params(self) -> list[Tensor]:
        """All parameters, in order."""
        return list(itertools.chain.from_iterable(group["params"] for group in self.groups))

    def named(self) -> Iterator[tuple[str, Tensor]]:
        """All parameters with their names, in order."""
        number = 0
        for group in self.groups:
            names = group.get("param_names") or [f"param_{number + i}" for i in range(len(group["params"]))]
            yield from ((str(name), p) for name, p in zip(names, group["params"], strict=False))
            number += len(group["params"])

    def name(self, p: Tensor) -> str:
        """What a parameter is called in messages."""
        return next(name for name, q in self.named() if q is p)

    def name_at(self, index: int) -> str:
        """Name of the parameter at this position among all."""
        return next(itertools.islice(self.named(), index, None))[0]

    def lora_report(self) -> LoraReport:
        """Which parameters are taken for a LoRA's."""
        return self.owner.adapters.report(self.groups, bool(self.state))

    # ---------------------------------------------------------------- stacks and what they hold

    def chunks(self, groups: list[Group] | None = None) -> Iterator[tuple[Group, Chunk]]:
        """All stacks of all groups; of copies of the groups where these are given."""
        groups = self.groups if groups is None else groups
        kinds = self.owner.adapters.kinds(groups, bool(self.state))
        return chunks(groups, self._policy, kinds)

    def _policy(self, group: Group, position: int) -> Policy:
        name = functools.partial(self._name_in, group, position)
        return type(self.owner).policy(self.config, group["params"][position], name)

    def _name_in(self, group: Group, position: int) -> str:
        if "param_names" in group:
            return str(group["param_names"][position])
        before = 0
        for other in self.groups:
            if other["params"] is group["params"]:  # also for a copy of the group
                break
            before += len(other["params"])
        return f"param_{before + position}"

    def hyper(self, group: Group, lora: bool, table: int = 0) -> Hyper:
        """The recipe's options from a group's.

        Args:
            group: a group, or one that is not the optimizer's yet.
            lora: whether the parameters belong to a LoRA.
            table: 1: rows of the parameters are no neighbours; 2: nor are columns.
        """
        values = {name: group[name] for name in Hyper._fields if name in group}
        values |= {name: read(values[name]) for name, read in AS_IT_IS_NOW if name in values}
        if values.get("final_clip") is None:
            values["final_clip"] = group["clip_threshold"]
        if values["beta1_follows_lr"] is None:  # only there a fall is known to be the schedule's
            values["beta1_follows_lr"] = group["lr_level"] == "auto"
        values["allora"] = lora and not group["full_finetune"]
        if "rank_keep" in group:  # to other recipes they are all alike
            values["lora"], values["table"] = lora, table
        return Hyper(**values)

    def options(self, group: Group, chunk: Chunk) -> Hyper:
        """The recipe's options as they hold for a stack."""
        hp = self.hyper(group, chunk.lora, chunk.table)
        return hp if chunk.shard is None else shards.options(hp, self.called, self.kept.said)

    def fields(self, group: Group, chunk: Chunk) -> list[Field]:
        """The state fields of a stack, with their storage."""
        by_rows = chunk.shard is not None
        fields = fields_of(self.recipe, chunk.layout, self.options(group, chunk), chunk.policy, by_rows)
        kept = self.config.master_weight_bits == 24 and chunk.params[0].dtype in LOW_PRECISION
        return [*fields, Field(CORRECTION, None)] if kept else fields

    # ---------------------------------------------------------------- state

    def create_states(self, plan: Sequence[Members]) -> None:
        """State of every parameter that has none yet: first all storage, then all values."""
        made: list[tuple[list[Tensor], list[Field], Chunk, dict[str, Tensor]]] = []
        fresh: list[Tensor] = []
        try:
            for group, chunk, places in plan:
                params = [p for p in map(chunk.params.__getitem__, places) if not self.state[p]]
                if not params:
                    continue
                fresh += params
                fields = self.fields(group, chunk)
                layout = chunk.layout if chunk.shard is None else chunk.shard.layout
                rows, planes = new_rows(len(params), params[0], fields, layout)
                made.append((params, fields, chunk, planes))
                for p, row in zip(params, rows, strict=True):
                    self.state[p].update(row)
                self.kept.phases.begin([self.state[p] for p in params], group["warmup_steps"])
            for params, fields, chunk, planes in made:
                layout = chunk.layout if chunk.shard is None else chunk.shard.layout
                fill_state(planes, list(map(shards.local_of, params)), fields, layout)
                if chunk.shard is not None:
                    for p in params:
                        shards.wrap(self.state[p], fields, chunk.layout, compute_dtype(p.dtype), chunk.shard)
        except BaseException:  # out of memory: leave no state without values behind
            for p in fresh:
                self.state.pop(p, None)
            raise

    def held(self, params: Sequence[Tensor], fields: list[Field], chunk: Chunk) -> list[dict[str, Any]]:
        """State of each of these parameters.

        Raises:
            RuntimeError: the options ask for a field that it does not have.
        """
        found = [self.state[p] for p in params]
        check_complete(found, fields, chunk.layout)
        return found

    def keys(self, chunk: Chunk) -> Tensor:
        """[B] int32 random keys of a stack's parameters."""
        keys = [parameter_key(self.config.seed, i) for i in chunk.indices]
        return self.kept.lists(keys, torch.int32, chunk.params[0].device)

    # ---------------------------------------------------------------- numbers over all parameters

    def lagged(self) -> Lagged:
        """Per group: name -> (number kept by a parameter, its elements), in parameter order."""
        result: Lagged = []
        for group in self.groups:
            found: dict[str, list[tuple[Tensor, int]]] = {}
            for p in group["params"]:
                state = self.state.get(p)
                if state:
                    for name in LAGGED:
                        if name in state and (name != "lr_mask" or "lr_mask_vote" in state):
                            found.setdefault(name, []).append((state[name], p.numel()))
            result.append(found)
        return result

    def course(self, group: Group) -> tuple[float, float | Tensor]:
        """What groups whose level is set alike have in common with this one.

        Returns:
            Their largest first learning rate, and the learning rate of now relative to the first one, of
            the group where that is highest.
        """
        peers = [g for g in self.groups if g["lr_level"] == group["lr_level"]]
        ratios = [wide(g["lr"]) / g["base_lr"] for g in peers if g["base_lr"] > 0]
        start = max(g["base_lr"] for g in peers)
        held = next((ratio for ratio in ratios if isinstance(ratio, Tensor)), None)
        if held is not None:
            found = [torch.as_tensor(ratio, device=held.device).reshape(()) for ratio in ratios]
            return start, torch.stack(found).max()
        return start, max(ratios, default=0.0)

    def tell_raised(self) -> None:
        """Say once that a schedule goes above its start where the rate is found, else above ``max_lr``.

        Raises:
            ValueError: so far above that nothing could be left of the weights.
        """
        said = RAISED in self.kept.said
        for group in self.groups:
            lr, base = group["lr"], group["base_lr"] or self.reference()  # what stood still may start
            if group["lr_level"] != "auto":
                self._tell_capped(group)
            if group["lr_level"] != "auto" or isinstance(lr, Tensor) or wide(lr) <= 1.001 * base:
                continue
            text = (
                f"lr is {lr:g} now, and its first value was {base:g}. Where the rate is found, lr is a "
                "factor relative to its first value, not a rate, so the found rate is multiplied too. "
                "Give lr=1, lr_level='auto', and schedules relative to 1 (eta_min too)."
            )
            if wide(lr) > FAR_ABOVE * base > 0:
                raise ValueError(
                    f"{self.called}: {text} After loading a checkpoint, leave lr as it was loaded."
                )
            if not said:
                said = True
                self.kept.said.add(RAISED)
                warnings.warn(f"{self.called}: {text}", stacklevel=callers_depth())

    def _tell_capped(self, group: Group) -> None:
        lr, cap = group["lr"], group["lr_cap"]
        if not isinstance(cap, float) or isinstance(lr, Tensor) or not wide(lr) > cap >= group["base_lr"]:
            return  # one that was above it at first was told then
        if CAPPED not in self.kept.said:
            self.kept.said.add(CAPPED)
            text = f"lr is {lr:g} now, above max_lr={cap:g}: no rate is above {cap:g}. Pass a higher max_lr."
            warnings.warn(f"{self.called}: {text}", stacklevel=callers_depth())

    def built(self) -> None:
        """All groups of the constructor are there."""
        self._say_the_unsaid(self.groups)
        found = [g for g in self.groups if g["lr_level"] == "auto"]
        if found and all(g["base_lr"] == 0 for g in found):  # some: those groups are to stand still
            allowed = "with lr_level='auto' it is the value that means '1', above 0"
            raise fail("lr", found[0]["lr"], allowed, "Leave it out, and let a scheduler warm up.")
        self.kept.built = True
        self.tell_level()

    def reference(self) -> float:
        """The largest first learning rate of all groups whose rate is found: there the level is applied."""
        return max((g["base_lr"] for g in self.groups if g["lr_level"] == "auto"), default=0.0)

    def _say_the_unsaid(self, groups: list[Group]) -> None:
        """A group without a rate of its own, where the rate is found, is one whose factor is 1.

        Args:
            groups: all that could say what 1 is.
        """
        unsaid = {id(group) for group in self.kept.unsaid}
        said = [g for g in groups if id(g) not in unsaid and g["lr_level"] == "auto"]
        one = max((g["base_lr"] for g in said), default=0.0)
        for group in self.kept.unsaid if one > 0 else ():
            group["lr"] = group["base_lr"] = one_of(one)
        self.kept.unsaid.clear()

    def joined(self, before: float) -> None:
        """A group has come; where its rate is the largest from now on, the others keep what they found.

        Args:
            before: ``reference()`` without it.
        """
        if self.kept.built:
            self._say_the_unsaid(self.groups)
        now = self.reference()
        if before > 0 and now != before:
            for state in self.state.values():
                if "auto_level" in state:
                    rescale(state["auto_level"], now / before)
            limit = level_limit(self.groups) * (now / before)
            for group in self.groups:
                if group["lr_level"] == "auto":
                    group[LIMIT] = limit
        self.tell_level()

    def tell_level(self) -> None:
        """Let every group whose rate is found say which: what is applied is ``d * lr``, as with Prodigy."""
        if not self.kept.built:  # once for all groups, for each depends on all
            return
        lagged = self.lagged()
        for number, group in enumerate(self.groups):
            if group["lr_level"] == "auto" and group["params"]:
                self.share(number, lagged, group["params"][0])

    def share(self, number: int, lagged: Lagged, p: Tensor) -> Shared:
        """The recipe's scalars over all parameters, for one group.

        Args:
            number: of the group.
            lagged: what ``lagged()`` gave when the step began.
            p: one of the group's parameters, for type and device.
        """
        group = self.groups[number]
        like = torch.empty((), dtype=compute_dtype(p.dtype), device=p.device)
        every: dict[str, Tensor] = {}
        own: dict[str, Tensor] = {}
        masked = 0
        for name in LAGGED:
            values = [v for found in lagged for v in found.get(name, [])]
            if values:
                every[name] = as_vector(values, like)
                masked = sum(n for _, n in values) if name == "lr_mask_sum" else masked
            if lagged[number].get(name):
                own[name] = as_vector(lagged[number][name], like)
        hp = self.hyper(group, lora=False)
        start, schedule = self.course(group)
        limit = level_limit(self.groups)
        shared = share(every, own, masked, group["clock"], hp, start, like, schedule, limit)
        if hp.lr_level == "auto":
            group["d"] = shared.level
        if self.controller is not None:
            shared = shared._replace(multiplier=self.controller.multiplier(like))
        return shared
