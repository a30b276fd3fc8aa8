"""A whole step in a few launches: the Triton engine, where it may run and what it takes.

Unlike a backend of chunks it sees all chunks at once, so that the number of launches does not
depend on the model. Its tables live from step to step; before each step every address is compared,
and anything that moved builds them anew. Nothing here waits for the device.
"""

from __future__ import annotations

import importlib.util
import math
import os
import struct
import warnings
import weakref
from operator import is_
from typing import Any

import torch
from torch import Tensor

from ..recipes import _fused
from ..types import Layout
from ..validate import callers_depth, fail
from . import memory
from .buckets import Chunk
from .fused_tables import KINDS, Code, Member, Tables, code_of, code_tables, span

Plan = list[tuple[dict[str, Any], Chunk]]
LIMIT = 2**31 - 2**16  # elements of a tensor: places are 32-bit numbers

_STEPS: weakref.WeakKeyDictionary[Any, dict[bool, Whole]] = weakref.WeakKeyDictionary()
_SAID: set[str] = set()


def has_triton() -> bool:
    """Whether Triton can be imported."""
    return importlib.util.find_spec("triton") is not None


def interpreted() -> bool:
    """Whether Triton's interpreter runs kernels on the CPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def _say(text: str) -> None:
    if text not in _SAID:
        _SAID.add(text)
        warnings.warn(text, stacklevel=callers_depth())


def _device_of(optimizer: Any) -> torch.device | None:
    """Device that the engine is wanted on, or None; errors where it was asked for and cannot run."""
    engine = optimizer.config.engine
    if engine not in ("auto", "triton"):
        return None
    p = next((p for g in optimizer.param_groups for p in g["params"] if p.grad is not None), None)
    if p is None:
        return None
    if engine == "auto" and p.device.type not in ("cuda", "xpu"):
        return None
    if not has_triton():
        if engine == "triton":
            advice = "pip install 'automagic-cameamp[triton]', or engine='auto'"
            raise fail("engine", engine, "Triton is not installed", advice)
        _say(
            "Triton is not installed: the optimizer's step runs in plain torch, which is slow on a GPU. "
            "pip install 'automagic-cameamp[triton]'; engine='reference' silences this."
        )
        return None
    if p.device.type not in ("cuda", "xpu") and not interpreted():
        allowed = f"parameters are on {p.device}, and Triton needs a GPU"
        raise fail("engine", engine, allowed, "Use engine='auto', or TRITON_INTERPRET=1 for a test.")
    return p.device


def prepare(optimizer: Any) -> Whole | None:
    """The fused part of the coming step, or None where every chunk goes to the other backends.

    Raises:
        RuntimeError: a gradient scaler left its factor to the optimizer, and other backends, which
            know no factor, have a part in this step that cannot be unscaled for them. Nothing was
            changed then.
    """
    whole = _prepare(optimizer)
    scale, found = getattr(optimizer, "grad_scale", None), getattr(optimizer, "found_inf", None)
    if scale is not None or found is not None:
        _unscale_rest(optimizer, list(optimizer._chunks()) if whole is None else whole.rest, scale, found)
    return whole


def _unscale_rest(optimizer: Any, rest: Plan, scale: Tensor | None, found: Tensor | None) -> None:
    """Do for gradients of the reference what the kernels do inside; a bad step is one of NaN."""
    grads = [p.grad for _, chunk in rest for p in chunk.params if p.grad is not None]
    # fp16 would lose what the factor is there to keep.
    known = all(g.dtype != torch.float16 for g in grads) and all(chunk.shard is None for _, chunk in rest)
    if grads and (not known or _device_of(optimizer) is None):
        raise RuntimeError(
            "the gradient scaler left grad_scale and found_inf to the optimizer, but the Triton engine does "
            "not update all of the model: remove _step_supports_amp_scaling from the optimizer."
        )
    for g in grads:
        if scale is not None:
            g.div_(scale.to(g.device, non_blocking=True))
        if found is not None:
            g.masked_fill_(found.to(g.device, non_blocking=True) != 0, math.nan)


def _prepare(optimizer: Any) -> Whole | None:
    device = _device_of(optimizer)
    if device is None:
        return None
    # A basis is renewed by the reference: such steps have tables of their own.
    renewed = tuple(
        g["clock"] % g["sync_frequency"] == 0 for g in optimizer.param_groups if "sync_frequency" in g
    )
    held = _STEPS.setdefault(optimizer, {})
    whole = held.get(any(renewed))
    if whole is None or not whole.fits(optimizer, device, renewed):
        whole = held[any(renewed)] = Whole(optimizer, device, renewed)
    if not whole.members:
        return None
    whole.runner.scaler(getattr(optimizer, "grad_scale", None), getattr(optimizer, "found_inf", None))
    return whole


class Whole:
    """Tensors that are updated together, their tables, and what is left to other backends.

    Args:
        optimizer: the optimizer before its step; states of first gradients are created.
        device: where the tensors must be.
        renewed: per group, whether this step finds bases anew.
    """

    def __init__(self, optimizer: Any, device: torch.device, renewed: tuple[bool, ...]) -> None:
        self.device, self.renewed = device, renewed
        self.lagged = optimizer._lagged()
        self.fresh = False
        kept = [
            (state["lr_mask_sum"], p.numel())
            for group in optimizer.param_groups
            for p in group["params"]
            if "lr_mask_sum" in (state := optimizer.state.get(p) or {})
        ]
        plan: Plan = list(optimizer._chunks())
        fresh = [p for _, c in plan for p in c.params if p.grad is not None and not optimizer.state.get(p)]
        optimizer._create_states(plan)
        # Their mask counts in the mean from the next step on, so that step gets tables of its own.
        self.fresh = bool(fresh)
        self.kept, self.elements = [v for v, _ in kept], sum(n for _, n in kept)
        self.mixed = any(v.device != device for v in self.kept)
        self.options = _options(optimizer)
        self.seen = [
            (p, p.grad is None, p.data_ptr(), p.dtype, p.shape, _flag(p))
            for group in optimizer.param_groups
            for p in group["params"]
        ]
        self.members, self.rest = self._choose(optimizer, plan)
        if optimizer.controller is not None and self.rest:  # its signals come from one engine
            self.members = []
        self.watched = []
        for m in self.members:
            own = {k: v for k, v in m.state.items() if k != memory.KEY}
            assert m.p.grad is not None
            self.watched.append(
                (m.p, m.state, tuple(own), tuple(own.values()), _main(m.state), m.p.grad.dtype)
            )
        if self.members:
            from . import fused_run

            self.runner = fused_run.Runner(self, optimizer)

    def _choose(self, optimizer: Any, plan: Plan) -> tuple[list[Member], Plan]:
        """Members of the fused step, and the chunks that it does not take."""
        members: list[Member] = []
        rest: Plan = []
        self.groups: list[dict[str, Any]] = []
        self.hypers: list[Any] = []
        rows: dict[tuple[int, bool], int] = {}
        self.code: Code | None = None
        for group, chunk in plan:
            active = [i for i, p in enumerate(chunk.params) if p.grad is not None]
            if not active:
                continue
            hp = optimizer._hyper(group, chunk.lora)
            fields = optimizer._fields(group, chunk)
            renewing = bool(self.renewed) and self.renewed[chunk.key[0]]
            renewing = renewing and _fused.renews(optimizer.recipe, hp, chunk.layout)
            why = self._why_not(optimizer, chunk, active, hp, fields)
            if renewing or why is not None:
                rest.append((group, chunk))
                if why is not None and optimizer.config.engine == "triton":
                    _say(f"engine='triton' does not support {why}: the reference runs there.")
                continue
            key = (chunk.key[0], chunk.lora)
            if key not in rows:
                rows[key] = len(self.groups)
                self.groups.append(group)
                self.hypers.append(hp)
            for i in active:
                p = chunk.params[i]
                state = optimizer.state[p]
                if state["step"].device != p.device:  # the parameter was moved after its last step
                    state.update({k: v.to(p.device) for k, v in state.items() if isinstance(v, Tensor)})
                members.append(Member(p, state, chunk.indices[i], chunk, fields, hp, rows[key]))
        return members, rest

    def _why_not(
        self, optimizer: Any, chunk: Chunk, active: list[int], hp: Any, fields: list[Any]
    ) -> str | None:
        """What keeps the active members of a chunk out of the fused step, in words."""
        if chunk.shard is not None:
            return "sharded parameters"
        if self.mixed:
            return "a model on several devices"
        why = _fused.unsupported(optimizer.recipe, hp, chunk.layout)
        if why is not None:
            return why
        if chunk.layout.numel > LIMIT:
            return f"tensors of more than {LIMIT} elements"
        held = code_of(fields)
        if held is None:
            return "the code of this state"
        code, block = held
        if code.number:
            if self.code is not None and code != self.code:
                return "states of several codes"
            if span(block, chunk.layout.numel) is None:
                return f"blocks of {min(block, chunk.layout.numel)} elements"
            self.code = code
        if isinstance(hp.lr, Tensor) and hp.lr.dtype not in (torch.float32, torch.float64):
            return f"a learning rate of type {hp.lr.dtype}"
        if len(_fused.momenta(optimizer.recipe, hp)) != len(
            _fused.momenta(optimizer.recipe, self.hypers[0] if self.hypers else hp)
        ):
            return "groups with different numbers of momentum_scales"
        for i in active:
            p = chunk.params[i]
            g = p.grad
            assert g is not None
            if p.device != self.device or g.device != self.device:
                return "a model on several devices"
            if p.dtype not in KINDS or g.dtype not in KINDS:
                return f"parameters of type {p.dtype}"
            if not (p.is_contiguous() and g.is_contiguous()):
                return "parameters or gradients that are not contiguous"
        return None

    def fits(self, optimizer: Any, device: torch.device, renewed: tuple[bool, ...]) -> bool:
        """Whether the tables still describe the coming step."""
        if (
            self.fresh
            or (device, renewed) != (self.device, self.renewed)
            or self.options != _options(optimizer)
        ):
            return False
        params = [p for group in optimizer.param_groups for p in group["params"]]
        if len(params) != len(self.seen):
            return False
        for p, (q, absent, address, dtype, shape, flag) in zip(params, self.seen, strict=True):
            if (
                p is not q
                or (p.grad is None) is not absent
                or p.data_ptr() != address
                or p.dtype is not dtype
                or p.shape != shape
                or _flag(p) is not flag
            ):
                return False
        state = optimizer.state
        for p, held, keys, values, main, dtype in self.watched:
            g = p.grad
            if (
                state.get(p) is not held
                or not all(map(is_, map(held.get, keys), values))
                or _main(held) != main
                or g is None
                or not g.is_contiguous()
                or g.device != self.device
                or g.dtype is not dtype
            ):
                return False
        return True

    def run(self, optimizer: Any) -> None:
        """Launch all passes."""
        self.runner.run(optimizer)

    def observe(self, optimizer: Any) -> None:
        """The controller's move, where there is one."""
        self.runner.observe(optimizer.controller)


def _flag(p: Tensor) -> Any:
    return getattr(p, "_is_lora_layer", None)


def _main(state: dict[str, Any]) -> int:
    """Address of the momentum: programs that move state behind our back move all of it."""
    value = state.get("exp_avg_q")
    return (state["exp_avg"] if value is None else value).data_ptr()


def _options(optimizer: Any) -> list[Any]:
    """Everything in the groups that the tables hold; rates are brought anew at each step."""
    result: list[Any] = []
    for group in optimizer.param_groups:
        hp = optimizer._hyper(group, lora=False)
        lr = group["lr"]
        result.append(hp._replace(lr=lr.data_ptr() if isinstance(lr, Tensor) else 0))
        result.append(len(group["params"]))
    return result


def bits_of(lr: float) -> int:
    """A float as the integer with the same bits."""
    return struct.unpack("<q", struct.pack("<d", lr))[0]


__all__ = ["Layout", "Whole", "bits_of", "code_tables", "has_triton", "interpreted", "prepare", "Tables"]
