"""Every cell of docs/training.md: equal to a loop that does the same by hand, or refused."""

from __future__ import annotations

import contextlib
import copy
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, lr_scheduler

from automagic_cameamp import accumulate_in_fp32, release_gradients
from engine.helpers import differences, snapshot
from loops.helpers import NAMES, build, groups_of, loss_of, model, same, same_memory, twins
from rotated import rotated

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "training.md").read_text("utf-8")
PAGE = PAGE.split("\n## Gradient release\n")[0]
MAX_NORM, MICRO, SCALE, STEPS = 0.05, 3, 256.0, 5


def table(first: str) -> dict[tuple[str, str], str]:
    """(row, column) -> cell of the table whose first heading is this."""
    lines = [line for line in PAGE.splitlines() if line.startswith("|")]
    start = next(i for i, line in enumerate(lines) if line.startswith(f"| {first} |"))
    rows = []
    for line in lines[start:]:
        cells = [cell.strip().replace("`", "") for cell in line.strip("|").split("|")]
        if rows and len(cells) != len(rows[0]):
            break
        rows.append(cells)
    return {(r[0], c): cell for r in rows[2:] for c, cell in zip(rows[0][1:], r[1:], strict=True)}


COMBINATIONS = table("precision")
SCHEDULERS = table("scheduler")
DTYPES = {"bf16 weights": torch.bfloat16, "fp16 weights": torch.float16}
HAS_GRAD_DTYPE = hasattr(nn.Parameter(torch.ones(1)), "grad_dtype")


def autocast(precision: str) -> Any:
    if "autocast" not in precision:
        return contextlib.nullcontext()
    return torch.autocast("cpu", torch.bfloat16 if precision.startswith("bf16") else torch.float16)


def loss(net: nn.Module, precision: str, step: int, micro: int, count: int) -> Tensor:
    with autocast(precision):
        return loss_of(net, step, micro) / count


# ---------------------------------------------------------------- the loop of a user


def users_loop(net: nn.Module, optimizer: Any, precision: str, features: str, schedule: Any = None) -> None:
    scaler = (
        torch.amp.GradScaler("cpu", init_scale=SCALE, growth_interval=2) if "Scaler" in precision else None
    )
    count = MICRO if "accumulation" in features else 1
    clip, released = "clipping" in features, "release" in features
    handle: Any = contextlib.nullcontext()
    if released:
        handle = release_gradients(net, optimizer, accumulation=count, max_norm=MAX_NORM if clip else None)
    with handle:
        for t in range(1, STEPS + 1):

            def backward(t: int = t) -> Tensor:
                net.zero_grad()
                total = torch.zeros(())
                for micro in range(count):
                    one = loss(net, precision, t, micro, count)
                    total = total + one.detach()
                    one = one if scaler is None else scaler.scale(one)
                    handle.backward(one) if released and clip else one.backward()
                if clip and not released:
                    if scaler is not None:
                        scaler.unscale_(optimizer)
                    nn.utils.clip_grad_norm_(net.parameters(), MAX_NORM)
                return total

            if "closure" in features:
                arguments: dict[str, Any] = {"closure": backward}
            else:
                backward()
                arguments = {}
            if scaler is None:
                optimizer.step(**arguments)
            else:
                scaler.step(optimizer, **arguments)
                scaler.update()
            if schedule is not None:
                schedule.step()


# ---------------------------------------------------------------- the same by hand


def by_hand(net: nn.Module, optimizer: Any, precision: str, features: str) -> None:
    """Gradients from autograd.grad, added, unscaled and clipped here; a plain step."""
    params = [p for p in net.parameters() if p.requires_grad]
    count = MICRO if "accumulation" in features else 1
    wide = "fp32 gradients" in precision
    scale, good = SCALE, 0
    for t in range(1, STEPS + 1):
        sums: list[Tensor | None] = [None] * len(params)
        total = torch.zeros(())
        for micro in range(count):
            one = loss(net, precision, t, micro, count)
            total = total + one.detach()
            found = torch.autograd.grad(
                one * scale if "Scaler" in precision else one, params, allow_unused=True
            )
            for i, g in enumerate(found):
                if g is not None:
                    g = g.float() if wide else g
                    sums[i] = g if sums[i] is None else sums[i] + g  # type: ignore[operator]
        if "Scaler" in precision:
            assert all(bool(g.isfinite().all()) for g in sums if g is not None)
            sums = [None if g is None else g / scale for g in sums]
            good += 1
            scale, good = (scale * 2, 0) if good == 2 else (scale, good)
        if "clipping" in features:
            norms = torch.stack([g.norm() for g in sums if g is not None])
            gain = (MAX_NORM / (norms.norm() + 1e-6)).clamp(max=1)
            assert gain < 1
            sums = [None if g is None else g * gain for g in sums]
        for p, g in zip(params, sums, strict=True):
            p.grad = g
        optimizer.step(loss=total if "closure" in features else None)
        optimizer.zero_grad()


