"""What schedulers and programs change of the rates: a plan tells the kernels what is new, all of it."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from native import lockstep
from native.test_plan import held, run, same

Turn = tuple[str, Any]
TURNS = st.one_of(
    st.tuples(st.sampled_from(["lr", "base_lr"]), st.sampled_from([0.0, 1e-4, 1e-3])),
    st.tuples(
        st.just("filled"), st.sampled_from([1e-4, 2e-3])
    ),  # a rate that is a tensor, changed where it is
    st.tuples(st.just("lr_floor"), st.sampled_from([0.0, 5e-5])),
    st.tuples(st.just("lr_cap"), st.sampled_from([None, 4e-4])),
    st.tuples(st.just("hard_min_lr"), st.booleans()),
    st.tuples(st.just("weight_decay"), st.sampled_from([0.0, 0.1])),
    st.tuples(
        st.just("beta"), st.sampled_from([0.5, 0.9])
    ),  # of betas that are a list, changed where they are
)


def turn(group: dict[str, Any], name: str, value: Any) -> None:
    if name == "filled":
        group["lr"].fill_(value) if isinstance(group["lr"], torch.Tensor) else group.update(
            lr=torch.tensor(value)
        )
    elif name == "beta":
        if isinstance(group["betas"], tuple):
            group["betas"] = list(group["betas"])
        group["betas"][0] = value
    else:
        group[name] = value


@settings(max_examples=25, deadline=None)
@given(
    turns=st.lists(st.lists(TURNS, max_size=2), min_size=4, max_size=8),
    level=st.sampled_from(["fixed", "auto"]),
)
@example(turns=[[("beta", 0.5)], [("beta", 0.9)], [("beta", 0.5)]], level="fixed")
@example(turns=[[("filled", 1e-4)], [("filled", 2e-3)], []], level="fixed")
def test_whatever_changes_the_rates_is_told(turns: list[list[Turn]], level: str) -> None:
    """In what order ever: as a new optimizer sees it, which has no plan yet."""
    results = []
    for forget in (False, True):
        optimizer, params = run("Automagic_CameAMP", range(2), shapes=[(20, 30), (7,)], lr_level=level)
        for step, changes in enumerate(turns, start=2):
            for name, value in changes:
                turn(optimizer.param_groups[0], name, value)
            if forget:
                optimizer.stepper.forget()
            lockstep.take(optimizer, params, step)
        results.append(held(optimizer, params))
    same(*results)
