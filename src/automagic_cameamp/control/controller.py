"""The contextual controller: one number over the whole model, from how its gradients and losses go.

It watches the directions of successive updates, the size of the gradient and, where it is told,
the loss; and it multiplies every rate of the *next* step by M, between the two bounds. Original
work of this project: no paper stands behind it. Every signal is a running mean on the device of
the model; nothing in a step waits for it, and only the public report methods read it back.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from .. import techniques as T
from ..types import Layout
from .signals import TINY, Memory, Seen, Signals, advance


def _scalar(x: float | Tensor, zero: Tensor) -> Tensor:
    """A number as a 0-D tensor beside ``zero``, without waiting for its device."""
    if not isinstance(x, Tensor):
        return zero + x
    return x.detach().reshape(()).to(zero.device, zero.dtype, non_blocking=zero.device.type != "cpu")


def _push(history: Tensor, value: Tensor) -> Tensor:
    return torch.cat([history[1:], value.view(1)])


class ContextualController:
    """``optimizer.c_optim``: signals, edge cases and the multiplier M of every rate.

    Args:
        context_window: steps of the slow running means, and of the histories of a new run.
        edge_threshold: lower means fewer edge cases; see ``detect_edge_case``.
        adaptation_rate: rate of the fast running means and of log M; 0 keeps M at 1.
        context_lr_bounds: lowest and highest M.

    Attributes:
        over_ranks: whether losses are averaged over all processes of torch.distributed, so that all
            find the same M: one reduction of two numbers per step. Set it to False where this
            optimizer runs in one process of several.
    """

    over_ranks: bool = True

    def __init__(
        self,
        context_window: int = 100,
        edge_threshold: float = 0.95,
        adaptation_rate: float = 0.1,
        context_lr_bounds: tuple[float, float] = (0.5, 2.0),
    ) -> None:
        self.context_window = context_window
        self.edge_threshold = edge_threshold
        self.adaptation_rate = adaptation_rate
        self.context_lr_bounds = context_lr_bounds
        self.memory: Tensor | None = None
        self._pending: list[float | Tensor] = []
        self._total: Tensor | None = None
        self._begin_observation()

    # ---------------------------------------------------------------- told by the user

    def record_loss(self, loss: float | Tensor) -> None:
        """Tell the loss of the coming step, any time before it; several are averaged.

        With torch.distributed initialised it is averaged over the ranks that tell one, so that all
        of them find the same M; whether every rank tells its own or only the first does not matter.

        Args:
            loss: a number, or a tensor of one element, which stays on its device.
        """
        if isinstance(loss, Tensor):
            if loss.numel() != 1:
                raise ValueError(
                    f"loss of shape {tuple(loss.shape)} is not allowed: a number or a tensor of one "
                    "element. Take its mean first."
                )
            self._pending.append(loss.detach().float().reshape(()).clone())
        elif isinstance(loss, numbers.Real):
            self._pending.append(float(loss))
        else:
            raise TypeError(f"loss={loss!r} is not allowed: a number or a tensor of one element.")

    @torch.no_grad()
    def update_context(
        self,
        gradient: Tensor | Iterable[Tensor],
        loss: float | Tensor | None = None,
        lr: float | Tensor = 0.0,
    ) -> None:
        """Make one observation by hand. ``step()`` makes its own: use one or the other.

        Args:
            gradient: one tensor, or those of all parameters in an order that stays the same.
            loss: see ``record_loss``.
            lr: learning rate, for ``lr_history``.
        """
        self.begin(loss)
        for number, g in enumerate([gradient] if isinstance(gradient, Tensor) else gradient):
            x = g.detach().float().reshape(1, *Layout.of(tuple(g.shape)).view)
            square = T.tensor_sum(x.square()).flatten()
            good = torch.isfinite(square)
            q = T.sketch(x) * (x[0].numel() / square.clamp(min=TINY)).sqrt()
            self._add(torch.where(good, q, 0.0), torch.where(good, square, 0.0), ~good, (0, number))
        self._observe(lr, self._sketch.device if self._sketch is not None else torch.device("cpu"))

    # ---------------------------------------------------------------- called by the engine

    def begin(self, loss: Any) -> None:
        """Start a step; a loss that the step is given replaces recorded ones."""
        self._begin_observation()
        if loss is not None:
            self._pending = []
            self.record_loss(loss)

    def multiplier(self, like: Tensor) -> Tensor:
        """M for this step, 0-D, from the steps before."""
        if self.memory is None:
            return torch.ones_like(like)
        log = self.memory[Signals._fields.index("log_multiplier")]
        return log.exp().to(device=like.device, dtype=like.dtype)

    def collect(self, signals: Any, key: tuple[int, int], rows: Tensor | None, count: int) -> None:
        """Add what one stack tells.

        Args:
            signals: the recipe's ``Signals``.
            key: (group, chunk), which names the stack from step to step.
            rows: places in the stack of the tensors that have a gradient; None for all of them.
            count: how many tensors the stack has, with and without gradient.
        """
        q = signals.sketch
        if rows is not None:  # absent tensors keep their place, or the sketch would not compare
            q = q.new_zeros(count, q.shape[1]).index_copy(0, rows, q)
        self._add(q, signals.square, signals.bad, key)

    def join(self, sketch: Tensor, square: float, bad: int) -> None:
        """Add what many stacks tell at once.

        Args:
            sketch: [4096] fp64 sum of their folded sketches; copied.
            square: sum of squares of their raw gradients.
            bad: number of unusable gradients.
        """
        # What has no room in fp32 is infinite, as where torch forms the sum.
        total = torch.tensor(square, dtype=torch.float64, device="cpu").float().to(sketch.device)
        self._join(sketch.float(), total, torch.full((), bad > 0, device=sketch.device))

    def finish(self, groups: list[dict[str, Any]]) -> None:
        """Turn what was collected into M for the next step."""
        params = [p for group in groups for p in group["params"]]
        device = self._sketch.device if self._sketch is not None else params[0].device if params else None
        if device is not None:
            self._observe(groups[0]["lr"], device)

    def _begin_observation(self) -> None:
        self._sketch: Tensor | None = None
        self._square: Tensor | None = None
        self._bad: Tensor | None = None

    def _add(self, q: Tensor, square: Tensor, bad: Tensor, key: tuple[int, int]) -> None:
        q = T.fold(q, 40_503 * key[0] + 24_593 * key[1]).float()
        self._join(q, square.float().sum(), bad.any())

    def _join(self, q: Tensor, total: Tensor, wrong: Tensor) -> None:
        if self._sketch is None or self._square is None or self._bad is None:
            self._sketch, self._square, self._bad = q, total, wrong
            return
        device = self._sketch.device
        self._sketch = self._sketch + q.to(device)
        self._square = self._square + total.to(device)
        self._bad = self._bad | wrong.to(device)

    def _observe(self, lr: float | Tensor, device: torch.device) -> None:
        """One observation from what was collected and recorded."""
        memory = Memory.unpack(self._memory_on(device))
        s, zero = Signals(*memory.signals.unbind()), torch.zeros((), dtype=torch.float32, device=device)
        loss, told = self._take_loss(device)
        q = (
            self._sketch
            if self._sketch is not None
            else torch.zeros(T.SKETCH_SIZE, dtype=torch.float32, device=device)
        )
        square = self._square if self._square is not None else zero
        wrong = self._bad if self._bad is not None else zero > 0
        finite = (loss.abs() < math.inf) | ~told  # torch.isfinite would be four operations
        told = told & finite

        last = memory.sketches[1]
        size, before = q.square().sum(), last.square().sum()
        both = torch.stack([size, square])
        moved = ((both > 0) & (both < math.inf)).all() & ~wrong
        paired = moved & (before > 0)
        cosine = (q * last).sum() * torch.where(paired, (size * before).clamp(min=TINY).rsqrt(), 0.0)
        seen = Seen(
            cosine=torch.where(paired, cosine.clamp(-1.0, 1.0), 0.0),
            paired=paired,
            log_norm=torch.where(moved, 0.5 * square.clamp(min=1e-38).log(), 0.0),
            moved=moved,
            loss=torch.where(told, loss, 0.0),
            told=told,
            bad=wrong | ~finite,
        )
        s = advance(
            s, seen, self.context_window, self.edge_threshold, self.adaptation_rate, self.context_lr_bounds
        )
        rate = _scalar(lr, zero)
        self.memory = Memory(
            signals=torch.stack(list(s)),
            losses=torch.where(told, _push(memory.losses, seen.loss), memory.losses),
            rates=_push(memory.rates, rate),
            performance=_push(memory.performance, -s.trend()),
            sketches=torch.where(moved, torch.stack([last, q]), memory.sketches),
        ).pack()
        self._begin_observation()

    def _memory_on(self, device: torch.device) -> Tensor:
        if self.memory is None:
            return torch.zeros(Memory.size(self.context_window), dtype=torch.float32, device=device)
        return self.memory.to(device)

    def share(self, device: torch.device) -> Tensor | None:
        """What this rank adds to the losses of all ranks, or None where there are no others.

        Returns:
            [2] mean of its recorded losses and 1; 0 and 0 where none was recorded.
        """
        ranks = torch.distributed
        if not (self.over_ranks and ranks.is_available() and ranks.is_initialized()):
            return None
        return self._own_loss(device) if ranks.get_world_size() > 1 else None

    def take(self, total: Tensor) -> None:
        """The sum of all ranks' ``share``, where the engine had something else to add up anyway."""
        self._total = total.float()

    def _own_loss(self, device: torch.device) -> Tensor:
        zero = torch.zeros((), dtype=torch.float32, device=device)
        values = [_scalar(x, zero) for x in self._pending]
        return torch.stack([torch.stack(values).mean(), zero + 1]) if values else torch.stack([zero, zero])

    def _take_loss(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Mean of the recorded losses over the ranks that have some, and whether any has."""
        total = self.take_total(device)
        if total is None:
            total = self._own_loss(device)
        return total[0] / total[1].clamp(min=1), total[1] > 0

    def take_total(self, device: torch.device) -> Tensor | None:
        """[2] sum over the ranks of their ``share``; None where no loss was recorded and no rank is asked."""
        total = self._total
        if total is None and (total := self.share(device)) is not None:
            torch.distributed.all_reduce(total)
        if total is None and self._pending:
            total = self._own_loss(device)
        self._pending, self._total = [], None
        return total

    # ---------------------------------------------------------------- checkpoints

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers for people, and ``memory``, from which everything comes back."""
        return {
            "edge_case_count": self.edge_case_count,
            "contextual_lr_multiplier": self.compute_contextual_lr_multiplier(),
            **({} if self.memory is None else {"memory": self.memory}),
        }

    def load(self, memory: Tensor | None) -> None:
        """Take over a saved memory; None starts neutral."""
        self._pending = []
        self._begin_observation()
        self.memory = None if memory is None else memory.detach().clone()

    @staticmethod
    def is_memory(value: object) -> bool:
        """Whether this can be loaded."""
        if not isinstance(value, Tensor) or value.dim() != 1 or value.dtype != torch.float32:
            return False
        rest = value.shape[0] - Memory.size(0)
        return rest > 0 and rest % 3 == 0

    # ---------------------------------------------------------------- reports: each waits for the device

    def _signals(self) -> Signals:
        flat = torch.zeros(Memory.size(1), device="cpu") if self.memory is None else self.memory
        return Signals(*Memory.unpack(flat).signals.cpu().unbind())

    def _history(self, name: str, count: Tensor) -> list[float]:
        if self.memory is None:
            return []
        values = getattr(Memory.unpack(self.memory), name).tolist()
        return values[len(values) - min(int(count), len(values)) :]

    def detect_edge_case(self) -> bool:
        """Whether the last observation was an edge case: training is in difficulty.

        One of: something was not finite; successive updates turn against each other (kappa below
        edge_threshold - 1); the loss rises (by more than 1 - edge_threshold of its size); the
        gradient swells (by more than 10 (1 - edge_threshold) of its usual norm). Never in the
        first ten steps.
        """
        return bool(self._signals().edge(self.edge_threshold, self.context_window))

    def compute_contextual_lr_multiplier(self) -> float:
        """M: what every rate of the next step is multiplied by. Asking changes nothing."""
        return math.exp(float(self._signals().log_multiplier))

    def compute_gradient_consistency(self) -> float:
        """Mean cosine between successive updates, in [-1, 1]; 1.0 before there are two."""
        s = self._signals()
        return float(s.kappa) if s.cosines > 0 else 1.0

    def compute_loss_stability(self) -> float:
        """exp(-deviation / size) of the recorded losses, in [0, 1]; 1.0 without any."""
        s = self._signals()
        return math.exp(-float(s.loss_deviation / s.loss_slow.abs().clamp(min=TINY)))

    @property
    def edge_case_count(self) -> int:
        """Edge cases so far."""
        return int(self._signals().edge_case_count)

    @property
    def stable_steps(self) -> int:
        """Steps since the last edge case."""
        return int(self._signals().stable_steps)

    @property
    def convergence_rate(self) -> float:
        """How fast the loss falls now, relative to its size; negative where it rises, 0 without losses."""
        return -float(self._signals().trend())

    @property
    def gradient_history(self) -> list[Tensor]:
        """Sketches of the last updates, at most two, newest last."""
        if self.memory is None:
            return []
        sketches = Memory.unpack(self.memory).sketches
        return [q.clone() for q in sketches if bool(q.any())]

    @property
    def loss_history(self) -> list[float]:
        """The last recorded losses, newest last, at most ``context_window``."""
        return self._history("losses", self._signals().losses)

    @property
    def lr_history(self) -> list[float]:
        """Learning rate of the first group at the last steps, newest last, without M."""
        return self._history("rates", self._signals().steps)

    @property
    def performance_history(self) -> list[float]:
        """``convergence_rate`` at the last steps, newest last."""
        return self._history("performance", self._signals().steps)
