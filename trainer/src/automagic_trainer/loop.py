"""The training loop of one optimizer: steps, checkpoints, resume, Ctrl-C."""

from __future__ import annotations

import dataclasses
import inspect
import math
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from automagic_cameamp.factory import OptimizerArgumentError, build_optimizer, resolve_optimizer

from . import checkpoint
from .data import PictureSet
from .errors import TrainingFailed, UserError
from .metrics import MetricsFile, Row, applied_lr, state_bytes
from .model import save_adapter
from .settings import TrainSettings, lr_factor
from .tasks import LoraTask

PATIENCE = 10  # steps with a loss that is not a number before the run is given up


@dataclasses.dataclass(frozen=True)
class RunResult:
    """What one optimizer did."""

    label: str
    settings: TrainSettings
    adapter: Path
    parameters: int
    rows: list[Row]

    @property
    def before(self) -> float:
        """Held-out loss of the untrained LoRA."""
        return self._held_out()[0]

    @property
    def after(self) -> float:
        """Held-out loss at the end."""
        return self._held_out()[-1]

    def _held_out(self) -> list[float]:
        return [row["held_out"] for row in self.rows if row["held_out"] is not None] or [math.nan]


class Stopped(Exception):
    """The user pressed Ctrl-C; everything up to `step` is saved."""

    def __init__(self, step: int) -> None:
        super().__init__(f"stopped after step {step}")
        self.step = step


