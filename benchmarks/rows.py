"""The committed rows, asked by name. What is not there is None, and the tables say so."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS, parse_candidate, read_rows
from benchmarks.quality import mean
from benchmarks.table import newest

BY_SEED = dict[int, float]


class Rows:
    """Newest row of every measurement in a folder."""

    def __init__(self, folder: Path = RESULTS):
        self.folder = folder

    def _read(self, name: str) -> list[dict]:
        return newest(read_rows(self.folder / f"{name}.jsonl"))

    def all(self, name: str) -> list[dict]:
        """Every row of a file, the oldest first."""
        return read_rows(self.folder / f"{name}.jsonl")

    @cached_property
    def quality(self) -> list[dict]:
        # Not only the newest: an ablation is compared with the base of the same code.
        return read_rows(self.folder / "quality.jsonl")

    @cached_property
    def memory(self) -> list[dict]:
        return self._read("memory")

    @cached_property
    def model_memory(self) -> list[dict]:
        return self._read("model_memory")

    @cached_property
    def update_errors(self) -> list[dict]:
        return self._read("quant_update_error")

    @cached_property
    def state_errors(self) -> list[dict]:
        return self._read("state_error")

    @cached_property
    def steps(self) -> list[dict]:
        return self._read("step_cpu")

    @property
    def sets(self) -> list[dict]:
        """Times of a step by instruction set."""
        return self.all("step_cpu_isa")  # the newest of either set

    @cached_property
    def training(self) -> list[dict]:
        return self._read("training_step")

    # ------------------------------------------------------------------------------------------ quality

    def runs(
        self, task: str, candidate: str, lr: float | None = None, having: str = "held_out", **fields: Any
    ) -> list[dict]:
        """Constant-rate runs that have a field, at one rate or all, newest of each (rate, seed)."""
        wanted = {"task": task, "schedule": "constant", **named(candidate), **fields}
        found = {}
        for row in self.quality:
            if matches(row, wanted) and having in row and (lr is None or row["lr"] == lr):
                old = found.get((row["lr"], row["seed"]))
                if old is None or old["date"] <= row["date"]:
                    found[row["lr"], row["seed"]] = row
        return list(found.values())

    def by_seed(
        self, task: str, candidate: str, lr: float | None = None, field: str = "held_out", **fields: Any
    ) -> BY_SEED | None:
        """Seed -> value. Without a rate: at the one with the best mean loss among those with most seeds."""
        runs = self.runs(task, candidate, lr, field, **fields)
        if not runs:
            return None
        if lr is None:
            lr = self.best_lr(task, candidate)
        return {r["seed"]: r[field] for r in runs if r["lr"] == lr} or None

    def best_lr(self, task: str, candidate: str) -> float | None:
        """The rate with the smallest mean loss, among those that ran with the most seeds."""
        losses: dict[float, list[float]] = {}
        for r in self.runs(task, candidate):
            losses.setdefault(r["lr"], []).append(r["held_out"])
        most = max(map(len, losses.values()), default=0)
        full = [lr for lr in losses if len(losses[lr]) == most]
        return min(full, key=lambda lr: mean(losses[lr]), default=None)

    # --------------------------------------------------------------------------------- memory and errors

    def share_of_adam(self, candidate: str, case: str) -> float | None:
        """State in per cent of fp32 Adam's eight bytes a parameter."""
        row = last(self.memory, {"case": case, "dtype": "float32", **named(candidate)})
        return None if row is None else 100 * row["bytes_per_param"] / 8

    def state_bytes(self, candidate: str, training: str) -> int | None:
        row = last(self.model_memory, {"training": training, **named(candidate)})
        return None if row is None else row["state_bytes"]

    def update_error(self, candidate: str, data: str, reference: str | None = None) -> float | None:
        """Mean over seeds, in per cent."""
        wanted: dict[str, Any] = {"data": data, **named(candidate)}
        if reference is not None:
            twin = named(reference)
            wanted |= {"reference": twin["optimizer"], "reference_options": twin["options"]}
        return average(self.update_errors, wanted, "error_percent")

    def state_error(self, code: str, block: int, data: str) -> float | None:
        wanted = {"code": code, "block_size": block, "data": data}
        return average(self.state_errors, wanted, "error_percent")

    # --------------------------------------------------------------------------------------------- time

    def step(self, candidate: str, phase: str | None = "late", workload: str = "lora-sdxl") -> dict | None:
        """Newest step time of a candidate with the engine's own chunks."""
        wanted = {"workload": workload, "phase": phase, "chunk": None, **named(candidate)}
        return last(self.steps, wanted)

    def step_ratio(self, candidate: str, other: str, phase: str | None = "late") -> float | None:
        """Time of a step in units of another's, both against fused AdamW in the same rounds."""
        one = self.step(candidate, phase)
        if one is None:
            return None
        same = {name: one[name] for name in ("cpu", "threads", "workload", "chunk")}
        two = last(self.steps, {**same, "phase": one["phase"], **named(other)})
        two = two or last(self.steps, {**same, "phase": None, **named(other)})
        return None if two is None else one["ratio"] / two["ratio"]


def named(candidate: str) -> dict[str, Any]:
    """'Name:key=value' as the fields of a row."""
    name, options = parse_candidate(candidate)
    return {"optimizer": name, "options": options}


def matches(row: dict, wanted: dict[str, Any]) -> bool:
    return all(row.get(name) == value for name, value in wanted.items())


def last(rows: list[dict], wanted: dict[str, Any]) -> dict | None:
    """The row of this description with the latest date."""
    found = [row for row in rows if matches(row, wanted)]
    return max(found, key=lambda row: row["date"], default=None)


def average(rows: list[dict], wanted: dict[str, Any], field: str) -> float | None:
    """Mean of a field over the newest row of each seed."""
    seeds: dict[Any, dict] = {}
    for row in rows:
        if matches(row, wanted) and seeds.get(row["seed"], row)["date"] <= row["date"]:
            seeds[row["seed"]] = row
    return mean(row[field] for row in seeds.values()) if seeds else None


def differences(values: BY_SEED | None, reference: BY_SEED | None) -> list[float]:
    """Per-seed differences over the seeds that both have: the seeds' own spread cancels."""
    if not values or not reference:
        return []
    return [values[seed] - reference[seed] for seed in sorted(values) if seed in reference]


Measure = Callable[[Rows], Any]
