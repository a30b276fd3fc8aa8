"""The step through ``torch.compile``: Inductor writes for a device what the recipe says.

A graph holds one update of a stack: state decoded, the recipe, state encoded, all written in place. There is
one for each kind of stack (shape, types, storage, options, phase), and its number of tensors is free; rates,
counts and random keys are tensors: nothing is compiled anew when they move. Before a graph is trusted its
first step is compared with the eager one, on copies. Whatever fails (no compiler, no memory, a difference)
is said once, and such stacks are stepped eagerly.
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from ..recipes import Hyper, Shared, alone
from ..state import tensors
from ..state.counts import directions_of
from ..state.fields import compute_dtype
from ..types import Phase
from .said import say
from .update import Ended, Gathered, Planes, Text, Update, begin, end
from .work import Outcome, Work

logger = logging.getLogger("automagic_cameamp")
DEVICES = ("cuda", "xpu")  # 'auto' compiles here; ROCm calls itself cuda
# A sum of up to a million terms is off by at most 2e-5 of itself (tests/native/lockstep.py derives it); a
# direction is a product of at most eight such factors.
TOLERANCE, STATE_TOLERANCE = 2e-4, 3e-5  # of the move of a weight, of the size of a state
RARE = 0.01  # share of the codes, or of weights of 16 bits, that may lie so close to a midpoint
BACKEND = "inductor"  # of torch.compile
SMALL = 1024  # elements of a tensor
OPTIONS_PER_STACK = 8  # more: one of them changes at every step, and each value would be compiled
RATES = ("lr", "base_lr")
SHARED = ("mask_mean", "mask_vote", "mask_count", "level", "multiplier", "clock", "steering")


class Differs(RuntimeError):
    """A compiled step is not the eager one."""


class Step(torch.nn.Module):
    """One update of a stack, as a function of tensors alone; parameters and state are changed in place.

    Args:
        text: what is computed; its lr is given at every call.
        phase: where the stack stands.
        shared: the recipe's scalars; those that are tensors are given at every call.
    """

    def __init__(self, text: Text, phase: Phase, shared: Shared) -> None:
        super().__init__()
        self.text, self.phase, self.shared = text, phase, shared

    def forward(
        self, p: Tensor, g: Tensor, planes: Planes, numbers: dict[str, Tensor], keys: Tensor | None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Usable gradients [B], and the recipe's signals."""
        ended = self.ended(p, g, planes, numbers, keys)
        p.copy_(ended.p)
        for name, stored in ended.planes.items():
            if stored is not None:
                for old, new in zip(planes[name], stored, strict=True):
                    old.copy_(new)
        return ended.ok.flatten(), tuple(ended.signals or ())

    def ended(
        self, p: Tensor, g: Tensor, planes: Planes, numbers: dict[str, Tensor], keys: Tensor | None
    ) -> Ended:
        """What is written."""
        rates = {name: numbers[name] for name in RATES if name in numbers}
        text = self.text._replace(hp=self.text.hp._replace(**rates))
        shared = self.shared._replace(**{k: v for k, v in numbers.items() if k not in rates})
        result = alone(begin(text, p, g, planes, shared, self.phase))
        return end(text, p, planes, result, result.ok, keys)


def compiled(step: Step, inputs: tuple[Any, ...], any_batch: bool) -> Callable[..., Any]:
    """The step as one graph, traced with these inputs.

    Args:
        step: what is traced.
        inputs: its arguments; their first dimension is that of the stack.
        any_batch: whether the graph shall serve stacks of any number of tensors.
    """
    from torch.export import Dim, export

    p, g, planes, numbers, keys = inputs
    if any_batch:
        batch = {0: Dim("tensors", min=2)}
        shapes: Any = (
            batch,
            batch,
            {name: tuple(batch for _ in stored) for name, stored in planes.items()},
            dict.fromkeys(numbers),
            None if keys is None else batch,
        )
        program = export(step, inputs, dynamic_shapes=shapes, strict=False)
        stacked = [p, g, *(q for stored in planes.values() for q in stored)]
        stacked += [] if keys is None else [keys]
        for x in stacked:
            torch._dynamo.maybe_mark_dynamic(x, 0)
    else:
        program = export(step, inputs, strict=False)
    # With small tensors of 16 bits that are rounded at random, Inductor's vectorised C++ ends in a memory
    # fault (torch 2.13; seen up to 128 elements, not from 256 on; place not found). Scalar code has none.
    small = p.device.type == "cpu" and keys is not None and p[0].numel() < SMALL
    scalar: dict[str, Any] | None = {"cpp.simdlen": 1} if small and BACKEND == "inductor" else None
    return torch.compile(program.module(), fullgraph=True, backend=BACKEND, options=scalar)


