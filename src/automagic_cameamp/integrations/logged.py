"""The applied rate beside the scheduler's, in programs that have a function for what they log.

Each function takes the program's own and gives the one that stands in its place; for optimizers of others
it adds nothing. `registers` puts them there.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from .rates import applied_rates


def _applied(optimizer: Any) -> dict[str, float]:
    """The program has the scheduler's itself."""
    return {name: rate for name, rate in applied_rates(optimizer).items() if name != "lr/scheduled"}


def _optimizer(lr_scheduler: Any) -> Any:
    """Of a scheduler, accelerate's wrapper of one, or kohya's stand-in for one."""
    several = getattr(lr_scheduler, "optimizers", None)
    return several[-1] if several else getattr(lr_scheduler, "optimizer", None)


def appended(original: Callable[..., None]) -> Callable[..., None]:
    """``append_lr_to_logs_with_names(logs, lr_scheduler, ...)`` of sd-scripts."""

    def append_lr_to_logs_with_names(
        logs: dict[str, Any], lr_scheduler: Any, *args: Any, **named: Any
    ) -> None:
        original(logs, lr_scheduler, *args, **named)
        logs.update(_applied(_optimizer(lr_scheduler)))

    return append_lr_to_logs_with_names


def step_logs(original: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """``generate_step_logs(self, ..., lr_scheduler, ...)`` of sd-scripts and musubi-tuner."""

    def generate_step_logs(*call: Any, **named: Any) -> dict[str, Any]:
        scheduler = inspect.signature(original).bind(*call, **named).arguments["lr_scheduler"]
        return original(*call, **named) | _applied(_optimizer(scheduler))

    return generate_step_logs


def tensorboard(original: Callable[..., None]) -> Callable[..., None]:
    """``report_to_tensorboard(self, model, config, scheduler, tensorboard)`` of OneTrainer."""

    def report_to_tensorboard(self: Any, model: Any, config: Any, scheduler: Any, tensorboard: Any) -> None:
        original(self, model, config, scheduler, tensorboard)
        for name, rate in _applied(model.optimizer).items():
            tensorboard.add_scalar(name, rate, model.train_progress.global_step)

    return report_to_tensorboard


def handed_on(original: Callable[..., None]) -> Callable[..., None]:
    """``CallbackHandler.on_log(self, args, state, logs)`` of LLaMA-Factory v1."""

    def on_log(self: Any, args: Any, state: Any, logs: dict[str, Any]) -> None:
        rates = applied_rates(getattr(self.trainer, "optimizer", None))
        extra = {"applied_learning_rate": rates["lr/applied"]} if rates else {}
        original(self, args, state, logs | extra)

    return on_log
