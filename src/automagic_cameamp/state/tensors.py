"""Kinds of tensors: which have memory of their own, which are read through their own code, which not at all.

The engine takes addresses and writes through them. A wrapper subclass (torchao's quantised weights,
a FakeTensor), a tensor of zeros without storage or a tensor inside ``torch.func`` has none: its
``data_ptr()`` is 0, or an error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from .shards import is_distributed

# What nearly every tensor is; everything else is looked at one by one.
USUAL = frozenset((Tensor, nn.Parameter))
_NO_DISPATCH = torch._C._disabled_torch_dispatch_impl  # type: ignore[attr-defined]


def is_wrapper(t: Tensor) -> bool:
    """Whether a class of somebody else executes the operations on this tensor."""
    return type(t) not in USUAL and _dispatches(type(t))


def _dispatches(kind: type) -> bool:
    return getattr(kind, "__torch_dispatch__", _NO_DISPATCH) is not _NO_DISPATCH


def any_wrapper(tensors: Iterable[Tensor]) -> bool:
    """Whether one of many tensors is a wrapper; asks once per class."""
    kinds = set(map(type, tensors))
    return not USUAL.issuperset(kinds) and any(map(_dispatches, kinds))


def is_transformed(t: Tensor) -> bool:
    """Whether this is a tensor inside torch.func (grad, vmap, functionalize, ...)."""
    functorch: Any = torch._C._functorch  # type: ignore[attr-defined]
    return functorch.is_functorch_wrapped_tensor(t) or torch._is_functional_tensor(t)


def in_memory(t: Tensor) -> bool:
    """Whether the values of a tensor lie, as they are, at its address."""
    if is_wrapper(t) or t.layout is not torch.strided or t.is_nested or t.is_quantized or t.is_meta:
        return False
    if is_transformed(t) or t._is_zerotensor() or t.is_neg() or t.is_conj():
        return False
    try:
        return t.data_ptr() != 0 or t.numel() == 0
    except RuntimeError:
        return False


def is_freed(t: Tensor) -> bool:
    """Whether the memory of a tensor in memory was given back: its storage has 0 bytes."""
    return in_storage(t) and t.numel() > 0 and t.untyped_storage().nbytes() == 0


def in_storage(t: Tensor) -> bool:
    """Whether a tensor has a storage, freed or not."""
    return not (
        is_wrapper(t) or t.is_meta or t.layout is not torch.strided or is_transformed(t) or t._is_zerotensor()
    )


def plain(t: Tensor) -> Tensor:
    """The values of a tensor as one that torch itself computes with; a tensor in memory is shared.

    Raises:
        TypeError: the tensor is of a class that cannot show its values.
    """
    kind = type(t)
    if kind in USUAL:
        return t.detach().clone() if t._is_zerotensor() else t.detach().resolve_neg()
    if is_distributed(t):  # has a path of its own, which looks at the part that is here
        return t.detach()
    if not is_wrapper(t):
        return t.detach().as_subclass(Tensor)
    try:
        found: Any = t.detach().dequantize()
    except Exception as error:  # whatever code of that class raises
        raise TypeError(f"its values cannot be read: dequantize() raised {_short(error)}") from error
    if type(found) is not Tensor or found.shape != t.shape or not in_memory(found):
        raise TypeError(f"its values cannot be read: dequantize() gives a {type(found).__name__}")
    return found


def plain_entry(entry: Mapping[str, Any]) -> dict[str, Any]:
    """The saved state of a parameter with tensors in memory, where they can be brought there.

    What cannot be read stays as it is: the checks of loading refuse it by name.
    """
    return {
        key: plain(value) if isinstance(value, Tensor) and _needs_reading(value) else value
        for key, value in entry.items()
    }


def _needs_reading(t: Tensor) -> bool:
    return not is_distributed(t) and not in_memory(t) and is_readable(t)


def is_readable(t: Tensor) -> bool:
    """Whether ``plain`` can show the values."""
    if t.layout is not torch.strided or t.is_nested or t.is_quantized or t.is_meta or is_transformed(t):
        return False
    if is_freed(t):
        return False
    try:
        plain(t)
    except TypeError:
        return False
    return True


def try_writing(t: Tensor) -> None:
    """Read and write a copy of a wrapper, as a step would; torch's random numbers stay where they are.

    Raises:
        TypeError: one of them is not possible.
    """
    values = plain(t)
    devices = [t.device] if t.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices), torch.no_grad():
            t.detach().clone().copy_(values)
    except Exception as error:  # whatever code of that class raises
        raise TypeError(f"new values cannot be written: copy_() raised {_short(error)}") from error


def overlaps_itself(t: Tensor) -> bool:
    """Whether several elements share memory, as those of an expanded tensor do."""
    if t.numel() == 0:
        return False
    reach, certain = 0, True
    for stride, size in sorted(zip(t.stride(), t.shape, strict=True)):
        if size > 1:
            certain = certain and stride > reach
            reach += stride * (size - 1)
    if certain:
        return False
    places = torch.arange(reach + 1, device="cpu").as_strided(t.shape, t.stride())
    return places.unique().numel() < t.numel()


def mark(t: Tensor | None) -> tuple[int, int]:
    """Tells a tensor from its later self, without keeping it alive: its place and the number of writes."""
    if t is None:
        return 0, 0
    try:
        place = t.data_ptr()
    except RuntimeError:
        place = 0
    return place or id(t), 0 if t.is_inference() else t._version


def on_gradient(p: Tensor, hook: Callable[[Tensor], None]) -> RemovableHandle:
    """Call a hook whenever a gradient has been added to ``p.grad``; also where torch has swapped the tensor.

    A swap takes what calls the hooks away and leaves the list of them, which torch then takes for known.
    """
    handle = p.register_post_accumulate_grad_hook(hook)
    hooked: Any = p
    hooked._post_accumulate_grad_hooks = hooked._post_accumulate_grad_hooks
    return handle


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:150]}"
