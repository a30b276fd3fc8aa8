"""State of Adam, CAME, bitsandbytes and Automagic: the formulas, the report, and that training goes on."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from automagic_cameamp import CheckpointError, export_state, import_state
from checkpoint.foreign import STATES, adamw, automagic, bitsandbytes, bnb, came
from checkpoint.members import (
    SHAPES,
    WARMUP,
    check_moments,
    fresh,
    goes_on,
    make,
    trained,
    values,
    view,
    within_rms,
)
from engine.helpers import differences, disk, parameters, snapshot

TARGETS = ["base", "base dynamic", "contextual", "improved", "affine", "sized"]
SURPRISE = 2 * 0.8**2 / 1.8  # of independent updates around their running mean, beta1 = .8


def check_surprise(ours: dict[str, Tensor], m: Tensor) -> None:
    if "exp_avg_res_row" in ours:
        full = (1 - m**2).clamp(min=0.01) * SURPRISE
        torch.testing.assert_close(ours["exp_avg_res_row"], full.mean(-1, keepdim=True))
        torch.testing.assert_close(ours["exp_avg_res_col"], full.mean(-2, keepdim=True))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("source", STATES)
def test_every_source_into_every_class(source: str, target: str) -> None:
    new, params = fresh(target)
    groups = copy.deepcopy([{k: v for k, v in g.items() if k != "params"} for g in new.param_groups])
    report = import_state(new, STATES[source]())
    assert report.kind == source.split()[0].removesuffix("w")
    assert (report.parameters, report.untouched, report.steps) == (len(SHAPES), 0, (WARMUP, WARMUP))
    assert [{k: v for k, v in g.items() if k != "params"} for g in new.param_groups] == groups
    goes_on(new, params)
    again, _ = fresh(target)
    again.load_state_dict(disk(new.state_dict()))
    assert differences(([], snapshot(new)[1], []), ([], snapshot(again)[1], [])) == []


def test_adam_formulas() -> None:
    saved = adamw(steps=6, betas=(0.9, 0.98), eps=1e-6)
    new, _ = fresh("base")
    report = import_state(new, saved)
    for i, (shape, ours) in enumerate(zip(SHAPES, values(new), strict=True)):
        state = saved["state"][i]
        mean = view(state["exp_avg"], shape) / (1 - 0.9**6)
        square = view(state["exp_avg_sq"], shape) / (1 - 0.98**6)
        m = within_rms(mean / (square.sqrt() + 1e-6))
        torch.testing.assert_close(ours["exp_avg"], m)
        check_moments(ours, square)
        check_surprise(ours, m)
    assert report.taken == ("step count",)
    assert [text.split(" (")[0] for text in report.approximated[:3]] == [
        "momentum",
        "second moment",
        "confidence",
    ]
    assert report.approximated[3].startswith("started fresh: lr_mask")
    assert report.dropped == () and report.rates == (1e-3,)
    assert "imported the state of 7 parameters from torch's Adam or AdamW (0 had none)" in str(report)
    assert str(report).endswith("learning rates there: 0.001")
    assert str(dataclasses.replace(report, rates=(None, 2e-4))).endswith(
        "learning rates there: unknown, 0.0002"
    )


def test_adam_into_adabelief() -> None:
    """The same means without the division, with the bias that AdaBelief divides away."""
    saved = adamw(steps=6)
    new, params = fresh("base", came=False)
    import_state(new, saved)
    t = WARMUP
    for i, (shape, ours) in enumerate(zip(SHAPES, values(new), strict=True)):
        mean = view(saved["state"][i]["exp_avg"], shape) / (1 - 0.9**6)
        square = view(saved["state"][i]["exp_avg_sq"], shape) / (1 - 0.999**6)
        torch.testing.assert_close(ours["exp_avg"], mean * (1 - 0.8**t))
        torch.testing.assert_close(ours["beta1_product"].flatten(), torch.tensor([0.8**t]))
        rest = torch.maximum(square - mean**2, 0.01 * square)
        torch.testing.assert_close(ours["exp_avg_var"], rest * SURPRISE * (1 - 0.99**t) + 1e-16)
    goes_on(new, params)


def test_came_formulas() -> None:
    saved = came()
    new, _ = fresh("base")
    report = import_state(new, saved)
    for i, (shape, ours) in enumerate(zip(SHAPES, values(new), strict=True)):
        state = saved["state"][i]
        torch.testing.assert_close(ours["exp_avg"], within_rms(view(state["exp_avg"], shape)))
        for name in ("exp_avg_sq", "exp_avg_res"):
            if f"{name}_row" not in ours:
                continue
            row, col = state[f"{name}_row"], state[f"{name}_col"]
            if len(shape) < 4:
                assert torch.equal(ours[f"{name}_row"].flatten(), row.flatten())
                assert torch.equal(ours[f"{name}_col"].flatten(), col.flatten())
                continue
            # Kernels: CAME factors over (kh, kw), we over (out, in x kh x kw).
            full = row.unsqueeze(-1) * col.unsqueeze(-2) / row.mean(-1, keepdim=True).unsqueeze(-1)
            check_moments(
                {k.replace("res", "sq"): v for k, v in ours.items() if name in k}, view(full, shape)
            )
    assert report.taken == ("step count", "momentum", "second moment", "confidence")
    assert report.dropped == ("RMS",)


@pytest.mark.parametrize("name", ["AdamW8bit", "Adam8bit", "AdamW"])
def test_bitsandbytes_formulas(name: str) -> None:
    saved = bnb(name)
    new, _ = fresh("base")
    report = import_state(new, saved)
    coded = 0
    for i, (shape, ours) in enumerate(zip(SHAPES, values(new), strict=True)):
        entry = saved["state"][i]
        entry = {**entry, **entry.get("__bnb_optimizer_quant_state__", {})}
        raw = []
        for number in (1, 2):
            codes = entry[f"state{number}"]
            if codes.dtype == torch.uint8:
                coded += 1
                scale = entry[f"absmax{number}"].repeat_interleave(256)[: codes.numel()]
                codes = entry[f"qmap{number}"][codes.long().flatten()] * scale
            raw.append(view(codes, shape))
        mean, square = raw[0] / (1 - 0.9**6), raw[1] / (1 - 0.999**6)
        torch.testing.assert_close(ours["exp_avg"], within_rms(mean / (square.sqrt() + 1e-8)))
        check_moments(ours, square + 1e-30)
    assert coded == (4 if name.endswith("8bit") else 0)
    assert "qmap1" not in report.dropped and report.rates == (1e-4,)


@pytest.mark.skipif(bitsandbytes is None, reason="bitsandbytes is not installed")
def test_bitsandbytes_codes_are_decoded_as_it_decodes_them() -> None:
    saved = bnb()
    inner = saved["state"][0]["__bnb_optimizer_quant_state__"]
    theirs = bitsandbytes.functional.dequantize_blockwise(
        inner["state2"], absmax=inner["absmax2"], code=inner["qmap2"], blocksize=256
    )
    new, _ = fresh("base")
    import_state(new, saved)
    check_moments(values(new)[0], view(theirs, (80, 64)) / (1 - 0.999**6))


def test_bitsandbytes_state_in_the_flat_form_of_older_versions() -> None:
    saved = bnb()
    flat = copy.deepcopy(saved)
    for entry in flat["state"].values():
        entry.update(entry.pop("__bnb_optimizer_quant_state__", {}))
    a, b = fresh("base")[0], fresh("base")[0]
    import_state(a, saved)
    import_state(b, flat)
    assert differences(snapshot(a), snapshot(b)) == []


@pytest.mark.parametrize("lr", [None, "auto", True, torch.ones(2)], ids=str)
def test_a_saved_rate_that_is_no_number_is_unknown(lr: Any) -> None:
    new, _ = fresh("base")
    saved = STATES["adamw"]()
    saved["param_groups"][0]["lr"] = lr
    assert import_state(new, saved).rates == (None,)


def test_automagic_1_rates_and_signs() -> None:
    saved = automagic(1)
    rates = [s["lr_mask"]["quantized"].float() * s["lr_mask"]["scale"] for s in saved["state"].values()]
    floor = [r.clamp(min=float(r.max()) / 254) for r in rates]
    mean = float(torch.cat([r.flatten() for r in floor]).double().mean())
    new, _ = fresh("base")
    report = import_state(new, saved)
    assert report.rates[0] == pytest.approx(mean)
    for i, (shape, ours) in enumerate(zip(SHAPES, values(new), strict=True)):
        k = (ours["lr_mask"].long() >> 1) - 84
        wanted = (floor[i] / mean).double().log2() * 127 / 6
        torch.testing.assert_close(k.double(), view(wanted, shape).clamp(-84, 42).round())
        assert torch.equal(ours["lr_mask"] & 1 == 0, view(saved["state"][i]["last_polarity"], shape))
        assert not ours["exp_avg"].any()
        check_surprise(ours, ours["exp_avg"])
    # What the mask distributes has the mean 1: with lr = the reported rate every rate is what it was.
    sums = sum(float(s["lr_mask_sum"]) for s in values(new))
    count = sum(int(s["exp_avg"].numel()) for s in values(new))
    assert sums / count == pytest.approx(1.0, abs=0.02)


def test_automagic_1_into_the_additive_rule_keeps_the_rates_themselves() -> None:
    saved = automagic(1)
    new, _ = fresh("base", lr_mask_rule="additive", lr_bump=1e-6, lr=1e-4)
    import_state(new, saved)
    entry = saved["state"][0]["lr_mask"]
    rates = entry["quantized"].float() * entry["scale"]
    k = values(new)[0]["lr_mask"].long() >> 1
    assert float((1e-4 + k * 1e-6 - view(rates, (80, 64)).clamp(min=1e-7)).abs().max()) <= 2e-6


def test_automagic_2_and_3() -> None:
    second = automagic(2)
    new, _ = fresh("base", lr_mask_granularity="tensor")
    report = import_state(new, second)
    counts = [draw.numel() for draw in parameters(shapes=SHAPES)]
    rates = [float(s["lr"]) for s in second["state"].values()]
    mean = sum(r * n for r, n in zip(rates, counts, strict=True)) / sum(counts)
    assert report.rates[0] == pytest.approx(mean)
    for rate, ours in zip(rates, values(new), strict=True):
        k = torch.tensor(rate / mean, dtype=torch.float64).log2() * 127 / 6
        assert abs(float(ours["lr_mask"]) - float(k)) <= 0.5001
    third = automagic(3)
    new, _ = fresh("base")
    assert import_state(new, third).rates[0] == pytest.approx(2e-4)
    for i, ours in enumerate(values(new)):
        assert ((ours["lr_mask"] >> 1) == 84).all()
        plane = third["state"][i]["sign_history"][2]  # hist_idx 3 is the oldest, 2 the newest
        bits = (plane.reshape(-1, 1).long() >> torch.arange(8)) & 1
        n = ours["lr_mask"].numel()
        assert torch.equal((ours["lr_mask"] & 1).flatten() == 0, bits.flatten()[:n] == 1)
    for entry in third["state"].values():  # the ring has just come round
        entry["hist_idx"] = 0
    import_state(new, third)
    bits = (third["state"][0]["sign_history"][7].reshape(-1, 1).long() >> torch.arange(8)) & 1
    newest = values(new)[0]["lr_mask"]
    assert torch.equal((newest & 1).flatten() == 0, bits.flatten()[: newest.numel()] == 1)


def test_step_is_kept_behind_the_warm_up_or_restarted() -> None:
    for steps, kept in ((3, WARMUP), (12, 12)):
        saved = adamw(steps)
        new, _ = fresh("base")
        assert import_state(new, saved).steps == (kept, kept)
        new, params = fresh("base")
        report = import_state(new, saved, warmup="restart")
        assert report.steps == (0, 0)
        assert "step" in report.dropped and report.taken == ()
        goes_on(new, params)
        assert (values(new)[0]["lr_mask"] >> 1 != 84).any(), "the mask learns in the new warm-up"


def test_parameters_without_state_start_fresh() -> None:
    saved = adamw()
    del saved["state"][2]
    new, params = fresh("base")
    report = import_state(new, saved)
    assert (report.parameters, report.untouched) == (6, 1)
    assert not new.state.get(params[2])
    goes_on(new, params)


def test_learning_rates_and_groups_stay_ours() -> None:
    params = parameters(shapes=SHAPES)
    other = torch.optim.AdamW([{"params": params[:3], "lr": 1e-2}, {"params": params[3:], "lr": 1e-3}])
    for p in params:
        p.grad = torch.ones_like(p)
    other.step()
    new = make("base", [{"params": params[:3], "eta": 1.5}, {"params": params[3:], "lr": 3e-4}])
    report = import_state(new, other.state_dict(), "adamw")
    assert [g["lr"] for g in new.param_groups] == [5e-4, 3e-4] and new.param_groups[0]["eta"] == 1.5
    assert "amsgrad" not in new.param_groups[0] and report.rates == (1e-2, 1e-3)


def test_amsgrad_is_dropped_and_said() -> None:
    new, _ = fresh("base")
    assert import_state(new, adamw(amsgrad=True)).dropped == ("max_exp_avg_sq",)


def edit(saved: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    entry = saved["state"][0]
    inner = entry.get("__bnb_optimizer_quant_state__", entry)
    inner[key] = value(inner[key]) if callable(value) else value
    return saved


BAD: dict[str, tuple[Callable[[], Any], str]] = {
    "family": (lambda: trained("base")[0].state_dict(), "is of this family: optimizer.load_state_dict"),
    "nothing": (lambda: {"state": {}, "param_groups": adamw()["param_groups"]}, "nothing to import"),
    "no dict": (lambda: [1], "keys 'state' and 'param_groups'"),
    "other count": (lambda: {**adamw(), "param_groups": [{"params": [0]}]}, "size doesn't match"),
    "unknown": (lambda: edit(adamw(), "exp_avg_sq", None) | {"state": {0: {"sum": 1}}}, "unknown optimizer"),
    "mixed": (
        lambda: {**adamw(), "state": {0: adamw()["state"][0], 1: came()["state"][1]}},
        "cannot import this state",
    ),
    "shape": (lambda: edit(adamw(), "exp_avg", lambda x: x[1:]), "shape (79, 64), this model needs (80, 64)"),
    "integers": (lambda: edit(adamw(), "exp_avg", lambda x: x.int()), "expected a floating type"),
    "NaN": (lambda: edit(adamw(), "exp_avg_sq", lambda x: x * float("nan")), "NaN or infinities"),
    "negative": (lambda: edit(adamw(), "exp_avg_sq", lambda x: -x), "negative numbers"),
    "step 0": (lambda: edit(adamw(), "step", 0), "'step' of parameter 0 is 0"),
    "step word": (lambda: edit(adamw(), "step", "six"), "is 'six', expected a number"),
    "rows": (lambda: edit(came(), "exp_avg_sq_row", lambda x: x[:3]), "'exp_avg_sq_row' of parameter 0"),
    "huge": (lambda: edit(adamw(), "exp_avg_sq", lambda x: x * 1e39), "holds NaN or infinities"),
    "Lion": (lambda: edit_lion(), "only Adam and AdamW can be imported"),
    "scales": (lambda: edit(bnb(), "absmax1", lambda x: x[:7]), "7 scales for 5120 elements"),
    "no scales": (lambda: edit(bnb(), "absmax1", None), "only blockwise states"),
    "cast codes": (lambda: edit(bnb(), "state1", lambda x: x.short()), "it was cast"),
    "map": (lambda: edit(bnb(), "qmap2", lambda x: x[:16]), "'qmap2' of parameter 0 has shape (16,)"),
    "signed map": (lambda: edit(bnb(), "qmap2", lambda x: -x), "state2' of parameter 0 holds negative"),
    "mask shape": (
        lambda: edit(automagic(1), "lr_mask", lambda x: {**x, "quantized": x["quantized"][1:]}),
        "'quantized' of parameter 0 has shape",
    ),
    "rates of 0": (lambda: edit(automagic(1), "lr_mask", lambda x: {**x, "scale": 0.0}), "no rate above 0"),
    "history": (lambda: edit(automagic(3), "sign_history", lambda x: x[:, :-1]), "'sign_history'"),
}


def edit_lion() -> dict[str, Any]:
    saved = bnb()
    for entry in saved["state"].values():
        entry["__bnb_optimizer_quant_state__"].pop("state2")
    return saved


@pytest.mark.parametrize("case", BAD)
def test_errors_change_nothing(case: str) -> None:
    bad, words = BAD[case]
    new, _ = trained("base dynamic")
    before = snapshot(new)
    with pytest.raises(CheckpointError) as caught:
        import_state(new, bad())
    assert words in str(caught.value)
    assert differences(before, snapshot(new)) == []


def test_bad_arguments() -> None:
    new, _ = fresh("base")
    with pytest.raises(ValueError, match="kind='adan' is not allowed.*Did you mean 'adam'"):
        import_state(new, adamw(), "adan")
    with pytest.raises(ValueError, match="warmup='no' is not allowed: 'keep' or 'restart'"):
        import_state(new, adamw(), warmup="no")
    with pytest.raises(
        CheckpointError, match="cannot import this state as kind='came': it looks like that of torch"
    ):
        import_state(new, adamw(), "came")
    with pytest.raises(ValueError, match="kind='sgd' is not allowed: 'adamw'"):
        export_state(new, "sgd")
