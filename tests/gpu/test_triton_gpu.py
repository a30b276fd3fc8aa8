"""The Triton engine on a real GPU: what its interpreter cannot show.

The lock-step tests of tests/triton_engine run on the GPU too where there is one. For a check of every
memory access: compute-sanitizer --tool memcheck python -m pytest tests/gpu/test_triton_gpu.py
"""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

import automagic_cameamp as A
from engine.helpers import differences as bit_differences
from engine.helpers import same_bits, snapshot
from triton_drive import SHAPES, build, give, parameters, run, runner

pytestmark = pytest.mark.gpu

CLASSES = list(A.OPTIMIZERS.values()) if hasattr(A, "OPTIMIZERS") else [A.Automagic_CameAMP]
EACH = pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
OPTIONS: dict[str, Any] = {"sync_frequency": 1000}


def options_of(cls: type) -> dict[str, Any]:
    return OPTIONS if "Improved" in cls.__name__ or cls is A.Automagic_CameAMP_8Bit else {}


@EACH
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_auto_takes_it_and_never_waits(cls: type, dtype: torch.dtype) -> None:
    run(cls, "auto", 3, SHAPES, dtype, **options_of(cls))  # compiles
    params = parameters(SHAPES, dtype)
    optimizer = build(cls, params, "auto", **options_of(cls))
    for t in range(1, 5):
        give(params, t)
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            optimizer.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert runner(optimizer) is not None


@EACH
def test_a_replayed_graph_gives_the_bits_of_eager_steps(cls: type) -> None:
    results = []
    for captured in (False, True):
        params = parameters()
        lr = torch.tensor(5e-4, device="cuda")
        optimizer = build(cls, params, "triton", lr=lr, **options_of(cls))
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
def test_runs_on_the_current_stream_and_repeats_bitwise(cls: type) -> None:
    first = run(cls, "triton", 3, SHAPES, torch.bfloat16, **options_of(cls))
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        second = run(cls, "triton", 3, SHAPES, torch.bfloat16, **options_of(cls))
    torch.cuda.synchronize()
    assert all(same_bits(p, q) for p, q in zip(first[0], second[0], strict=True))
    assert not bit_differences(snapshot(first[1]), snapshot(second[1]))


def test_a_gradient_scaler_that_is_asked_for() -> None:
    params = parameters()
    optimizer = build(A.Automagic_CameAMP, params, "triton")
    optimizer._step_supports_amp_scaling = True
    scaler = torch.amp.GradScaler("cuda", init_scale=256.0)
    before = [p.detach().clone() for p in params]
    for t in (1, 2):
        give(params, t)
        scaler.scale(torch.zeros((), device="cuda"))  # makes the factor
        for p in params:
            p.grad = p.grad * scaler.get_scale()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            scaler.step(optimizer)
            scaler.update()
    assert not any(same_bits(p, q) for p, q in zip(params, before, strict=True))
