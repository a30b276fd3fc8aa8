"""Training, stopping, going on: a resumed run is the uninterrupted run, bit for bit."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from automagic_trainer import checkpoint, loop
from automagic_trainer.data import load_folder
from automagic_trainer.errors import TrainingFailed, UserError
from automagic_trainer.loop import Run, Stopped, preflight
from automagic_trainer.metrics import MetricsFile, Row, state_bytes
from automagic_trainer.settings import build
from automagic_trainer.tasks import LoraTask

TIMES = ("seconds", "optimizer_ms")


def same(a: Any, b: Any, where: str = "") -> None:
    """Equal in value, type and dtype, all the way down."""
    assert type(a) is type(b), where
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype and a.shape == b.shape, where
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            same(x, y, f"{where}[{i}]")
    else:
        assert a == b, where


def timeless(rows: list[Row]) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k not in TIMES} for row in rows]


def interrupt_at(step: int) -> Any:
    return lambda row: signal.raise_signal(signal.SIGINT) if row["step"] == step else None


# Convolutions in bf16 take three times as long on processors that have none.
@pytest.mark.parametrize(
    ("optimizer", "precision"),
    [
        ("AdamW", "fp32"),
        ("Automagic_CameAMP", "fp32"),
        ("Automagic_CameAMP8bit", "fp32"),
        ("Automagic_CameAMP8bit", "bf16"),
        pytest.param("AdamW", "bf16", marks=pytest.mark.slow),
        pytest.param("Automagic_CameAMP", "bf16", marks=pytest.mark.slow),
    ],
)
def test_a_resumed_run_is_the_uninterrupted_run(train_in: Any, optimizer: str, precision: str) -> None:
    options = {"optimizer": optimizer, "precision": precision, "schedule": "cosine", "warmup": 2, "steps": 5}
    whole, whole_run = train_in("whole", **options)
    with pytest.raises(Stopped) as stopped:
        train_in("parts", on_row=interrupt_at(3), **options)
    assert stopped.value.step == 3
    torch.manual_seed(99)  # what happened in between must not matter
    parts, parts_run = train_in("parts", resume=True, **options)
    same([p.detach() for p in whole_run.params], [p.detach() for p in parts_run.params])
    same(whole_run.optimizer.state_dict(), parts_run.optimizer.state_dict())
    assert timeless(whole.rows) == timeless(parts.rows)
    assert (whole.adapter / "adapter_model.safetensors").read_bytes() == (
        parts.adapter / "adapter_model.safetensors"
    ).read_bytes()


def test_a_run_killed_between_checkpoints_goes_on_from_the_last(train_in: Any, tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    def kill(row: Row) -> None:
        if row["step"] == 3:
            raise Killed

    whole, whole_run = train_in("whole")
    with pytest.raises(Killed):
        train_in("parts", on_row=kill)
    assert [r["step"] for r in MetricsFile(tmp_path / "parts" / "metrics.jsonl").rows()] == [0, 1, 2, 3]
    parts, parts_run = train_in("parts", resume=True)
    same([p.detach() for p in whole_run.params], [p.detach() for p in parts_run.params])
    assert timeless(whole.rows) == timeless(parts.rows)


def test_more_steps_can_be_asked_for_later(train_in: Any) -> None:
    whole, _ = train_in("whole", steps=5)
    train_in("parts", steps=3)
    longer, _ = train_in("parts", steps=5, resume=True)
    kept = [{k: v for k, v in row.items() if k != "held_out"} for row in timeless(longer.rows)]
    assert kept == [{k: v for k, v in row.items() if k != "held_out"} for row in timeless(whole.rows)]
    with pytest.raises(UserError, match="at step 5, past steps=2"):
        train_in("parts", steps=2, resume=True)


def test_global_random_numbers_of_an_optimizer_are_resumed(
    train_in: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Noisy(torch.optim.SGD):
        """Draws from the global generators, as an optimizer with stochastic rounding might."""

        def step(self, closure: Any = None) -> None:
            import random

            import numpy as np

            for group in self.param_groups:
                for p in group["params"]:
                    scale = random.random() * float(np.random.rand()) * 1e-3
                    p.data.add_(torch.randn_like(p), alpha=scale)

    monkeypatch.setattr(torch.optim, "Noisy", Noisy, raising=False)
    import random

    import numpy as np

    def seeded(**options: Any) -> Any:
        random.seed(1)
        np.random.seed(1)
        return train_in(optimizer="Noisy", **options)

    _, whole = seeded(name="whole")
    with pytest.raises(Stopped):
        seeded(name="parts", on_row=interrupt_at(2))
    _, parts = seeded(name="parts", resume=True)
    same([p.detach() for p in whole.params], [p.detach() for p in parts.params])


def test_the_same_seed_gives_the_same_run_and_another_does_not(train_in: Any) -> None:
    (one, a), (two, b), (_, c) = train_in("a"), train_in("b"), train_in("c", seed=1)
    assert timeless(one.rows) == timeless(two.rows)
    same([p.detach() for p in a.params], [p.detach() for p in b.params])
    assert not torch.equal(a.params[0], c.params[0])


def test_metrics_have_one_line_a_step(train_in: Any, tmp_path: Path) -> None:
    result, run = train_in("run", steps=4, eval_every=3, lr=0.25)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    assert rows == result.rows
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4]
    for row in rows:
        assert set(row) == set(Row.__annotations__)
        assert row["optimizer"] == "AdamW"
        assert (row["loss"] is None) == (row["step"] == 0)
        assert (row["held_out"] is not None) == (row["step"] in (0, 3, 4))
        assert row["lr"] == 0.25
    assert rows[0]["state_bytes"] == 0
    assert rows[4]["state_bytes"] == state_bytes(run.optimizer) >= 8 * result.parameters
    assert rows[4]["seconds"] > rows[1]["seconds"] > 0
    assert result.before == rows[0]["held_out"] and result.after == rows[4]["held_out"]


def test_the_schedule_reaches_the_optimizer(train_in: Any) -> None:
    result, _ = train_in("run", optimizer="SGD", lr=0.5, schedule="warmup", warmup=4, clip=0.001)
    assert [row["lr"] for row in result.rows[1:]] == [0.125, 0.25, 0.375, 0.5]


def test_two_passes_of_one_step_are_one_pass_of_twice_the_size(train_in: Any) -> None:
    """The same pictures, and the gradient of the mean over the passes."""
    _, one = train_in("one", steps=1, batch=2, accumulate=1)
    _, two = train_in("two", steps=1, batch=1, accumulate=2)
    assert one.task.rows(0).tolist() == [*two.task.rows(0, 0, 2).tolist(), *two.task.rows(0, 1, 2).tolist()]
    run = two
    losses = [run.task.loss(0, m, 2) for m in range(2)]
    grads = [torch.autograd.grad(loss, run.params, retain_graph=True) for loss in losses]
    for p in run.params:
        p.grad = None
    seen: list[torch.Tensor] = []
    run.optimizer.step = lambda closure=None: seen.extend(p.grad.clone() for p in run.params)  # type: ignore
    run.step, run.passes_loss = 0, False
    object.__setattr__(run.settings, "clip", 0.0)
    value, _ = run.train_step()
    assert value == pytest.approx(sum(loss.item() for loss in losses) / 2, rel=1e-5)
    for got, a, b in zip(seen, *grads, strict=True):
        assert torch.allclose(got, (a + b) / 2, rtol=1e-4, atol=1e-7)


def test_clipping_limits_the_whole_gradient(train_in: Any) -> None:
    _, run = train_in("run", steps=1)
    norms: list[float] = []

    def step(closure: Any = None) -> None:
        norms.append(torch.stack([p.grad.norm() for p in run.params]).norm().item())  # type: ignore

    run.optimizer.step = step  # type: ignore[method-assign]
    for clip in (0.0, 1e-3):
        object.__setattr__(run.settings, "clip", clip)
        run.train_step()
    assert norms[0] > 2e-3
    assert norms[1] == pytest.approx(1e-3, rel=1e-3)


def test_old_checkpoints_go_and_none_is_ever_half_written(
    train_in: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_in("run", steps=6)
    folder = tmp_path / "run" / "checkpoints" / "AdamW"
    names = ["manifest.json", "step-00000004.pt", "step-00000006.pt"]
    assert [f.name for f in sorted(folder.iterdir())] == names
    before = {f.name: f.read_bytes() for f in folder.iterdir()}

    def half(payload: Any, f: Any) -> None:
        f.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(OSError, match="disk full"):
        checkpoint.write(folder, 8, {})
    assert {f.name: f.read_bytes() for f in folder.iterdir()} == before


def test_changed_pictures_are_explained(train_in: Any, folder: Path) -> None:
    train_in("run")
    (folder / "red.txt").write_text("another caption", encoding="utf-8")
    with pytest.raises(UserError, match="pictures or captions"):
        train_in("run", resume=True)


def test_a_loss_that_is_not_a_number_ends_the_run(
    train_in: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "PATIENCE", 2)
    whole = LoraTask.loss

    def loss(self: LoraTask, step: int, *rest: int) -> torch.Tensor:
        value = whole(self, step, *rest)
        return value * float("nan") if step in (0, 2, 3) else value

    monkeypatch.setattr(LoraTask, "loss", loss)
    # one bad step is borne, two in a row are not
    with pytest.raises(TrainingFailed, match=r"step 4\); use a smaller learning rate"):
        train_in("run", optimizer="Automagic_CameAMP", steps=9)
    text = (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8")
    assert [json.loads(line)["loss"] is None for line in text.splitlines()] == [True, True, False, True, True]


def test_ctrl_c_twice_stops_at_once_and_handlers_are_put_back() -> None:
    old = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), loop.StopSignal() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.asked
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is old


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"optimizer": "AdamV"}, ["AdamW"]),
        ({"optimizer": "LBFGS"}, ["closure"]),
        ({"optimizer": "SparseAdam"}, ["sparse"]),
        ({"optimizer": "AdamW", "optimizer_args": {"lr": 1e-3}, "lr": 1e-3}, ["twice"]),
        ({"optimizer": "AdamW", "optimizer_args": {"betas": 3}}, ["AdamW"]),
        ({"device": "tpu"}, ["tpu"]),
        ({"device": "meta"}, ["meta", "cuda:N"]),
        ({"device": "cuda:99"}, ["cuda:99", "CUDA devices"]),
    ],
)
def test_preflight_finds_what_would_fail_later(options: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        preflight(build(options))
    for word in words:
        assert word in str(error.value)
    assert "\n" not in str(error.value)


def test_a_state_tensor_that_appears_twice_counts_once() -> None:
    p = torch.nn.Parameter(torch.zeros(10))
    optimizer = torch.optim.SGD([p], lr=0.1)
    arena = torch.zeros(100)
    optimizer.state[p] = {
        "a": arena[:10],
        "b": [arena[10:20], arena[:10]],
        "c": {"d": arena[50:53]},
        "step": 4,
    }
    assert state_bytes(optimizer) == 40 + 40 + 12


def test_the_loss_is_handed_to_an_optimizer_that_asks_for_it(folder: Path, tmp_path: Path) -> None:
    settings = build({"data": str(folder), "out": str(tmp_path), "optimizer": "AdamW", "batch": 2, "rank": 2})
    run = Run(settings, load_folder(folder), "AdamW", tmp_path)
    got: list[Any] = []
    run.passes_loss = True
    run.optimizer.step = lambda *, loss: got.append(loss)  # type: ignore
    value, _ = run.train_step()
    assert got == [value]
