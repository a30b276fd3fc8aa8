"""The Triton engine on a real GPU: what its interpreter cannot show.

The lock-step tests of tests/triton_engine run on the GPU too where there is one. ``make gpu`` runs both,
and the repeated runs once more under compute-sanitizer.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import automagic_cameamp as A
from engine.helpers import differences as bit_differences
from engine.helpers import same_bits, snapshot
from triton_drive import SHAPES, By, build, give, parameters, run, runner

pytestmark = pytest.mark.gpu

# The last shapes are coded, in blocks of several sizes.
MODEL = [*SHAPES, (40, 64), (33, 50), (300, 14), (70, 72)]
BLOCKS = By({(40, 64): 1024, (33, 50): 32, (70, 72): 4096})
KEEP: dict[str, Any] = {"sync_frequency": 1000}
REST: dict[str, Any] = {"master_weight_bits": 24}
CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    **{
        name: (cls, KEEP if hasattr(cls.config_class, "sync_frequency") else {})
        for name, cls in A.OPTIMIZERS.items()
    },
    "24 bits, four bits": (A.Automagic_CameAMP8bit, {"state_code": "softsign4", **REST}),
    "24 bits, mixed blocks": (A.Automagic_CameAMP_8Bit, {"quantization_strategy": BLOCKS, **KEEP, **REST}),
    "minimal": (A.Automagic_CameAMP_Improved_8Bit, {"profile": "minimal"}),
}
EACH = pytest.mark.parametrize(("cls", "options"), list(CASES.values()), ids=list(CASES))
BOTH = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


@EACH
@BOTH
def test_auto_takes_it_and_never_waits(cls: type, options: dict[str, Any], dtype: torch.dtype) -> None:
    run(cls, "auto", 3, MODEL, dtype, **options)  # compiles
    params = parameters(MODEL, dtype)
    optimizer = build(cls, params, "auto", **options)
    for t in range(1, 5):
        give(params, t)
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            optimizer.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert not runner(optimizer).rest


@EACH
@BOTH
def test_a_replayed_graph_gives_the_bits_of_eager_steps(
    cls: type, options: dict[str, Any], dtype: torch.dtype
) -> None:
    results = []
    for captured in (False, True):
        params = parameters(MODEL, dtype)
        lr = torch.tensor(5e-4, device="cuda")
        optimizer = build(cls, params, "triton", lr=lr, **options)
        grads: list[Tensor] = [torch.empty_like(p) for p in params]
        graph = torch.cuda.CUDAGraph()

        def bring(t: int, params: list[Tensor] = params, grads: list[Tensor] = grads) -> None:
            give(params, t)
            for p, g in zip(params, grads, strict=True):
                g.copy_(p.grad)
                p.grad = g

        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for t in (1, 2, 3):
                bring(t)
                optimizer.step()
        torch.cuda.current_stream().wait_stream(side)
        if captured:
            with torch.cuda.graph(graph):
                optimizer.step()
        for t in (4, 5, 6):
            bring(t)
            graph.replay() if captured else optimizer.step()
        torch.cuda.synchronize()
        results.append(snapshot(optimizer)[:2])
    found = bit_differences((*results[0], []), (*results[1], []))
    assert not found, "\n".join(found)


@EACH
def test_runs_on_the_current_stream_and_repeats_bitwise(cls: type, options: dict[str, Any]) -> None:
    first = run(cls, "triton", 3, MODEL, torch.bfloat16, **options)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        second = run(cls, "triton", 3, MODEL, torch.bfloat16, **options)
    torch.cuda.synchronize()
    assert all(same_bits(p, q) for p, q in zip(first[0], second[0], strict=True))
    assert not bit_differences(snapshot(first[1]), snapshot(second[1]))


@BOTH
@pytest.mark.parametrize("cls", [A.Automagic_CameAMP, A.Automagic_CameAMP_Improved])
def test_a_gradient_scaler_that_is_asked_for(cls: Any, dtype: torch.dtype) -> None:
    """An overflow at the second step. Improved: the reference has a part in the first one."""
    options = KEEP if cls is A.Automagic_CameAMP_Improved else {}
    params, twins = parameters(SHAPES, dtype), parameters(SHAPES, dtype)
    optimizer, plain = build(cls, params, "triton", **options), build(cls, twins, "triton", **options)
    optimizer._step_supports_amp_scaling = True
    scaler = torch.amp.GradScaler("cuda", init_scale=256.0)
    for t in (1, 2, 3):
        give(params, t)
        give(twins, t)
        factor = scaler.scale(torch.ones((), device="cuda"))
        for p in params:
            p.grad = (p.grad * factor).to(dtype)
        if t == 2:
            params[0].grad.view(-1)[0] = float("inf")
            for q in twins:
                q.grad.fill_(float("nan"))
        scaler.step(optimizer)
        scaler.update()
        plain.step()
    assert scaler.get_scale() == 128.0
    assert all(same_bits(p, q) for p, q in zip(params, twins, strict=True))
