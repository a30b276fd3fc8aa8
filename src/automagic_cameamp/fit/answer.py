"""The question, and the rows that answer it."""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn

from . import candidates, models
from .adapters import BASES, adapt
from .candidates import WAYS, Candidate, Cost
from .inputs import Batch, loss_of
from .models import DTYPES, FitError, Spec
from .trace import Trace, trace

GIB = 2**30
TRAIN = ("full", "lora", "lokr")
# What no count of tensors shows. Assumed, and said so.
USABLE = 0.98  # of the size on the box
CONTEXT = 0.6  # GiB: CUDA's context, cuBLAS' and cuDNN's workspaces
ROUNDING = 0.04  # of the peak: blocks of the allocator that are not full
HOST = 4.0  # GiB of the host for the system, Python and torch
# The first that fits is named, in the first way that fits.
PREFERRED = ("Automagic_CameAMP8bit", "balanced", "memory_optimized", "minimal", "")


@dataclass(frozen=True)
class Question:
    """What is to be trained, how, and on what.

    Args:
        model: a name of ``models.known()``, or the path of a configuration.
        train: 'full', 'lora' or 'lokr'.
        gpu: GiB of the card.
        host: GiB of host memory; None: whatever is needed.
        resolution: pixels, one number or (width, height); None: the model's.
        batch: samples in a batch.
        frames: of a video.
        tokens: length of the text; None: the model's.
        rank: of a LoRA; None: 16.
        factor: of a LoKr, at most; None: 8.
        checkpointing: whether activations are computed again in backward.
        weights: 'bf16', 'fp16' or 'fp32', the type in which weights are held.
        compute: type of the arithmetic; None: that of the weights, bf16 where these are fp32.
        trained: type of adapters; None: 'fp32'.
        base: '' or 'fp8' or 'nf4': how frozen weights under adapters are held.
        swap: blocks that wait in host memory (sd-scripts' and musubi-tuner's blocks_to_swap).
        accumulation: passes whose gradients add up before a step.
        optimizers: ``Name:key=value`` of those asked for; none: all.

    Raises:
        FitError: a value is not allowed; the message names it.
    """

    model: str
    train: str = "lora"
    gpu: float = 12.0
    host: float | None = None
    resolution: int | tuple[int, int] | None = None
    batch: int = 1
    frames: int = 1
    tokens: int | None = None
    rank: int | None = None
    factor: int | None = None
    checkpointing: bool = True
    weights: str = "bf16"
    compute: str | None = None
    trained: str | None = None
    base: str = ""
    swap: int = 0
    accumulation: int = 1
    optimizers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self._adapters_only()
        choices: dict[str, tuple[str, ...]] = {
            "train": TRAIN,
            "weights": tuple(DTYPES),
            "base": ("", *BASES),
        }
        choices |= {name: tuple(DTYPES) for name in ("compute", "trained") if getattr(self, name) is not None}
        for name, allowed in choices.items():
            value = getattr(self, name)
            if value not in allowed:
                near = difflib.get_close_matches(str(value), allowed, 1)
                hint = f"; did you mean {near[0]}?" if near else ""
                raise FitError(
                    f"{name}={value!r} is not allowed: it must be one of "
                    f"{', '.join(filter(None, allowed))}{hint}"
                )
        for name, least in (
            ("gpu", 0.5),
            ("host", 0),
            ("tokens", 1),
            ("batch", 1),
            ("frames", 1),
            ("rank", 1),
            ("factor", 1),
            ("swap", 0),
            ("accumulation", 1),
        ):
            value = getattr(self, name)
            if value is not None and not least <= value < math.inf:
                raise FitError(f"{name}={value!r} is not allowed: it must be at least {least}, and finite")
        if self.base and self.train == "full":
            raise FitError(
                f"base={self.base!r} is not allowed with train='full', whose weights are trained: use "
                "'lora' or 'lokr', or leave it out"
            )

    def _adapters_only(self) -> None:
        """Values of adapters where there are any, and an error where somebody gave one for nothing."""
        for name, usual, kinds in (
            ("rank", 16, ("lora",)),
            ("factor", 8, ("lokr",)),
            ("trained", "fp32", ("lora", "lokr")),
        ):
            value = getattr(self, name)
            if self.train in kinds and value is None:
                object.__setattr__(self, name, usual)
            elif self.train in TRAIN and self.train not in kinds and value is not None:
                raise FitError(
                    f"{name}={value!r} is not allowed with train={self.train!r}, where it has no effect: "
                    f"leave it out, or train={' or '.join(map(repr, kinds))}"
                )

    @property
    def size(self) -> int:
        """Rank or factor of the adapters."""
        return (self.rank if self.train == "lora" else self.factor) or 0

    @property
    def autocast(self) -> torch.dtype | None:
        """Type of the arithmetic where it is not that of the weights."""
        wanted = DTYPES[self.compute or ("bf16" if self.weights == "fp32" else self.weights)]
        return None if wanted == DTYPES[self.weights] else wanted

    def sample(self, spec: Spec) -> Batch:
        """The batch that is meant."""
        if self.resolution is not None and not spec.resolution:
            raise FitError(f"resolution={self.resolution!r} is not allowed: {spec.title} draws no pictures")
        side = spec.resolution if self.resolution is None else self.resolution
        width, height = side if isinstance(side, tuple) else (side or 0, side or 0)
        patch = 2 * spec.latent if spec.family not in ("sd", "sdxl") else 8 * spec.latent
        if width % patch or height % patch or (spec.resolution and min(width, height) < patch):
            raise FitError(
                f"resolution={self.resolution!r} is not allowed: it must be in multiples of {patch} pixels "
                f"for {spec.title}"
            )
        if self.frames > 1 and spec.family != "wan":
            raise FitError(f"frames={self.frames} is not allowed: {spec.title} makes no videos")
        if spec.family == "wan" and (self.frames - 1) % 4:
            raise FitError(f"frames={self.frames} is not allowed: a video has 4 n + 1, such as 1, 17 or 81")
        return Batch(self.batch, width, height, self.frames, self.tokens or spec.tokens)


