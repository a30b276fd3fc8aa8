"""Logs the rate that was really applied, in Lightning."""

from __future__ import annotations

from typing import Any

try:
    from lightning.pytorch import Callback  # type: ignore[import-not-found]
except ImportError:
    from pytorch_lightning import Callback  # type: ignore[no-redef]

from .rates import applied_rates


class AppliedRateMonitor(Callback):
    """What ``LearningRateMonitor`` is for the scheduler's rate, for the applied one: ``lr-NAME/applied``, ...

    It logs in the steps in which the Trainer logs (``log_every_n_steps``), to all its loggers.
    """

    def __init__(self) -> None:
        super().__init__()
        self._told = 0  # the step that was logged last: while gradients accumulate, several batches have one

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log where the Trainer does; it has stepped by now, so these are the rates of this step."""
        step = trainer.global_step
        if not trainer.loggers or step % trainer.log_every_n_steps or step == self._told:
            return
        self._told = step
        told: dict[str, float] = {}
        for i, optimizer in enumerate(trainer.optimizers):
            number = f"-{i}" if len(trainer.optimizers) > 1 else ""
            told |= applied_rates(optimizer, f"lr-{type(optimizer).__name__}{number}")
        for logger in trainer.loggers if told else ():
            logger.log_metrics(told, step=step)
