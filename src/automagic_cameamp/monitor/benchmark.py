"""Seconds per training step."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from typing import Any, TextIO

import torch
from torch import Tensor, nn

from .read import unwrap

WARM_UP = 3
BATCH, FEATURES = 32, 512


def benchmark_optimizer(
    model: nn.Module,
    optimizer: Any,
    num_steps: int = 10,
    *,
    loss_fn: Callable[[nn.Module], Tensor] | None = None,
    file: TextIO | None = None,
) -> float:
    """Mean seconds of one training step: forward, backward, optimizer.

    The weights and the optimizer's state are put back afterwards, so that it can be called in mid-run.

    Args:
        model: the model that the optimizer trains.
        optimizer: any optimizer.
        num_steps: steps to time, after three that are not timed.
        loss_fn: runs the model on a batch of yours and returns the loss; None classifies noise, which
            works for models that turn (32, features) into (32, classes).
        file: where to print; None is standard output.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps={num_steps!r} is not allowed: it must be at least 1")
    device = next(model.parameters()).device
    restore = _snapshot(model, optimizer)
    try:
        run = loss_fn if loss_fn is not None else _classify_noise(model)
        for _ in range(WARM_UP):
            _step(model, optimizer, run)
        _wait(device)
        start = time.perf_counter()
        for _ in range(num_steps):
            _step(model, optimizer, run)
        _wait(device)
        seconds = (time.perf_counter() - start) / num_steps
    finally:
        restore()
    print(f"mean time of one step: {seconds * 1000:.2f} ms", file=file)
    return seconds


def _step(model: nn.Module, optimizer: Any, run: Callable[[nn.Module], Tensor]) -> None:
    optimizer.zero_grad()
    run(model).backward()
    optimizer.step()


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _classify_noise(model: nn.Module) -> Callable[[nn.Module], Tensor]:
    """Cross entropy of noise against random classes, in the model's own sizes, device and type."""
    p = next(model.parameters())
    first = next((m for m in model.modules() if isinstance(m, nn.Linear)), None)
    features = first.in_features if first is not None else FEATURES
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(BATCH, features, generator=generator).to(p.device, p.dtype)
    with torch.no_grad():
        out = model(x)
    if not isinstance(out, Tensor) or out.dim() != 2:
        shape = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
        raise ValueError(f"loss_fn=None is not allowed for a model that returns {shape}: pass a loss_fn")
    y = torch.randint(0, out.shape[1], (BATCH,), generator=generator).to(p.device)
    return lambda m: nn.functional.cross_entropy(m(x), y)


def _snapshot(model: nn.Module, optimizer: Any) -> Callable[[], None]:
    """Remembers weights, buffers, gradients and optimizer state; the result puts them back."""
    tensors = [t for t in (*model.parameters(), *model.buffers())]
    values = [t.detach().clone() for t in tensors]
    grads = [(p, p.grad) for p in model.parameters()]
    for p, _ in grads:
        p.grad = None
    inner = optimizer if isinstance(optimizer, torch.optim.Optimizer) else unwrap(optimizer)
    state = copy.deepcopy(inner.state_dict())

    def restore() -> None:
        with torch.no_grad():
            for t, value in zip(tensors, values, strict=True):
                t.copy_(value)
        for p, grad in grads:
            p.grad = grad
        inner.load_state_dict(state)

    return restore
