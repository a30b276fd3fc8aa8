"""The plan: what it may keep from one step to the next, and what it must notice."""

from __future__ import annotations

import copy
import io
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from automagic_cameamp import OPTIMIZERS, Automagic_CameAMP, Automagic_CameAMP8bit
from automagic_cameamp.executors import said as said_once
from automagic_cameamp.executors.native import plan as native
from automagic_cameamp.executors.native.held import Rows
from automagic_cameamp.kernels import build
from automagic_cameamp.kernels import native as kernels
from native import lockstep

SHAPES = [(16, 640), (640, 16), (300,), (200, 100)]
CLASSES = sorted(OPTIMIZERS)


def held(optimizer: Any, params: list[Any]) -> dict[str, torch.Tensor]:
    found = {f"p{i}": p.detach().clone() for i, p in enumerate(params)}
    for i, p in enumerate(params):
        found |= {f"{i}.{k}": v.clone() for k, v in optimizer.state[p].items() if isinstance(v, torch.Tensor)}
    return found


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert list(a) == list(b)
    for name in a:
        assert torch.equal(a[name], b[name]), name


def run(
    name: str, steps: range, threads: int = 1, shapes: Any = SHAPES, **options: Any
) -> tuple[Any, list[Any]]:
    optimizer, params = lockstep.make(name, shapes, torch.float32, "native", warmup_steps=8, **options)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for step in steps:
            lockstep.take(optimizer, params, step)
    finally:
        torch.set_num_threads(before)
    return optimizer, params


@pytest.mark.parametrize("name", CLASSES)
def test_threads_change_nothing(name: str) -> None:
    shapes = [*SHAPES, (1500, 700), (3, 300, 700)]
    options = {"lora_rank_penalty": False} if "8Bit" in name or "Improved" in name else {}
    one = held(*run(name, range(3), 1, shapes, **options))
    for threads in (2, 3):
        same(one, held(*run(name, range(3), threads, shapes, **options)))


@pytest.mark.parametrize("name", CLASSES)
def test_a_matrix_may_be_for_one_thread_or_for_all(name: str) -> None:
    """Of six, one is a sixth of the work: one thread takes it whole, two take it together."""
    shapes = [(768, 704)] * 6
    one, two = (held(*run(name, range(2), threads, shapes)) for threads in (1, 2))
    same(one, two)


@pytest.mark.parametrize("name", CLASSES)
def test_resume_is_bitwise(name: str) -> None:
    whole = held(*run(name, range(6)))
    first, params = run(name, range(3))
    saved = io.BytesIO()
    torch.save(first.state_dict(), saved)
    saved.seek(0)
    second, others = lockstep.make(name, SHAPES, torch.float32, "native", warmup_steps=8)
    for p, q in zip(params, others, strict=True):
        q.data.copy_(p.data)
    second.load_state_dict(torch.load(saved, weights_only=True))
    for step in range(3, 6):
        lockstep.take(second, others, step)
    assert {k: v for k, v in held(second, others).items() if "c_optim" not in k}.keys() <= whole.keys()
    for key, value in held(second, others).items():
        assert torch.equal(value, whole[key]), key


def test_a_plan_is_kept_and_used() -> None:
    optimizer, params = run("Automagic_CameAMP8bit", range(2))
    plan = optimizer.stepper.plans.current
    assert plan is not None
    for step in range(2, 5):
        lockstep.take(optimizer, params, step)
        assert optimizer.stepper.plans.current is plan


def other_data(optimizer: Any, params: list[Any]) -> None:
    params[0].data = params[0].data.clone()


def converted(optimizer: Any, params: list[Any]) -> None:
    params[0].data = params[0].data.bfloat16()
    params[0].grad = params[0].grad.bfloat16()


def state_elsewhere(optimizer: Any, params: list[Any]) -> None:
    for entry in optimizer.state.values():
        for name, value in entry.items():
            entry[name] = value.clone()


def state_data_elsewhere(optimizer: Any, params: list[Any]) -> None:
    for entry in optimizer.state.values():
        for value in entry.values():
            value.data = value.data.clone()


def loaded(optimizer: Any, params: list[Any]) -> None:
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))


def entry_elsewhere(optimizer: Any, params: list[Any]) -> None:
    optimizer.state[params[1]] = {k: v.clone() for k, v in optimizer.state[params[1]].items()}


def option_changed(optimizer: Any, params: list[Any]) -> None:
    optimizer.param_groups[0]["weight_decay"] = 0.5


def rate_changed(optimizer: Any, params: list[Any]) -> None:
    optimizer.param_groups[0]["lr"] = 5e-3


def flagged(optimizer: Any, params: list[Any]) -> None:
    params[0]._is_lora_layer = True


def fewer_gradients(optimizer: Any, params: list[Any]) -> None:
    params[2].grad = None