class Graph:
    """A compiled step and whether it may be used.

    Args:
        step: the same, eagerly.
    """

    def __init__(self, step: Step) -> None:
        self.step = step
        self.call: Callable[..., Any] | None = None
        self.reason: str | None = None

    def prepare(self, inputs: tuple[Any, ...], any_batch: bool) -> None:
        """Compile, and compare a first step with the eager one; nothing of the inputs changes."""
        p, g, planes, numbers, keys = inputs
        expected = self.step.ended(*inputs)
        held = {name: tuple(map(Tensor.clone, stored)) for name, stored in planes.items()}
        copies = (p.clone(), g.clone(), held, numbers, keys)
        call = compiled(self.step, copies, any_batch)
        ok, _ = call(*copies)
        if not torch.equal(ok, expected.ok.flatten()):
            raise Differs("which gradients are usable")
        compare(p, expected.p, copies[0], "weights", moves=True)
        for name, stored in expected.planes.items():
            if stored is not None:
                for old, new, found in zip(planes[name], stored, held[name], strict=True):
                    compare(old, new.to(old.dtype), found, f"the state {name!r}")
        self.call = call


def compare(old: Tensor, eager: Tensor, found: Tensor, what: str, moves: bool = False) -> None:
    """Raise where a compiled result is further from the eager one than rounding explains.

    Args:
        old: what it was.
        eager, found: what it shall be and is.
        what: how messages call it.
        moves: a weight, whose move is what counts; the size of a state does.
    """
    if not old.is_floating_point():
        wrong = found != eager
        allowed = max(2.0, RARE * wrong.numel())
    else:
        a, b = eager.double(), found.double()
        finite = a.isfinite() & b.isfinite()
        size = torch.where(finite, a.abs(), 0.0)
        if moves:
            move = torch.where(finite, (a - old.double()).abs(), 0.0)
            allowance = TOLERANCE * move.amax() + size * 2.0**-22
        else:
            allowance = STATE_TOLERANCE * size.amax()
        wrong = torch.where(finite, (a - b).abs() > allowance + 1e-37, a.isfinite() != b.isfinite())
        # A weight of 16 bits that lies between two of them may go to either.
        allowed = max(2.0, RARE * wrong.numel()) if old.dtype in (torch.bfloat16, torch.float16) else 0.0
    if float(wrong.sum()) > allowed:
        raise Differs(f"{what}: {int(wrong.sum())} of {wrong.numel()} elements")