class StopSignal:
    """While active, Ctrl-C and SIGTERM ask to stop after the current step; a second one stops at once."""

    def __init__(self) -> None:
        self.asked = False
        self._old: dict[int, Any] = {}

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():  # elsewhere Python allows no handler
            for number in (signal.SIGINT, signal.SIGTERM):
                self._old[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        for number, old in self._old.items():
            signal.signal(number, old)

    def _ask(self, *_: object) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True


def device_of(settings: TrainSettings) -> torch.device:
    """The device that the settings name, if this machine has it."""
    name = settings.device
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"device={name!r} is not a device; use auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"device={name!r} is not supported; use auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise UserError(f"device={name!r}: this machine has {count} CUDA devices; use device='cpu'")
    return device


def make_optimizer(settings: TrainSettings, params: Any) -> torch.optim.Optimizer:
    """Build what the settings name; every mistake becomes one line."""
    args = dict(settings.optimizer_args)
    if settings.lr is not None and "lr" in args:
        raise UserError("the learning rate is given twice, as lr and in optimizer_args; keep one")
    if settings.lr is not None:
        args["lr"] = settings.lr
    try:
        step = inspect.signature(resolve_optimizer(settings.optimizer).step).parameters
        if "closure" in step and step["closure"].default is inspect.Parameter.empty:
            raise UserError(f"{settings.optimizer} needs a closure at every step, which this trainer has not")
        if settings.optimizer.lower().endswith("sparseadam"):
            raise UserError(f"{settings.optimizer} needs sparse gradients; a LoRA has dense ones")
        return build_optimizer(settings.optimizer, params, args)
    except OptimizerArgumentError as error:
        raise UserError(str(error)) from None


def preflight(settings: TrainSettings) -> None:
    """Find everything that would stop the run, before anything is trained."""
    device_of(settings)
    make_optimizer(settings, [torch.nn.Parameter(torch.zeros(8, 8))])


class Run:
    """One optimizer on one task, with everything needed to stop and go on."""

    def __init__(self, settings: TrainSettings, data: PictureSet, label: str, out: Path) -> None:
        self.settings, self.data, self.label = settings, data, label
        self.task = LoraTask(
            data,
            seed=settings.seed,
            device=device_of(settings),
            precision=settings.precision,
            rank=settings.rank,
            batch=settings.batch,
            caption_dropout=settings.caption_dropout,
        )
        self.params = list(self.task.parameters())
        torch.manual_seed(settings.seed)  # for optimizers that draw from the global generator
        self.optimizer = make_optimizer(settings, self.params)
        self.rates = [float(group["lr"]) for group in self.optimizer.param_groups]
        self.passes_loss = "loss" in inspect.signature(self.optimizer.step).parameters
        self.checkpoints = out / "checkpoints" / label
        self.adapter = out / "adapters" / label
        self.step, self.seconds, self.bad = 0, 0.0, 0

    def train_step(self) -> tuple[float, float]:
        """One step; returns the mean loss and the milliseconds spent in the optimizer."""
        s = self.settings
        total = torch.zeros((), device=self.task.device)
        for micro in range(s.accumulate):
            loss = self.task.loss(self.step, micro, s.accumulate) / s.accumulate
            loss.backward()
            total += loss.detach()
        if s.clip:
            torch.nn.utils.clip_grad_norm_(self.params, s.clip)
        factor = lr_factor(s, self.step)
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor
        value = total.item()  # also waits for the device, so that the next time is the optimizer's alone
        started = time.perf_counter()
        if self.passes_loss:
            self.optimizer.step(loss=value)  # pyright: ignore[reportCallIssue]
        else:
            self.optimizer.step()
        if self.task.device.type == "cuda":
            torch.cuda.synchronize(self.task.device)
        spent = (time.perf_counter() - started) * 1e3
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return value, spent

    def row(self, loss: float | None, spent: float, held_out: float | None) -> Row:
        """The metrics line of the step just made."""
        return Row(
            optimizer=self.label,
            step=self.step,
            loss=loss,
            lr=applied_lr(self.optimizer),
            held_out=held_out,
            state_bytes=state_bytes(self.optimizer),
            optimizer_ms=round(spent, 4),
            seconds=round(self.seconds, 4),
        )

    def save(self) -> None:
        """Write a checkpoint of the step just made.

        Raises:
            TrainingFailed: the disk took it not; the checkpoints before it are untouched.
        """
        payload = {
            "step": self.step,
            "seconds": self.seconds,
            "bad": self.bad,
            "data": checkpoint.fingerprint(self.data),
            "lora": [p.detach().cpu() for p in self.params],
            "optimizer": self.optimizer.state_dict(),
            "rng": checkpoint.rng_state(),
        }
        try:
            checkpoint.write(self.checkpoints, self.step, payload, self.settings.keep)
        except OSError as error:
            raise self.cannot_write(error) from None

    def cannot_write(self, error: OSError) -> TrainingFailed:
        """What to say when the disk is full or gone."""
        found = checkpoint.every(self.checkpoints)
        last = f"the last good checkpoint is {found[-1]}" if found else "there is no checkpoint yet"
        return TrainingFailed(
            f"{self.label}: stopped at step {self.step}, it cannot be written: {error.strerror or error}; "
            f"{last}; make room and go on with --resume"
        )

    def check_resume(self) -> str | None:
        """Whether this run could be resumed to the bit, in one line; None if the optimizer cannot say."""
        verify = getattr(self.optimizer, "verify_resume", None)
        return None if verify is None else f"{self.label}: resume check {verify()}"

    def load_latest(self, say: Callable[[str], object]) -> None:
        """Go back to the newest checkpoint that is whole, if there is one."""
        found = checkpoint.newest(self.checkpoints, lambda words: say(f"{self.label}: {words}"))
        if found is None:
            return
        path, payload = found
        if payload["data"] != checkpoint.fingerprint(self.data):
            raise UserError(f"--resume: the pictures or captions of {self.data.name} differ from {path}'s")
        if payload["step"] > self.settings.steps:
            raise UserError(
                f"--resume: {path} is at step {payload['step']}, past steps={self.settings.steps}; "
                "give a larger --steps"
            )
        with torch.no_grad():
            for p, saved in zip(self.params, payload["lora"], strict=True):
                p.copy_(saved)
        self.optimizer.load_state_dict(payload["optimizer"])
        self.step, self.seconds = payload["step"], payload["seconds"]
        self.bad = payload.get("bad", 0)
        checkpoint.restore_rng(payload["rng"])

    def check(self, loss: float) -> None:
        """Give up when the loss has not been a number for PATIENCE steps."""
        self.bad = 0 if math.isfinite(loss) else self.bad + 1
        if self.bad >= PATIENCE:
            raise TrainingFailed(
                f"{self.label}: the loss has not been a number for {PATIENCE} steps (step {self.step}); "
                "use a smaller learning rate"
            )

    def result(self, rows: list[Row]) -> RunResult:
        """Write the adapter and sum up."""
        save_adapter(self.task.model, self.adapter)
        count = sum(p.numel() for p in self.params)
        return RunResult(self.label, self.settings, self.adapter, count, rows)


def train(
    run: Run,
    metrics: MetricsFile,
    on_row: Callable[[Row], object],
    *,
    resume: bool,
    say: Callable[[str], object] = lambda words: None,
) -> RunResult:
    """Train to the last step; Ctrl-C saves and raises Stopped."""
    if resume:
        run.load_latest(say)
    s = run.settings
    try:
        metrics.trim(run.label, run.step if run.step else -1)
    except OSError as error:
        raise run.cannot_write(error) from None
    for row in metrics.rows(run.label):
        on_row(row)

    def record(row: Row) -> None:
        try:
            metrics.append(row)
        except OSError as error:
            raise run.cannot_write(error) from None
        on_row(row)

    if run.step == 0:
        record(run.row(None, 0.0, run.task.evaluate()))
    checked = False
    with StopSignal() as stop:
        while run.step < s.steps:
            started = time.perf_counter()
            loss, spent = run.train_step()
            run.seconds += time.perf_counter() - started
            due = run.step % s.eval_every == 0 or run.step == s.steps
            record(run.row(loss, spent, run.task.evaluate() if due else None))
            run.check(loss)
            if not checked and (words := run.check_resume()) is not None:
                say(words)
            checked = True
            if stop.asked or run.step % s.save_every == 0 or run.step == s.steps:
                run.save()
            if stop.asked and run.step < s.steps:
                raise Stopped(run.step)
    try:
        return run.result(metrics.rows(run.label))
    except OSError as error:
        raise run.cannot_write(error) from None
