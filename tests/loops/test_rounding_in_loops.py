"""bf16 weights without a master copy: small updates and small decay arrive in the mean; sums in fp32."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from automagic_cameamp import Automagic_CameAMP, Automagic_CameAMP8bit, accumulate_in_fp32

STILL: dict[str, Any] = {"use_lr_mask": False, "warmup_steps": 0, "full_finetune": True, "min_lr": 0.0}


def spacing(w: Tensor) -> Tensor:
    """Distance of the bf16 numbers just below |w|, for weights that are no powers of two."""
    return 2.0 ** (w.abs().log2().floor() - 7)


@pytest.mark.parametrize("cls", [Automagic_CameAMP, Automagic_CameAMP8bit])
def test_mean_of_an_update_of_a_hundred_thousandth(cls: Any) -> None:
    """Steps of 1e-5 of a weight, 1/400 of its spacing: the mean over all elements is the exact one.

    Each element moves by its spacing s with probability u/s, so the sum has the variance
    sum u (s - u); what is allowed is four standard deviations, and they must lie below 3 %.
    """
    n = 2048
    start = (1.1 + 0.8 * torch.rand(n, n)).bfloat16()
    gradient = (0.5 + torch.rand(n, n)).bfloat16()
    moved = []
    for dtype in (torch.float32, torch.bfloat16):
        p = nn.Parameter(start.to(dtype, copy=True))
        optimizer = cls([p], lr=1.5e-5, weight_decay=0.0, **STILL)
        p.grad = gradient.to(dtype)
        optimizer.step()
        moved.append((start.double() - p.detach().double()).flatten())
    exact, rounded = moved
    ratio = float((exact / start.double().flatten()).mean())
    assert 0.2e-5 < ratio < 2e-5
    s = spacing(start.double().flatten())
    assert bool((exact > 0).all()) and bool((exact < s).all())
    deviation = float((exact * (s - exact)).sum().sqrt() / exact.sum())
    assert 4 * deviation < 0.06
    error = abs(float(rounded.sum() / exact.sum()) - 1)
    assert error < min(4 * deviation, 0.03)
    assert float((rounded == 0).double().mean()) > 0.9  # nearly all stay: that is what is averaged


def test_mean_of_a_decay_of_a_millionth() -> None:
    """lr x weight_decay = 1e-6 over many steps, without any gradient: the fp32 decay within 2 %.

    About n x steps x 1e-6 w / s moves: the standard deviation is one over the root of their number.
    """
    n, steps = 512, 350
    start = (1.9 + 0.09 * torch.rand(n, n)).bfloat16()
    options = {**STILL, "lr": 1e-4, "weight_decay": 1e-2, "weight_decay_phase": "always"}
    lost = []
    for dtype in (torch.float32, torch.bfloat16):
        rows = 2 if dtype is torch.float32 else n  # with a gradient of zero all elements decay alike
        p = nn.Parameter(start[:rows].to(dtype, copy=True))
        optimizer = Automagic_CameAMP([p], **options)
        p.grad = torch.zeros_like(p)
        before = p.detach().double()
        for _ in range(steps):
            optimizer.step()
        lost.append(float(((before - p.detach().double()) / before).mean()))
    exact, rounded = lost
    assert exact > 0
    moves = n * n * exact * 1.94 / 2.0**-7
    assert abs(rounded / exact - 1) < min(0.02, 4 / moves**0.5)


@pytest.mark.skipif(
    not hasattr(nn.Parameter(torch.ones(1)), "grad_dtype"), reason="this torch has no Tensor.grad_dtype"
)
def test_many_bf16_micro_batches_add_up() -> None:
    """64 micro-batches: the gradient and its norm within 1 % of fp32, where bf16 sums lose far more."""
    weight = torch.randn(32, 32).bfloat16()
    batches = [1 + 0.05 * torch.randn(4, 32) for _ in range(64)]

    def gradient(p: nn.Parameter) -> Tensor:
        for x in batches:
            (x.to(p.dtype) @ p).float().sum().backward()
        assert p.grad is not None
        return p.grad

    exact = gradient(nn.Parameter(weight.float()))
    p = nn.Parameter(weight.clone())
    assert accumulate_in_fp32([p]) == [p]
    kept = gradient(p)
    lossy = gradient(nn.Parameter(weight.clone()))
    assert kept.dtype == torch.float32 and lossy.dtype == torch.bfloat16

    def error(g: Tensor) -> float:
        return float((g.float() - exact).norm() / exact.norm())

    assert error(kept) < 0.01
    assert error(lossy) > 3 * error(kept)
    norm = nn.utils.clip_grad_norm_([p], 1.0)
    assert abs(float(norm / exact.norm()) - 1) < 0.01
    optimizer = Automagic_CameAMP8bit([p, nn.Parameter(weight.clone())], lr=1e-3)
    optimizer.param_groups[0]["params"][1].grad = weight.clone()  # a stack of both kinds of gradient
    optimizer.step()
    assert bool((p.detach() != weight).any()) and optimizer.health()["skipped_updates"] == 0


def test_a_torch_without_gradient_types_is_named() -> None:
    class Old(Tensor):
        @property
        def grad_dtype(self) -> Any:
            raise AttributeError

    p = torch.ones(3, dtype=torch.bfloat16).as_subclass(Old).requires_grad_()
    with pytest.raises(
        RuntimeError, match=r"cannot hold fp32 gradients of torch.bfloat16 weights.*newer torch"
    ):
        accumulate_in_fp32([p])


def test_fp32_gradients_are_refused_once_there_are_others(monkeypatch: pytest.MonkeyPatch) -> None:
    p = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    assert accumulate_in_fp32(nn.Linear(2, 2)) == []  # fp32 already
    p.grad = torch.ones_like(p)
    if hasattr(p, "grad_dtype"):
        with pytest.raises(RuntimeError, match="zero_grad"):
            accumulate_in_fp32([p])
    else:
        with pytest.raises(RuntimeError, match="newer torch"):
            accumulate_in_fp32([p])
