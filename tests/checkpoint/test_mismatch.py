"""A saved state of other groups is refused with the parameters that make the difference."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from automagic_cameamp import Automagic_CameAMP8bit, CheckpointError, convert_state
from engine.helpers import differences, disk, draw, snapshot

SHAPES = {"embed": (11, 48), "up.weight": (48, 20), "up.bias": (48,), "down.weight": (20, 48), "gain": ()}
Groups = list[list[str]]


def build(groups: Groups, named: bool = True, steps: int = 2) -> Any:
    made: list[dict[str, Any]] = []
    for group in groups:
        params: list[Any] = [(n, torch.nn.Parameter(draw(0, len(n), shape=SHAPES[n]))) for n in group]
        made.append({"params": params if named else [p for _, p in params]})
    optimizer = Automagic_CameAMP8bit(made, lr=1e-3)
    for step in range(steps):
        for group in optimizer.param_groups:
            for p in group["params"]:
                p.grad = draw(1, step, p.numel(), shape=tuple(p.shape))
        optimizer.step()
    return optimizer


def refused(saved: dict[str, Any], optimizer: Any) -> str:
    before = snapshot(optimizer)
    with pytest.raises(CheckpointError) as error:
        optimizer.load_state_dict(saved)
    with pytest.raises(CheckpointError, match="Nothing was loaded"):
        convert_state(saved, optimizer)
    assert differences(before, snapshot(optimizer)) == []
    return str(error.value)


everything = st.permutations(list(SHAPES))


@st.composite
def grouped(draw_: Any) -> Groups:
    """Some of the names, in one to three groups, none of them empty."""
    names = draw_(everything)[: draw_(st.integers(2, len(SHAPES)))]
    count = draw_(st.integers(1, min(3, len(names))))
    cuts = sorted(draw_(st.permutations(range(1, len(names))))[: count - 1])
    return [names[a:b] for a, b in zip([0, *cuts], [*cuts, len(names)], strict=True)]


@given(grouped(), grouped())
def test_names_say_what_is_missing(theirs: Groups, ours: Groups) -> None:
    if [len(g) for g in theirs] == [len(g) for g in ours]:
        return
    text = refused(disk(build(theirs).state_dict()), build(ours))
    there, here = {n for g in theirs for n in g}, {n for g in ours for n in g}
    before, _, rest = text.partition("In the state dict only: ")
    lost, _, rest = (rest if rest else before).partition("Here only: ")
    new, _, moved = (rest if rest else lost).partition("In another group: ")
    for name in SHAPES:
        listed = f"{name} {SHAPES[name]}"
        assert (f"{listed} (group" in text) == ((name in there) != (name in here)), (name, text)
        if name in here - there:
            assert listed in new, text
    home = {n: i for i, g in enumerate(theirs) for n in g}
    for i, group in enumerate(ours):
        for name in group:
            if name in home and home[name] != i:
                assert f"{name} (group {home[name]} there, {i} here)" in moved + text


def test_shapes_say_it_where_there_are_no_names() -> None:
    saved = disk(build([["embed", "up.weight", "up.bias", "gain"]], named=False).state_dict())
    text = refused(saved, build([["embed", "up.bias", "down.weight", "gain"], ["up.weight"]], named=False))
    assert "1 saved, 2 here" in text and "by their shapes" in text
    text = refused(saved, build([["embed", "up.bias", "gain"]], named=False))
    assert "4 parameters in the state dict and 3 here" in text
    assert "In the state dict only: parameter 1 (48, 20) (group 0)." in text
    text = refused(saved, build([["embed", "up.weight", "up.bias", "down.weight", "gain"]]))
    assert "Here only: down.weight (20, 48) (group 0)." in text


def test_numbers_say_it_where_nothing_else_is_known() -> None:
    saved = build([["embed", "gain"]], named=False, steps=0).state_dict()
    text = refused(saved, build([["embed", "gain", "up.bias"]], named=False))
    assert "Beyond the other's number in their groups: parameter 2 (48,) (group 0)." in text
    many = build([["gain"] * 1], named=False, steps=0)
    many.add_param_group({"params": [torch.nn.Parameter(torch.ones(3)) for _ in range(20)]})
    assert "and 12 more" in refused(build([["gain"]], named=False, steps=0).state_dict(), many)


def test_the_same_names_in_another_order() -> None:
    """Of one shape: by place they would get each other's state."""
    order = [["up.weight", "gain", "up.bias"], ["gain", "up.bias", "up.weight"]]
    text = refused(disk(build([order[0]]).state_dict()), build([order[1]]))
    assert "another order: 'up.weight' stands there in group 0 where 'gain' does here" in text


def test_other_names_are_only_names() -> None:
    """As of a wrapper: place decides, as in torch."""
    saved = disk(build([["up.weight", "gain"]]).state_dict())
    saved["param_groups"][0]["param_names"] = ["module.up.weight", "module.gain"]
    optimizer = build([["up.weight", "gain"]], steps=0)
    optimizer.load_state_dict(saved)
    assert all(optimizer.state[p] for p in optimizer.param_groups[0]["params"])
