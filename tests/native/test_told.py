"""What schedulers and programs change of the rates: a plan tells the kernels what is new, all of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from native import lockstep
from native.test_plan import held, run, same

Turn = tuple[str, Any]
TURNS = st.one_of(
    st.tuples(st.sampled_from(["lr", "base_lr"]), st.sampled_from([0.0, 1e-4, 1e-3])),
    # A rate that is a tensor, and betas that are a list, changed where they are.
    st.tuples(st.just("filled"), st.sampled_from([1e-4, 2e-3])),
    st.tuples(st.just("beta"), st.sampled_from([0.5, 0.9])),
    st.tuples(st.just("lr_floor"), st.sampled_from([0.0, 5e-5])),
    st.tuples(st.just("lr_cap"), st.sampled_from([None, 4e-4])),
    st.tuples(st.just("hard_min_lr"), st.booleans()),
    st.tuples(st.just("weight_decay"), st.sampled_from([0.0, 0.1])),
)


def turn(group: dict[str, Any], name: str, value: Any) -> None:
    if name == "filled":
        if not isinstance(group["lr"], torch.Tensor):
            group["lr"] = torch.tensor(value)
        group["lr"].fill_(value)
    elif name == "beta":
        if isinstance(group["betas"], tuple):
            group["betas"] = list(group["betas"])
        group["betas"][0] = value
    else:
        group[name] = value


@pytest.mark.filterwarnings("ignore:.*lr is a factor relative")
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


def filled(betas: Any) -> None:
    betas[0].fill_(0.1) if isinstance(betas[0], torch.Tensor) else betas.__setitem__(0, 0.1)


FORMS: list[Callable[[], Any]] = [
    lambda: [0.5, 0.9, 0.99],
    lambda: tuple(map(torch.tensor, (0.5, 0.9, 0.99))),
    lambda: np.array([0.5, 0.9, 0.99]),
]


@pytest.mark.parametrize("form", FORMS)
def test_betas_of_whatever_form_changed_where_they_are(form: Callable[[], Any]) -> None:
    results = []
    for engine in ("reference", "native"):
        optimizer, params = lockstep.make(
            "Automagic_CameAMP", [(20, 30)], torch.float32, engine, warmup_steps=0
        )
        group = optimizer.param_groups[0]
        for step in range(8):
            if step == 2:
                group["betas"] = form()
            if step == 5:
                filled(group["betas"])
            lockstep.take(optimizer, params, step)
        results.append(params[0].detach().clone())
    torch.testing.assert_close(*results, rtol=0, atol=1e-6)


@pytest.mark.parametrize("engine", ["reference", "native"])
def test_betas_that_cannot_be_are_refused_by_name(engine: str) -> None:
    optimizer, params = lockstep.make("Automagic_CameAMP", [(20, 30)], torch.float32, engine)
    lockstep.take(optimizer, params, 0)
    old = held(optimizer, params)
    for bad, words in (
        ((0.5,), r"betas=\(0.5,\) is not allowed"),
        ((0.5, 2.0), r"betas\[1\]=2.0"),
        (7, "betas=7"),
    ):
        optimizer.param_groups[0]["betas"] = bad
        with pytest.raises(ValueError, match=words):
            lockstep.take(optimizer, params, 1)
        same(old, held(optimizer, params))
    optimizer.param_groups[0]["betas"] = (0.5, 0.9)  # the third is the default
    lockstep.take(optimizer, params, 1)


@pytest.mark.parametrize("level", ["fixed", "auto"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_rate_that_is_a_tensor_of_16_bits(dtype: torch.dtype, level: str) -> None:
    results = []
    for engine in ("reference", "native"):
        rate = torch.tensor(1e-3, dtype=dtype)
        optimizer, params = lockstep.make(
            "Automagic_CameAMP", [(20, 30)], torch.float32, engine, lr=rate, lr_level=level
        )
        for step in range(6):
            lockstep.take(optimizer, params, step)
            if step == 3:
                rate.fill_(2e-4)
        results.append(params[0].detach().clone())
    torch.testing.assert_close(*results, rtol=0, atol=1e-6)
