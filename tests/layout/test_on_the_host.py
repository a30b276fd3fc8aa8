"""Weights in another order step on the host as where they are: sums run in the order of the indices."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from automagic_cameamp import OPTIMIZERS


@pytest.mark.parametrize("released", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_transposed_weights_step_alike(name: str, dtype: torch.dtype, released: bool) -> None:
    found: list[tuple[torch.Tensor, dict[str, Any]]] = []
    for where in ("none", "cpu"):
        draw = torch.Generator().manual_seed(0)
        p = torch.nn.Parameter(torch.randn(24, 40, generator=draw).to(dtype).t())
        optimizer = OPTIMIZERS[name]([p], lr=1e-3, offload=where, warmup_steps=3)
        if released and where == "cpu":
            optimizer.release_gradients([p])
        for _ in range(5):
            g = torch.randn(24, 40, generator=draw).to(dtype).t()
            (p * g).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        found.append((p.detach(), optimizer.state[p]))
    (p, state), (q, other) = found
    assert torch.equal(p, q)
    for key, value in state.items():
        assert torch.equal(value, other[key]), key
