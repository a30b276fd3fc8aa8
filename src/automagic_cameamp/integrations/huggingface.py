"""Logs the rate that was really applied beside the scheduler's, in Hugging Face's Trainer."""

from __future__ import annotations

from typing import Any

from transformers import Trainer, TrainerCallback

from .rates import applied_rates, ours

KEY = "applied_learning_rate"


class AppliedRate(TrainerCallback):
    """Adds ``applied_learning_rate`` to everything that the Trainer logs while one of ours trains.

    Reporters that stand before it (TensorBoard, Weights & Biases) get the logs first; so better than
    ``callbacks=[AppliedRate()]`` is `log_applied_rate(trainer)`.
    """

    def on_log(
        self, args: Any, state: Any, control: Any, logs: Any = None, optimizer: Any = None, **_: Any
    ) -> None:
        """Complete the entry that is about to be reported, and the one in ``state.log_history``."""
        if logs is None or "learning_rate" not in logs or ours(optimizer) is None:
            return
        logs[KEY] = applied_rates(optimizer)["lr/applied"]
        if state.log_history and state.log_history[-1].get("step") == state.global_step:
            state.log_history[-1][KEY] = logs[KEY]


def log_applied_rate(trainer: Trainer) -> None:
    """Put `AppliedRate` before the reporters of a Trainer, once; nothing where the optimizer is not ours.

    Args:
        trainer: with its optimizer, or before it has one.
    """
    if trainer.optimizer is not None and ours(trainer.optimizer) is None:
        return
    callbacks = trainer.callback_handler.callbacks
    if not any(isinstance(callback, AppliedRate) for callback in callbacks):
        callbacks.insert(0, AppliedRate())
