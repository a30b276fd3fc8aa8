"""What the flight recorder measures of a step, in a number of launches that does not depend on the model."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..state.tensors import plain

SAMPLE = 1024  # elements of a tensor that are looked at, evenly spread; smaller tensors are taken whole
AT_LIMIT = 0.99  # of the limit: the weights round, and decay moves them too
KEPT = 256
# Type of the codes of the momentum -> the two ends of their range.
ENDS = {torch.uint8: (0, 255), torch.int8: (-127, 127)}
NIBBLE_ENDS = (1, 15)
COLUMNS = 8


class Before(NamedTuple):
    """Weights of one group, device and type, before a step moves them."""

    params: list[Tensor]
    values: Tensor


class Tables:
    """Short lists on the devices, made once for every set of sizes."""

    def __init__(self) -> None:
        self._held: dict[Hashable, Tensor] = {}

    def weights(self, sizes: Sequence[int], device: torch.device) -> Tensor:
        """For each sampled element: how many elements it stands for."""

        def make() -> Tensor:
            per = torch.tensor([n / _taken(n) for n in sizes], dtype=torch.float32, device="cpu")
            return per.repeat_interleave(torch.tensor([_taken(n) for n in sizes], device="cpu"))

        return self._kept(("weights", device, *sizes), make, device)

    def owners(self, sizes: Sequence[int], device: torch.device) -> Tensor:
        """For each sampled element: position of its tensor."""

        def make() -> Tensor:
            counts = torch.tensor([_taken(n) for n in sizes], device="cpu")
            return torch.arange(len(sizes), device="cpu").repeat_interleave(counts)

        return self._kept(("owners", device, *sizes), make, device)

    def sizes(self, sizes: Sequence[int], device: torch.device) -> Tensor:
        """Elements of each tensor, fp32."""
        return self._kept(
            ("sizes", device, *sizes), lambda: torch.tensor(sizes, device="cpu").float(), device
        )

    def _kept(self, key: Hashable, make: Any, device: torch.device) -> Tensor:
        if key not in self._held:
            if len(self._held) >= KEPT:  # sets of active parameters that change for ever
                self._held.clear()
            host = make()
            if device.type == "cuda":
                host = host.pin_memory()
            self._held[key] = host.to(device, non_blocking=True)
        return self._held[key]


def before(params: list[Tensor]) -> Before:
    """Copy the sampled weights."""
    return Before(params, sampled(params))


def row(was: Before, state: Any, group: dict[str, Any], tables: Tables) -> Tensor:
    """[8] sums of some parameters of one group, device and type, after the step.

    Returns:
        Squares of the gradient; squares of the update; rate times elements; elements with a rate;
        codes at an end of their range; codes; tensors at the limit of the clip; tensors.
    """
    params, device = was.params, was.values.device
    zero = torch.zeros((), device=device)
    sizes = [p.numel() for p in params]
    moved = sampled(params).float().sub_(was.values.float()).square_().mul_(tables.weights(sizes, device))
    each = torch.zeros(len(params), device=device).index_add_(0, tables.owners(sizes, device), moved)
    given = [(p, p.grad) for p in params if p.grad is not None]
    gradient = zero
    if given:
        own = tables.weights([p.numel() for p, _ in given], device)
        gradient = sampled([g.to(device) for _, g in given]).float().square_().mul_(own).sum()

    states = [state.get(p) or {} for p in params]
    known = [i for i, s in enumerate(states) if "avg_lr" in s]
    rates, count, clipped = zero, 0, zero
    if known:
        counts = tables.sizes([sizes[i] for i in known], device)
        applied = torch.stack([states[i]["avg_lr"].to(device) for i in known]).float()
        rates, count = (applied * counts).sum(), sum(sizes[i] for i in known)
        limit = group.get("final_clip")
        limit = AT_LIMIT * float(group["clip_threshold"] if limit is None else limit)
        part = each if len(known) == len(params) else torch.stack([each[i] for i in known])
        clipped = ((part >= (applied * limit).square() * counts) & (part > 0)).sum()
    ends, codes = _ends(states, sizes, zero)
    numbers = [gradient, each.sum(), rates, zero + count, ends, zero + codes, clipped, zero + len(known)]
    return torch.stack([x.float() for x in numbers])


def _ends(states: list[dict[str, Any]], sizes: list[int], zero: Tensor) -> tuple[Tensor, int]:
    """Sampled codes of the momentum that are the first or last of their range, and how many there are."""
    ends, codes = zero, 0
    planes = [(s["exp_avg_q"], n) for s, n in zip(states, sizes, strict=True) if "exp_avg_q" in s]
    for dtype, (low, high) in ENDS.items():
        whole = [q for q, n in planes if q.dtype == dtype and q.numel() == n]
        if whole:
            q = sampled(whole)
            ends, codes = ends + ((q == low) | (q == high)).sum(), codes + q.numel()
    packed = [q for q, n in planes if q.dtype == torch.uint8 and q.numel() < n]
    if packed:
        low, high = NIBBLE_ENDS
        q = sampled(packed)
        for half in (q & 15, q >> 4):
            ends, codes = ends + ((half == low) | (half == high)).sum(), codes + half.numel()
    return ends, codes


def sampled(tensors: list[Tensor]) -> Tensor:
    """At most SAMPLE evenly spread elements of each tensor, one after the other."""
    return torch.cat([plain(t).reshape(-1)[:: _stride(t.numel())] for t in tensors])


def _stride(size: int) -> int:
    return max(1, -(-size // SAMPLE))


def _taken(size: int) -> int:
    return -(-size // _stride(size))
