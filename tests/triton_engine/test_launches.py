"""Launches of a step: few, and the same number for 10 tensors and for 2,000."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import automagic_cameamp as A
from triton_drive import build, give, parameters, runner

# Operations that only look at memory in another way, or make it.
QUIET = (
    "view",
    "detach",
    "slice",
    "select",
    "alias",
    "reshape",
    "empty",
    "as_strided",
    "unsqueeze",
    "expand",
)

IGNORED = ("lift", "pin_memory", "is_pinned", "profiler::")


class Operations(TorchDispatchMode):
    """Names of the torch operations that run on the device."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        name = function.name().removeprefix("aten::").split(".")[0]
        if name.strip("_") not in QUIET and not name.startswith(IGNORED):
            self.names.append(name)
        return result


@pytest.mark.parametrize(
    ("cls", "options", "most"),
    [
        (A.Automagic_CameAMP, {}, 8),
        (A.Automagic_CameAMP8bit, {"blocksize": 64}, 8),
        (A.Automagic_CameAMP_Improved, {}, 16),
        (A.Automagic_CameAMP_Improved_8Bit, {"profile": "quality_optimized", "verbose": False}, 16),
        (A.Automagic_CameAMP_COptim, {}, 16),
        (A.Automagic_CameAMP_COptim8bit, {}, 16),
    ],
)
def test_few_and_always_the_same(
    cls: type, options: dict[str, Any], most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kernels and torch operations together, counted after the first two steps, which build the tables."""
    from automagic_cameamp.kernels import launch

    def count_only(self: Any, kernel: Any, grid: int, *args: Any, **options: Any) -> None:
        self.count += 1 if grid else 0

    monkeypatch.setattr(launch.Launcher, "__call__", count_only)
    found = []
    for copies in (2, 400):
        params = parameters([(12, 30), (20, 12), (8,), (2, 2, 3), (5, 2)] * copies)
        optimizer = build(cls, params, "triton", **options)
        for t in (1, 2):
            give(params, t)
            optimizer.step()
        for p in params:  # new addresses, as after zero_grad(set_to_none=True)
            p.grad = torch.zeros_like(p)
        whole = runner(optimizer)
        assert not whole.rest
        before = whole.runner.launch.count
        with Operations() as seen:
            optimizer.step()
        assert runner(optimizer) is whole, "the tables were built anew"
        found.append((whole.runner.launch.count - before, sorted(seen.names)))
    assert found[0] == found[1], "the number of launches depends on the number of tensors"
    launches, operations = found[0]
    assert launches >= 7
    assert launches + len(operations) <= most, (launches, operations)