class Row(NamedTuple):
    """One optimizer used in one way; all in bytes.

    Args:
        optimizer: its label.
        way: 'plain', 'release', 'offload' or 'release+offload'.
        weights: on the device, frozen ones included.
        gradients: held at the same time.
        state: on the device.
        activations: most that lives beside weights and state in the two passes, held gradients apart.
        step: temporary memory of the optimizer's step on the device.
        peak: most that is allocated on the device at any moment.
        host: of host memory.
        fits: whether both suffice.
    """

    optimizer: str
    way: str
    weights: int
    gradients: int
    state: int
    activations: int
    step: int
    peak: int
    host: int
    fits: bool


class Answer(NamedTuple):
    """All that was found.

    Args:
        question: what was asked.
        spec: the model.
        batch: its batch.
        trace: what a pass needs.
        rows: one per optimizer and way.
    """

    question: Question
    spec: Spec
    batch: Batch
    trace: Trace
    rows: tuple[Row, ...]

    def best(self) -> list[Row]:
        """Per optimizer the first way that fits, or the one that needs least."""
        found: dict[str, list[Row]] = {}
        for row in self.rows:
            found.setdefault(row.optimizer, []).append(row)
        return [next((r for r in rows if r.fits), min(rows, key=lambda r: r.peak)) for rows in found.values()]

    def recommended(self) -> Row | None:
        """The row to take, None where nothing fits: the simplest way, then the order of ``PREFERRED``."""
        for way in WAYS:
            for wanted in PREFERRED:
                for row in self.rows:
                    ours = row.optimizer.startswith("Automagic")
                    if row.fits and row.way == way and ours and row.optimizer.endswith(wanted):
                        return row
        return next((row for row in self.rows if row.fits), None)

    def assumptions(self) -> list[str]:
        """What the numbers rest on, in sentences."""
        q, b = self.question, self.batch
        size = f"{b.width} x {b.height}" + (f", {b.frames} frames" if b.frames > 1 else "")
        what = f"{size}, " if b.width else ""
        known = q.host is not None
        arithmetic = f", arithmetic in {str(q.autocast)[6:]} (autocast)" if q.autocast else ""
        return [
            f"{self.spec.title}: {self.spec.source}; batch {b.size}, {what}{b.tokens} tokens of text, "
            f"checkpointing {'on' if q.checkpointing else 'off'}, weights in {q.base or q.weights}"
            f"{arithmetic}.",
            "Weights, gradients and activations are measured on fake tensors with the shapes of torch's CPU "
            "kernels (flash attention); a library's own workspaces are not in it. Each column is its own "
            "highest, so they may add up to more than the peak.",
            "State is the optimizers' own plan, to the byte; a step's temporary memory is that of plain "
            "torch (compiled steps need less).",
            "Only this network is on the card: text encoders and VAE are cached or elsewhere; no EMA copy.",
            f"Fits: peak + {ROUNDING:.0%} (allocator) + {CONTEXT} GiB (CUDA context, workspaces) is at most "
            f"{USABLE:.0%} of {q.gpu:g} GiB"
            + (f"; host, where any is needed, + {HOST:g} GiB at most {q.host:g} GiB." if known else "."),
        ]


