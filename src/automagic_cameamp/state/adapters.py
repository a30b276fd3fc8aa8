"""Which parameters are a LoRA's: found from marks, names and shapes, never from values.

A mark decides, else a name; only where neither says LoRA anywhere in the optimizer do shapes (trainers
pass bare parameters). Shapes are looked at as long as no parameter has state. After that their
answer stays with each parameter: groups that are added, removed or moved change nothing of what runs.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..lora import is_embedding, kind_of, mark_of, table_of_name
from ..validate import callers_depth

if TYPE_CHECKING:
    from .pairs import Shapes

Kinds = list[list[Any]]  # how a parameter is known as a LoRA's, or None
# One parameter among those that live: a reference, even a weak one, would be in the way of those who swap it,
# and an id alone comes again.
Key = tuple[int, torch.Size]
MARK, NAME, SHAPE = "mark", "name", "shape"
FLIPPED = (
    "with the parameter group that was added, shapes alone would call {0} parameters of the earlier groups "
    "{1}. They stay what they were in this run, but a run that starts with all groups would differ: call "
    "automagic_cameamp.mark_lora(model), or set p._is_lora_layer to True or False."
)


@dataclass(frozen=True)
class LoraReport:
    """What an optimizer takes for a LoRA. ``str`` is one line.

    Args:
        parameters: parameters of the optimizer.
        lora: those that belong to a LoRA.
        by_mark: of these, known by a mark (``_is_lora_layer``, ``_is_lora_A``, ...).
        by_name: known by their name.
        by_shape: known by the shapes of low-rank pairs.
        tables: parameters known as embeddings by mark or name.
    """

    parameters: int
    lora: int
    by_mark: int
    by_name: int
    by_shape: int
    tables: int

    def __str__(self) -> str:
        ways = {"mark": self.by_mark, "name": self.by_name, "shape": self.by_shape}
        how = " and ".join(f"by {way}" for way, count in ways.items() if count)
        if not how:
            return f"none of {self.parameters} parameters is LoRA, by mark, name or shape"
        return f"{self.lora} of {self.parameters} parameters are LoRA, {how}"


class Adapters:
    """What an optimizer knows of LoRAs among its parameters.

    Args:
        copied: positions per group that the original of a copy took for a LoRA's: a deep copy of parameters
            carries no marks.
    """

    def __init__(self, copied: list[frozenset[int]] | None = None) -> None:
        self._copied = copied
        self._marked: frozenset[Key] = frozenset()
        self._by_shape: dict[Key, bool] | None = None

    def kinds(self, groups: Sequence[dict[str, Any]], started: bool) -> Kinds:
        """Per group, per parameter: how it is known as a LoRA's; None: it is none.

        Args:
            groups: the optimizer's groups, or copies of them with the same parameters.
            started: whether a parameter has state.
        """
        keys = [[_key(p) for p in group["params"]] for group in groups]
        if self._copied is not None:  # what is first asked for is in the original's order still
            places = zip(keys, self._copied, strict=False)
            self._marked = frozenset(own[i] for own, positions in places for i in positions if i < len(own))
            self._copied = None
        found = [_told(group) for group in groups]
        for kinds, own in zip(found, keys, strict=True):
            for i, key in enumerate(own):
                if kinds[i] is None and key in self._marked:
                    kinds[i] = MARK
        shapes = self._shapes(groups, keys, found, started)
        for kinds, own in zip(found, keys, strict=True):
            for i, key in enumerate(own):
                if kinds[i] is None and shapes[key]:
                    kinds[i] = SHAPE
        return [[kind or None for kind in kinds] for kinds in found]

    def remembered(self, groups: Sequence[dict[str, Any]], started: bool) -> list[frozenset[int]]:
        """What a copy has to be told."""
        found = self.kinds(groups, started)
        return [frozenset(i for i, kind in enumerate(kinds) if kind) for kinds in found]

    def report(self, groups: Sequence[dict[str, Any]], started: bool) -> LoraReport:
        """Which parameters are taken for a LoRA's, and how they were known."""
        found = [kind for kinds in self.kinds(groups, started) for kind in kinds]
        tables = sum(bool(table_of(group, i)) for group in groups for i in range(len(group["params"])))
        mark, name, shape = map(found.count, (MARK, NAME, SHAPE))
        return LoraReport(len(found), mark + name + shape, mark, name, shape, tables)

    def _shapes(
        self, groups: Sequence[dict[str, Any]], keys: list[list[Key]], told: Kinds, started: bool
    ) -> dict[Key, bool]:
        """Of each parameter, whether the shapes of all say that it is a LoRA's."""
        kept = self._by_shape if started else None
        if kept is not None and all(key in kept for own in keys for key in own):
            return kept
        now = {key: False for own in keys for key in own}
        if not any(kind for kinds in told for kind in kinds):
            from .pairs import low_rank  # here, so that an import of the package stays light

            shapes = [_shapes_of(group, kinds) for group, kinds in zip(groups, told, strict=True)]
            for own, positions in zip(keys, low_rank(shapes), strict=True):
                now |= {own[i]: True for i in positions}
        if kept is not None:
            _warn_of_flips(kept, now)
            now |= {key: found for key, found in kept.items() if key in now}
        self._by_shape = now
        return now


def stand_in(twin: Tensor, p: Tensor) -> None:
    """Let a host tensor be taken for its parameter here."""
    twin._stands_for = id(p)  # type: ignore[attr-defined]


def _key(p: Tensor) -> Key:
    return getattr(p, "__dict__", {}).get("_stands_for", id(p)), p.shape


def _told(group: dict[str, Any]) -> list[Any]:
    """What marks and names say of the parameters of a group: how a LoRA is known, False for "none", None."""
    names = group.get("param_names")
    found: list[Any] = []
    for i, p in enumerate(group["params"]):
        mark = mark_of(p)
        if mark is None and names is not None and kind_of(str(names[i])) is not None:
            found.append(NAME)
        else:
            found.append(mark and MARK)
    return found


def _shapes_of(group: dict[str, Any], told: list[Any]) -> Shapes:
    """Shapes of a group, and whether each may be called a LoRA's: not what is marked as something else."""
    params = group["params"]
    return [
        (tuple(p.shape), kind is None and not is_embedding(p)) for p, kind in zip(params, told, strict=True)
    ]


def _warn_of_flips(kept: dict[Key, bool], now: dict[Key, bool]) -> None:
    for found, words in ((True, "LoRA"), (False, "no LoRA")):
        count = sum(now.get(key, old) is found and old is not found for key, old in kept.items())
        if count:
            warnings.warn(FLIPPED.format(count, words), stacklevel=callers_depth())
            return


def table_of(group: dict[str, Any], position: int) -> int:
    """1: the rows of this parameter are no neighbours, 2: nor are its columns, 0: nothing is known."""
    p, names = group["params"][position], group.get("param_names")
    named = 0 if names is None else table_of_name(str(names[position]))
    if not is_embedding(p):
        return named
    # The token side of an embedding's LoRA is rank x tokens.
    return 2 if mark_of(p) else max(named, 1)
