"""What the optimizer does and holds, on request. Reading costs at most one synchronisation.

Of sharded parameters these are the parts that this process holds.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..eager import eagerly
from ..executors import update as execute
from ..policies import BITSANDBYTES_AVAILABLE
from ..state import shards
from ..state.chunks import Chunk

if TYPE_CHECKING:
    from ..executors import report as who
    from . import bytes as report
    from . import views

LISTS_KEPT = 4096


@eagerly
class Reports:
    """The reading half of the engine's optimizer; it changes nothing."""

    param_groups: list[dict[str, Any]]
    state: defaultdict[Tensor, Any]
    _steps: int
    _skipped: dict[torch.device, Tensor]
    _device_lists: dict[tuple[Any, ...], Tensor]

    if TYPE_CHECKING:  # the working half's

        def _chunks(self) -> Iterator[tuple[dict[str, Any], Chunk]]: ...  # type: ignore[empty-body]
        def _fields(self, group: dict[str, Any], chunk: Chunk) -> list[execute.Field]: ...  # type: ignore[empty-body]
        def _options(self, group: dict[str, Any], chunk: Chunk) -> Any: ...

    def _name(self, group: dict[str, Any], position: int) -> str:
        if "param_names" in group:
            return str(group["param_names"][position])
        before = 0
        for other in self.param_groups:
            if other["params"] is group["params"]:  # also for a copy of the group
                break
            before += len(other["params"])
        return f"param_{before + position}"

    def _named(self) -> Iterator[tuple[str, Tensor]]:
        """All parameters with their names, in order."""
        number = 0
        for group in self.param_groups:
            names = group.get("param_names") or [f"param_{number + i}" for i in range(len(group["params"]))]
            yield from ((str(name), p) for name, p in zip(names, group["params"], strict=False))
            number += len(group["params"])

    def _name_of(self, index: int) -> str:
        """Name of the parameter at this position among all."""
        return next(itertools.islice(self._named(), index, None))[0]

    def _on_device(self, values: list[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        """A short list as a tensor, made once and without waiting for the device."""
        key = (device, dtype, *values)
        if key not in self._device_lists:
            if len(self._device_lists) >= LISTS_KEPT:  # sets of active parameters that change for ever
                self._device_lists.clear()
            host = torch.tensor(values, dtype=dtype)
            if device.type == "cuda":
                host = host.pin_memory()
            self._device_lists[key] = host.to(device, non_blocking=True)
        return self._device_lists[key]

    def _count_skipped(self, chunk: Chunk, ok: Tensor) -> None:
        """Add to the counters of these parameters, without looking at them."""
        indices = self._on_device(chunk.indices, torch.int64, ok.device)
        self._skip_counts(ok.device).index_add_(0, indices, (~ok).to(torch.int32))

    def _skip_counts(self, device: torch.device) -> Tensor:
        """Skipped updates of every parameter, int32 on this device."""
        total = sum(len(group["params"]) for group in self.param_groups)
        counts = self._skipped.get(device)
        if counts is None or len(counts) < total:
            grown = torch.zeros(total, dtype=torch.int32, device=device)
            if counts is not None:
                grown[: len(counts)] = counts
            counts = self._skipped[device] = grown
        return counts

    def health(self) -> dict[str, Any]:
        """Updates that were skipped because a gradient was not finite. One synchronisation.

        Returns:
            ``steps`` taken by this object, ``skipped_updates`` in all, and ``parameters``: name ->
            number of its skipped updates (names from ``named_parameters`` or ``param_<index>``).
        """
        bad: dict[str, int] = {}
        names = [self._name(g, i) for g in self.param_groups for i in range(len(g["params"]))]
        for counts in self._skipped.values():
            for name, count in zip(names, counts.tolist(), strict=False):
                if count:
                    bad[name] = bad.get(name, 0) + count
        return {"steps": self._steps, "skipped_updates": sum(bad.values()), "parameters": bad}

    def engine_report(self) -> who.EngineReport:
        """Who steps how many parameters and elements, and why; before the first step, who will.

        Returns:
            ``rows`` of ``engine`` ('native': the CPU kernels; 'reference': plain torch; 'none'), ``reason``,
            ``parameters``, ``elements`` and ``names``; printed, it is a table.
        """
        from ..executors import report as who  # here, so that an import of the package stays light

        return who.report(self)

    def get_learning_rates(self) -> list[float]:
        """Mean rate really applied in each group at its last step: schedule, level, mask and row gain.

        One synchronisation. A group without any update yet reports its ``lr``.
        """
        pairs: list[Tensor] = []
        for group in self.param_groups:
            entries = [(self.state[p], p.numel()) for p in group["params"] if self.state.get(p)]
            if entries:
                device = entries[0][0]["avg_lr"].device
                rates = torch.stack([state["avg_lr"].to(device) for state, _ in entries])
                steps = torch.stack([state["step"].to(device) for state, _ in entries])
                sizes = self._on_device([n for _, n in entries], torch.float32, device)
                sizes = sizes * (steps > 0)  # a first gradient may have been skipped
                pairs.append(torch.stack([(rates * sizes).sum(), sizes.sum()]))
            else:
                pairs.append(torch.zeros(2))
        if not pairs:
            return []
        totals = torch.stack([pair.to(pairs[0].device) for pair in pairs]).tolist()
        own = [group["lr"] for group in self.param_groups]
        return [t / n if n else float(lr) for (t, n), lr in zip(totals, own, strict=True)]

    def get_avg_learning_rate(self) -> float:
        """Mean of ``get_learning_rates`` over all elements of all groups. One synchronisation."""
        sizes = [max(1, sum(p.numel() for p in g["params"])) for g in self.param_groups]
        rates = self.get_learning_rates()
        return sum(r * n for r, n in zip(rates, sizes, strict=True)) / sum(sizes)

    def _get_group_lr(self, group: dict[str, Any]) -> float:
        """Mean rate really applied in this group."""
        return self.get_learning_rates()[next(i for i, g in enumerate(self.param_groups) if g is group)]

    def get_memory_stats(self) -> dict[str, int | float]:
        """Bytes of state really held here, counted from the tensors; zeros before the first step.

        Returns:
            ``total_quantized_memory`` (codes and scales) and ``total_high_precision_memory`` in
            bytes; ``quantized_params`` and ``high_precision_params`` in elements;
            ``fraction_of_fp32`` = bytes held / bytes of the same states in fp32 (smaller is better),
            also as ``compression_ratio``; ``bytes_per_parameter``; ``fraction_of_adam`` (Adam holds
            8 bytes).
        """
        from . import bytes as report  # here, so that an import of the package stays light

        return report.memory_stats(
            [
                (shards.local_of(p), shards.local_state(self.state[p]), fields)
                for p, fields in self._parameters_with_fields()
                if self.state.get(p)
            ]
        )

    def planned_memory(self) -> report.Planned:
        """Bytes of state that will be held once every parameter had a gradient; parameters may be on meta.

        Returns:
            ``state`` in bytes; ``alone`` and ``stacked``: elements of the largest tensor that is stepped
            alone, and of the largest stack, which bound the temporary memory of a step.
        """
        from . import bytes as report

        entries = []
        for group, chunk in self._chunks():
            compute = execute.compute_dtype(chunk.params[0])
            planes = [q for f in self._fields(group, chunk) for q in f.planes(chunk.layout, compute)]
            entries.append((chunk.layout, len(chunk.params), planes))
        return report.planned(entries)

    def get_memory_efficiency_report(self) -> dict[str, Any]:
        """How many parameters have eight-bit state and what that saves.

        Returns:
            ``bitsandbytes_available``; ``total_parameters``, ``8bit_parameters``,
            ``32bit_parameters`` in elements; ``memory_saved_mb`` = fp32 bytes of the states held
            less bytes held, in MiB; ``8bit_fraction`` = 8bit_parameters / total_parameters (larger is
            better), also as ``compression_ratio``; ``states_breakdown``: state name -> bytes held.
        """
        from . import bytes as report

        report_ = report.efficiency(
            [
                (shards.local_of(p), shards.local_state(self.state.get(p, {})), fields)
                for p, fields in self._parameters_with_fields()
            ]
        )
        return {"bitsandbytes_available": BITSANDBYTES_AVAILABLE, **report_}

    @property
    def quantized_states(self) -> views.StateView:
        """Parameter index -> state name -> codes, scales, zeros, dequantize(), error_accumulator."""
        from . import views  # here, so that an import of the package stays light

        return views.StateView(
            {
                i: views.quantized(
                    shards.local_of(p), shards.local_state(self.state[p]), self._fields(group, chunk)
                )
                for group, chunk in self._chunks()
                for i, p in zip(chunk.indices, chunk.params, strict=True)
                if self.state.get(p)
            }
        )

    @property
    def high_precision_states(self) -> views.StateView:
        """Parameter index -> state name -> tensor; ``lr_mask`` as rates, ``last_polarity`` as signs."""
        from . import views

        sums = [
            (float(self.state[p]["lr_mask_sum"]), p.numel())
            for group in self.param_groups
            for p in group["params"]
            if "lr_mask_sum" in self.state.get(p, {})
        ]
        mean = sum(s for s, _ in sums) / sum(n for _, n in sums) if sums else 1.0
        entries: dict[int, Any] = {}
        for group, chunk in self._chunks():
            hp, fields = self._options(group, chunk), self._fields(group, chunk)
            for i, p in zip(chunk.indices, chunk.params, strict=True):
                if self.state.get(p):
                    part, state = shards.local_of(p), shards.local_state(self.state[p])
                    entries[i] = views.high_precision(part, state, fields, hp, mean)
        return views.StateView(entries)

    def clear_cache(self) -> None:
        """Nothing is cached that would need clearing; kept because old scripts call it."""

    def _parameters_with_fields(self) -> Iterator[tuple[Tensor, list[execute.Field]]]:
        for group, chunk in self._chunks():
            fields = self._fields(group, chunk)
            for p in chunk.params:
                yield p, fields
