"""What is not the family's, or damaged, is refused with the reason, and nothing changes."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from automagic_cameamp import CheckpointError, convert_state
from checkpoint.foreign import STATES
from checkpoint.members import fresh, trained
from engine.helpers import differences, disk, snapshot

NAMES = {
    "adamw": "torch's Adam or AdamW",
    "came": "CAME",
    "bitsandbytes": "a bitsandbytes optimizer",
    "automagic 1": "ai-toolkit's Automagic",
    "automagic 2": "ai-toolkit's Automagic",
    "automagic 3": "ai-toolkit's Automagic",
}


def refused(optimizer: Any, state_dict: Any) -> str:
    """The message; every bit of the optimizer is as before, for both ways to load."""
    before = snapshot(optimizer)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the state dict holds no c_optim entry")
        with pytest.raises(CheckpointError) as caught:
            optimizer.load_state_dict(state_dict)
        with pytest.raises(CheckpointError) as pure:
            convert_state(state_dict, optimizer)
    assert differences(before, snapshot(optimizer)) == []
    assert str(caught.value) == str(pure.value)
    assert str(caught.value).endswith("Nothing was loaded.")
    return str(caught.value)


@pytest.mark.parametrize("target", ["base", "affine", "contextual 8bit"])
@pytest.mark.parametrize("source", NAMES)
def test_foreign_state_is_named_with_the_way_to_import_it(source: str, target: str) -> None:
    new, _ = trained(target)
    message = refused(new, STATES[source]())
    assert NAMES[source] in message
    assert "automagic_cameamp.import_state(optimizer, state_dict)" in message


def test_a_foreign_state_dict_without_any_state_does_not_bring_its_options() -> None:
    new, params = trained("base")
    message = refused(new, torch.optim.AdamW(params).state_dict())
    assert "group 0 of the state dict is of another optimizer" in message


def test_other_optimizers_are_refused_too() -> None:
    new, params = trained("base")
    for p in params:
        p.grad = torch.ones_like(p)
    for cls in (torch.optim.Adagrad, torch.optim.Adafactor, torch.optim.RMSprop):
        other = cls(params, lr=1e-3)
        other.step()
        state_dict = other.state_dict()
        assert "another optimizer" in refused(new, state_dict)
        ours = new.state_dict()["param_groups"]  # a trainer that rebuilds the groups
        assert "unknown" in refused(new, {**state_dict, "param_groups": ours})


Change = Callable[[Tensor], Any]
DAMAGE: dict[str, tuple[str, str, Change, str]] = {
    # member, key of parameter 0, change, words of the message
    "counter cast": ("base", "lr_mask", lambda x: x.float(), "was cast"),
    "momentum cast": ("base", "exp_avg", lambda x: x.bfloat16(), "was cast"),
    "vector cast to fp16": ("base", "exp_avg_sq_row", lambda x: x.half(), "was cast"),
    "codes cast": ("affine", "exp_avg_q", lambda x: x.float(), "was cast"),
    "zero points cast": ("affine", "exp_avg_q_zero", lambda x: x.to(torch.int32), "was cast"),
    "residual cast": ("affine", "exp_avg_q_residual", lambda x: x.float(), "was cast"),
    "cut codes": ("affine", "exp_avg_q", lambda x: x[:-1], "this model needs (80, 64)"),
    "cut scales": ("affine", "exp_avg_q_scale", lambda x: x[:-1], "19 scales for 5120 elements"),
    "cut residual": ("affine", "exp_avg_q_residual", lambda x: x[:-1], "this model needs"),
    "swapped sides": ("base", "exp_avg", lambda x: x.T.contiguous(), "this model needs (80, 64)"),
    "longer rows": ("base", "exp_avg_sq_row", lambda x: torch.cat([x, x]), "this model needs (80,)"),
    "vector codes cast": ("short", "exp_avg_sq_row_q", lambda x: x.float(), "was cast"),
    "falling grid": ("short", "exp_avg_sq_row_q_scale", lambda x: x.abs() * -1, "values in [nan"),
    "endless grid": ("short", "exp_avg_sq_row_q_scale", lambda x: x.abs() * 60000, "possible are [0"),
    "cut grid": ("short", "exp_avg_sq_row_q_scale", lambda x: x[:1], "this model needs (2,)"),
    "NaN": ("base", "exp_avg", lambda x: x.index_fill(0, torch.tensor([3]), float("nan")), "values in [nan"),
    "infinite scale": ("base dynamic", "exp_avg_q_scale", lambda x: x + float("inf"), "values in"),
    "negative scale": ("base dynamic", "exp_avg_q_scale", lambda x: -x, "values in [nan"),
    "negative square": ("base", "exp_avg_sq_col", lambda x: -x, "possible are [0"),
    "negative step": ("base", "step", lambda x: x - 100, "possible are [0"),
    "endless step": ("base", "step", lambda x: x + float("inf"), "damaged or the run had diverged"),
    "impossible counter": ("base", "lr_mask", lambda x: torch.full_like(x, 255), "possible are [0, 253]"),
    "mask mean of 0": ("base", "lr_mask_sum", lambda x: x * 0, "possible are"),
    "history beyond 1": ("improved", "edge_history", lambda x: x + 2, "possible are [0, 1]"),
    "a list": ("base", "exp_avg", lambda x: [1.0], "is a list, not a tensor"),
    "meta tensor": ("base", "exp_avg", lambda x: x.to("meta"), "not a dense tensor"),
    "sparse tensor": ("base", "exp_avg", lambda x: x.to_sparse(), "not a dense tensor"),
}


@pytest.mark.parametrize("convert", [False, True], ids=["same class", "other class"])
@pytest.mark.parametrize("case", DAMAGE)
def test_damage_is_named_whether_or_not_a_conversion_is_needed(case: str, convert: bool) -> None:
    member, key, change, words = DAMAGE[case]
    member = "affine no residual" if member == "short" else member
    old, _ = trained(member)
    saved = disk(old.state_dict())
    saved["state"][0][key] = change(saved["state"][0][key])
    target = {
        "affine no residual": "base",
        "base": "affine",
        "base dynamic": "improved",
        "affine": "base",
        "improved": "sized",
    }[member]
    new, _ = trained(target if convert else member)
    message = refused(new, saved)
    assert words in message
    assert "parameter 0" in message and key in message


@pytest.mark.parametrize("key", ["step", "exp_avg", "exp_avg_sq_row", "exp_avg_res_col", "avg_lr"])
@pytest.mark.parametrize("target", ["base", "improved", "affine"])
def test_what_may_not_start_anew(target: str, key: str) -> None:
    old, _ = trained("base")
    saved = disk(old.state_dict())
    del saved["state"][0][key]
    new, _ = fresh(target)
    message = refused(new, saved)
    assert key in message


def test_a_field_twice() -> None:
    old, _ = trained("base")
    saved = disk(old.state_dict())
    coded, _ = trained("base dynamic")
    saved["state"][0].update({k: v for k, v in coded.state_dict()["state"][0].items() if "_q" in k})
    new, _ = fresh("base")
    assert "holds 'exp_avg' twice" in refused(new, saved)


def test_a_newer_format() -> None:
    old, _ = trained("base")
    saved = {**old.state_dict(), "magic_version": 2}
    new, _ = fresh("base")
    assert "format 2" in refused(new, saved)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("base_lr", -1.0),
        ("base_lr", "fast"),
        ("clock", 1.5),
        ("clock", None),
        ("lr", torch.tensor(float("nan"))),
        ("lr", torch.ones(2)),
        ("betas", (0.9,)),
        ("eta", -1),
        ("param_names", ["a"]),
    ],
)
def test_bad_values_in_groups(name: str, value: Any) -> None:
    old, _ = trained("base")
    saved = old.state_dict()
    saved["param_groups"][0][name] = value
    new, _ = fresh("improved")
    message = refused(new, saved)
    assert "group 0" in message and name in message


def test_numbering() -> None:
    old, _ = trained("base")
    saved = old.state_dict()
    saved["param_groups"][0]["params"][1] = 0
    new, _ = fresh("base")
    assert "not numbered one by one" in refused(new, saved)


def test_controllers_memory() -> None:
    old, _ = trained("contextual")
    saved = disk(old.state_dict())
    saved["state"][0]["c_optim"][0] = float("nan")
    new, _ = fresh("contextual")
    assert "c_optim" in refused(new, saved)


@pytest.mark.parametrize("rate", [0.0, 1e-300])
def test_a_start_that_nothing_can_be_relative_to_is_refused(rate: float) -> None:
    """The constructor refuses it; found by the fuzzer in a state dict, where it made weights infinite."""
    optimizer, _ = trained("base", lr_level="distance")
    saved = optimizer.state_dict()
    saved["param_groups"][0]["base_lr"] = rate
    with pytest.raises(CheckpointError, match="base_lr=.* must be above 0"):
        optimizer.load_state_dict(saved)