class Compiled:
    """The executor: graphs by kind of stack, kept for the life of the process."""

    name = "compiled"

    def __init__(self) -> None:
        self.graphs: dict[Any, Graph] = {}
        self.options: dict[Any, set[Any]] = {}  # values of options that a graph was made for
        self.broken: dict[str, str] = {}

    def why_not(self, work: Work) -> list[str | None]:
        """Why this executor does not do a work, in words; None where it does all of it."""
        return [self._why_not(work)] * len(work.chunk.params)

    def words(self, p: Tensor) -> str:
        """How a parameter is stepped."""
        return "torch.compile of the recipe"

    def _why_not(self, work: Work) -> str | None:
        chunk = work.chunk
        device = chunk.params[0].device.type
        if device in self.broken:
            return self.broken[device]
        if chunk.shard is not None:
            return "sharded parameters"
        if device not in (*DEVICES, "cpu"):
            return f"parameters on {device!r}"
        if tensors.any_wrapper([x for q in chunk.params for x in (q, q.grad) if x is not None]):
            return "weights or gradients in a form of their own"
        if work.shared is not None and work.shared.refresh:
            return "a search for low-rank directions, due at this step"
        if work.shared is None:  # looked at before there is a state
            return None
        key = self._key(work)
        values = self.options.setdefault(key[0], set())
        if key[1] not in values and len(values) >= OPTIONS_PER_STACK:
            reason = f"an option that changes from step to step (more than {OPTIONS_PER_STACK} values)"
            say(
                f"torch.compile is not used for {reason}: tensors of shape {chunk.layout.shape} step eagerly."
            )
            return reason
        values.add(key[1])
        graph = self.graphs.get(key)
        return None if graph is None else graph.reason

    @staticmethod
    def _key(work: Work) -> Any:
        chunk, hp = work.chunk, work.hp._replace(**dict.fromkeys(loose_rates(work.hp)))
        p = chunk.params[0]
        grads = {q.grad.dtype for q in chunk.params if q.grad is not None}
        # On a CPU products of the directions are made one by one, so their number is part of the graph.
        count = len(chunk.params)
        exactly = count if count == 1 or (p.device.type == "cpu" and directions_of(work.fields)) else 0
        given = tuple(name for name in SHARED if getattr(work.scalars, name) is not None)
        fields = tuple((field.spec._replace(initial=0), described(field.codec)) for field in work.fields)
        kind = (work.recipe.__name__, chunk.layout, p.dtype, p.device, *sorted(map(str, grads)))
        kind += (fields, work.rounds, work.keys is not None, given, work.phase, exactly)
        return kind, (described(hp), work.scalars.level_start)

    def run(self, works: list[Work]) -> Iterator[Outcome]:
        """One stack after the other; those whose graph fails are stepped eagerly."""
        for work in works:
            ok, signals = self._run(work)
            yield work, ok, signals

    def _run(self, work: Work) -> tuple[Tensor, Any]:
        gathered = Gathered(work.chunk, work.states, work.fields)
        graph = self._graph(work, gathered)
        if graph.call is None:
            update = Update(work)
            return update.finish(alone(update.steps), work.keys)
        ok, signals = graph.call(*self._inputs(work, gathered))
        gathered.write_back()
        made = getattr(work.recipe, "Signals", None)
        return ok, None if made is None else made(*signals)

    def _graph(self, work: Work, gathered: Gathered) -> Graph:
        """The graph of a kind of stack, made and checked at its first use."""
        key = self._key(work)
        if key in self.graphs:
            return self.graphs[key]
        device = work.chunk.params[0].device.type
        chunk = work.chunk
        text = Text(work.recipe, work.fields, work.hp, chunk.layout, chunk.params[0].dtype, work.rounds)
        graph = self.graphs[key] = Graph(Step(text, work.phase, work.scalars))
        began = time.perf_counter()
        logger.info("compiling the step of %s tensors (%s)", tuple(work.chunk.layout.shape), work.phase.value)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the compiler's own, which a program may have made errors
                graph.prepare(self._inputs(work, gathered), any_batch=key[0][-1] == 0)
        except Differs as error:
            graph.reason = f"its compiled step differs from the eager one in {error}"
            say(f"{graph.reason}: tensors of shape {tuple(work.chunk.layout.shape)} are stepped eagerly.")
        except torch.OutOfMemoryError:
            graph.reason = "no memory was left to compare its compiled step"
            say(f"{graph.reason}: tensors of shape {tuple(work.chunk.layout.shape)} are stepped eagerly.")
        except Exception as error:  # whatever a compiler, or the lack of one, can raise
            self._give_up(device, " ".join(f"{type(error).__name__}: {error}".split())[:300])
        logger.info("compiled in %.1f s", time.perf_counter() - began)
        return graph

    def _give_up(self, device: str, reason: str) -> None:
        self.broken[device] = f"torch.compile cannot be used on {device!r} ({reason})"
        say(
            f"{self.broken[device]}. Steps are taken eagerly, which is slower and exact; engine='reference' "
            "silences this."
        )

    @staticmethod
    def _inputs(work: Work, gathered: Gathered) -> tuple[Any, ...]:
        p = work.chunk.params[0]
        compute = compute_dtype(p.dtype)
        numbers = {name: x for name in SHARED if (x := getattr(work.scalars, name)) is not None}
        for name in loose_rates(work.hp):
            x = getattr(work.hp, name)
            on_device = isinstance(x, Tensor)
            numbers[name] = (
                x.to(p.device, compute) if on_device else torch.full((), x, dtype=compute, device=p.device)
            )
        return gathered.p, gathered.g, gathered.planes, numbers, work.keys


def loose_rates(hp: Hyper) -> tuple[str, ...]:
    """Rates that a graph takes as tensors. The additive rule makes integers of the first one."""
    return RATES if hp.lr_mask_rule != "additive" else RATES[:1]


def described(x: Any) -> Any:
    """A value of options or of a codec as something that can be a key."""
    if isinstance(x, (list, tuple)):
        return tuple(map(described, x))
    if hasattr(x, "planes") and hasattr(x, "encode"):
        return type(x).__name__, *((k, described(v)) for k, v in sorted(vars(x).items()))
    return x


COMPILED = Compiled()
