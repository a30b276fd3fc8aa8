"""Which parameters of a saved state dict have no partner here, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import SequenceMatcher
from typing import Any, NamedTuple

from torch import Tensor

LISTED = 8


class Known(NamedTuple):
    """What is known of one parameter on one side."""

    index: int
    group: int
    name: str | None
    shape: tuple[int, ...] | None

    def __str__(self) -> str:
        words = self.name if self.name is not None else f"parameter {self.index}"
        shape = "" if self.shape is None else f" {self.shape}"
        return f"{words}{shape} (group {self.group})"


def here(groups: Sequence[Mapping[str, Any]]) -> list[Known]:
    """The parameters of an optimizer."""
    return _listed(groups, [tuple(p.shape) for group in groups for p in group["params"]])


def saved(groups: Sequence[Mapping[str, Any]], state: Mapping[Any, Any]) -> list[Known]:
    """Those of a state dict, with their shapes where the state tells."""
    return _listed(groups, [_shape(state.get(i)) for group in groups for i in group["params"]])


def unpaired(theirs: list[Known], ours: list[Known]) -> str:
    """Sentences that name the parameters of one side only.

    Args:
        theirs: of the state dict.
        ours: of the optimizer.
    """
    names = [{known.name for known in side} for side in (theirs, ours)]
    if None not in names[0] | names[1]:
        only = [
            [known for known in side if known.name not in other]
            for side, other in ((theirs, names[1]), (ours, names[0]))
        ]
        place = {known.name: known.group for known in theirs}
        moved = [k for k in ours if k.name in place and place[k.name] != k.group]
        regrouped = [f"{k.name} (group {place[k.name]} there, {k.group} here)" for k in moved]
        return _told(only[0], only[1], regrouped)
    if all(known.shape is not None for known in theirs):
        pairs = SequenceMatcher(None, [k.shape for k in theirs], [k.shape for k in ours], autojunk=False)
        lost: list[Known] = []
        new: list[Known] = []
        for kind, a, b, c, d in pairs.get_opcodes():
            if kind != "equal":
                lost, new = lost + theirs[a:b], new + ours[c:d]
        return _told(lost, new, [], "Paired by their shapes, as not all have names: ")
    sizes = [{g: sum(k.group == g for k in side) for g in {k.group for k in side}} for side in (theirs, ours)]
    more = [
        [k for i, k in enumerate([k for k in side if k.group == g]) if i >= sizes[other].get(g, 0)]
        for side, other in ((theirs, 1), (ours, 0))
        for g in sorted({k.group for k in side})
    ]
    beyond = [k for part in more for k in part]
    return f"Beyond the other's number in their groups: {_some(beyond)}." if beyond else ""


def exchanged(theirs: list[Known], ours: list[Known]) -> str:
    """Where two lists of the same names first differ, whose groups have the same sizes; else nothing."""
    names = [[known.name for known in side] for side in (theirs, ours)]
    if None in names[0] or names[0] == names[1] or sorted(map(str, names[0])) != sorted(map(str, names[1])):
        return ""
    there, here = next(pair for pair in zip(theirs, ours, strict=True) if pair[0].name != pair[1].name)
    return f"{there.name!r} stands there in group {there.group} where {here.name!r} does here"


def _told(lost: list[Known], new: list[Known], moved: list[str], how: str = "") -> str:
    parts = [
        f"{words}: {_some(found)}."
        for words, found in (
            ("In the state dict only", lost),
            ("Here only", new),
            ("In another group", moved),
        )
        if found
    ]
    if not parts:
        return "It holds the same parameters, in other groups." if not how else ""
    return how + " ".join(parts)


def _some(found: Sequence[object]) -> str:
    rest = f" and {len(found) - LISTED} more" if len(found) > LISTED else ""
    return ", ".join(map(str, found[:LISTED])) + rest


def _listed(groups: Sequence[Mapping[str, Any]], shapes: Sequence[tuple[int, ...] | None]) -> list[Known]:
    found: list[Known] = []
    for number, group in enumerate(groups):
        names = group.get("param_names")
        usable = isinstance(names, (list, tuple)) and len(names) == len(group["params"])
        for position in range(len(group["params"])):
            name = str(names[position]) if usable and names is not None else None
            found.append(Known(len(found), number, name, shapes[len(found)]))
    return found


def _shape(entry: Any) -> tuple[int, ...] | None:
    """Shape of the parameter whose state this is; packed codes do not tell."""
    if not isinstance(entry, Mapping):
        return None
    plain, coded = entry.get("exp_avg"), entry.get("exp_avg_q")
    if isinstance(plain, Tensor):
        return tuple(plain.shape)
    return tuple(coded.shape) if isinstance(coded, Tensor) and coded.dim() > 1 else None
