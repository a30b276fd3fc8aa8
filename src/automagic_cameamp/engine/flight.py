"""The last steps of a run, kept on its devices until somebody asks, and a way back.

It stands beside the optimizer and hears of its steps through torch's step hooks, so it costs nothing
where it is not used and does not care who executes the step.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .snapshot import Snapshot

SAMPLE = 1024  # elements of a tensor that are looked at, evenly spread; smaller tensors are taken whole
COLUMNS = ("gradient_norm", "update_norm", "applied_lr", "saturated_codes")


class Ring(NamedTuple):
    """Numbers of one group on one device.

    Args:
        values: [steps, 6]: squared norms of gradient and update, sum and count of rates, of codes.
    """

    values: Tensor


class FlightRecorder:
    """Records every step of an optimizer of the family, until ``close``.

    Norms and codes are those of at most 1024 evenly spread elements of each tensor, scaled to all
    of them: exact for small tensors, an estimate for large ones. Nothing waits for a device
    before ``read``, ``first_bad`` or ``rollback``.

    Args:
        optimizer: an optimizer of the family.
        steps: how many of the last steps are kept, at least 1.
        snapshot_every: steps between two snapshots for ``rollback``; 0: none. The newest is kept.
        snapshot_bits: 8 or 16: of a block code of the parameters; 32: their exact copy. State is
            always kept as it is stored. A parameter that has no more bits is kept exactly.

    Raises:
        ValueError: a number is not allowed.
    """

    def __init__(
        self, optimizer: Any, steps: int = 50, *, snapshot_every: int = 0, snapshot_bits: int = 8
    ) -> None:
        for name, value, least in (("steps", steps, 1), ("snapshot_every", snapshot_every, 0)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name}={value!r} is not allowed: a whole number >= {least}.")
        if snapshot_bits not in (8, 16, 32):
            raise ValueError(f"snapshot_bits={snapshot_bits!r} is not allowed: 8, 16 or 32.")
        self.optimizer, self.steps = optimizer, steps
        self.snapshot_every, self.snapshot_bits = snapshot_every, snapshot_bits
        self._count = 0
        self._host: deque[tuple[int, Any, list[Any]]] = deque(maxlen=steps)
        self._rings: dict[tuple[int, torch.device], Ring] = {}
        self._first: dict[torch.device, Tensor] = {}  # step of the first skipped update, 0: none
        self._skips: dict[torch.device, Tensor] = {}
        self._bad_loss: Tensor | None = None
        self._loss: Any = None
        self._before: list[tuple[int, list[Tensor], Tensor, Tensor]] = []
        self._snapshot: Snapshot | None = None
        self._handles = [
            optimizer.register_step_pre_hook(self._begin),
            optimizer.register_step_post_hook(self._end),
        ]

    def close(self) -> None:
        """Stop recording; what was recorded stays readable."""
        for handle in self._handles:
            handle.remove()

    # ---------------------------------------------------------------- called by torch at every step

    @torch.no_grad()
    def _begin(self, optimizer: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        """What only the moment before a step shows: the weights."""
        self._loss = options.get("loss")
        closure = args[0] if args else options.get("closure")
        if closure is not None:
            args, options = (self._listening(closure), *args[1:]), {
                k: v for k, v in options.items() if k != "closure"
            }
        self._before = []
        for number, group in enumerate(optimizer.param_groups):
            kinds: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
            for p in group["params"]:
                if p.numel() and (p.grad is not None or closure is not None):
                    kinds.setdefault((p.device, p.dtype), []).append(p)
            for params in kinds.values():
                self._before.append((number, params, _sampled(params), _weights(params)))
        return args, options

    def _listening(self, closure: Callable[[], Any]) -> Callable[[], Any]:
        def wrapper() -> Any:
            self._loss = closure()
            return self._loss

        return wrapper

    @torch.no_grad()
    def _end(self, optimizer: Any, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        self._count += 1
        place = (self._count - 1) % self.steps
        loss = self._loss.detach().float().clone() if isinstance(self._loss, Tensor) else self._loss
        rates = [g["lr"].detach().clone() if isinstance(g["lr"], Tensor) else g["lr"] for g in optimizer.param_groups]
        self._host.append((self._count, loss, rates))
        seen: set[tuple[int, torch.device]] = set()
        for number, params, before, weight in self._before:
            device = before.device
            ring = self._ring(number, device)
            if (number, device) not in seen:
                ring.values[place].zero_()
                seen.add((number, device))
            ring.values[place] += self._row(params, before, weight)
        for key, ring in self._rings.items():
            if key not in seen:
                ring.values[place].zero_()
        self._before = []
        self._note_skips(optimizer)
        self._note_loss(loss)
        if self.snapshot_every and self._count % self.snapshot_every == 0:
            self.take()

    def _ring(self, number: int, device: torch.device) -> Ring:
        if (number, device) not in self._rings:
            self._rings[number, device] = Ring(torch.zeros(self.steps, 6, device=device))
        return self._rings[number, device]

    def _row(self, params: list[Tensor], before: Tensor, weight: Tensor) -> Tensor:
        """[6] numbers of some parameters of one group, device and type."""
        zero = torch.zeros((), device=before.device)
        moved = (_sampled(params).float() - before.float()) * weight
        given = [p for p in params if p.grad is not None]
        gradient = zero
        if given:
            gradients = [p.grad.to(p.device) for p in given if p.grad is not None]
            gradient = (_sampled(gradients).float() * _weights(given)).square().sum()
        states = [(self.optimizer.state.get(p) or {}, p) for p in params]
        rates, count = zero, 0
        known = [(s["avg_lr"], p.numel()) for s, p in states if "avg_lr" in s]
        if known:
            count = sum(n for _, n in known)
            sizes = torch.tensor([n / count for _, n in known], device="cpu")
            sizes = sizes if zero.device.type == "cpu" else sizes.pin_memory().to(zero.device, non_blocking=True)
            rates = (torch.stack([r.to(zero.device) for r, _ in known]).float() * sizes).sum() * count
        ends, codes = zero, 0
        for dtype, low, high in ((torch.uint8, 0, 255), (torch.int8, -127, 127)):
            planes = [
                s["exp_avg_q"] for s, p in states
                if "exp_avg_q" in s and s["exp_avg_q"].dtype == dtype and s["exp_avg_q"].numel() == p.numel()
            ]
            if planes:
                q = _sampled(planes)
                ends, codes = ends + ((q == low) | (q == high)).sum(), codes + q.numel()
        row = [gradient, moved.square().sum(), rates, zero + count, ends.float(), zero + codes]
        return torch.stack([x.float() for x in row])

    def _note_skips(self, optimizer: Any) -> None:
        """Write down this step where an update was skipped for the first time."""
        for device, counts in optimizer._skipped.items():
            first, last = self._first.get(device), self._skips.get(device)
            if first is None or len(first) < len(counts):
                more = torch.zeros_like(counts)
                if first is not None:
                    more[: len(first)] = first
                first = more
            if last is None or len(last) < len(counts):
                last = torch.zeros_like(counts)
            new = (counts > last) & (first == 0)
            self._first[device] = torch.where(new, self._count, first)
            self._skips[device] = counts.clone()

    def _note_loss(self, loss: Any) -> None:
        if loss is None:
            return
        if not isinstance(loss, Tensor):
            if loss != loss or loss in (float("inf"), -float("inf")):
                self._bad_loss = torch.tensor(self._count) if self._bad_loss is None else self._bad_loss
            return
        bad = torch.where(loss.isfinite().all(), 0, self._count)
        old = self._bad_loss
        self._bad_loss = bad if old is None else torch.where(old.to(bad.device) == 0, bad, old.to(bad.device))

    # ---------------------------------------------------------------- asked by the user; each waits

    def read(self) -> list[dict[str, Any]]:
        """The recorded steps, oldest first. One synchronisation per group and device.

        Returns:
            Per step: ``step`` (counted from the recorder's first), ``loss`` (None where the step
            was told none), ``groups``: per group ``lr``, ``applied_lr``, ``gradient_norm``,
            ``update_norm``, ``saturated_codes`` (share of momentum codes at the ends of their
            range; None for 32-bit state).
        """
        values = {key: ring.values.cpu() for key, ring in self._rings.items()}
        rows = []
        for step, loss, rates in self._host:
            groups = []
            for number, rate in enumerate(rates):
                parts = [v[(step - 1) % self.steps] for (n, _), v in values.items() if n == number]
                total = torch.stack(parts).double().sum(0).tolist() if parts else [0.0] * 6
                groups.append(
                    {
                        "lr": float(rate),
                        "applied_lr": total[2] / total[3] if total[3] else None,
                        "gradient_norm": total[0] ** 0.5,
                        "update_norm": total[1] ** 0.5,
                        "saturated_codes": total[4] / total[5] if total[5] else None,
                    }
                )
            rows.append({"step": step, "loss": None if loss is None else float(loss), "groups": groups})
        return rows

    def first_bad(self) -> dict[str, Any]:
        """Where something was not finite for the first time. One synchronisation per device.

        Returns:
            ``loss``: step of the first loss that was not finite, or None; ``parameters``: name ->
            step at which its update was first skipped, in the order of the steps.
        """
        optimizer = self.optimizer
        names = [optimizer._name(g, i) for g in optimizer.param_groups for i in range(len(g["params"]))]
        found = dict(self._skipped_first(names))
        step = int(self._bad_loss) if self._bad_loss is not None else 0
        return {"loss": step or None, "parameters": dict(sorted(found.items(), key=lambda item: item[1]))}

    def _skipped_first(self, names: list[str]) -> Iterator[tuple[str, int]]:
        for first in self._first.values():
            yield from ((n, step) for n, step in zip(names, first.tolist(), strict=False) if step)

    # ---------------------------------------------------------------- snapshots

    @torch.no_grad()
    def take(self) -> None:
        """Take a snapshot now, in the place of the last one."""
        if self._snapshot is None:
            self._snapshot = Snapshot(self.snapshot_bits)
        self._snapshot.take(self.optimizer, self._count)

    @torch.no_grad()
    def rollback(self) -> int:
        """Parameters and state as they were at the last snapshot; training goes on from there.

        Learning rates and other options of the groups stay as they are now, and a scheduler is
        not turned back. A state in which something is not finite is refused.

        Returns:
            The recorder's number of the step after which the snapshot was taken.

        Raises:
            RuntimeError: there is no snapshot, or groups were added after it; nothing was changed.
            CheckpointError: the state of the snapshot is damaged; nothing was changed.
        """
        if self._snapshot is None:
            raise RuntimeError(
                "there is no snapshot to roll back to: give snapshot_every=100, or call take() in time."
            )
        step = self._snapshot.restore(self.optimizer)
        self._skips.clear()  # the optimizer starts counting anew
        return step


def _sampled(tensors: list[Tensor]) -> Tensor:
    """At most SAMPLE evenly spread elements of each tensor, one after the other."""
    return torch.cat([_spread(t) for t in tensors])


def _spread(t: Tensor) -> Tensor:
    flat = t.detach().reshape(-1)
    return flat[:: -(-flat.numel() // SAMPLE)]


def _weights(tensors: list[Tensor]) -> Tensor:
    """For each sampled element: root of the number of elements it stands for."""
    parts = []
    for t in tensors:
        stride = -(-t.numel() // SAMPLE)
        count = -(-t.numel() // stride)
        parts.append(torch.full((count,), (t.numel() / count) ** 0.5, device=t.device))
    return torch.cat(parts)
