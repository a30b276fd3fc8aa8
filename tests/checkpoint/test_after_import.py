"""After an import training goes on like before, and the way back to AdamW."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import automagic_cameamp
from automagic_cameamp import Automagic_CameAMP, export_state, import_state
from checkpoint.foreign import bitsandbytes, came_pytorch
from checkpoint.members import SHAPES, check_moments, distance, fresh, make, trained, values, view, within_rms
from engine.helpers import disk, parameters


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
