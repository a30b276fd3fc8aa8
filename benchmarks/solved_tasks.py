"""Tasks of `auto_rate.py` that a small network solves within its 400 steps: rates that are too high end them.

The limit of the level (`techniques/level.py`, ``speed_limit``) was chosen on tasks of their kind. Ten
Gaussian classes, far apart or nearer; a policy gradient on bandits; a regression whose head is trained first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.auto_tasks import seeded

HEAD_ALONE = 75  # steps
EVALUATION = 999_983


def network(seed: int, inputs: int, width: int, outputs: int) -> nn.Sequential:
    """Two hidden layers with torch's first weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(inputs, width), nn.GELU(), nn.Linear(width, width), nn.GELU(), nn.Linear(width, outputs)
        )


class Solved:
    """What these tasks have in common."""

    steps, batch = 400, 32

    def __init__(self, seed: int, inputs: int, width: int, outputs: int) -> None:
        self.seed = seed
        self.model = network(seed, inputs, width, outputs)

    def parameters(self) -> Iterator[nn.Parameter]:
        return self.model.parameters()


class Classes(Solved):
    """Ten Gaussian classes in 32 dimensions, drawn anew for every batch."""

    def __init__(self, seed: int, apart: float) -> None:
        super().__init__(seed, 32, 64, 10)
        self.centres = apart * torch.randn(10, 32, generator=seeded(seed, 1))

    def _loss(self, generator: torch.Generator, count: int) -> Tensor:
        kinds = torch.randint(0, 10, (count,), generator=generator)
        x = self.centres[kinds] + torch.randn(count, 32, generator=generator)
        return F.cross_entropy(self.model(x), kinds)

    def loss(self, step: int) -> Tensor:
        return self._loss(seeded(self.seed, 2, step), self.batch)

    @torch.no_grad()
    def evaluate(self) -> float:
        """Cross-entropy on 4,096 new examples."""
        return float(self._loss(seeded(self.seed, EVALUATION), 4096))


class Policy(Solved):
    """REINFORCE with a mean as baseline: five arms, rewards linear in eight numbers, with noise of 1."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed, 8, 32, 5)
        self.rewards = torch.randn(8, 5, generator=seeded(seed, 1))

    def loss(self, step: int) -> Tensor:
        generator = seeded(self.seed, 2, step)
        x = torch.randn(self.batch, 8, generator=generator)
        policy = F.log_softmax(self.model(x), 1)
        arms = torch.multinomial(policy.detach().exp(), 1, generator=generator)
        reward = (x @ self.rewards).gather(1, arms) + torch.randn(self.batch, 1, generator=generator)
        entropy = -(policy.exp() * policy).sum(1).mean()
        return -((reward - reward.mean()) * policy.gather(1, arms)).mean() - 0.01 * entropy

    @torch.no_grad()
    def evaluate(self) -> float:
        """Mean regret over 4,096 draws of the eight numbers."""
        x = torch.randn(4096, 8, generator=seeded(self.seed, EVALUATION))
        wanted = x @ self.rewards
        return float((wanted.amax(1) - (self.model(x).softmax(1) * wanted).sum(1)).mean())


class HeadFirst(Solved):
    """A regression whose body gets no gradient for 75 steps."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed, 32, 64, 10)
        self.target = torch.randn(32, 10, generator=seeded(seed, 1)) / 32**0.5

    def _loss(self, generator: torch.Generator, count: int, whole: bool) -> Tensor:
        x = torch.randn(count, 32, generator=generator)
        seen = self.model[:-1](x)
        wanted = torch.tanh(2 * x @ self.target) + 0.1 * torch.randn(count, 10, generator=generator)
        return F.mse_loss(self.model[-1](seen if whole else seen.detach()), wanted)

    def loss(self, step: int) -> Tensor:
        return self._loss(seeded(self.seed, 2, step), self.batch, step >= HEAD_ALONE)

    @torch.no_grad()
    def evaluate(self) -> float:
        """Square of the error, .01 of it noise, on 4,096 new examples."""
        return float(self._loss(seeded(self.seed, EVALUATION), 4096, True))


TASKS: dict[str, Callable[[int], Solved]] = {
    "classes": lambda seed: Classes(seed, 0.8),
    "classes-near": lambda seed: Classes(seed, 0.6),
    "policy": Policy,
    "head-first": HeadFirst,
}
