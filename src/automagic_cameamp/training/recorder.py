"""The last steps of a run, kept on its devices until somebody asks, and a way back.

The recorder stands beside the step and hears of it through torch's step hooks, so it costs nothing
where it is not used and does not care who executes the step.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..eager import eagerly
from ..state import tensors
from ..state.family import Family
from ..state.shards import is_distributed
from ..validate import fail
from . import samples
from .snapshot import Snapshot

Key = tuple[int, torch.device]  # of a group's numbers


@eagerly
class FlightRecorder:
    """Records every step of an optimizer of the family, until ``close``.

    Norms, clip and codes are those of at most 1024 evenly spread elements of each tensor, scaled to all
    of them: exact for small tensors, an estimate for large ones. Nothing waits for a device
    before ``read``, ``first_bad`` or ``rollback``.

    Args:
        optimizer: an optimizer of the family.
        steps: how many of the last steps are kept, at least 1.
        snapshot_every: steps between two snapshots for ``rollback``; 0: none. The newest is kept.
        snapshot_bits: 8 or 16: of a block code of the parameters; 32: their exact copy. State is
            always kept as it is stored. A parameter that has no more bits is kept exactly.

    Raises:
        ValueError: a number is not allowed, or a parameter is sharded.
    """

    def __init__(
        self, optimizer: Family, steps: int = 50, *, snapshot_every: int = 0, snapshot_bits: int = 8
    ) -> None:
        for name, value, least in (("steps", steps, 1), ("snapshot_every", snapshot_every, 0)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise fail(name, value, f"a whole number >= {least}")
        if not isinstance(snapshot_bits, int) or snapshot_bits not in (8, 16, 32):
            raise fail("snapshot_bits", snapshot_bits, "8, 16 or 32")
        if any(is_distributed(p) for group in optimizer.param_groups for p in group["params"]):
            raise fail(
                "record", steps, "0 with sharded parameters", "Each process holds a part of them only."
            )
        own = next((p for g in optimizer.param_groups for p in g["params"] if tensors.is_wrapper(p)), None)
        if own is not None:
            kind = type(own).__name__
            raise fail("record", steps, f"0 with parameters in a form of their own, such as a {kind}")
        self.optimizer, self.steps = optimizer, steps
        self.snapshot_every, self.snapshot_bits = snapshot_every, snapshot_bits
        self._count = 0
        self._host: deque[tuple[int, Any, list[Any]]] = deque(maxlen=steps)
        self._rings: dict[Key, Tensor] = {}
        self._first: dict[torch.device, Tensor] = {}  # step of the first skipped update, 0: none
        self._skips: dict[torch.device, Tensor] = {}
        self._bad_loss: Tensor | None = None
        self._loss: Any = None
        self._before: list[tuple[int, samples.Before]] = []
        self._tables = samples.Tables()
        self._snapshot: Snapshot | None = None
        self._handles = [
            optimizer.register_step_pre_hook(self._begin),
            optimizer.register_step_post_hook(self._end),
            # The optimizer counts skipped updates anew after it has loaded something.
            optimizer.register_load_state_dict_post_hook(lambda _: self._skips.clear()),
        ]

    def close(self) -> None:
        """Stop recording; what was recorded stays readable."""
        for handle in self._handles:
            handle.remove()

    # ---------------------------------------------------------------- called by torch at every step

    @torch.inference_mode(False)  # what is made in such a block could not be written outside
    @torch.no_grad()
    def _begin(self, optimizer: Family, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        """What only the moment before a step shows: the weights."""
        self._loss = options.get("loss")
        # The step is a method: torch may hand the optimizer itself over as the first argument.
        start = 1 if args and args[0] is optimizer else 0
        closure = args[start] if len(args) > start else options.get("closure")
        if closure is not None:
            options = {**options, "closure": self._listening(closure)}
            args = args[:start]
        self._before = []
        for number, group in enumerate(optimizer.param_groups):
            kinds: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
            for p in group["params"]:
                if p.numel() and (p.grad is not None or closure is not None):
                    kinds.setdefault((p.device, p.dtype), []).append(p)
            self._before += [(number, samples.before(params)) for params in kinds.values()]
        return args, options

    def _listening(self, closure: Callable[[], Any]) -> Callable[[], Any]:
        def wrapper() -> Any:
            self._loss = closure()
            return self._loss

        return wrapper

    @torch.inference_mode(False)
    @torch.no_grad()
    def _end(self, optimizer: Family, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        self._count += 1
        place = (self._count - 1) % self.steps
        loss = self._loss.detach().float().clone() if isinstance(self._loss, Tensor) else self._loss
        self._loss = None
        rates = [
            g["lr"].detach().clone() if isinstance(g["lr"], Tensor) else g["lr"]
            for g in optimizer.param_groups
        ]
        self._host.append((self._count, loss, rates))
        for ring in self._rings.values():
            ring[place].zero_()
        for number, was in self._before:
            ring = self._ring(number, was.values.device)
            group = optimizer.param_groups[number]
            ring[place] += samples.row(was, optimizer.state, group, self._tables)
        self._before = []
        self._note_skips(optimizer)
        self._note_loss(loss)
        if self.snapshot_every and self._count % self.snapshot_every == 0:
            self.take()

    def _ring(self, number: int, device: torch.device) -> Tensor:
        if (number, device) not in self._rings:
            self._rings[number, device] = torch.zeros(self.steps, samples.COLUMNS, device=device)
        return self._rings[number, device]

    def _note_skips(self, optimizer: Family) -> None:
        """Write down this step where an update was skipped for the first time."""
        for device, counts in optimizer.kept.skipped.items():
            first = _grown(self._first.get(device), counts)
            last = _grown(self._skips.get(device), counts)
            new = (counts > last) & (first == 0)
            self._first[device] = torch.where(new, self._count, first)
            self._skips[device] = counts.clone()

    def _note_loss(self, loss: Any) -> None:
        if loss is None:
            return
        if not isinstance(loss, Tensor):
            if loss != loss or loss in (float("inf"), -float("inf")):
                bad = torch.tensor(self._count, device="cpu")
                old = self._bad_loss
                self._bad_loss = bad if old is None else torch.where(old == 0, bad.to(old.device), old)
            return
        bad = torch.where(loss.isfinite().all(), 0, self._count)
        old = self._bad_loss
        self._bad_loss = bad if old is None else torch.where(old.to(bad.device) == 0, bad, old.to(bad.device))

    # ---------------------------------------------------------------- asked by the user; each waits

    def read(self) -> list[dict[str, Any]]:
        """The recorded steps, oldest first. One synchronisation per group and device.

        Returns:
            Per step: ``step`` (counted from the recorder's first), ``loss`` (None where the step
            was told none), ``groups``: per group ``lr``; ``applied_lr``, mean over the elements;
            ``gradient_norm`` as the step got it; ``update_norm``, of what the weights moved;
            ``clip_rate``, the share of tensors whose update is at the limit of the last clip,
            counted where the RMS of the update is at least 0.99 of ``final_clip`` times the mean rate:
            exact where all elements of a tensor have one rate and nothing is rounded away, an
            estimate under a mask; ``saturated_codes``, the share of momentum codes at an end of their
            range (a block always has one where its scale is its largest element). A number is
            None where nothing of the kind was there, such as codes of 32-bit state, or
            gradients that were released before the step ended.
        """
        values = {key: ring.cpu() for key, ring in self._rings.items()}
        rows = []
        for step, loss, rates in self._host:
            groups = []
            for number, rate in enumerate(rates):
                parts = [v[(step - 1) % self.steps] for (n, _), v in values.items() if n == number]
                total = torch.stack(parts).double().sum(0).tolist() if parts else [0.0] * samples.COLUMNS
                groups.append({"lr": float(rate), **_named(total)})
            rows.append({"step": step, "loss": None if loss is None else float(loss), "groups": groups})
        return rows

    def first_bad(self) -> dict[str, Any]:
        """Where something was not finite for the first time. One synchronisation per device.

        Returns:
            ``step``: the first step with a loss or gradient that was not finite, or None; ``loss``: step
            of the first such loss, or None; ``parameters``: name -> step at which its update
            was first skipped, in the order of the steps.
        """
        names = [name for name, _ in self.optimizer.model.named()]
        found: dict[str, int] = {}
        for first in self._first.values():
            for name, step in zip(names, first.tolist(), strict=False):
                if step:
                    found[name] = min(step, found[name]) if name in found else step
        loss = int(self._bad_loss) if self._bad_loss is not None else 0
        steps = sorted(step for step in (loss, *found.values()) if step)
        ordered = dict(sorted(found.items(), key=lambda item: item[1]))
        return {"step": steps[0] if steps else None, "loss": loss or None, "parameters": ordered}

    # ---------------------------------------------------------------- snapshots

    @torch.inference_mode(False)
    @torch.no_grad()
    def take(self) -> None:
        """Take a snapshot now, in the place of the last one."""
        if self._snapshot is None:
            self._snapshot = Snapshot(self.snapshot_bits)
        self._snapshot.take(self.optimizer, self._count)

    @property
    def snapshot(self) -> Snapshot | None:
        """The snapshot that ``rollback`` would use."""
        return self._snapshot

    @torch.inference_mode(False)
    @torch.no_grad()
    def rollback(self) -> int:
        """Parameters and state as they were at the last snapshot; training goes on from there.

        Learning rates and other options of the groups stay as they are now, and a scheduler is
        not turned back. A snapshot in which something is not finite is refused.

        Returns:
            The recorder's number of the step after which the snapshot was taken.

        Raises:
            RuntimeError: there is no snapshot, groups were added after it, or it holds weights that
                are not finite; nothing was changed.
            CheckpointError: the state of the snapshot is damaged; nothing was changed.
        """
        if self._snapshot is None:
            raise RuntimeError(
                "there is no snapshot to roll back to: give snapshot_every=100, or call take() in time."
            )
        return self._snapshot.restore(self.optimizer)


def _named(total: list[float]) -> dict[str, float | None]:
    """The sums of a group as the numbers that ``read`` shows."""
    gradient, update, rates, count, ends, codes, clipped, tensors = total
    return {
        "applied_lr": rates / count if count else None,
        "gradient_norm": gradient**0.5 if tensors else None,
        "update_norm": update**0.5 if tensors else None,
        "clip_rate": clipped / tensors if tensors else None,
        "saturated_codes": ends / codes if codes else None,
    }


def _grown(old: Tensor | None, like: Tensor) -> Tensor:
    """A list of numbers, as long as another one."""
    if old is not None and len(old) >= len(like):
        return old
    more = torch.zeros_like(like)
    if old is not None:
        more[: len(old)] = old
    return more
