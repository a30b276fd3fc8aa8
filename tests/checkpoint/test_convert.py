"""State moves between all classes of the family: what is kept, how exactly, what is said."""

from __future__ import annotations

import functools
import logging
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

import automagic_cameamp
from checkpoint.members import MEMBERS, distance, fresh, goes_on, make, never, trained, values
from engine.helpers import differences, disk, parameters, snapshot, train

# Largest relative L2 error of the momentum that a code may add, on normal numbers.
ERROR = {"fp32": 0.0, "code": 0.02, "corrected": 0.002, "four bits": 0.12}


def load(optimizer: Any, state_dict: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the state dict holds no c_optim entry")
        optimizer.load_state_dict(state_dict)


@functools.cache
def once(member: str) -> tuple[dict[str, Any], list[Tensor], list[dict[str, Tensor]]]:
    """A state dict, the weights beside it, and what it decodes to."""
    old, params = trained(member)
    return disk(old.state_dict()), [p.detach().clone() for p in params], values(old)


@pytest.mark.parametrize("target", MEMBERS)
@pytest.mark.parametrize("source", MEMBERS)
def test_every_member_loads_every_other(source: str, target: str) -> None:
    saved, weights, decoded = once(source)
    new, copies = fresh(target)
    plain_keys = {k for k in new.param_groups[0]}
    with torch.no_grad():
        for p, q in zip(copies, weights, strict=True):
            p.copy_(q)
    load(new, saved)
    assert {k for k in new.param_groups[0]} == plain_keys, "an option of the other class went into a group"
    for ours, theirs in zip(values(new), decoded, strict=True):
        assert torch.equal(ours["step"], theirs["step"])
        assert torch.equal(ours["lr_mask"], theirs["lr_mask"])
        assert torch.equal(ours["lr_mask_sum"], theirs["lr_mask_sum"])
        assert torch.equal(ours["avg_lr"], theirs["avg_lr"])
        kind = "four bits" if target.endswith("four bits") else "code"
        assert distance(ours["exp_avg"], theirs["exp_avg"]) <= ERROR[kind]
        for name in theirs.keys() & {"exp_avg_sq", "exp_avg_sq_row", "exp_avg_sq_col", "exp_avg_res_row"}:
            assert distance(ours[name], theirs[name]) <= 2**-8  # bf16 at the most
    goes_on(new, copies, 2)


@pytest.mark.parametrize("member", MEMBERS)
def test_no_conversion_where_none_is_needed(member: str, caplog: pytest.LogCaptureFixture) -> None:
    """Bit for bit, and without a word."""
    old, params = trained(member, torch.bfloat16)
    new, copies = fresh(member, torch.bfloat16)
    with torch.no_grad():
        for p, q in zip(copies, params, strict=True):
            p.copy_(q)
    new.load_state_dict(disk(old.state_dict()))
    assert differences(snapshot(old), snapshot(new)) == []
    train(old, params, range(6, 10), never)
    train(new, copies, range(6, 10), never)
    assert differences(snapshot(old), snapshot(new)) == []
    assert not caplog.records


@pytest.mark.parametrize(("low", "kind"), [("base dynamic", "code"), ("affine", "corrected")])
def test_to_8_bit_and_back(low: str, kind: str) -> None:
    twin = "base" if low.startswith("base") else "improved"
    exact, _ = trained(twin)
    coded, _ = fresh(low)
    back, params = fresh(twin)
    coded.load_state_dict(disk(exact.state_dict()))
    back.load_state_dict(disk(coded.state_dict()))
    for a, b in zip(values(back), values(exact), strict=True):
        assert distance(a["exp_avg"], b["exp_avg"]) <= ERROR[kind]
        for name in b.keys() - {"exp_avg", "edge_history"}:
            assert torch.equal(a[name], b[name]), name
        if "edge_history" in b:
            assert float((a["edge_history"] - b["edge_history"]).abs().max()) <= 1 / 30 + 1e-6
    goes_on(back, params)


def test_codes_of_the_same_kind_are_copied_not_coded_again() -> None:
    """Only what differs is converted: between two classes the dynamic codes stay byte by byte."""
    old, _ = trained("base dynamic")
    new, _ = fresh("sized one block")
    load(new, disk(old.state_dict()))
    same, _ = fresh("sized", min_8bit_size=1024)
    load(same, disk(old.state_dict()))
    compared = set()
    for p, q in zip(old.param_groups[0]["params"], same.param_groups[0]["params"], strict=True):
        for key in old.state[p].keys() & same.state[q].keys() & {"exp_avg_q", "exp_avg_q_scale", "lr_mask"}:
            assert torch.equal(old.state[p][key], same.state[q][key]), key
            compared.add(key)
    assert compared == {"exp_avg_q", "exp_avg_q_scale", "lr_mask"}


def test_8bit_to_improved_8bit_keeps_mask_and_step() -> None:
    """What the documents promise for this migration."""
    old, params = trained("affine", torch.bfloat16)
    new, copies = fresh("sized", torch.bfloat16)
    new.load_state_dict(disk(old.state_dict()))
    for p, q in zip(params, copies, strict=True):
        assert float(new.state[q]["step"]) == float(old.state[p]["step"])
        assert torch.equal(new.state[q]["lr_mask"], old.state[p]["lr_mask"])
    goes_on(new, copies)


def test_one_line_says_what_starts_fresh_and_what_is_dropped(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    old, _ = trained("base dynamic")
    new, params = fresh("improved")
    base, twins = trained("base")
    new.load_state_dict(disk(old.state_dict()))
    assert len(caplog.records) == 1
    text = caplog.records[0].getMessage()
    # The vector and the number keep nothing that differs.
    assert "Automagic_CameAMP_Improved: converted the saved state of 5 parameters" in text
    pairs = list(zip(params, twins, strict=True))
    extra = {key for p, q in pairs for key in new.state[p].keys() - base.state[q].keys()}
    assert {"edge_history", "spatial_variance"} < extra
    for name in extra:
        assert name in text.split("dropped")[0]
    assert text.endswith("dropped: nothing")
    caplog.clear()
    base.load_state_dict(disk(new.state_dict()))
    base.load_state_dict(disk(trained("contextual")[0].state_dict()))
    first, second = (r.getMessage() for r in caplog.records)
    assert first.endswith(f"fresh: nothing; dropped: {', '.join(sorted(extra))}")
    assert "dropped: c_optim, momentum_scale_10, momentum_scale_25" in second


def test_options_of_the_group_come_along_and_engine_options_do_not() -> None:
    old, _ = trained("base", beta1_decay=0.999, eta=1.5)
    old.param_groups[0]["name"] = "unet"
    old.param_groups[0]["lr"] = 2e-4
    saved = disk(old.state_dict())
    saved["param_groups"][0].update(seed=99, blocksize=64, verbose=True)
    new, _ = fresh("sized", beta1_decay=0.9, detail_preservation=0.3)
    load(new, saved)
    group = new.param_groups[0]
    assert (group["beta1_decay"], group["eta"], group["lr"], group["name"]) == (0.999, 1.5, 2e-4, "unet")
    assert group["detail_preservation"] == 0.3
    assert not {"seed", "blocksize", "verbose", "weight_decay_phase"} & group.keys()
    assert new.config.seed == 0


def test_a_longer_mean_starts_where_it_would_be() -> None:
    """momentum_scale_s from exp_avg: the share of a constant update that s steps from 0 have taken."""
    old, _ = trained("base")
    new, _ = fresh("contextual")
    load(new, disk(old.state_dict()))
    for ours, theirs in zip(values(new), values(old), strict=True):
        share = (1 - (1 - 1 / 25) ** 5) / (1 - 0.8**5)
        torch.testing.assert_close(ours["momentum_scale_25"], theirs["exp_avg"] * share)


def test_a_double_precision_model_takes_single_precision_state() -> None:
    old, _ = trained("improved")
    new, params = fresh("improved", torch.float64)
    new.load_state_dict(disk(old.state_dict()))
    for ours, theirs in zip(values(new), values(old), strict=True):
        assert ours["exp_avg"].dtype == torch.float64
        assert torch.equal(ours["exp_avg"], theirs["exp_avg"].double())
    goes_on(new, params)


def test_parameters_that_were_never_updated_stay_so() -> None:
    params = parameters(shapes=[(40, 32), (40, 32)])
    old = make("base", params)
    train(old, params, range(1, 3), lambda i, t: i == 1)
    copies = parameters(shapes=[(40, 32), (40, 32)])
    new = make("affine", copies)
    new.load_state_dict(disk(old.state_dict()))
    assert new.state[copies[0]] and not new.state.get(copies[1])
    train(new, copies, range(3, 6), never)


def test_convert_state_is_pure_and_loads_without_another_conversion(
    caplog: pytest.LogCaptureFixture,
) -> None:
    old, _ = trained("affine")
    saved = disk(old.state_dict())
    kept = disk(saved)
    new, params = fresh("base dynamic")
    before = snapshot(new)
    converted = automagic_cameamp.convert_state(saved, new)
    assert differences(before, snapshot(new)) == []
    assert saved.keys() == kept.keys() and saved["param_groups"] == kept["param_groups"]
    for i, state in kept["state"].items():
        assert all(torch.equal(v, saved["state"][i][k]) for k, v in state.items())
    caplog.clear()
    new.load_state_dict(disk(converted))  # through a file: plain tensors and numbers only
    assert not caplog.records
    straight, _ = fresh("base dynamic")
    straight.load_state_dict(saved)
    assert differences(snapshot(straight), snapshot(new)) == []
    goes_on(new, params)


def test_convert_state_keeps_the_controllers_memory() -> None:
    old, _ = trained("contextual")
    new, _ = fresh("contextual 8bit")
    state = disk(old.state_dict())
    new.load_state_dict(disk(automagic_cameamp.convert_state(state, new)))
    assert torch.equal(new.controller.memory, old.controller.memory)
    # Nor where a distributed checkpoint left only the copy beside a parameter.
    del state["c_optim"]
    again, _ = fresh("contextual 8bit")
    again.load_state_dict(disk(automagic_cameamp.convert_state(state, again)))
    assert torch.equal(again.controller.memory, old.controller.memory)


def test_precision_changes_in_mid_run_through_convert_state() -> None:
    """32 bit -> 8 bit -> 32 bit on the same parameters, as progressive quantisation does it."""
    optimizer, params = trained("improved")
    for member in ("affine", "sized", "improved"):
        after = make(member, params)
        state = automagic_cameamp.convert_state(optimizer.state_dict(), after)
        after.load_state_dict(state)
        optimizer = after
        goes_on(optimizer, params, 2)
    assert float(optimizer.state[params[0]]["step"]) == 5 + 3 * 2


def test_vectors_in_fp16_of_the_first_checkpoints_are_read() -> None:
    """fp16 and one scale, under the names of that time."""
    old, _ = trained("affine no residual")
    saved = old.state_dict()
    exact = values(old)
    for i, state in saved["state"].items():
        for key in [key for key in state if key.endswith(("_row_q", "_col_q"))]:
            name = key[:-2]
            value = exact[i][name].reshape(state[key].shape)
            scale = torch.exp2(value.amax().log2().floor() - 14)
            del state[key], state[f"{name}_q_scale"]
            state |= {name: (value / scale).half(), f"{name}_scale": scale}
    new, params = fresh("affine no residual")
    new.load_state_dict(saved)
    for before, after in zip(exact, values(new), strict=True):
        for name, value in before.items():
            if "_row" in name or "_col" in name:
                torch.testing.assert_close(after[name], value, rtol=2**-10, atol=0)
            elif value.is_floating_point():
                torch.testing.assert_close(after[name], value, rtol=1e-6, atol=1e-12)
    goes_on(new, params)