def strided_gradient(optimizer: Any, params: list[Any]) -> None:
    params[3].grad = params[3].grad.t().contiguous().t()


def another_seed(optimizer: Any, params: list[Any]) -> None:
    optimizer.config.seed = 7


def group_added(optimizer: Any, params: list[Any]) -> None:
    params.append(torch.nn.Parameter(torch.ones(5)))
    params[-1].grad = torch.ones(5)
    optimizer.add_param_group({"params": [params[-1]], "lr": 5e-4})


CHANGES: list[Callable[[Any, list[Any]], None]] = [
    other_data, converted, state_elsewhere, state_data_elsewhere, loaded, entry_elsewhere, option_changed,
    rate_changed, flagged, fewer_gradients, strided_gradient, another_seed, group_added,
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:.* changed its type in mid-run")
@pytest.mark.parametrize("change", CHANGES, ids=lambda f: f.__name__)
def test_a_change_between_two_steps_is_seen(change: Callable[[Any, list[Any]], None]) -> None:
    """As a new optimizer sees it, which has no plan yet."""
    results = []
    for forget in (False, True):
        optimizer, params = run("Automagic_CameAMP8bit", range(3))
        for p, g in zip(params, lockstep.gradients(params, 3), strict=True):
            p.grad = g
        change(optimizer, params)
        if forget:
            optimizer.stepper.forget()
        optimizer.step()
        optimizer.step()
        results.append(held(optimizer, params))
    same(*results)


def test_a_copy_has_its_own_plan() -> None:
    optimizer, params = run("Automagic_CameAMP", range(2))
    before = held(optimizer, params)
    twin, others = copy.deepcopy((optimizer, params))
    others[0].grad = torch.ones_like(others[0])
    twin.step()
    same(before, held(optimizer, params))


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e30])
def test_a_gradient_that_is_not_finite_changes_nothing(name: str, bad: float) -> None:
    optimizer, params = run(name, range(2))
    before = held(optimizer, params)
    for p, g in zip(params, lockstep.gradients(params, 2), strict=True):
        p.grad = g
    assert params[0].grad is not None
    params[0].grad[3, 4] = bad
    optimizer.step()
    after = held(optimizer, params)
    mine = {k for k in before if k == "p0" or k.startswith("0.")} - {"0.c_optim"}
    same({k: before[k] for k in mine}, {k: after[k] for k in mine})
    assert not torch.equal(before["p1"], after["p1"])
    assert optimizer.health()["skipped_updates"] == 1


@pytest.mark.parametrize(
    "option", [{"came": False}, {"use_orthograd": True}, {"lr_level": "vote"}, {"factored": False}]
)
def test_what_the_kernels_cannot_do_is_done_by_the_reference(option: dict[str, Any]) -> None:
    results = []
    for engine in ("reference", "auto"):
        optimizer, params = lockstep.make("Automagic_CameAMP", [(30, 40)], torch.float32, engine, **option)
        for step in range(3):
            lockstep.take(optimizer, params, step)
        assert optimizer.stepper.plans.current is None
        results.append(held(optimizer, params))
    same(*results)


def test_more_momentum_scales_than_the_kernels_hold_are_stepped_by_the_reference() -> None:
    """Their table has room for six means besides ``exp_avg`` and the update itself."""
    for scales, engine in ((range(1, 8), "native"), (range(1, 9), "reference")):
        optimizer, params = lockstep.make(
            "Automagic_CameAMP_COptim", [(30, 40)], torch.float32, "auto", momentum_scales=[10, *scales]
        )
        for step in range(3):
            lockstep.take(optimizer, params, step)
        [row] = optimizer.engine_report().rows
        assert row.engine == engine, row
        assert ("more than 8 momentum_scales" in row.reason) is (engine == "reference")


def test_the_level_of_several_groups_is_found_inside_a_plan() -> None:
    results = []
    for engine in ("reference", "native"):
        _, params = lockstep.make("Automagic_CameAMP", SHAPES, torch.float32, engine)
        groups = [{"params": params[:2]}, {"params": params[2:3], "lr": 3e-4}, {"params": params[3:]}]
        optimizer = Automagic_CameAMP(groups, lr=1e-3, lr_level="auto", warmup_steps=8, engine=engine)
        levels = []
        for step in range(12):
            lockstep.take(optimizer, params, step)
            levels.append([float(group["d"]) for group in optimizer.param_groups])
        assert (optimizer.stepper.plans.current is not None) is (engine == "native")
        results.append(torch.tensor(levels))
    assert len({tuple(level) for level in results[0].tolist()}) > 4, "it moves"
    torch.testing.assert_close(*results, rtol=1e-3, atol=0)


