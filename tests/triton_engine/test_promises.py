"""What the Triton engine promises besides the numbers: refusals, repeatability, addresses, scalers."""

from __future__ import annotations

import copy
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

import automagic_cameamp as A
from automagic_cameamp.engine import fused
from engine.helpers import differences as bit_differences
from engine.helpers import disk, same_bits, snapshot
from triton_drive import DEVICE, FEW, By, build, differences, give, parameters, run, runner

SMALL = [(12, 30), (8,), (2, 5, 7)]


def test_import_does_not_import_triton() -> None:
    program = "import sys, automagic_cameamp; sys.exit('triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")  # numpy's, in the interpreter
@pytest.mark.parametrize("cls", [A.Automagic_CameAMP, A.Automagic_CameAMP_8Bit, A.Automagic_CameAMP_COptim])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e30])
def test_a_gradient_that_is_not_usable_changes_no_bit(cls: type, bad: float) -> None:
    params = parameters(SMALL)
    optimizer = build(cls, params, "triton")
    give(params, 1)
    optimizer.step()
    kept = [[v.clone() for v in optimizer.state[p].values()] for p in params]
    weights = [p.detach().clone() for p in params]
    give(params, 2)
    for p in params[:2]:
        p.grad.view(-1)[3] = bad
    optimizer.step()
    for p, before, values in zip(params[:2], weights[:2], kept[:2], strict=True):
        assert same_bits(p, before)
        own = [v for k, v in optimizer.state[p].items() if k != "c_optim"]
        assert all(same_bits(v, w) for v, w in zip(own, values, strict=False))
    assert not same_bits(params[2], weights[2])
    assert optimizer.health()["parameters"] == {"param_0": 1, "param_1": 1}


@pytest.mark.parametrize("cls", [A.Automagic_CameAMP8bit, A.Automagic_CameAMP_Improved])
def test_two_runs_are_bitwise_equal(cls: type) -> None:
    runs = [run(cls, "triton", 3, FEW, torch.bfloat16)[1] for _ in range(2)]
    assert not bit_differences(snapshot(runs[0]), snapshot(runs[1]))


@pytest.mark.parametrize(
    ("dtype", "options"),
    [
        (torch.float32, {"blocksize": 64}),
        (torch.bfloat16, {"blocksize": 64, "state_code": "softsign4", "master_weight_bits": 24}),
    ],
)
def test_a_loaded_run_goes_on_bitwise(dtype: torch.dtype, options: dict[str, Any]) -> None:
    """Loading replaces every state tensor: stale addresses would write into the old ones."""
    params, optimizer = run(A.Automagic_CameAMP_COptim8bit, "triton", 2, FEW[:2], dtype, **options)
    twins = [torch.nn.Parameter(p.detach().clone()) for p in params]
    other = build(A.Automagic_CameAMP_COptim8bit, twins, "triton", **options)
    give(twins, 9)
    other.step()
    other.load_state_dict(disk(optimizer.state_dict()))
    for p, q in zip(params, twins, strict=True):
        q.data = p.detach().clone()
    for t in (3, 4):
        for ps, o in ((params, optimizer), (twins, other)):
            give(ps, t)
            o.step()
    assert not bit_differences(snapshot(optimizer), snapshot(other))


def _replaced(optimizer: Any, params: list[Any], t: int) -> None:
    if t == 2:  # as FSDP and XLA do
        fresh = torch.nn.Parameter(params[0].detach().clone())
        fresh.grad = params[0].grad
        optimizer.state[fresh] = optimizer.state.pop(params[0])
        params[0] = optimizer.param_groups[0]["params"][0] = fresh


def _converted(optimizer: Any, params: list[Any], t: int) -> None:
    if t == 2:  # as model.to(torch.bfloat16) does
        for p in params:
            p.data, p.grad = p.data.bfloat16(), None
        give(params, t)


def _options(optimizer: Any, params: list[Any], t: int) -> None:
    group = optimizer.param_groups[0]
    group["lr"] = 5e-4 / t
    group["eta"] = 1.0 + t


