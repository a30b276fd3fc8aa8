"""convert_state(options='own'): mask rule and granularity, factoring and rates change in mid-run."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from automagic_cameamp import CheckpointError, convert_state
from checkpoint.members import SHAPES, fresh, goes_on, make, trained, values
from engine.helpers import differences, disk, parameters, snapshot, train

STEP = 6 / 127  # octaves per count of the geometric mask


def moved(options: dict[str, Any], to: dict[str, Any], member: str = "base") -> tuple[Any, Any]:
    """An optimizer trained under some options, and one that goes on with its state under others."""
    old, weights = trained(member, **options)
    new, params = fresh(member, **to)
    with torch.no_grad():
        for p, q in zip(params, weights, strict=True):
            p.copy_(q)
    new.load_state_dict(convert_state(disk(old.state_dict()), new, options="own"))
    for name, value in to.items():
        assert new.param_groups[0][name] == value
    return old, new


def counters(word: Tensor) -> tuple[Tensor, Tensor]:
    """k and the last sign of an element mask, computed without the library."""
    k = word.to(torch.int64) >> 1
    return (k - 84 if word.dtype == torch.uint8 else k), (word.to(torch.int64) & 1) == 1


def unpacked(bits: Tensor, n: int) -> Tensor:
    every = (bits.reshape(-1, 1).to(torch.int64) >> torch.arange(8)) & 1
    return every.flatten()[:n] == 1


@pytest.mark.parametrize("rule", ["geometric", "additive"])
@pytest.mark.parametrize("granularity", ["row", "tensor", "group"])
def test_element_to_coarser_is_the_rounded_mean(granularity: str, rule: str) -> None:
    old, new = moved({"lr_mask_rule": rule}, {"lr_mask_rule": rule, "lr_mask_granularity": granularity})
    every = [counters(state["lr_mask"]) for state in values(old)]
    common = torch.cat([k.flatten() for k, _ in every]).double().mean()
    for (k, negative), ours in zip(every, values(new), strict=True):
        mean = k.double().mean((-1,) if granularity == "row" else (-1, -2, -3), keepdim=True)
        if granularity == "group":
            assert abs(float(ours["lr_mask"]) - float(common)) <= 1  # a mean of rounded means
        else:
            assert torch.equal(ours["lr_mask"].double(), mean.round())
        assert torch.equal(unpacked(ours["last_polarity"], k.numel()), negative.flatten())
        if rule == "geometric":
            total = torch.exp2(ours["lr_mask"].double() * STEP).mean() * k.numel()
            torch.testing.assert_close(ours["lr_mask_sum"].double().flatten(), total.reshape(1))
    if granularity == "group":
        assert len({int(state["lr_mask"]) for state in values(new)}) == 1
    goes_on(new, new.param_groups[0]["params"])


def test_one_mask_of_a_group_whose_tensors_learned_different_ones() -> None:
    old, _ = trained("base")
    state = disk(old.state_dict())
    sizes = [state["state"][i]["lr_mask"].numel() for i in state["state"]]
    for i, entry in state["state"].items():
        entry["lr_mask"].fill_(2 * (84 - 10 * i))  # k = -10 i
    new, _ = fresh("base", lr_mask_granularity="group")
    converted = convert_state(state, new, options="own")
    wanted = round(-sum(10 * i * n for i, n in enumerate(sizes)) / sum(sizes))
    assert [int(entry["lr_mask"]) for entry in converted["state"].values()] == [wanted] * len(sizes)
    new.load_state_dict(converted)
    assert [int(ours["lr_mask"]) for ours in values(new)] == [wanted] * len(sizes)
    # A state that is a group's already stays as it is.
    again, _ = fresh("base", lr_mask_granularity="group")
    again.load_state_dict(convert_state(disk(new.state_dict()), again, options="own"))
    assert differences(snapshot(new), snapshot(again)) == []


@pytest.mark.parametrize("rule", ["geometric", "additive"])
@pytest.mark.parametrize("granularity", ["row", "tensor"])
def test_coarser_to_element_is_repetition(granularity: str, rule: str) -> None:
    old, new = moved(
        {"lr_mask_rule": rule, "lr_mask_granularity": granularity},
        {"lr_mask_rule": rule, "lr_mask_granularity": "element"},
    )
    for theirs, ours in zip(values(old), values(new), strict=True):
        k, negative = counters(ours["lr_mask"])
        assert torch.equal(k.double(), theirs["lr_mask"].double().expand(k.shape))
        assert torch.equal(unpacked(theirs["last_polarity"], k.numel()), negative.flatten())
    goes_on(new, new.param_groups[0]["params"])


def test_a_rule_change_keeps_the_rates_within_half_a_count() -> None:
    lr, bump = 5e-4, 1e-5
    additive = {"lr_mask_rule": "additive", "lr_bump": bump}
    old, new = moved(additive, {"lr_mask_rule": "geometric"})
    for theirs, ours in zip(values(old), values(new), strict=True):
        wanted = (lr + counters(theirs["lr_mask"])[0] * bump) / lr
        found = torch.exp2(counters(ours["lr_mask"])[0].double() * STEP)
        assert float((found / wanted).log2().abs().max()) <= STEP / 2 + 1e-9
    old, new = moved({}, additive)
    sums = sum(float(state["lr_mask_sum"]) for state in values(old))
    mean = sums / sum(p.numel() for p in old.param_groups[0]["params"])
    for theirs, ours in zip(values(old), values(new), strict=True):
        wanted = lr * torch.exp2(counters(theirs["lr_mask"])[0].double() * STEP) / mean
        found = lr + counters(ours["lr_mask"])[0] * bump
        assert float((found - wanted).abs().max()) <= bump / 2 + 1e-12
    goes_on(new, new.param_groups[0]["params"])


def test_another_bump_keeps_the_rates_too() -> None:
    old, new = moved(
        {"lr_mask_rule": "additive", "lr_bump": 2e-5}, {"lr_mask_rule": "additive", "lr_bump": 5e-6}
    )
    for theirs, ours in zip(values(old), values(new), strict=True):
        assert torch.equal(counters(ours["lr_mask"])[0], 4 * counters(theirs["lr_mask"])[0])


@pytest.mark.parametrize("member", ["base", "base dynamic", "improved"])
def test_full_second_moments_become_row_and_column_means(member: str) -> None:
    old, new = moved({"factored": False}, {"factored": True}, member)
    for theirs, ours in zip(values(old), values(new), strict=True):
        for name in ("exp_avg_sq", "exp_avg_res"):
            if f"{name}_row" in ours:
                torch.testing.assert_close(ours[f"{name}_row"], theirs[name].mean(-1, keepdim=True))
                torch.testing.assert_close(ours[f"{name}_col"], theirs[name].mean(-2, keepdim=True))
    goes_on(new, new.param_groups[0]["params"])


def test_row_and_column_means_become_their_product() -> None:
    old, new = moved({"factored": True}, {"factored": False})
    for theirs, ours in zip(values(old), values(new), strict=True):
        if "exp_avg_sq_row" in theirs:
            row, col = theirs["exp_avg_sq_row"], theirs["exp_avg_sq_col"]
            torch.testing.assert_close(ours["exp_avg_sq"], row * col / row.mean(-2, keepdim=True))
    goes_on(new, new.param_groups[0]["params"])


def test_confidence_of_vectors_starts_from_the_momentum() -> None:
    old, new = moved({}, {"confidence_1d": True})
    for theirs, ours in zip(values(old), values(new), strict=True):
        if "exp_avg_res" in ours:
            share = (1 - theirs["exp_avg"] ** 2).clamp(min=0.01)
            torch.testing.assert_close(ours["exp_avg_res"], share * (2 * 0.8**2 / 1.8))
    goes_on(new, new.param_groups[0]["params"])


@pytest.mark.parametrize(
    "to",
    [
        {"lr_level": "distance"},
        {"lr_level": "vote"},
        {"use_lr_mask": False},
        {"use_tam": False},
        {"tam_granularity": "row"},
        {"warmup_steps": 0},
        {"lr": 1e-4},
        {"rank_keep": 4},
        {"edge_suppression": False, "spatial_awareness": False},
    ],
    ids=str,
)
def test_other_options_of_ours(to: dict[str, Any]) -> None:
    improved = bool({"rank_keep", "edge_suppression"} & to.keys())
    _, new = moved({}, to, "improved" if improved else "base")
    goes_on(new, new.param_groups[0]["params"], 12)


def test_a_level_rule_that_starts_in_mid_run_does_not_vote_at_once() -> None:
    """An empty history of signs would look unanimous."""
    _, new = moved({}, {"lr_level": "vote"})
    params = new.param_groups[0]["params"]
    for t in range(6, 11):
        train(new, params, range(t, t + 1), lambda i, t: False)
        assert all(float(new.state[p]["level_r"]) == 0 for p in params if p.numel() > 1)


def test_norm_clipping_that_starts_in_mid_run_lets_gradients_through() -> None:
    _, new = moved({}, {"percentile_clipping": 95}, "sized")
    _, free = moved({}, {}, "sized")
    for optimizer in (new, free):
        optimizer.config.engine = "reference"  # the kernels leave clipped norms to it
        train(optimizer, optimizer.param_groups[0]["params"], range(6, 10), lambda i, t: False)
    for p, q in zip(new.param_groups[0]["params"], free.param_groups[0]["params"], strict=True):
        assert torch.equal(p, q)


def test_loading_keeps_the_saved_options() -> None:
    """Without options='own' the checkpoint's options hold, so no mask has to be converted."""
    old, _ = trained("base", lr_mask_granularity="row", factored=False)
    new, params = fresh("base")
    new.load_state_dict(disk(old.state_dict()))
    assert new.param_groups[0]["lr_mask_granularity"] == "row" and not new.param_groups[0]["factored"]
    for a, b in zip(values(old), values(new), strict=True):
        assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    goes_on(new, params)


