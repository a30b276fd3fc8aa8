"""Rates, health and memory, read from the state. Reading costs at most one synchronisation.

Of sharded parameters these are the parts that this process holds. ``CameAMPOptimizer`` documents the results.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..policies import BITSANDBYTES_AVAILABLE
from ..state.fields import Field, compute_dtype
from ..state.model import Model
from ..state.shards import local_of, local_state
from . import bytes as sizes
from . import views

Held = tuple[Tensor, dict[str, Any], list[Field]]


def health(model: Model) -> dict[str, Any]:
    """Updates that were skipped because a gradient was not finite."""
    bad: dict[str, int] = {}
    names = [name for name, _ in model.named()]
    for counts in model.kept.skipped.values():
        for name, count in zip(names, counts.tolist(), strict=False):
            if count:
                bad[name] = bad.get(name, 0) + count
    return {"steps": model.kept.steps, "skipped_updates": sum(bad.values()), "parameters": bad}


def learning_rates(model: Model) -> list[float]:
    """Mean rate really applied in each group at its last step."""
    pairs: list[Tensor] = []
    for group in model.groups:
        entries = [(model.state[p], p.numel()) for p in group["params"] if model.state.get(p)]
        if entries:
            device = entries[0][0]["avg_lr"].device
            rates = torch.stack([state["avg_lr"].to(device) for state, _ in entries])
            steps = torch.stack([state["step"].to(device) for state, _ in entries])
            sizes = model.kept.lists([n for _, n in entries], torch.float32, device)
            sizes = sizes * (steps > 0)  # a first gradient may have been skipped
            pairs.append(torch.stack([(rates * sizes).sum(), sizes.sum()]))
        else:
            pairs.append(torch.zeros(2, device="cpu"))
    if not pairs:
        return []
    totals = torch.stack([pair.to(pairs[0].device) for pair in pairs]).tolist()
    return [
        t / n if n else float(group["lr"]) * float(group.get("d", 1.0))
        for (t, n), group in zip(totals, model.groups, strict=True)
    ]


def mean_rate(model: Model) -> float:
    """Mean of ``learning_rates`` over all elements of all groups."""
    counts = [max(1, sum(p.numel() for p in g["params"])) for g in model.groups]
    rates = learning_rates(model)
    return sum(r * n for r, n in zip(rates, counts, strict=True)) / sum(counts)


def memory_stats(model: Model) -> dict[str, int | float]:
    """Bytes of state really held here."""
    return sizes.memory_stats([entry for entry in _held(model) if entry[1]])


def efficiency(model: Model) -> dict[str, Any]:
    """How many parameters have eight-bit state and what that saves."""
    return {"bitsandbytes_available": BITSANDBYTES_AVAILABLE, **sizes.efficiency(list(_held(model)))}


def planned(model: Model) -> sizes.Planned:
    """Bytes of state that will be held once every parameter had a gradient; parameters may be on meta."""
    entries = []
    for group, chunk in model.chunks():
        compute = compute_dtype(chunk.params[0].dtype)
        planes = [q for field in model.fields(group, chunk) for q in field.planes(chunk.layout, compute)]
        entries.append((chunk.layout, len(chunk.params), planes))
    return sizes.planned(entries, [p for p in model.params() if p.requires_grad])


def _held(model: Model) -> Iterator[Held]:
    """Parameters, their states and fields, as far as they are here."""
    for group, chunk in model.chunks():
        fields = model.fields(group, chunk)
        for p in chunk.params:
            yield local_of(p), local_state(model.state.get(p, {})), fields


def quantized_states(model: Model) -> views.StateView:
    """Parameter index -> state name -> codes, scales, zeros, dequantize(), error_accumulator."""
    entries: dict[int, Any] = {}
    for group, chunk in model.chunks():
        fields = model.fields(group, chunk)
        for i, p in zip(chunk.indices, chunk.params, strict=True):
            if model.state.get(p):
                entries[i] = views.quantized(local_of(p), local_state(model.state[p]), fields)
    return views.StateView(entries)


def high_precision_states(model: Model) -> views.StateView:
    """Parameter index -> state name -> tensor; ``lr_mask`` as rates, ``last_polarity`` as signs."""
    found = [(model.state.get(p, {}).get("lr_mask_sum"), p.numel()) for p in model.params()]
    sums = [(float(s), n) for s, n in found if s is not None]
    mean = sum(s for s, _ in sums) / sum(n for _, n in sums) if sums else 1.0
    entries: dict[int, Any] = {}
    for group, chunk in model.chunks():
        hp, fields = model.options(group, chunk), model.fields(group, chunk)
        for i, p in zip(chunk.indices, chunk.params, strict=True):
            if model.state.get(p):
                part, state = local_of(p), local_state(model.state[p])
                level = group["d"] if group["lr_level"] == "auto" else 1.0
                entries[i] = views.high_precision(part, state, fields, hp, mean, level)
    return views.StateView(entries)
