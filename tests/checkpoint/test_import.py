"""State of Adam, CAME, bitsandbytes and Automagic: the formulas, the report, and that training goes on."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import automagic_cameamp
from automagic_cameamp import Automagic_CameAMP, CheckpointError, export_state, import_state
from automagic_cameamp.types import Layout
from checkpoint.foreign import STATES, adamw, automagic, bitsandbytes, bnb, came, came_pytorch
from checkpoint.members import SHAPES, WARMUP, distance, fresh, goes_on, make, trained, values
from engine.helpers import differences, disk, parameters, snapshot

TARGETS = ["base", "base dynamic", "contextual", "improved", "affine", "sized"]
SURPRISE = 2 * 0.8**2 / 1.8  # of independent updates around their running mean, beta1 = .8


def view(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    return x.reshape(1, *Layout.of(shape).view)


def within_rms(x: Tensor) -> Tensor:
    return x / max(1.0, float(x.double().square().mean().sqrt()))


def check_moments(ours: dict[str, Tensor], square: Tensor, rtol: float = 1e-5) -> None:
    """Row and column means of a matrix, the whole of a vector."""
    if "exp_avg_sq" in ours:
        torch.testing.assert_close(ours["exp_avg_sq"], square, rtol=rtol, atol=0)
    else:
        torch.testing.assert_close(ours["exp_avg_sq_row"], square.mean(-1, keepdim=True), rtol=rtol, atol=0)
        torch.testing.assert_close(ours["exp_avg_sq_col"], square.mean(-2, keepdim=True), rtol=rtol, atol=0)


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
    "huge": (lambda: edit(adamw(), "exp_avg_sq", lambda x: x * 1e35), "possible are"),
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


# ---------------------------------------------------------------- training goes on


def task(seed: int) -> tuple[torch.nn.Module, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(256, 12, generator=g)
    y = torch.tanh(x @ (0.4 * torch.randn(12, 4, generator=g))) + 0.3 * torch.randn(256, 4, generator=g)
    model = torch.nn.Sequential(torch.nn.Linear(12, 24), torch.nn.Tanh(), torch.nn.Linear(24, 4))
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(0.2 * torch.randn(p.shape, generator=g))
    return model, x, y


def losses(model: Any, optimizer: Any, x: Tensor, y: Tensor, steps: range) -> list[float]:
    """Loss on all data after each step on a part of it."""
    found = []
    for t in steps:
        part = torch.randint(0, len(x), (32,), generator=torch.Generator().manual_seed(t))
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(model(x[part]), y[part]).backward()
        optimizer.step()
        with torch.no_grad():
            found.append(float(torch.nn.functional.mse_loss(model(x), y)))
    return found


MAKERS: dict[str, tuple[float, Callable[[Any, float], Any]]] = {
    "adamw": (3e-3, lambda p, lr: torch.optim.AdamW(p, lr=lr, weight_decay=0.0)),
    "bitsandbytes": (
        3e-3,
        lambda p, lr: bitsandbytes.optim.AdamW8bit(p, lr=lr, min_8bit_size=64, weight_decay=0.0),
    ),
    "came": (1e-3, lambda p, lr: came_pytorch.CAME(p, lr=lr, betas=(0.9, 0.99, 0.999))),
}
INSTALLED = {"adamw": True, "bitsandbytes": bitsandbytes is not None, "came": came_pytorch is not None}


@pytest.mark.parametrize("kind", MAKERS)
def test_training_goes_on_like_before(kind: str) -> None:
    """In the flat part of a run, where a bad start shows: no bump, and the same end, over three seeds."""
    if not INSTALLED[kind]:
        pytest.skip(f"the package of {kind} is not installed")
    lr, maker = MAKERS[kind]
    peaks, ends = torch.zeros(3), torch.zeros(3)
    for seed in range(3):
        model, x, y = task(seed)
        other = maker(model.parameters(), lr)
        losses(model, other, x, y, range(400))
        saved, weights = copy.deepcopy(other.state_dict()), copy.deepcopy(model.state_dict())
        for way in range(3):
            model.load_state_dict(weights)
            optimizer = other
            if way:
                optimizer = Automagic_CameAMP(
                    model.parameters(),
                    lr=lr,
                    max_lr=1e-2,
                    warmup_steps=100,
                    weight_decay=0.0,
                    full_finetune=True,
                )
            if way == 1:
                import_state(optimizer, saved)
            found = losses(model, optimizer, x, y, range(400, 450))
            peaks[way] += max(found[:20])
            ends[way] += sum(found[-20:])
    goes_on_, imported, started = peaks.tolist()
    assert imported <= 1.01 * goes_on_
    assert ends[1] <= 1.02 * ends[0]
    if kind != "came":  # without the import the first steps disturb the weights
        assert started - goes_on_ > 4 * abs(imported - goes_on_)


# ---------------------------------------------------------------- back


@pytest.mark.parametrize("member", ["base", "base dynamic", "affine", "contextual"])
def test_export_to_adamw(member: str) -> None:
    old, weights = trained(member)
    exported = disk(export_state(old))
    twin = torch.optim.AdamW([torch.nn.Parameter(w.detach().clone()) for w in weights])
    twin.load_state_dict(exported)
    assert twin.param_groups[0]["lr"] == pytest.approx(old.get_learning_rates()[0])
    for i, (shape, ours) in enumerate(zip(SHAPES, values(old), strict=True)):
        state = exported["state"][i]
        square = view(state["exp_avg_sq"], shape) / (1 - 0.999**5)
        check_moments(ours, square, 1e-4)
        mean = view(state["exp_avg"], shape) / (1 - 0.9**5)
        torch.testing.assert_close(mean / square.sqrt(), ours["exp_avg"].float(), rtol=1e-4, atol=1e-6)
    params = twin.param_groups[0]["params"]
    before = [p.detach().clone() for p in params]
    for p in params:
        p.grad = torch.randn_like(p)
    twin.step()
    for p, q in zip(params, before, strict=True):
        assert bool(p.isfinite().all()) and not torch.equal(p, q)


def test_export_and_import_come_back() -> None:
    old, _ = trained("base")
    new, _ = fresh("base")
    import_state(new, export_state(old))
    for ours, theirs in zip(values(new), values(old), strict=True):
        assert distance(ours["exp_avg"], within_rms(theirs["exp_avg"])) < 1e-3
        for name in ours.keys() & {"exp_avg_sq", "exp_avg_sq_row", "exp_avg_sq_col"}:
            assert distance(ours[name], theirs[name]) < 1e-3
    exported = export_state(make("base", parameters(shapes=SHAPES)))
    assert exported["state"] == {} and "import_state" in automagic_cameamp.__all__


def test_adabelief_is_exported_too() -> None:
    old, _ = trained("base", came=False)
    exported = export_state(old)
    for i, (shape, ours) in enumerate(zip(SHAPES, values(old), strict=True)):
        mean = ours["exp_avg"] / (1 - ours["beta1_product"])
        square = ours["exp_avg_var"] + mean**2
        torch.testing.assert_close(view(exported["state"][i]["exp_avg"], shape), mean * (1 - 0.9**5))
        torch.testing.assert_close(view(exported["state"][i]["exp_avg_sq"], shape), square * (1 - 0.999**5))