def test_engine_native_names_the_option_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(said_once, "SAID", set())
    optimizer, params = lockstep.make("Automagic_CameAMP", [(30, 40)], torch.float32, "native", came=False)
    with pytest.warns(UserWarning, match="came=False"):
        lockstep.take(optimizer, params, 0)
    lockstep.take(optimizer, params, 1)


def test_some_parameters_native_and_some_not() -> None:
    """Weights in fp64 go to the reference, in the same step."""
    results = []
    for engine in ("reference", "auto"):
        draw = torch.Generator().manual_seed(0)
        params = [torch.nn.Parameter(torch.randn(20, 30, generator=draw)) for _ in range(2)]
        params[1].data = params[1].data.double()
        optimizer = Automagic_CameAMP(params, lr=1e-3, engine=engine)
        for step in range(3):
            lockstep.take(optimizer, params, step)
        results.append(params)
    assert torch.equal(results[0][1], results[1][1]) or torch.allclose(
        results[0][1], results[1][1], rtol=1e-6
    )
    assert torch.allclose(results[0][0], results[1][0], rtol=1e-4, atol=1e-8)


def test_a_library_that_was_built_is_used() -> None:
    """Or all tests of the kernels would be left out without a word."""
    if not build.LIBRARY.is_file():
        pytest.skip("no library was built")
    assert kernels.why_not() is None


def test_without_the_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(said_once, "SAID", set())
    monkeypatch.setenv(kernels.SWITCH, str(tmp_path / "none.so"))
    kernels._opened.cache_clear()
    try:
        optimizer, params = lockstep.make("Automagic_CameAMP", [(30, 40)], torch.float32, "auto")
        with pytest.warns(UserWarning, match="cannot be used.*10 to 30 times"):
            lockstep.take(optimizer, params, 0)
        lockstep.take(optimizer, params, 1)  # said once
        forced, others = lockstep.make("Automagic_CameAMP", [(30, 40)], torch.float32, "native")
        with pytest.raises(RuntimeError, match="engine='native'"):
            lockstep.take(forced, others, 0)
        silent, others = lockstep.make("Automagic_CameAMP", [(30, 40)], torch.float32, "reference")
        monkeypatch.setattr(said_once, "SAID", set())
        lockstep.take(silent, others, 0)
    finally:
        kernels._opened.cache_clear()


def test_switched_off_by_the_user_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(said_once, "SAID", set())
    monkeypatch.setenv(kernels.SWITCH, "0")
    kernels._opened.cache_clear()
    try:
        optimizer, params = lockstep.make("Automagic_CameAMP", [(30, 40)], torch.float32, "auto")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            lockstep.take(optimizer, params, 0)
        assert optimizer.stepper.plans.current is None
    finally:
        kernels._opened.cache_clear()


def test_a_library_of_another_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from automagic_cameamp.kernels import layout

    monkeypatch.setattr(layout, "ABI_VERSION", -5)
    kernels._opened.cache_clear()
    try:
        assert "another version" in (kernels.why_not() or "")
    finally:
        kernels._opened.cache_clear()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_makes_its_own_threads() -> None:
    program = (
        "import os, torch\n"
        "from automagic_cameamp import Automagic_CameAMP\n"
        "torch.set_num_threads(2)\n"
        "p = torch.nn.Parameter(torch.ones(1500, 700))\n"
        "o = Automagic_CameAMP([p], lr=1e-3, engine='native')\n"
        # torch's own pool does not survive a fork, so no large operation of its own in the child
        "p.grad = torch.full_like(p, 0.01)\n"
        "go = o.step\n"
        "go()\n"
        "child = os.fork()\n"
        "go()\n"
        "if child == 0: os._exit(0)\n"
        "print(os.waitpid(child, 0)[1])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout.strip() == "0", done.stderr


def test_one_call_per_step(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    original = native.Table.call
    monkeypatch.setattr(
        native.Table,
        "call",
        lambda self, grads, params: (calls.append(len(grads)), original(self, grads, params))[1],
    )
    params = [torch.nn.Parameter(torch.randn(8, 16)) for _ in range(50)] + [
        torch.nn.Parameter(torch.randn(30))
    ]
    optimizer = Automagic_CameAMP8bit(params, lr=1e-3, engine="native")
    for step in range(3):
        lockstep.take(optimizer, params, step)
    assert calls == [51, 51, 51]


@pytest.mark.parametrize("odd", [torch.float64, None], ids=str)
def test_rows_are_gathered_wherever_they_lie(odd: torch.dtype | None) -> None:
    rows = [torch.randn(11) for _ in range(5)]
    gathered = Rows(rows if odd is None else [rows[0].to(odd), *rows[1:]])
    assert gathered.gathered().tolist() == torch.stack(rows).tolist()
    rows[3].add_(1)
    assert gathered.gathered().tolist() == torch.stack(rows).tolist()
