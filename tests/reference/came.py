"""CAME and AdaBelief as their papers write them: one tensor, numpy fp64, no speed, no sharing.

CAME: Luo et al. 2023, arXiv 2307.02047, algorithm 1. AdaBelief: Zhuang et al. 2020, arXiv
2010.07468, algorithm 2. The only thing added to the papers is the view of a tensor as matrices,
which every test needs: a vector stays a vector, a matrix is a matrix, a 3-D tensor is a batch of
matrices, a convolution (O, I, kernel...) is the matrix O x (I * kernel).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def matrices(shape: tuple[int, ...]) -> tuple[int, int, int] | None:
    """(batch, rows, columns) of the view, or None for 0-D and 1-D."""
    if len(shape) < 2:
        return None
    if len(shape) == 3:
        return (shape[0], shape[1], shape[2])
    return (1, shape[0], int(np.prod(shape[1:])))


def root_mean_square(x: Array) -> float:
    return float(np.sqrt(np.mean(x**2)))


class Factored:
    """Running row and column means of a positive quantity, and the rank-one matrix they stand for."""

    def __init__(self, view: tuple[int, int, int]) -> None:
        batch, rows, columns = view
        self.rows = np.zeros((batch, rows))
        self.columns = np.zeros((batch, columns))

    def add(self, x: Array, beta: float) -> None:
        for k in range(x.shape[0]):
            for i in range(x.shape[1]):
                self.rows[k, i] = beta * self.rows[k, i] + (1 - beta) * np.mean(x[k, i, :])
            for j in range(x.shape[2]):
                self.columns[k, j] = beta * self.columns[k, j] + (1 - beta) * np.mean(x[k, :, j])

    def value(self) -> Array:
        return np.stack([np.outer(r, c) / np.mean(r) for r, c in zip(self.rows, self.columns, strict=True)])


class Full:
    """The same without the factors."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.x = np.zeros(shape)

    def add(self, x: Array, beta: float) -> None:
        self.x = beta * self.x + (1 - beta) * x

    def value(self) -> Array:
        return self.x


class Came:
    """Second moments, clipped update, momentum and confidence of one tensor.

    Args:
        shape: shape of the parameter.
        betas: decays of momentum, second moment, confidence.
        eps: added to the squared gradient and to the squared surprise, inside the averages.
        clip: largest root mean square of the normalised update.
        factored: False keeps full-size moments for matrices too.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        betas: tuple[float, float, float],
        eps: tuple[float, float] = (1e-30, 1e-16),
        clip: float = 1.0,
        factored: bool = True,
    ) -> None:
        self.shape, self.betas, self.eps, self.clip = shape, betas, eps, clip
        self.view = matrices(shape)
        work = self.view or shape
        self.m = np.zeros(work)
        make = Factored if factored and self.view else Full
        self.second: Factored | Full = make(work)  # type: ignore[arg-type]
        self.surprise: Factored | Full | None = make(work) if self.view else None  # type: ignore[arg-type]

    def normalised(self, g: Array) -> Array:
        """u: the gradient over the root of its second moment, clipped."""
        g = g.reshape(self.view or self.shape)
        self.second.add(g**2 + self.eps[0], self.betas[1])
        u = g / np.sqrt(self.second.value())
        return u / max(1.0, root_mean_square(u) / self.clip)

    def momentum(self, u: Array, beta1: float, damping: float = 1.0) -> None:
        self.m = beta1 * self.m + (1 - beta1) * damping * u

    def confident(self, u: Array) -> Array:
        """m over the root of the running surprise (matrices only), in the parameter's shape."""
        if self.surprise is None:
            return self.m.reshape(self.shape)
        self.surprise.add((u - self.m) ** 2 + self.eps[1], self.betas[2])
        return (self.m / np.sqrt(self.surprise.value())).reshape(self.shape)

    def direction(self, g: Array) -> Array:
        u = self.normalised(g)
        self.momentum(u, self.betas[0])
        return self.confident(u)


class AdaBelief:
    """Bias-corrected momentum over the root of the bias-corrected variance around the momentum."""

    def __init__(self, shape: tuple[int, ...], beta1: float, beta2: float, eps: float, root_eps: float):
        self.m, self.s = np.zeros(shape), np.zeros(shape)
        self.beta1, self.beta2, self.eps, self.root_eps = beta1, beta2, eps, root_eps
        self.t = 0

    def direction(self, g: Array) -> Array:
        self.t += 1
        self.m = self.beta1 * self.m + (1 - self.beta1) * g
        self.s = self.beta2 * self.s + (1 - self.beta2) * (g - self.m) ** 2 + self.eps
        m = self.m / (1 - self.beta1**self.t)
        s = self.s / (1 - self.beta2**self.t)
        return m / (np.sqrt(s) + self.root_eps)