@pytest.mark.parametrize("hook", [_replaced, _converted, _options])
def test_what_changes_between_steps_is_seen(hook: Any) -> None:
    a = run(A.Automagic_CameAMP, "reference", 3, SMALL, hook=hook)
    b = run(A.Automagic_CameAMP, "triton", 3, SMALL, hook=hook)
    start = [p.to(q.dtype) for p, q in zip(parameters(SMALL), a[0], strict=True)]
    assert not differences(
        start, (a[1].param_groups[0]["params"], a[1]), (b[1].param_groups[0]["params"], b[1])
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_tensor_as_rate(dtype: torch.dtype) -> None:
    weights = []
    for lr in (3e-4, torch.tensor(3e-4, dtype=dtype, device=DEVICE)):
        weights.append(run(A.Automagic_CameAMP, "triton", 2, SMALL, lr=lr)[0])
    assert all(same_bits(p, q) for p, q in zip(*weights, strict=True))


def test_rate_zero_changes_nothing() -> None:
    params, _ = run(A.Automagic_CameAMP_Improved, "triton", 2, SMALL, torch.bfloat16, lr=0.0)
    assert all(same_bits(p, q) for p, q in zip(params, parameters(SMALL, torch.bfloat16), strict=True))


@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")  # numpy's, in the interpreter
@pytest.mark.parametrize(
    ("cls", "dtype", "options"),
    [
        (A.Automagic_CameAMP, torch.float32, {}),
        # The basis is renewed at every step: the reference has a part in each.
        (A.Automagic_CameAMP_8Bit, torch.bfloat16, {"master_weight_bits": 24, "sync_frequency": 1}),
        (A.Automagic_CameAMP_COptim, torch.float32, {}),
    ],
)
def test_a_gradient_scaler_is_honoured(cls: type, dtype: torch.dtype, options: dict[str, Any]) -> None:
    def scaled(optimizer: Any, params: list[Any], t: int) -> None:
        for p in params:
            p.grad = p.grad * 1024.0
        optimizer.grad_scale = torch.tensor(1024.0, device=DEVICE)
        optimizer.found_inf = torch.tensor(float(t == 2), device=DEVICE)

    def skipped(optimizer: Any, params: list[Any], t: int) -> None:
        if t == 2:
            for p in params:
                p.grad.fill_(float("nan"))

    a = run(cls, "triton", 3, SMALL, dtype, hook=skipped, **options)
    b = run(cls, "triton", 3, SMALL, dtype, hook=scaled, **options)
    assert all(same_bits(p, q) for p, q in zip(a[0], b[0], strict=True))  # a power of two costs no bits
    assert not bit_differences(snapshot(a[1]), snapshot(b[1]))


@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")  # numpy's, in the interpreter
def test_torchs_own_scaler_leaves_its_work_to_the_kernels() -> None:
    """An overflow at the second step; unscaled by the user at the third, as before clipping."""
    weights = []
    for scaled in (True, False):
        params = parameters(SMALL)
        optimizer = build(A.Automagic_CameAMP, params, "triton")
        scaler = torch.amp.GradScaler(DEVICE, init_scale=2.0**10, enabled=scaled)
        assert not hasattr(optimizer, "_step_supports_amp_scaling")
        optimizer._step_supports_amp_scaling = True
        for t in (1, 2, 3):
            give(params, t)
            factor = scaler.scale(torch.ones((), device=DEVICE))
            for i, p in enumerate(params):
                p.grad = p.grad * factor
                if t == 2 and (scaled is False or i == 0):
                    p.grad.view(-1)[0] = float("inf")
            if t == 3:
                scaler.unscale_(optimizer)
            kept = [p.grad.clone() for p in params]
            scaler.step(optimizer)
            assert all(same_bits(p.grad, g) for p, g in zip(params, kept, strict=True))
            scaler.update()
        assert optimizer.health()["parameters"] == {f"param_{i}": 1 for i in range(3)}
        assert not scaled or scaler.get_scale() == 2.0**9
        weights.append(params)
        del optimizer._step_supports_amp_scaling
        assert not hasattr(optimizer, "_step_supports_amp_scaling")
    assert all(same_bits(p, q) for p, q in zip(*weights, strict=True))


@pytest.mark.filterwarnings("ignore:engine='triton' does not support")
def test_a_gradient_scaler_that_is_left_to_the_reference_is_an_error() -> None:
    for options in ({"engine": "reference"}, {"engine": "triton", "came": False}):
        params = parameters(SMALL, torch.float16)
        optimizer = build(A.Automagic_CameAMP, params, **options)
        give(params, 1)
        optimizer.grad_scale = torch.tensor(2.0)
        with pytest.raises(RuntimeError, match="_step_supports_amp_scaling"):
            optimizer.step()
        assert all(same_bits(p, q) for p, q in zip(params, parameters(SMALL, torch.float16), strict=True))


def test_asked_for_and_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    params = parameters(SMALL)
    give(params, 1)
    optimizer = build(A.Automagic_CameAMP, params, "triton")
    monkeypatch.setattr(fused, "has_triton", lambda: False)
    with pytest.raises(ValueError, match="Triton is not installed"):
        optimizer.step()
    monkeypatch.setattr(fused, "has_triton", lambda: True)
    monkeypatch.setattr(fused, "interpreted", lambda: False)
    if DEVICE == "cpu":
        with pytest.raises(ValueError, match="TRITON_INTERPRET=1"):
            optimizer.step()
    assert not optimizer.state


def test_deep_copies_have_tables_of_their_own() -> None:
    params, optimizer = run(A.Automagic_CameAMP, "triton", 1, SMALL)
    twin = copy.deepcopy({"p": params, "o": optimizer})
    give(params, 2)
    optimizer.step()
    assert not same_bits(params[0], twin["p"][0])
    give(twin["p"], 2)
    twin["o"].step()
    assert all(same_bits(p, q) for p, q in zip(params, twin["p"], strict=True))


@pytest.mark.parametrize(
    ("cls", "options", "reason"),
    [
        (A.Automagic_CameAMP, {"came": False}, "came=False"),
        (A.Automagic_CameAMP, {"use_agr": True}, "use_agr=True"),
        (A.Automagic_CameAMP, {"use_orthograd": True}, "use_orthograd=True"),
        (A.Automagic_CameAMP, {"tam_granularity": "row"}, "tam_granularity='row'"),
        (A.Automagic_CameAMP, {"lr_level": "distance"}, "lr_level='distance'"),
        (A.Automagic_CameAMP, {"lr_mask_rule": "additive"}, "lr_mask_rule='additive'"),
        (A.Automagic_CameAMP, {"lr_mask_granularity": "group"}, "lr_mask_granularity='group'"),
        (A.Automagic_CameAMP_Improved, {"factored": False}, "factored=False with background_regularization"),
        (
            A.Automagic_CameAMP_Improved_8Bit,
            {"percentile_clipping": 90, "optim_bits": 32},
            "percentile_clipping",
        ),
        (
            A.Automagic_CameAMP_Improved_8Bit,
            {"block_wise": False, "min_8bit_size": 0, "sync_frequency": 100},
            "blocks of 5040 elements",
        ),
        (
            A.Automagic_CameAMP_8Bit,
            {"quantization_strategy": By({(70, 72): 48}), "lora_rank_penalty": False},
            "blocks of 48 elements",
        ),
    ],
)
def test_what_no_kernel_knows_runs_on_the_reference(cls: type, options: dict[str, Any], reason: str) -> None:
    page = (Path(__file__).parents[2] / "docs/gpu.md").read_text()
    section = page.split("## What the reference runs instead")[1].split("## ")[0]
    assert reason.split("=")[0].split(" of ")[0] in section, "the page does not name it"
    shapes, results = [(70, 72)], []
    for engine in ("triton", "reference"):
        fused._SAID.clear()
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            params, optimizer = run(cls, engine, 2, shapes, torch.bfloat16, **options)
        assert runner(optimizer) is None
        assert any(reason in str(w.message) for w in said) == (engine == "triton")
        results.append(snapshot(optimizer))
    assert not bit_differences(*results)
