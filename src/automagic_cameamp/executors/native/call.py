"""Works in the kernels' form, and the call of the library: at once, or partly through contiguous copies."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...kernels import layout as abi
from ...kernels import native
from ...recipes import Level
from ..work import Folded, Outcome, Work
from . import copies, table, versions
from .given import Gradients


class Table:
    """Works in the kernels' form, and the call."""

    def __init__(self, works: list[Work], signals: bool) -> None:
        self.works = works
        self.tasks: Any = np.zeros(sum(len(m.states) for m in works), dtype=table.TASK)
        self._raw: Any = self.tasks.view(
            f"V{table.TASK.itemsize}"
        )  # numpy copies fields one by one otherwise
        self.states: list[dict[str, Any]] = []
        self.slices: list[slice] = []
        self.options: Any = np.zeros(len(works), dtype=table.OPTIONS)
        self.signals = signals
        self.folded: Folded | None = None  # lives during a step only
        self.sums: list[Tensor] = []
        start = 0
        for number, work in enumerate(works):
            self.options[number] = table.options(work.hp, work.recipe, signals)
            part = slice(start, start + len(work.states))
            self.slices.append(part)
            for _ in table.fill(self.tasks[part], work, number):
                pass
            group, position = work.chunk.key
            width = min(work.chunk.layout.numel, abi.SKETCH)
            self.tasks["sketch_place"][part] = [i * width for i in work.active]
            self.tasks["sketch_offset"][part] = 40_503 * group + 24_593 * position
            self.states += work.states
            start = part.stop
        params = [p for work in works for p in work.chunk.params]
        self.sizes = [p.numel() for p in params]
        self.strided = [i for i, p in enumerate(params) if not copies.plain(p)]
        self.counters = versions.counters(self.states)
        self._no_sketch = torch.zeros(0, dtype=torch.float64, device="cpu")
        self._place = self.tasks.ctypes.data  # numpy takes a microsecond to say so
        self.step = abi.Step(
            tasks=self._place,
            options=self.options.ctypes.data,
            count=len(self.tasks),
            sketch=None,
            mask_mean=1.0,
            flavour=native.limit(),
        )

    def watch(self, sums: list[tuple[Tensor, int]]) -> None:
        """Let the kernels form the mean of the mask from these sums and numbers of elements."""
        self.sums = [x for x, _ in sums]
        self._places: Any = np.array([x.data_ptr() for x in self.sums], dtype=np.uint64)
        self.step.mask_sums, self.step.mask_count = self._places.ctypes.data, len(sums)
        self.step.masked = float(sum(n for _, n in sums))

    def steer(self, level: Level) -> None:
        """Say at which automatic level the step is made, and whether it looks back."""
        self.step.level[: len(level)] = level
        self.step.looks = bool(level.looks)

    def call(self, grads: Gradients, params: Sequence[Tensor]) -> int:
        """Run all works.

        Args:
            grads: gradient of each task; those that are not contiguous are copied batch by batch.
            params: parameter of each task; the tables hold addresses only.

        Returns:
            The number of tensors whose gradient was not usable.

        Raises:
            MemoryError: a tensor was not updated, because there was no memory for it.
        """
        self.step.threads = torch.get_num_threads()
        # Before they are written: all were just looked at, and lie in the caches.
        versions.moved(params)
        versions.moved(self.counters)
        tasks = self.tasks
        tasks["g"], tasks["g_type"] = grads.places, grads.types
        odd = sorted({*self.strided, *grads.odd()})
        folded = self._run_in_parts(odd, grads.tensors, params) if odd else self._run(tasks)
        if folded.bad and (tasks["ok"] < 0).any():
            raise MemoryError("no memory for the scratch of a step: some tensors were not updated.")
        self.folded = folded if self.signals else None
        return folded.bad

    def _run(self, tasks: Any) -> Folded:
        """Run these rows, and nothing else; they lie in one piece."""
        step = self.step
        step.tasks = self._place if tasks is self.tasks else tasks.ctypes.data
        step.count, step.sketch = len(tasks), None
        sketch = self._no_sketch
        if self.signals:
            sketch = torch.zeros(abi.SKETCH, dtype=torch.float64, device="cpu")
            step.sketch = sketch.data_ptr()
        native.library().automagic_step(ctypes.byref(step))
        return Folded(sketch, step.square, step.bad)

    def _run_in_parts(self, odd: list[int], grads: Sequence[Tensor], params: Sequence[Tensor]) -> Folded:
        """Run what lies straight at once, and the rest batch by batch."""
        step, count = self.step, self.step.mask_count
        if count:  # the mean as it was before the first part; as the recipe rounds it
            step.mask_mean = float((torch.stack(self.sums).double().sum() / step.masked).float())
            step.mask_count = 0
        straight = np.ones(len(self.tasks), dtype=bool)
        straight[odd] = False
        parts = [self._run_some(np.flatnonzero(straight))] if straight.any() else []
        for batch in copies.batches(odd, [self.sizes[i] for i in odd]):
            parts.append(self._through_copies(batch, grads, params))
        step.mask_count = count
        return Folded.of(parts)

    def _run_some(self, places: Any) -> Folded:
        """Run some rows of the table."""
        rows = self._raw[places].view(table.TASK)
        folded = self._run(rows)
        self.tasks["ok"][places] = rows["ok"]
        return folded

    def _through_copies(self, batch: list[int], grads: Sequence[Tensor], params: Sequence[Tensor]) -> Folded:
        """Run a batch of rows whose weights or gradients the kernels cannot read where they lie."""
        rows = self.tasks["p"]
        g_rows = self.tasks["g"]
        scratch = copies.own.scratch
        scratch.begin()
        held = [grads[i] if copies.plain(grads[i]) else scratch.copy(grads[i]) for i in batch]
        g_rows[batch] = list(map(Tensor.data_ptr, held))
        # A search for directions may have put a copy in the weights' place.
        odd = [i for i in batch if rows[i] == params[i].data_ptr() and not copies.plain(params[i])]
        usual, weights = rows[odd], [scratch.copy(params[i]) for i in odd]
        rows[odd] = list(map(Tensor.data_ptr, weights))
        folded = self._run_some(batch)
        rows[odd] = usual
        for i, weight in zip(odd, weights, strict=True):
            copies.give_back(weight, params[i])
        return folded

    def outcomes(self) -> Iterator[Outcome]:
        """Per work: which gradients were usable; the signals of all come with the first."""
        folded, self.folded = self.folded, None
        for work, part in zip(self.works, self.slices, strict=True):
            yield work, torch.from_numpy(self.tasks["ok"][part] == 1), folded
            folded = None