def prepared(name: str, precision: str) -> list[tuple[Any, Any]]:
    dtype = next((d for text, d in DTYPES.items() if precision.startswith(text)), torch.float32)
    made = twins(name, dtype)
    if "fp32 gradients" in precision:
        for net, _ in made:
            assert len(accumulate_in_fp32(net)) == len(list(net.parameters()))
    return made


@rotated("name, cell", ["Automagic_CameAMP8bit", "Automagic_CameAMP_COptim"], COMBINATIONS)
def test_every_combination(name: str, cell: tuple[str, str]) -> None:
    precision, features = cell
    if "fp32 gradients" in precision and not HAS_GRAD_DTYPE:
        pytest.skip("this torch has no Tensor.grad_dtype")
    outcome = COMBINATIONS[cell]
    (net, optimizer), (other, plain) = prepared(name, precision)
    if outcome == "equal":
        users_loop(net, optimizer, precision, features)
        by_hand(other, plain, precision, features)
        assert same(optimizer, plain) == []
        assert not torch.equal(net.head.weight, model(net.head.weight.dtype).head.weight)  # type: ignore[union-attr]
        return
    before = snapshot(optimizer)
    if outcome == "refused":
        expected: tuple[type[Exception], str] = (RuntimeError, "GradScaler|max_norm")
        if "accumulation" in features and "clipping" in features:
            expected = (ValueError, "max_norm")
    else:
        assert outcome == "refused by torch"
        closure_first = "closure" in features and precision.startswith("fp16 autocast")
        expected = (
            (RuntimeError, "Closure use") if closure_first else (Exception, "FP16 gradients|Closure use")
        )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "a GradScaler is used with float16 weights")
        with pytest.raises(expected[0], match=expected[1]):
            users_loop(net, optimizer, precision, features)
    assert differences(before, snapshot(optimizer)) == []


@pytest.mark.parametrize("name", NAMES)
def test_everything_at_once(name: str) -> None:
    (net, optimizer), (other, plain) = twins(name)
    users_loop(net, optimizer, "bf16 autocast", "accumulation, clipping, closure")
    by_hand(other, plain, "bf16 autocast", "accumulation, clipping, closure")
    assert same(optimizer, plain) == []


# ---------------------------------------------------------------- GradScaler


@pytest.mark.parametrize("name", NAMES)
def test_an_overflow_changes_nothing(name: str) -> None:
    net = model()
    optimizer = build(name, groups_of(net))
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=2)

    def step(t: int, factor: float = 1.0) -> None:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.float16):
            found = loss_of(net, t) * factor
        scaler.scale(found).backward()
        scaler.step(optimizer)
        scaler.update()

    for t in range(1, 4):
        step(t)
    before, health = snapshot(optimizer), optimizer.health()
    memory = None if optimizer.controller is None else optimizer.controller.memory.clone()
    scale = scaler.get_scale()
    step(4, float("inf"))
    assert scaler.get_scale() == scale / 2
    assert differences(before, snapshot(optimizer)) == [] and optimizer.health() == health
    assert optimizer.controller is None or same_memory(memory, optimizer.controller.memory)
    step(5)
    assert optimizer.health()["steps"] == 4 and optimizer.param_groups[0]["clock"] == 4


def test_fp16_autocast_with_a_scaler_learns() -> None:
    net = model()
    optimizer = build("Automagic_CameAMP8bit", groups_of(net))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16, growth_interval=10)
    first = last = 0.0
    for t in range(40):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.float16):
            found = loss_of(net, 1)
        scaler.scale(found).backward()
        scaler.step(optimizer)
        scaler.update()
        first, last = (found.item(), last) if t == 0 else (first, found.item())
    assert last < 0.9 * first and optimizer.health()["skipped_updates"] == 0


