"""The base recipe with everything that is on by default, one parameter at a time, slowly.

numpy fp64 and Python loops; written from the text of the algorithm, not from the package. Covers
CAME, TAM, consistency momentum, Grams mix, ALLoRA, AdaDecay, the geometric element mask divided by
its mean over all parameters, and both clips.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from reference import single
from reference.came import Array, Came, root_mean_square
from reference.mask import Geometric


@dataclass
class Options:
    lr: float = 1e-3
    min_lr: float = 1e-7
    max_lr: float = 1e-2
    betas: tuple[float, float, float] = (0.8, 0.99, 0.999)
    beta1_decay: float = 0.9995
    eta: float = 2.0
    weight_decay: float = 5e-4
    warmup_steps: int = 20
    clip: float = 1.0
    allora: bool = True
    torque_eps: float = 1e-8
    follows: bool = False


@dataclass
class Tensor:
    """One parameter and what it remembers."""

    p: Array
    options: Options
    came: Came = field(init=False)
    mask: Geometric = field(init=False)
    torque: float = 0.0
    t: int = 0
    rate: float = 0.0

    def __post_init__(self) -> None:
        self.came = Came(self.p.shape, self.options.betas, clip=self.options.clip)
        self.mask = Geometric(self.p.size, self.options.warmup_steps)

    def step(self, g: Array, mean_of_masks: float, schedule: float = 1.0) -> None:
        """One update; ``rate`` is then the mean rate of its elements."""
        o = self.options
        self.t += 1
        early = self.t < o.warmup_steps / 2

        u = self.came.normalised(g)
        if early:
            self.torque, damping = single.torque(
                self.torque, self.came.m.ravel().tolist(), u.ravel().tolist()
            )
            self.came.momentum(u, o.betas[0], damping + o.torque_eps)
        else:
            lowest = max(min(0.4, o.betas[0]), o.betas[0] * min(1.0, schedule) if o.follows else 0.0)
            self.came.momentum(u, max(o.betas[0] * o.beta1_decay**self.t, lowest))
        out = self.came.confident(u)
        mixed = single.grams(out.ravel().tolist(), g.ravel().tolist(), o.beta1_decay**self.t)
        out = np.array(mixed).reshape(self.p.shape)
        out = out / max(1.0, root_mean_square(out) / o.clip)

        self.mask.see(g.ravel().tolist())
        relative = np.array(self.mask.values()).reshape(self.p.shape) / mean_of_masks
        relative = np.clip(relative * self._row_gain(), o.min_lr / o.lr, o.max_lr / o.lr)
        rate = o.lr * schedule * relative
        if early:
            strength = np.array(single.adadecay(g.ravel().tolist())).reshape(self.p.shape)
            self.p = self.p - rate * o.weight_decay * strength * self.p - rate * out
        else:
            self.p = self.p - rate * out
        self.rate = float(np.mean(rate))

    def _row_gain(self) -> Array:
        view = self.came.view
        if not self.options.allora or view is None:
            return np.ones(self.p.shape)
        work = self.p.reshape(view)
        gain = np.ones(view)
        for k in range(view[0]):
            for i in range(view[1]):
                gain[k, i, :] = single.allora(work[k, i].tolist(), self.options.eta)
        return gain.reshape(self.p.shape)


def mean_of_masks(tensors: list[Tensor]) -> float:
    """Mean multiplier over all elements of all tensors, as it stands now."""
    values = [value for tensor in tensors for value in tensor.mask.values()]
    return math.fsum(values) / len(values)
