"""Parameters that have a gradient at some steps only, together and each by itself."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from automagic_cameamp import OPTIMIZERS
from automagic_cameamp.kernels import native as kernels
from engine.helpers import draw
from loops.helpers import FAST

ENGINES = ["reference", *(["native"] if kernels.why_not() is None else [])]
SHAPES = [(14, 9), (14, 9), (14, 9), (9, 14), (7,)]  # with directions beyond the kept: all but the last
NONE, GOOD, BAD = 0, 1, 2  # no gradient, one, one that is not finite
# What the tensors of a model share is off: mask and controller.
APART: dict[str, Any] = {"use_lr_mask": False, "warmup_steps": 5, "weight_decay": 0.1, "lr": 1e-3}

kinds = st.sampled_from([NONE, NONE, GOOD, GOOD, GOOD, BAD])
patterns = st.lists(st.tuples(*[kinds] * len(SHAPES)), min_size=6, max_size=24)


def options(name: str, **changed: Any) -> dict[str, Any]:
    given = {**APART, **FAST[name], **changed}
    if "sync_frequency" in given:
        given["rank_keep"] = 3
    if "COptim" in name:
        given["adaptation_rate"] = 0.0
    return given


def build(name: str, params: list[Any], engine: str, **changed: Any) -> Any:
    return OPTIMIZERS[name](params, engine=engine, **options(name, **changed))


def weights(dtype: torch.dtype = torch.float32) -> list[Any]:
    return lora((0.3 * draw(3, i, shape=s)).to(dtype) for i, s in enumerate(SHAPES))


def lora(values: Iterable[Tensor]) -> list[Any]:
    """Parameters marked as a LoRA's: directions are searched in those alone."""
    params = [torch.nn.Parameter(value) for value in values]
    for p in params:
        p._is_lora_layer = True  # type: ignore[attr-defined]
    return params


def gradient(i: int, step: int, kind: int) -> Tensor | None:
    if kind == NONE:
        return None
    g = 0.3 * draw(1, i, shape=SHAPES[i]) + draw(2, i, step, shape=SHAPES[i])
    if kind == BAD:
        g.view(-1)[1] = float("nan")
    return g


def give(params: list[Any], step: int, kinds: tuple[int, ...]) -> None:
    for i, (p, kind) in enumerate(zip(params, kinds, strict=True)):
        g = gradient(i, step, kind)
        p.grad = g if g is None else g.to(p.dtype)


def held(optimizer: Any, params: list[Any]) -> list[Any]:
    """Copies of weights and state, without the controller's memory, which is the model's."""
    states = [{k: v for k, v in optimizer.state.get(p, {}).items() if k != "c_optim"} for p in params]
    return copy.deepcopy([[p.detach() for p in params], states])