def test_fp16_weights_under_a_scaler_get_one_advice() -> None:
    net = model(torch.float16)
    optimizer = build("Automagic_CameAMP", groups_of(net))
    assert not hasattr(optimizer, "_step_supports_amp_scaling")
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    scaler.scale(loss_of(net, 1)).backward()
    with pytest.warns(UserWarning, match=r"Keep the trained weights in float32.*autocast"):
        with pytest.raises(ValueError, match="FP16 gradients"):
            scaler.step(optimizer)
    assert not optimizer.state
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match="FP16 gradients"):
            scaler.step(optimizer)


# ---------------------------------------------------------------- schedulers


def makers() -> dict[str, Callable[[Any], Any]]:
    from transformers import get_scheduler

    s = lr_scheduler

    def chained(o: Any) -> Any:
        return s.SequentialLR(o, [s.LinearLR(o, 0.1, total_iters=2), s.ExponentialLR(o, 0.8)], [2])

    return {
        "LambdaLR": lambda o: s.LambdaLR(o, lambda t: 1 / (1 + t)),
        "CosineAnnealingLR": lambda o: s.CosineAnnealingLR(o, 6),
        "ReduceLROnPlateau": lambda o: s.ReduceLROnPlateau(o, patience=0, threshold=0.5),
        "SequentialLR": chained,
        "OneCycleLR, momentum fixed": lambda o: s.OneCycleLR(o, 9e-4, 8, cycle_momentum=False),
        "OneCycleLR, momentum cycled": lambda o: s.OneCycleLR(o, 9e-4, 8),
        "transformers cosine": lambda o: get_scheduler("cosine", o, 2, 8),
        "transformers constant_with_warmup": lambda o: get_scheduler("constant_with_warmup", o, 3),
    }


@pytest.mark.filterwarnings("ignore:The epoch parameter in `scheduler.step:UserWarning")
@pytest.mark.parametrize("scheduler, form", SCHEDULERS, ids=lambda text: text.replace(" ", "_"))
def test_every_scheduler(scheduler: str, form: str) -> None:
    """The same scheduler drives an SGD; what it writes there is copied into the plain loop's groups."""
    assert SCHEDULERS[scheduler, form] == "equal"
    make, tensor = makers()[scheduler], form == "tensor lr"
    for name in ("Automagic_CameAMP", "Automagic_CameAMP_COptim8bit"):
        rates = [torch.tensor(r) if tensor else r for r in (9e-4, 3e-4)]
        net = model()
        other = copy.deepcopy(net)
        made = []
        for m in (net, other):
            groups = groups_of(m)
            groups[0]["lr"], groups[1]["lr"] = (r.clone() if isinstance(r, Tensor) else r for r in rates)
            made.append(build(name, groups))
        dummies = [{"params": [nn.Parameter(torch.ones(1))], "lr": float(r)} for r in rates]
        if "cycled" in scheduler:
            guide: Any = torch.optim.AdamW(dummies, betas=(0.8, 0.99))
        else:
            guide = SGD(dummies)
        schedule, guided = make(made[0]), make(guide)
        seen = set()
        for t in range(1, 8):
            for group, g in zip(made[1].param_groups, guide.param_groups, strict=True):
                group["lr"] = torch.tensor(g["lr"]) if tensor else g["lr"]
                if "cycled" in scheduler:
                    group["betas"] = (g["betas"][0], *group["betas"][1:])
            seen.add(float(guide.param_groups[0]["lr"]))
            for m, o in zip((net, other), made, strict=True):
                loss_of(m, t).backward()
                o.step()
                o.zero_grad()
            guide.step()
            for each in (schedule, guided):
                each.step(1.0) if scheduler == "ReduceLROnPlateau" else each.step()
            for p, q in zip(net.parameters(), other.parameters(), strict=True):
                torch.testing.assert_close(p, q, rtol=1e-4 if tensor else 0, atol=5e-6 if tensor else 0)
        assert len(seen) > 2


def test_the_page_has_no_cell_that_is_not_tested() -> None:
    assert set(COMBINATIONS.values()) == {"equal", "refused", "refused by torch"}
    assert {s for s, _ in SCHEDULERS} == makers().keys()
    assert len(re.findall(r"^\| ", PAGE, re.M)) == 9 + 10  # two tables with their heads, nothing else
