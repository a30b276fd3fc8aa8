"""What the controller remembers, and the one rule that moves it."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from .. import techniques as T

START_UP = 10  # steps before anything counts as an edge case (or context_window, if that is shorter)
EDGE_LOG_MULTIPLIER = math.log(0.7)  # an edge case allows no more than this
CONSISTENT = math.log(2.0)  # M of perfectly consistent updates
TREND_WEIGHT, TREND_SCALE = 0.25 * math.log(2.0), 0.1
TINY = 1e-30


class Signals(NamedTuple):
    """The controller's numbers, fp32, 0-D each. Counts come first, then running means.

    Args:
        steps: observations so far; ``losses``, ``cosines``, ``norms``: how many of them had a
            usable loss, two usable gradients in a row, a gradient that was not 0.
        edge_case_count: edge cases so far. stable_steps: observations since the last one.
        log_multiplier: log M, for the next step.
        kappa: mean cosine between successive updates.
        norm_fast, norm_slow: means of the logarithm of the gradient norm.
        loss_fast, loss_slow, loss_deviation: means of the loss and of its distance to loss_slow.
        bad: 1 where the last observation held something that is not finite.
    """

    steps: Tensor
    losses: Tensor
    cosines: Tensor
    norms: Tensor
    edge_case_count: Tensor
    stable_steps: Tensor
    log_multiplier: Tensor
    kappa: Tensor
    norm_fast: Tensor
    norm_slow: Tensor
    loss_fast: Tensor
    loss_slow: Tensor
    loss_deviation: Tensor
    bad: Tensor

    def trend(self) -> Tensor:
        """Rise of the loss relative to its size, or to its spread where the loss is near 0."""
        size = torch.maximum(self.loss_slow.abs(), self.loss_deviation).clamp(min=TINY)
        return (self.loss_fast - self.loss_slow) / size

    def edge(self, threshold: float, window: int, trend: Tensor | None = None) -> Tensor:
        """Whether the step was an edge case: fewer of them the lower the threshold.

        Args:
            threshold, window: the controller's.
            trend: ``trend()``, where it is known.
        """
        slack = 1 - threshold
        turned = self.kappa < -slack
        rose = (self.trend() if trend is None else trend) > slack
        swelled = self.norm_fast - self.norm_slow > math.log1p(10 * slack)
        return (turned | rose | swelled | (self.bad > 0)) & (self.steps >= min(START_UP, window))


class Seen(NamedTuple):
    """One observation; 0-D tensors. ``cosine`` holds 0 where ``paired`` is False, and so on."""

    cosine: Tensor
    paired: Tensor
    log_norm: Tensor
    moved: Tensor
    loss: Tensor
    told: Tensor
    bad: Tensor


def _means(
    old: list[Tensor], new: list[Tensor], counts: list[Tensor], rates: Tensor, have: list[Tensor]
) -> tuple[Tensor, ...]:
    """Running means that start as plain ones; unchanged where there is nothing new. All in one go."""
    before, weights = torch.stack(old), torch.maximum(torch.stack(counts).clamp(min=1).reciprocal(), rates)
    return torch.where(torch.stack(have), torch.lerp(before, torch.stack(new), weights), before).unbind()


@lru_cache(maxsize=64)
def _rates(device: torch.device, kappa: float, fast: float, slow: float) -> Tensor:
    """Least weight of a new value in each mean, in the order of ``Signals``."""
    return torch.tensor([kappa, fast, slow, fast, slow, slow], dtype=torch.float32, device=device)


def advance(
    s: Signals, seen: Seen, window: int, threshold: float, rate: float, bounds: tuple[float, float]
) -> Signals:
    r"""One observation: new running means, edge case or not, new log M.

    .. math:: s^* = \ln 2\,\kappa - \tfrac14 \ln 2 \tanh(\mathrm{trend} / 0.1), \qquad
              s^* \leftarrow \min(s^*, \ln 0.7)\ \text{at an edge case}, \qquad
              \ln M \leftarrow \ln M + a\,(\mathrm{clamp}(s^*) - \ln M)
    """
    slow = 2 / (window + 1)
    fast = min(max(rate, 2 * slow), 1.0)  # a short window must not be overtaken by its own slow mean
    losses = s.losses + seen.told.float()
    cosines, norms = s.cosines + seen.paired.float(), s.norms + seen.moved.float()
    distance = torch.where(s.losses > 0, (seen.loss - s.loss_slow).abs(), 0.0)
    kappa, norm_fast, norm_slow, loss_fast, loss_slow, loss_deviation = _means(
        [s.kappa, s.norm_fast, s.norm_slow, s.loss_fast, s.loss_slow, s.loss_deviation],
        [seen.cosine, seen.log_norm, seen.log_norm, seen.loss, seen.loss, distance],
        [cosines, norms, norms, losses, losses, losses],
        _rates(s.kappa.device, rate, fast, slow),
        [seen.paired, seen.moved, seen.moved, seen.told, seen.told, seen.told],
    )
    s = s._replace(
        steps=s.steps + 1,
        losses=losses,
        cosines=cosines,
        norms=norms,
        kappa=kappa,
        norm_fast=norm_fast,
        norm_slow=norm_slow,
        loss_fast=loss_fast,
        loss_slow=loss_slow,
        loss_deviation=loss_deviation,
        bad=seen.bad.float(),
    )
    trend = s.trend()
    edge = s.edge(threshold, window, trend)
    target = CONSISTENT * s.kappa - TREND_WEIGHT * torch.tanh(trend / TREND_SCALE)
    target = torch.where(edge, target.clamp(max=EDGE_LOG_MULTIPLIER), target)
    target = target.clamp(math.log(bounds[0]), math.log(bounds[1]))
    return s._replace(
        log_multiplier=s.log_multiplier + rate * (target - s.log_multiplier),
        edge_case_count=s.edge_case_count + edge.float(),
        stable_steps=torch.where(edge, 0.0, s.stable_steps + 1),
    )


class Memory(NamedTuple):
    """All that the controller remembers; kept as one flat fp32 tensor.

    Args:
        signals: the numbers, in the order of ``Signals``.
        losses, rates, performance: [window] newest last, 0 where nothing was seen yet.
        sketches: [2, 4096] of the last two usable updates, newest last.
    """

    signals: Tensor
    losses: Tensor
    rates: Tensor
    performance: Tensor
    sketches: Tensor

    @classmethod
    def size(cls, window: int) -> int:
        """Length of the flat form."""
        return len(Signals._fields) + 3 * window + 2 * T.SKETCH_SIZE

    @classmethod
    def unpack(cls, flat: Tensor) -> Memory:
        """Views into the flat form, which says by its length how long the histories are."""
        head, tail = len(Signals._fields), 2 * T.SKETCH_SIZE
        window = (flat.shape[0] - head - tail) // 3
        signals, losses, rates, performance, sketches = flat.split([head, window, window, window, tail])
        return cls(signals, losses, rates, performance, sketches.view(2, -1))

    def pack(self) -> Tensor:
        """The flat form, a new tensor."""
        return torch.cat([part.flatten() for part in self])
