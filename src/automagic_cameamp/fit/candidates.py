"""What an optimizer holds and works on: ours by their own plan, four others by formulas that tests check."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from automagic_cameamp import OPTIMIZERS

from ..factory import OptimizerArgumentError, parse_optimizer_args
from ..presets import preset_options
from ..profiles import PROFILES
from .meter import Meter
from .models import FitError
from .trace import Trained

Words = tuple[tuple[str, Any], ...]  # options, hashable
Shape = tuple[int, ...]
SIDE = 256  # of the matrices on which the temporary memory of a step is measured
RELEASED = 16 * 1024  # most that the COptim classes keep of a released tensor until the step ends
WAYS = ("plain", "release", "offload", "release+offload")


class Candidate(NamedTuple):
    """An optimizer with its options.

    Args:
        name: a class of ours, or a key of ``OTHERS``.
        options: keyword arguments beyond the learning rate.
    """

    name: str
    options: Words = ()

    @property
    def ours(self) -> bool:
        """Whether it is a class of this package."""
        return self.name in OPTIMIZERS

    @property
    def label(self) -> str:
        """For a table: the name, the profile, what else is set."""
        words = [str(value) if key == "profile" else f"{key}={value}" for key, value in self.options]
        return " ".join([self.name, *words])

    @property
    def ways(self) -> tuple[str, ...]:
        """The ways in which it can be used."""
        return WAYS if self.ours else WAYS[: 2 if self.name == "Adafactor" else 1]


class Cost(NamedTuple):
    """Bytes.

    Args:
        state: held between steps.
        step: temporary memory of a step that has all gradients.
        each: temporary memory of a tensor that is stepped alone, per element.
        kept: of a released tensor until the step ends.
        ring: of the host, through which released gradients pass that are stepped there.
        ahead: of those on their way to it.
    """

    state: int
    step: int
    each: float
    kept: int = 0
    ring: int = 0
    ahead: int = 0


class Other(NamedTuple):
    """An optimizer that is not ours.

    Args:
        source: whose, and how it is meant.
        state: (shape, type of the parameter) -> bytes of state.
        step: (elements of all, elements of the largest, bytes of an element) -> bytes of temporary memory.
    """

    source: str
    state: Callable[[Shape, torch.dtype], int]
    step: Callable[[int, int, int], float]


def _adamw8bit(shape: Shape, dtype: torch.dtype) -> int:
    n = math.prod(shape)
    return 8 * n if n < 4096 else 2 * n + 8 * math.ceil(n / 256)


def _adafactor(shape: Shape, dtype: torch.dtype) -> int:
    if len(shape) < 2:
        return 4 * math.prod(shape) + 4
    lead = math.prod(shape[:-2])
    return 4 * lead * (shape[-2] + shape[-1]) + 4


OTHERS = {
    "AdamW": Other(
        "torch.optim, foreach as on CUDA",
        lambda shape, dtype: 2 * math.prod(shape) * dtype.itemsize,
        lambda total, largest, size: total * size,
    ),
    "AdamW8bit": Other("bitsandbytes", _adamw8bit, lambda total, largest, size: 0),
    "Adafactor": Other(
        "transformers, without momentum",
        _adafactor,
        lambda total, largest, size: largest * (20 if size == 2 else 12),
    ),
    "Prodigy": Other(
        "prodigyopt",
        lambda shape, dtype: 4 * math.prod(shape) * dtype.itemsize,
        lambda total, largest, size: 2 * largest * size,
    ),
}


# Profiles of classes that have no option for them: by module name, as automagic_cameamp.minimal.
SMALL = ("memory_optimized", "minimal")


def everyone() -> list[Candidate]:
    """All of ours, with each of their profiles, and the others."""
    found = []
    for name in OPTIMIZERS:
        if has_option(name, "profile"):
            found += [Candidate(name, (("profile", p),)) for p in PROFILES]
        else:
            small = SMALL if name.endswith("8bit") else ()
            found += [Candidate(name), *(Candidate(name, (("profile", p),)) for p in small)]
    return found + [Candidate(name) for name in OTHERS]


def has_option(name: str, option: str) -> bool:
    """Whether one of our classes has an option."""
    return option in getattr(OPTIMIZERS[name], "config_class").__dataclass_fields__  # noqa: B009


def parse(text: str) -> Candidate:
    """``Name`` or ``Name:key=value;key=value``, upper and lower case the same.

    Raises:
        FitError: there is no such optimizer or option.
    """
    name, _, rest = text.partition(":")
    names = {n.lower(): n for n in (*OPTIMIZERS, *OTHERS)}
    if name.lower() not in names:
        raise FitError(f"optimizer={name!r} is not known; there are {', '.join(names.values())}")
    try:
        options = parse_optimizer_args(word for word in rest.split(";") if word)
    except OptimizerArgumentError as error:
        raise FitError(str(error)) from None
    if options and names[name.lower()] in OTHERS:
        raise FitError(f"optimizer={text!r}: {names[name.lower()]} is computed with its defaults only")
    for key in ("offload", "lr", "verbose"):
        options.pop(key, None)  # what is asked is how it is used; neither changes its bytes
    return Candidate(names[name.lower()], tuple(options.items()))


def _build(candidate: Candidate, params: Iterable[Any], **more: Any) -> Any:
    cls, options = OPTIMIZERS[candidate.name], dict(candidate.options)
    profile = options.pop("profile", None)
    try:
        if profile is not None and profile not in PROFILES:
            raise ValueError(f"profile={profile!r} is not allowed: there are {', '.join(PROFILES)}")
        preset = {} if profile is None else preset_options(cls, profile)
        quiet = {"verbose": False} if has_option(candidate.name, "verbose") else {}
        return cls(params, lr=1e-4, **{**preset, **options, **quiet, **more})
    except (TypeError, ValueError) as error:
        raise FitError(f"optimizer {candidate.label}: {' '.join(str(error).split())}") from error


def cost(candidate: Candidate, trained: Iterable[Trained]) -> Cost:
    """What a candidate costs for these parameters."""
    trained = list(trained)
    if not candidate.ours:
        other = OTHERS[candidate.name]
        size = max(t.dtype.itemsize for t in trained)
        elements = [math.prod(t.shape) for t in trained]
        state = sum(other.state(t.shape, t.dtype) for t in trained)
        largest = max(elements)
        step = int(other.step(sum(elements), largest, size))
        return Cost(state, step, other.step(1, 1, size))
    named = [(t.name, nn.Parameter(torch.empty(t.shape, dtype=t.dtype, device="meta"))) for t in trained]
    planned = _build(candidate, named).planned_memory()
    dtype = max((t.dtype for t in trained), key=lambda d: d.itemsize)
    alone, stacked = (temporary(candidate, dtype, tensors) for tensors in (1, 2))
    step = int(max(alone * planned.alone, stacked * planned.stacked))
    kept = RELEASED if "COptim" in candidate.name else 0
    return Cost(planned.state, step, alone, kept, planned.crossing.ring, planned.crossing.ahead)


@lru_cache(maxsize=256)
def temporary(candidate: Candidate, dtype: torch.dtype, tensors: int) -> float:
    """Bytes per element that one step of plain torch needs beside weights, gradients and state; measured.

    Args:
        candidate: one of ours.
        dtype: of weights and gradients.
        tensors: how many are stacked.
    """
    worst = 0.0
    for warmup in (0, 500):  # late, and early
        params = [nn.Parameter(torch.full((SIDE, SIDE), 0.02, dtype=dtype)) for _ in range(tensors)]
        optimizer = _build(candidate, params, engine="reference", warmup_steps=warmup)
        for step in range(2):
            for p in params:
                p.grad = torch.linspace(-1, 1, p.numel()).view(p.shape).to(dtype)
            state = [v for held in optimizer.state.values() for v in held.values() if isinstance(v, Tensor)]
            meter = Meter([*params, *(p.grad for p in params if p.grad is not None), *state])
            before = meter.live
            with meter:
                optimizer.step()
            if step:  # the first makes the state
                worst = max(worst, (meter.peak - before) / (tensors * SIDE * SIDE))
    return worst
