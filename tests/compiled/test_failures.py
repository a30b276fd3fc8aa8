"""No compiler, no memory, a compiler that is wrong: said once, stepped eagerly, the same bits."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch

from automagic_cameamp import Automagic_CameAMP
from automagic_cameamp.executors import compiled
from automagic_cameamp.executors.compiled import Compiled


def run(engine: str, steps: int = 3) -> list[torch.Tensor]:
    torch.manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(6, 10)) for _ in range(2)]
    optimizer = Automagic_CameAMP(params, lr=1e-3, engine=engine)
    for _ in range(steps):
        for p in params:
            p.grad = torch.randn(p.shape)
        optimizer.step()
    return params


def same_as_reference() -> None:
    for p, q in zip(run("compiled"), run("reference"), strict=True):
        assert torch.equal(p, q)


def test_no_compiler(monkeypatch: pytest.MonkeyPatch, fresh: Compiled) -> None:
    def fail(*args: Any) -> Any:
        raise RuntimeError("no C compiler found")

    monkeypatch.setattr(compiled, "compiled", fail)
    with pytest.warns(UserWarning, match="no C compiler found") as said:
        same_as_reference()
    assert len(said) == 1 and "eagerly" in str(said[0].message)
    assert list(fresh.broken) == ["cpu"]


def test_no_memory_for_the_comparison(monkeypatch: pytest.MonkeyPatch, fresh: Compiled) -> None:
    def fail(*args: Any) -> Any:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(compiled, "compiled", fail)
    with pytest.warns(UserWarning, match="no memory was left") as said:
        same_as_reference()
    assert len(said) == 1 and not fresh.broken


@pytest.mark.parametrize("what", ["weights", "state", "flag"])
def test_a_compiler_that_is_wrong(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(step: compiled.Step, inputs: Any, any_batch: bool) -> Any:
        def call(p: Any, g: Any, planes: Any, numbers: Any, keys: Any) -> Any:
            old = p.clone()
            ok, signals = step(p, g, planes, numbers, keys)
            if what == "weights":
                p.copy_(old + (p - old) * 1.01)
            if what == "state":
                planes["exp_avg"][0].mul_(1.01)
            return (~ok if what == "flag" else ok), signals

        return call

    monkeypatch.setattr(compiled, "compiled", wrong)
    with pytest.warns(UserWarning, match="differs from the eager one"):
        same_as_reference()


def test_an_option_that_changes_at_every_step(monkeypatch: pytest.MonkeyPatch, fresh: Compiled) -> None:
    monkeypatch.setattr(compiled, "compiled", lambda step, inputs, any_batch: step)
    p = torch.nn.Parameter(torch.randn(6, 10))
    optimizer = Automagic_CameAMP([p], lr=1e-3, engine="compiled")
    with pytest.warns(UserWarning, match="an option that changes from step to step"):
        for step in range(12):
            p.grad = torch.randn(6, 10)
            optimizer.param_groups[0]["weight_decay"] = 0.01 * step
            optimizer.step()
    assert len(fresh.graphs) == compiled.OPTIONS_PER_STACK


@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("float16", marks=pytest.mark.slow)])
def test_small_matrices_of_16_bits_end_in_no_memory_fault(dtype: str) -> None:
    """Rounded at random, in the warm-up: Inductor's vectorised C++ ended the process (torch 2.13)."""
    text = f"""
import torch
import automagic_cameamp
torch.manual_seed(0)
p = torch.nn.Parameter(torch.randn(8, 8).to(torch.{dtype}))
optimizer = automagic_cameamp.Automagic_CameAMP([p], lr=1e-3, engine="compiled")
for _ in range(2):
    p.grad = torch.randn(8, 8).to(p.dtype)
    optimizer.step()
print(optimizer.engine_report().elements("compiled"))
"""
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and done.stdout.strip() == "64", done.stderr[-2000:]
