"""Launches of a step: few, and the same number for 10 tensors and for 2,000."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import automagic_cameamp as A
from automagic_cameamp.profiles import PROFILES
from triton_drive import DEVICE, By, build, give, parameters, runner

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

# Blocks of 32, 256 and 1,024, a tensor that is one block, one without a code, and small ones.
SHAPES = [(40, 30), (66, 68), (35, 30), (5, 240), (8,), (5, 2)]
BLOCKS = By({(40, 30): 32, (66, 68): 1024, (35, 30): 4096}, {(5, 240)})

IGNORED = ("lift", "pin_memory", "is_pinned", "profiler::")


class Operations(TorchDispatchMode):
    """Names of the torch operations that run on the device."""

    def __init__(self, quiet: tuple[str, ...] = QUIET) -> None:
        super().__init__()
        self.quiet = quiet
        self.names: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        name = function.name().removeprefix("aten::").split(".")[0]
        if name.strip("_") not in self.quiet and not name.startswith(IGNORED):
            self.names.append(name)
        return result


def seen_by(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Count launches without running them; the list receives kernel, grid and arguments of each."""
    from automagic_cameamp.kernels import launch

    every: list[tuple[Any, ...]] = []

    def count_only(self: Any, kernel: Any, grid: int, *args: Any, **options: Any) -> None:
        if grid:
            self.count += 1
            every.append((kernel, grid, args, options))

    monkeypatch.setattr(launch.Launcher, "__call__", count_only)
    return every


@pytest.mark.parametrize(
    ("cls", "options", "most", "mixed"),
    [
        (A.Automagic_CameAMP, {}, 8, False),
        (A.Automagic_CameAMP8bit, {"blocksize": 64}, 8, False),
        (A.Automagic_CameAMP8bit, {"blocksize": 64, "master_weight_bits": 24}, 8, False),
        (A.Automagic_CameAMP_Improved, {}, 16, False),
        (A.Automagic_CameAMP_8Bit, {"quantization_strategy": BLOCKS}, 16, True),
        (A.Automagic_CameAMP_Improved_8Bit, {"profile": "quality_optimized", "verbose": False}, 16, False),
        (A.Automagic_CameAMP_Improved_8Bit, {"profile": "minimal", "master_weight_bits": 24}, 16, True),
        (A.Automagic_CameAMP_COptim, {}, 16, False),
        (A.Automagic_CameAMP_COptim8bit, {}, 16, False),
    ],
)
def test_few_and_always_the_same(
    cls: type, options: dict[str, Any], most: int, mixed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kernels and torch operations together, counted after the first two steps, which build the tables."""
    seen_by(monkeypatch)
    found = []
    for copies in (2, 340):
        dtype = torch.bfloat16 if "master_weight_bits" in options else torch.float32
        params = parameters(SHAPES * copies, dtype)
        optimizer = build(cls, params, "triton", **options)
        for t in (1, 2):
            give(params, t)
            optimizer.step()
        for p in params:  # new addresses, as after zero_grad(set_to_none=True)
            p.grad = torch.zeros_like(p)
        whole = runner(optimizer)
        assert not whole.rest and len(whole.members) == len(params)
        assert (whole.runner.flags.DOUBLINGS > 0) is mixed
        before = whole.runner.launch.count
        with Operations() as seen:
            optimizer.step()
        assert runner(optimizer) is whole, "the tables were built anew"
        found.append((whole.runner.launch.count - before, sorted(seen.names)))
    assert found[0] == found[1], "the number of launches depends on the number of tensors"
    launches, operations = found[0]
    assert launches >= 7
    assert launches + len(operations) <= most, (launches, operations)


EVERY = [(name, {}) for name in A.OPTIMIZERS]
EVERY += [("Automagic_CameAMP_Improved_8Bit", {"profile": name, "verbose": False}) for name in PROFILES]


@pytest.mark.parametrize(("name", "options"), EVERY, ids=str)
def test_no_default_goes_to_the_reference(
    name: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every class and profile, at steps that renew no basis: linear, narrow, kernel, embedding, vectors."""
    seen_by(monkeypatch)
    shapes = [(320, 4), (16, 320), (1024, 40), (64, 4, 3, 3), (500, 24), (320,), (3,), ()]
    params = parameters(shapes, torch.bfloat16)
    optimizer = build(A.OPTIMIZERS[name], params, "triton", **options)
    for t in (1, 2):
        give(params, t)
        optimizer.step()
    whole = runner(optimizer)
    assert not whole.rest and len(whole.members) == len(params)


def test_adaptive_blocks_are_one_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    seen_by(monkeypatch)
    params = parameters([(330, 310), (40, 30)])
    optimizer = build(A.Automagic_CameAMP_8Bit, params, "triton", adaptive_block_size=True)
    for _ in range(2):
        give(params, 1)
        optimizer.step()
    whole = runner(optimizer)
    assert len(whole.members) == 2
    assert (whole.runner.flags.UNIT, whole.runner.flags.DOUBLINGS) == (128, 1)


@pytest.mark.parametrize("lr", [5e-4, torch.tensor(5e-4)], ids=["number", "tensor"])
@pytest.mark.parametrize(
    ("cls", "options", "operations"),
    [
        (A.Automagic_CameAMP, {}, []),
        (A.Automagic_CameAMP_8Bit, {"quantization_strategy": BLOCKS, "sync_frequency": 1000}, []),
        (A.Automagic_CameAMP_COptim8bit, {"master_weight_bits": 24}, ["select", "exp"]),
    ],
)
def test_a_repeated_step_makes_nothing_and_moves_nothing(
    cls: type, options: dict[str, Any], operations: list[str], lr: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a CUDA graph needs: the same launches with the same addresses, no copies, no new tables.

    ``exp``: the controller's multiplier, a number of its own at every step.
    """
    every = seen_by(monkeypatch)
    lr = lr.to(DEVICE) if isinstance(lr, torch.Tensor) else lr
    params = parameters(SHAPES, torch.bfloat16)
    optimizer = build(cls, params, "triton", lr=lr, **options)
    give(params, 1)
    for _ in range(3):
        every.clear()
        optimizer.step()
    whole, first = runner(optimizer), list(every)
    every.clear()
    with Operations(quiet=()) as seen:
        optimizer.step()
    assert runner(optimizer) is whole
    assert seen.names == operations
    assert len(every) == len(first) >= 7
    made = set()
    for (kernel, grid, args, flags), (other, size, old, held) in zip(every, first, strict=True):
        assert (kernel, grid, flags) == (other, size, held)
        for i, (a, b) in enumerate(zip(args, old, strict=True)):
            if isinstance(a, torch.Tensor):
                if a.data_ptr() != b.data_ptr():
                    made.add((kernel, i))
            else:
                assert a == b
    # The only memory that may be new is the multiplier's: one argument of the kernels that read it.
    assert len(made) == len({kernel for kernel, _ in made})
    assert not made or operations