def fit(model: str, **options: Any) -> Answer:
    """What fits: every optimizer in every way, for one model and one card.

    Args:
        model, options: as in ``Question``.

    Raises:
        FitError: something is not allowed, is missing, or cannot be traced.

    Example::

        from automagic_cameamp.fit import fit

        answer = fit("sdxl", train="full", gpu=12)
        print(answer.recommended())
    """
    question = Question(model, **options)
    chosen = [candidates.parse(text) for text in question.optimizers] or candidates.everyone()
    spec = models.find(model)
    batch = question.sample(spec)
    dtype = DTYPES[question.weights]

    def build() -> nn.Module:
        net = models.build(spec, dtype)
        if question.train != "full":
            adapt(net, question.train, question.size, DTYPES[question.trained or "fp32"], question.base)
        if question.checkpointing:
            checkpoint(net, spec)
        return net

    found = trace(build, loss_of(spec, batch, dtype), autocast=question.autocast)
    rows = [row for one in chosen for row in _rows(question, spec, found, one)]
    return Answer(question, spec, batch, found, tuple(rows))


def checkpoint(net: Any, spec: Spec) -> None:
    """Switch gradient checkpointing on, whatever the library calls it."""
    names = (
        "enable_gradient_checkpointing",
        "activation_checkpointing_enable",
        "gradient_checkpointing_enable",
    )
    switch = next((getattr(net, name) for name in names if hasattr(net, name)), None)
    try:
        if switch is None:
            raise ValueError("it has no switch for it")
        switch()
    except ValueError as error:
        raise FitError(
            f"checkpointing=True: {spec.title} does not support it ({error}); ask with False"
        ) from error


def swapped(spec: Spec, found: Trace, blocks: int) -> int:
    """Bytes of the blocks that wait in host memory.

    Two lists of blocks (FLUX) share them as sd-scripts does: half of the number in the first list, twice the
    other half in the second, whose blocks are half as large.

    Raises:
        FitError: there are not so many.
    """
    if not blocks:
        return 0
    lists = found.blocks[:2] if spec.family == "flux" else (max(found.blocks, key=sum, default=()),)

    def counts(blocks: int) -> tuple[int, ...]:
        return (blocks // 2, 2 * (blocks - blocks // 2)) if len(lists) == 2 else (blocks,)

    def fits(blocks: int) -> bool:
        return all(n <= len(sizes) - 2 for sizes, n in zip(lists, counts(blocks), strict=True))

    if not fits(blocks):
        most = max((n for n in range(1 + sum(map(len, lists))) if fits(n)), default=0)
        allowed = f"at most {most} of these blocks; two of a list have to stay"
        raise FitError(f"swap={blocks} is not allowed: {allowed}")
    return sum(sum(sizes[:n]) for sizes, n in zip(lists, counts(blocks), strict=True))


def _rows(q: Question, spec: Spec, found: Trace, one: Candidate) -> list[Row]:
    cost = candidates.cost(one, found.trained)
    away = swapped(spec, found, q.swap)
    rows = []
    for way in one.ways:
        if away and q.train == "full" and "release" not in way:
            continue  # gradients of blocks that travel cannot stay behind
        rows.append(_row(q, found, one.label, cost, way, away))
    return rows


def _row(q: Question, found: Trace, label: str, cost: Cost, way: str, away: int) -> Row:
    offload = "offload" in way
    # On the host gradients add up too; on the device they stay where there are several passes.
    release = "release" in way and (offload or q.accumulation == 1)
    weights = found.weights - away
    largest = max(t.bytes for t in found.trained)
    state, each = (0, 0.0) if offload else (cost.state, cost.each)
    if release:
        gradients = largest
        step = int(max(each * n for _, n in found.arrivals))
        passes = max(found.activations, *(int(live + each * n) for live, n in found.arrivals))
        if offload:  # earlier gradients may still be on their way
            size = max(t.dtype.itemsize for t in found.trained)
            before = [0, *(max(cost.ahead, size * n) for _, n in found.arrivals)]
            passes = max(passes, *(live + b for (live, _), b in zip(found.arrivals, before, strict=False)))
            gradients += cost.ahead
        beside = passes + (0 if offload else cost.kept * len(found.trained))
    else:
        gradients, step = found.gradients, 0 if offload else cost.step
        passes = found.together if q.accumulation == 1 else found.activations + found.gradients
        beside = max(passes, gradients + step)
    host = away
    if offload and release:
        host += cost.state + cost.ring + (found.gradients if q.accumulation > 1 else 0)
    elif offload:
        host += cost.state + sum(t.bytes for t in found.trained) + found.gradients
    peak = weights + state + beside
    fits = on_card(q, peak) and (q.host is None or not host or host + HOST * GIB <= q.host * GIB)
    return Row(label, way, weights, gradients, state, found.activations, step, peak, host, fits)


def on_card(q: Question, peak: float) -> bool:
    """Whether the card has room for a peak of so many bytes."""
    return peak * (1 + ROUNDING) + CONTEXT * GIB <= USABLE * q.gpu * GIB