def test_a_change_of_the_second_moment_itself_is_refused() -> None:
    old, _ = trained("base")
    new, _ = fresh("base", came=False)
    before = snapshot(new)
    with pytest.raises(CheckpointError, match="exp_avg_var.*nothing to compute it from"):
        convert_state(disk(old.state_dict()), new, options="own")
    assert differences(before, snapshot(new)) == []


def test_bad_argument() -> None:
    old, _ = trained("base")
    with pytest.raises(ValueError, match="options='mine' is not allowed: 'saved' or 'own'"):
        convert_state(old.state_dict(), old, options="mine")  # type: ignore[arg-type]


def test_groups_are_converted_each_for_itself() -> None:
    """The common counter of a group is the mean of that group only."""
    params = parameters(shapes=SHAPES)
    old = make("base", [{"params": params[:2]}, {"params": params[2:]}])
    train(old, params, range(1, 6), lambda i, t: False)
    copies = parameters(shapes=SHAPES)
    groups = [
        {"params": copies[:2], "lr_mask_granularity": "group"},
        {"params": copies[2:], "lr_mask_granularity": "tensor"},
    ]
    new = make("base", groups)
    new.load_state_dict(convert_state(old.state_dict(), new, options="own"))
    first = [int(new.state[p]["lr_mask"]) for p in copies[:2]]
    assert first[0] == first[1]
    goes_on(new, copies)
