"""State of other optimizers: Adam, CAME, bitsandbytes' Adam, ai-toolkit's Automagic; and back to AdamW.

``readers`` turn the saved tensors of one parameter into what the optimizer had learned; the formulas
that make our state of it stand in ``recipes._foreign``.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ..recipes import Hyper, _foreign
from ..recipes._carry import MOMENTS
from ..recipes._foreign import Learned
from ..state.chunks import Chunk
from ..state.family import Family
from ..state.model import Model
from ..storage import StateSpec
from ..validate import fail
from . import load as checkpoint
from .groups import structure
from .readers import NOTES, QUANT_KEY, READERS, Reader
from .saved import ADVICE, KINDS, CheckpointError, decoded, foreign_kind

__all__ = ["ImportReport", "export_state", "import_state"]

logger = logging.getLogger("automagic_cameamp")
SIDES: tuple[Literal["row", "col"], ...] = ("row", "col")
ALIASES = {"adamw": "adam", "bnb": "bitsandbytes"}


@dataclass(frozen=True)
class ImportReport:
    """What an import took over.

    Args:
        kind: 'adam', 'came', 'bitsandbytes' or 'automagic'.
        parameters: parameters whose state was imported.
        untouched: parameters without saved state; they start fresh at their first gradient.
        steps: smallest and largest step count that they have now.
        taken: what carries over as it is.
        approximated: what was computed from something else.
        dropped: saved values that have no counterpart.
        rates: per group, mean learned rate (Automagic) or saved learning rate; None where unknown.
            The import changes no learning rate.
    """

    kind: str
    parameters: int
    untouched: int
    steps: tuple[int, int]
    taken: tuple[str, ...]
    approximated: tuple[str, ...]
    dropped: tuple[str, ...]
    rates: tuple[float | None, ...]

    def __str__(self) -> str:
        rates = ", ".join("unknown" if r is None else f"{r:.3g}" for r in self.rates)
        return (
            f"imported the state of {self.parameters} parameters from {KINDS[self.kind]}"
            f" ({self.untouched} had none), step {self.steps[0]} to {self.steps[1]};"
            f" taken: {', '.join(self.taken) or 'nothing'};"
            f" approximated: {', '.join(self.approximated) or 'nothing'};"
            f" dropped: {', '.join(self.dropped) or 'nothing'}; learning rates there: {rates}"
        )


def import_state(
    optimizer: Family, state_dict: Mapping[str, Any], kind: str = "auto", *, warmup: str = "keep"
) -> ImportReport:
    """Go on with the state of an optimizer outside the family. Options and learning rates stay ours.

    Args:
        optimizer: one of the family, with the same parameters in the same groups.
        state_dict: what the other optimizer's ``state_dict()`` gave.
        kind: 'auto', 'adam' (Adam, AdamW), 'came', 'bitsandbytes' (Adam, AdamW, 8 or 32 bits) or
            'automagic' (ai-toolkit's, all three versions).
        warmup: 'keep': the run goes on behind the warm-up, with the saved step count or
            ``warmup_steps``, whichever is larger; the mask stays as it was imported. 'restart':
            the count starts at 0, and with it the warm-up, in which the mask learns.

    Returns:
        What was taken, approximated and dropped.

    Raises:
        CheckpointError: the state does not fit; nothing was changed then.
    """
    if warmup not in ("keep", "restart"):
        raise fail("warmup", warmup, "'keep' or 'restart'")
    model = optimizer.model
    groups, entries, _ = structure(model, state_dict)
    kind = _kind(kind, entries)
    source = _Source(model, kind, warmup, groups, entries)
    count, numbered = 0, []
    for group in model.groups:
        numbered.append({"params": list(range(count, count + len(group["params"])))})
        count += len(group["params"])
    ours = {"state": source.states(), "param_groups": numbered}
    fitted = checkpoint.fit(model, ours, "own", foreign=True)
    if not fitted.states:
        raise CheckpointError(f"the state dict holds no state of {KINDS[kind]} to import. {ADVICE}")
    steps = [int(state["step"]) for state in fitted.states.values()]
    checkpoint.commit(model, fitted)
    report = ImportReport(
        kind,
        len(fitted.states),
        count - len(fitted.states),
        (min(steps), max(steps)),
        *source.notes(set(fitted.fresh)),
        tuple(source.rates),
    )
    logger.info("%s: %s", model.called, report)
    return report


def _kind(kind: str, entries: Mapping[int, Mapping[str, Any]]) -> str:
    """The kind that was asked for, or that the state shows."""
    wanted = ALIASES.get(kind, kind)
    if wanted != "auto" and wanted not in KINDS:
        near = difflib.get_close_matches(str(kind), [*KINDS, *ALIASES], 1)
        hint = f"Did you mean {near[0]!r}?" if near else ""
        raise fail("kind", kind, "'auto' or one of " + ", ".join(map(repr, KINDS)), hint)
    if not entries:
        raise CheckpointError(f"the state dict holds no state: there is nothing to import. {ADVICE}")
    found = {foreign_kind(entry) for entry in entries.values()}
    if len(found) == 1 and None not in found and wanted in ("auto", *found):
        return str(found.pop())
    if all("avg_lr" in e and ("exp_avg" in e or "exp_avg_q" in e) for e in entries.values()):
        raise CheckpointError(
            f"the state dict is of this family: optimizer.load_state_dict(state_dict) takes it. {ADVICE}"
        )
    seen = sorted(KINDS[k] if k else "an unknown optimizer" for k in found)
    keys = sorted({str(k) for e in entries.values() for k in e})
    raise CheckpointError(
        f"cannot import this state as kind={kind!r}: it looks like that of {', '.join(seen)} "
        f"(keys {keys}). Known are {', '.join(KINDS.values())}. {ADVICE}"
    )


class _Source:
    """The foreign state in the form of ours."""

    def __init__(
        self,
        model: Model,
        kind: str,
        warmup: str,
        groups: list[Mapping[str, Any]],
        entries: Mapping[int, Mapping[str, Any]],
    ) -> None:
        self.kind, self.warmup, self.entries = kind, warmup, entries
        self.read = READERS[kind]
        self.places: dict[int, tuple[dict[str, Any], Chunk, Tensor, int]] = {}
        self.hyper: dict[int, Hyper] = {}
        for group, chunk in model.chunks():
            hp = model.hyper(group, chunk.lora, chunk.table)
            for i, p in zip(chunk.indices, chunk.params, strict=True):
                self.places[i] = (group, chunk, p, chunk.key[0])
                self.hyper[i] = hp
        self.saved_groups = groups
        self.rates = [self._group_rate(n) for n in range(len(groups))]

    def _learned(self, i: int) -> Learned:
        _, chunk, p, number = self.places[i]
        reader = Reader(f"parameter {i}", self.entries[i], p, chunk.layout, self.saved_groups[number])
        return self.read(reader)

    def _group_rate(self, number: int) -> float | None:
        """Mean learned rate of a group, weighted by elements; where none is learned, the saved lr."""
        total, count = 0.0, 0
        for i, (_, chunk, _, home) in self.places.items():
            if home == number and i in self.entries and self.kind == "automagic":
                rates = self._learned(i).rates
                if rates is not None:
                    total += float(rates.double().mean()) * chunk.layout.numel
                    count += chunk.layout.numel
        if count:
            return total / count
        lr = self.saved_groups[number].get("lr")
        if isinstance(lr, Tensor) and lr.numel() == 1:
            lr = lr.item()
        return float(lr) if isinstance(lr, (int, float)) and not isinstance(lr, bool) else None

    def states(self) -> dict[int, dict[str, Tensor]]:
        """Our fields by index of the parameter, plain."""
        return {i: self._state(i) for i in self.entries if i in self.places}

    def _state(self, i: int) -> dict[str, Tensor]:
        _, chunk, _, number = self.places[i]
        learned, hp, layout = self._learned(i), self.hyper[i], chunk.layout
        step = max(learned.step, hp.warmup_steps) if self.warmup == "keep" else 0
        made = _foreign.fields(learned, step, self.rates[number], layout, hp)
        shapes = {f"{m}_{side}": StateSpec("", side).own_shape(layout) for m in MOMENTS for side in SIDES}
        shapes |= dict.fromkeys(("step", "avg_lr", "beta1_product", "lr_mask_sum"), ())
        return {name: value.reshape(shapes.get(name, layout.shape)) for name, value in made.items()}

    def notes(self, fresh: set[str]) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
        """Taken, approximated, dropped, in words; ``fresh`` are fields that nothing was known about."""
        keys = {str(k) for entry in self.entries.values() for k in entry}
        if QUANT_KEY in keys:
            keys.remove(QUANT_KEY)
            keys |= {str(k) for e in self.entries.values() for k in e.get(QUANT_KEY, {})}
        taken, approximated = NOTES[self.kind]
        used = {key for group in (*taken, *approximated) for key in group[0]}
        lines = [tuple(text for need, text in notes if keys & set(need)) for notes in (taken, approximated)]
        if self.warmup == "restart":
            used.discard("step")
            lines[0] = tuple(text for text in lines[0] if not text.startswith("step"))
        started = (f"started fresh: {', '.join(sorted(fresh))}",) if fresh else ()
        return lines[0], (*lines[1], *started), tuple(sorted(keys - used))


# ---------------------------------------------------------------- back


def export_state(optimizer: Family, kind: str = "adamw") -> dict[str, Any]:
    """State dict that ``torch.optim.AdamW`` loads and goes on with.

    Momentum and second moment are those of the gradient, with the bias that Adam expects at that
    step; a factored second moment is multiplied out. Each group gets the mean rate that it really
    had, and its weight decay. The mask has no counterpart.

    Args:
        optimizer: one of the family.
        kind: 'adamw'.
    """
    if kind != "adamw":
        raise fail("kind", kind, "'adamw'")
    rates = optimizer.get_learning_rates()
    groups = [
        {"params": g["params"], "lr": rate, "weight_decay": g["weight_decay"]}
        for g, rate in zip(optimizer.param_groups, rates, strict=True)
    ]
    adam = torch.optim.AdamW(groups)
    states: dict[int, dict[str, Tensor]] = {}
    for group, chunk in optimizer.model.chunks():
        fields = optimizer.model.fields(group, chunk)
        for i, p in zip(chunk.indices, chunk.params, strict=True):
            if optimizer.state.get(p):
                own = decoded(optimizer.state[p], fields, chunk.layout)
                mean, square = _foreign.to_adam(own, adam.defaults["betas"])
                states[i] = {
                    "step": own["step"].reshape(()).clone(),
                    "exp_avg": mean.reshape(p.shape).to(p.dtype),
                    "exp_avg_sq": square.reshape(p.shape).to(p.dtype),
                }
    return {**adam.state_dict(), "state": states}
