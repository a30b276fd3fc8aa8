"""metrics.jsonl: one line for every step of every optimizer, and step 0 for the model before training."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, TypedDict

import torch

from . import durable


class Row(TypedDict):
    """One line. `loss` is null at step 0; `held_out` is null where it was not measured."""

    optimizer: str
    step: int
    loss: float | None
    lr: float
    held_out: float | None
    state_bytes: int
    optimizer_ms: float
    seconds: float


class MetricsFile:
    """Appends rows; a resumed run first drops the rows it is about to write again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)

    def clear(self) -> None:
        """Start a new file."""
        self.path.write_text("", encoding="utf-8")

    def append(self, row: Row) -> None:
        """Write one line at once, so that a killed run loses none."""
        clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
        with self.path.open("a", encoding="utf-8") as f:
            f.write(json.dumps(clean) + "\n")

    def rows(self, optimizer: str | None = None) -> list[Row]:
        """All rows, or those of one optimizer. A half-written last line is left out."""
        found: list[Row] = []
        if self.path.is_file():
            for line in self.path.read_text(encoding="utf-8").splitlines():
                try:
                    found.append(json.loads(line))
                except json.JSONDecodeError:
                    continue
        return [row for row in found if optimizer in (None, row["optimizer"])]

    def trim(self, optimizer: str, step: int) -> None:
        """Forget what `optimizer` wrote after `step`."""
        kept = [row for row in self.rows() if row["optimizer"] != optimizer or row["step"] <= step]
        text = "".join(json.dumps(row) + "\n" for row in kept)
        durable.replace(self.path, lambda sink: sink.write(text.encode()))


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of all tensors in the optimizer's state; one that appears twice counts once."""
    seen: dict[tuple[str, int, int], int] = {}

    def walk(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            seen[(str(value.device), value.data_ptr(), value.nbytes)] = value.nbytes
        elif isinstance(value, dict):
            for inner in value.values():
                walk(inner)
        elif isinstance(value, (list, tuple)):
            for inner in value:
                walk(inner)

    walk(dict(optimizer.state))
    return sum(seen.values())


def applied_lr(optimizer: torch.optim.Optimizer) -> float:
    """The mean rate really applied: an adaptive optimizer says it itself, else it is the groups' rate."""
    ask = getattr(optimizer, "get_avg_learning_rate", None)
    if callable(ask):
        return float(ask())  # pyright: ignore[reportArgumentType]
    rates = [float(group["lr"]) for group in optimizer.param_groups]
    return sum(rates) / len(rates)
