"""Every kind of tensor that torch lets a program use as a weight or a gradient, and what has to happen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing._internal.two_tensor import TwoTensor

SHAPE = (6, 8)
SEED = iter(range(10**9))


def values() -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(next(SEED)))


class Named(torch.Tensor):
    """A class for show: torch executes everything."""


class Held(torch.Tensor):
    """A wrapper that can be read and written, as torchao's quantised weights can: exact here."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> Held:
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)  # type: ignore

    def __init__(self, inner: Tensor) -> None:
        self.inner = inner

    def dequantize(self) -> Tensor:
        return self.inner.clone()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        aten = torch.ops.aten
        if func is aten.copy_.default:
            source = args[1].inner if isinstance(args[1], cls) else args[1]
            args[0].inner.copy_(source)
            return args[0]
        if func in (aten.detach.default, aten.clone.default):
            return cls(func(args[0].inner))
        raise NotImplementedError(f"Held has no {func}")


class Locked(Held):
    """A wrapper that can be read, not written."""

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.copy_.default:
            raise NotImplementedError("locked")
        return super().__torch_dispatch__(func, types, args, kwargs)


class Blind(torch.Tensor):
    """A wrapper whose operations all fail but detach."""

    @staticmethod
    def __new__(cls, inner: Tensor) -> Blind:
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)  # type: ignore

    def __init__(self, inner: Tensor) -> None:
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.detach.default:
            return cls(args[0].inner)
        raise NotImplementedError(f"Blind has no {func}")


class Passing(torch.Tensor):
    """Real memory, but every operation goes through Python."""

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C._DisableTorchDispatch():
            result = func(*args, **(kwargs or {}))
        return result.as_subclass(cls) if func is torch.ops.aten.detach.default else result


def fake(x: Tensor) -> Tensor:
    with FakeTensorMode() as mode:
        return mode.from_tensor(x)


def freed(x: Tensor) -> Tensor:
    x.untyped_storage().resize_(0)
    return x


def inference(x: Tensor) -> Tensor:
    with torch.inference_mode():
        return x.clone()


def inside_func(x: Tensor) -> Tensor:
    seen = []
    torch.func.grad(lambda t: (seen.append(t), t.sum())[1])(x)
    return seen[0]


def functional(x: Tensor) -> Tensor:
    return torch._to_functional_tensor(x)


STEPPED, REFUSED = "stepped", "refused"
Make = Callable[[Tensor], Tensor]

# Kind -> (how it is made of values, what happens to it as a weight, as a gradient); None: torch refuses.
KINDS: dict[str, tuple[Make, str | None, str | None]] = {
    "plain": (lambda x: x, STEPPED, STEPPED),
    "named subclass": (lambda x: x.as_subclass(Named), STEPPED, STEPPED),
    "transposed": (lambda x: x.t().contiguous().t(), STEPPED, STEPPED),
    "every other element": (lambda x: torch.stack([x, x], -1)[..., 0], STEPPED, STEPPED),
    "lazily negated": (lambda x: torch._neg_view(-x), STEPPED, STEPPED),
    "readable wrapper": (lambda x: Held(x.clone()), STEPPED, STEPPED),
    "TwoTensor": (lambda x: TwoTensor(x.clone(), x.clone()), REFUSED, REFUSED),
    "locked wrapper": (lambda x: Locked(x.clone()), REFUSED, STEPPED),
    "blind wrapper": (lambda x: Blind(x.clone()), REFUSED, REFUSED),
    "passing subclass": (lambda x: x.as_subclass(Passing), REFUSED, REFUSED),
    "fake": (fake, REFUSED, REFUSED),
    "zeros without memory": (lambda x: torch._efficientzerotensor(SHAPE), REFUSED, STEPPED),
    "expanded": (lambda x: x[:1].expand(SHAPE), REFUSED, STEPPED),
    "overlapping": (lambda x: x.flatten().as_strided(SHAPE, (5, 1)), REFUSED, STEPPED),
    "meta": (lambda x: x.to("meta"), REFUSED, None),
    "nested": (lambda x: torch.nested.nested_tensor([x, x]), REFUSED, None),
    "jagged": (lambda x: torch.nested.nested_tensor([x, x], layout=torch.jagged), REFUSED, None),
    "sparse": (lambda x: x.to_sparse(), REFUSED, REFUSED),
    "mkldnn": (lambda x: x.to_mkldnn(), REFUSED, None),
    "quantised": (lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8), REFUSED, None),
    "integer": (lambda x: (x * 10).to(torch.int32), REFUSED, None),
    "complex": (lambda x: torch.complex(x, x), REFUSED, None),
    "conjugated": (lambda x: torch.complex(x, x).conj(), REFUSED, None),
    "inference": (inference, REFUSED, STEPPED),
    "inside torch.func": (inside_func, STEPPED, REFUSED),
    "functional": (functional, REFUSED, REFUSED),
    "freed": (freed, REFUSED, REFUSED),
    "lazy": (lambda x: nn.parameter.UninitializedParameter(), REFUSED, None),
}
