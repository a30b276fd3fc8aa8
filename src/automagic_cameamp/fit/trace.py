"""One training step on fake tensors: what it would allocate, without memory and without weights."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from .meter import Meter
from .models import FitError


class Trained(NamedTuple):
    """A parameter that is trained: its name, shape and type."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        """Of the parameter, and of its gradient."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


class Trace(NamedTuple):
    """What a forward and a backward pass need, in bytes.

    Args:
        weights: parameters and buffers.
        trained: the parameters that get a gradient, in the model's order.
        gradients: of all of them.
        activations: most that lives beside the weights where every gradient is freed when it is complete.
        together: most that lives beside the weights where gradients stay.
        arrivals: per gradient, in the order of their completion: bytes that live beside the weights then, and
            elements.
        blocks: bytes of weights per list of blocks, block by block.
    """

    weights: int
    trained: tuple[Trained, ...]
    gradients: int
    activations: int
    together: int
    arrivals: tuple[tuple[int, int], ...]
    blocks: tuple[tuple[int, ...], ...]


def trace(
    build: Callable[[], nn.Module],
    loss: Callable[[nn.Module], Tensor],
    *,
    autocast: torch.dtype | None = None,
) -> Trace:
    """Run a model once, forward and backward, on tensors without memory.

    Args:
        build: makes the model; called under a ``FakeTensorMode``, so that its weights take no memory.
        loss: makes inputs, runs the model and returns the loss.
        autocast: type of the arithmetic where it is not that of the weights.

    Returns:
        The bytes that a device would have held.

    Raises:
        FitError: the model looks at values, which fake tensors do not have, or has nothing to train.

    Example:
        >>> found = trace(lambda: nn.Linear(8, 4), lambda m: m(torch.zeros(2, 8)).sum())
        >>> found.weights, found.gradients
        (144, 144)
    """
    try:
        with FakeTensorMode():
            return _run(build(), loss, autocast)
    except FitError:
        raise
    except Exception as error:
        if "overflow" in str(error):  # what torch says of more bytes than a number holds
            raise FitError("batch, resolution, frames or tokens are far too large: a tensor would have more "
                           "bytes than can be counted") from error
        what = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise FitError(f"the model does not run on fake tensors ({what})") from error


def _run(model: nn.Module, loss: Callable[[nn.Module], Tensor], autocast: torch.dtype | None) -> Trace:
    held = {id(t): t for t in chain(model.parameters(), model.buffers())}
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not trained:
        raise FitError("no parameter of the model requires a gradient: there is nothing to train")
    meter = Meter(held.values())
    weights, arrivals = meter.live, []

    def arrived(p: Tensor) -> None:
        grad = p.grad
        assert grad is not None
        arrivals.append((meter.live - weights, p.numel()))
        meter.keep(grad.untyped_storage().nbytes())
        p.grad = None

    for p in trained.values():
        p.register_post_accumulate_grad_hook(arrived)
    cast = torch.autocast("cpu", dtype=autocast) if autocast is not None else contextlib.nullcontext()
    with meter:
        with cast:
            value = loss(model)
        value.backward()
        del value
    return Trace(
        weights,
        tuple(Trained(name, tuple(p.shape), p.dtype) for name, p in trained.items()),
        meter.kept,
        meter.peak - weights,
        meter.both - weights,
        tuple(arrivals),
        tuple(_blocks(model)),
    )


def _blocks(model: nn.Module) -> Any:
    """Bytes of every block of the model's outermost lists of blocks."""
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and name.count(".") <= 1 and len(module) > 1:
            yield tuple(
                sum(t.untyped_storage().nbytes() for t in chain(block.parameters(), block.buffers()))
                for block in module
            )
