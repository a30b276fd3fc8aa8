"""Kinds of parameters and gradients: what is refused when it is added, or before a step changes anything."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable, Sequence
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ..validate import callers_depth, fail
from . import tensors
from .model import Model
from .shards import is_distributed, local_of

_DTYPE, _LAYOUT, _NESTED, _SHAPE = map(attrgetter, ("dtype", "layout", "is_nested", "shape"))
FLOATS = frozenset((torch.float32, torch.bfloat16, torch.float16, torch.float64))
FLATTENERS = frozenset(("torch.distributed.fsdp", "deepspeed"))  # modules that mark what they flattened
INSTEAD = (
    "Shard with fully_shard(model) (FSDP2), or use DistributedDataParallel, and build the optimizer from "
    "model.parameters() afterwards."
)


def note_matrices(model: Model) -> dict[int, bool]:
    """Per group, by its id: whether it had parameters of more than one dimension when it was first seen."""
    known, present = model.kept.matrices, model.groups
    now = {id(g): known[id(g)] if id(g) in known else any(p.dim() > 1 for p in g["params"]) for g in present}
    model.kept.matrices = now
    return now


def check_parameters(model: Model, params: Iterable[Any]) -> list[Any]:
    """``check_parameter`` for those of a new group, as (name, parameter) or without names.

    Returns:
        The same, each tensor once: two updates of one tensor would run side by side. torch warns of a tensor
        that stands there twice, and so is done here.

    Raises:
        ValueError: one of them cannot be optimized.
    """
    first = sum(len(group["params"]) for group in model.groups)
    seen: dict[int, str] = {}
    once: list[Any] = []
    for number, given in enumerate(params, first):
        name, p = given if isinstance(given, tuple) else (f"param_{number}", given)
        if id(p) in seen and isinstance(p, Tensor):
            text = (
                f"the optimizer got a parameter group with duplicate parameters: {name} is {seen[id(p)]} too "
                "(tied weights?). It counts once; pass each tensor once, for example "
                "list(dict.fromkeys(params))."
            )
            warnings.warn(text, stacklevel=callers_depth())
            continue
        seen[id(p)] = str(name)
        check_parameter(p, name, model.config)
        once.append(given)
    return once


def check_parameter(p: Any, name: str, config: Any = None) -> None:
    """Refuse what cannot be optimized, as far as it is known before there is a gradient.

    Args:
        p: what was given as a parameter.
        name: how messages call it.
        config: the optimizer's, where its options have a say.

    Raises:
        ValueError: it cannot be optimized.
    """
    if not isinstance(p, Tensor):
        return  # torch's own message is clear
    if is_lazy(p):
        raise ValueError(
            f"parameter {name} has no shape yet (a lazy module): run the model once before building the "
            "optimizer."
        )
    if p.layout is not torch.strided:
        raise ValueError(f"parameter {name}: a {p.layout} parameter cannot be optimized, only a dense one.")
    if p.is_complex():
        raise ValueError(
            f"parameter {name}: a complex parameter ({p.dtype}) cannot be optimized. Train "
            "nn.Parameter(torch.view_as_real(p.detach()).clone()) in its place, and use "
            "torch.view_as_complex of it in forward."
        )
    check_whole(p, name)
    # Memory may come later: programs plan with meta tensors, or free what they fill again.
    if p.requires_grad and not p.is_meta and not tensors.is_freed(p):
        check_weight(p, name)
        if tensors.is_wrapper(p) and not is_distributed(p):
            _check_wrapper(p, name, config)


def check_weight(p: Tensor, name: str) -> None:
    """Refuse a parameter that a step could not read or write.

    Raises:
        ValueError: it cannot be updated.
    """
    if is_distributed(p):
        p = local_of(p)
    why = _unwritable(p)
    if why is not None:
        raise ValueError(f"parameter {name} cannot be optimized: {why}.")


def _unwritable(p: Tensor) -> str | None:
    if p.is_nested:
        return "it is a nested tensor. Give its parts, each a parameter of its own"
    if p.is_quantized or not p.dtype.is_floating_point:
        return f"its type is {p.dtype}, and updates are real numbers. Train float weights"
    if tensors.is_transformed(p):
        return (
            "it is a tensor of torch.func, which has no memory of its own. Call the optimizer outside of the "
            "transformation, on the model's own parameters"
        )
    if p.is_meta:
        return "it is on the device 'meta' and holds no values. Load or initialise it first"
    if p._is_zerotensor():
        return "it is a tensor of zeros without memory. Give torch.zeros_like(p)"
    if p.is_inference():
        return (
            "it was made under torch.inference_mode(), and torch lets nobody write into it. Give p.clone(), "
            "made outside"
        )
    if not tensors.is_wrapper(p) and tensors.overlaps_itself(p):
        return (
            f"several of its elements share memory (shape {tuple(p.shape)}, strides {p.stride()}; an "
            "expanded tensor?). Give p.contiguous()"
        )
    return None


def _check_wrapper(p: Tensor, name: str, config: Any) -> None:
    """A tensor of somebody else's class: whether a step could read and write it."""
    try:
        tensors.try_writing(p)
    except TypeError as error:
        raise ValueError(
            f"parameter {name} cannot be optimized: it is a {type(p).__name__} without memory of its own, "
            f"and {error}. Give the tensors that it is made of."
        ) from error
    if getattr(config, "master_weight_bits", 0) == 24:
        raise fail(
            "master_weight_bits", 24, f"16 with parameter {name}, a {type(p).__name__} that rounds by itself"
        )


def check_whole(p: Tensor, name: str) -> None:
    """Refuse a flat shard: many parameters, or a part of them, laid end to end in one vector.

    Raises:
        ValueError: FSDP1 or DeepSpeed has flattened it.
    """
    marks = p.__dict__
    if marks.get("_fsdp_flattened") or marks.get("_is_flat_param") or type(p).__name__ == "FlatParameter":
        raise ValueError(flat(name, "FullyShardedDataParallel (FSDP1) flattens"))
    if "ds_id" in marks or "ds_tensor" in marks:
        raise ValueError(flat(name, "DeepSpeed's ZeRO stage 3 flattens"))


def flat(name: str, who: str) -> str:
    """Why flat shards are refused, and the way out."""
    return (
        f"parameter {name} cannot be optimized: {who} parameters into vectors and cuts these over the "
        f"processes, so neither rows and columns nor blocks of 8-bit state are where they belong. {INSTEAD}"
    )


def is_rewritten(params: Sequence[Tensor]) -> bool:
    """Whether these look like what a program put in the place of matrices: flat copies of them.

    DeepSpeed (ZeRO stages 1 and 2, its bf16 and fp16 optimizers) and Megatron's distributed optimizer
    do so after the optimizer was built. Their vectors are plain tensors that no module holds.
    """
    return bool(params) and all(p.dim() == 1 and not isinstance(p, nn.Parameter) for p in params)


def are_usual(weights: list[Tensor], grads: list[Tensor]) -> bool:
    """Whether all of these are dense tensors in memory; without a loop of Python over them."""
    for found in (weights, grads):
        if not tensors.USUAL.issuperset(map(type, found)) or set(map(_LAYOUT, found)) != {torch.strided}:
            return False
        if not FLOATS.issuperset(map(_DTYPE, found)) or any(map(_NESTED, found)):
            return False
        try:
            if 0 in map(Tensor.data_ptr, found):
                return False
        except RuntimeError:  # no storage
            return False
    if any(map(Tensor.is_inference, weights)) or not all(map(Tensor.is_contiguous, weights)):
        return False
    return list(map(_SHAPE, weights)) == list(map(_SHAPE, grads))


def check_gradient(p: Tensor, name: str) -> None:
    """Refuse a gradient that a step could not use.

    Raises:
        RuntimeError: the gradient is of another kind or shape.
    """
    g = p.grad
    assert g is not None
    if g.layout is not torch.strided:
        raise RuntimeError(
            f"parameter {name} has a {g.layout} gradient: only dense "
            "gradients are supported. Use nn.Embedding(..., sparse=False)."
        )
    if g.shape != p.shape:
        raise RuntimeError(
            f"parameter {name} has shape {tuple(p.shape)} now, and its gradient has shape {tuple(g.shape)}: "
            "it was computed before the parameter changed. Call zero_grad() and backward() again."
        )
    if is_distributed(p) or is_distributed(g):
        return  # compared with each other where the parts are taken
    if not tensors.is_readable(g):
        kind = "tensor of torch.func" if tensors.is_transformed(g) else type(g).__name__
        raise RuntimeError(
            f"parameter {name} has a gradient that holds no values which could be read (a {kind}, {g.dtype} "
            f"on {g.device.type!r}): set p.grad to a dense tensor of shape {tuple(p.shape)}."
        )


def before_step(model: Model, only: Tensor | None = None) -> None:
    """Refuse what cannot be updated, before anything is.

    Args:
        model: its parameters and their gradients are looked at.
        only: the one parameter that is to be updated, instead of all.

    Raises:
        ValueError: a parameter is of a kind that cannot be updated.
        RuntimeError: a gradient is.
    """
    if only is None:
        check_groups(model)
    params = model.params() if only is None else [only]
    weights = [p for p in params if p.grad is not None]
    grads = [p.grad for p in weights]
    if not weights or are_usual(weights, grads):  # type: ignore[arg-type]
        return
    for name, p in model.named():
        if p.grad is not None and (only is None or p is only):
            check_weight(p, name)
            if tensors.is_freed(p):
                raise ValueError(
                    f"parameter {name} cannot be updated: its memory has been freed (a storage of 0 bytes)."
                )
            check_gradient(p, name)


def check_groups(model: Model) -> None:
    """Refuse parameters that were flattened after the optimizer was built."""
    if not sys.modules.keys().isdisjoint(FLATTENERS):
        for name, p in model.named():
            check_whole(p, name)
    had = note_matrices(model)
    for number, group in enumerate(model.groups):
        if had[id(group)] and is_rewritten(group["params"]):
            name = f"0 of group {number}, of shape {tuple(group['params'][0].shape)} now,"
            raise ValueError(flat(name, "a program (DeepSpeed's ZeRO, or the like) flattens"))
