"""State as a user reads it: float masks, dequantised means. Nothing here is stored."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..recipes import Hyper, _read
from ..state.fields import Field, compute_dtype, stack_params
from ..storage import Codec, ErrorCorrected, StateSpec
from ..types import Layout


@dataclass(frozen=True)
class QuantizedState:
    """One coded state of one parameter; every tensor is the live one except what is computed."""

    shape: tuple[int, ...]
    block_size: int
    _planes: dict[str, Tensor]
    _codec: Any

    @property
    def codes(self) -> Tensor:
        """Integer codes."""
        return self._planes["_q"]

    @property
    def scales(self) -> Tensor | None:
        """One scale per block (two columns for the logarithmic code)."""
        return self._planes.get("_q_scale")

    @property
    def zeros(self) -> Tensor | None:
        """Value of code 0 of each block, as the documents define it; None for codes without one."""
        zero = self._planes.get("_q_zero")
        scales = self.scales
        return None if zero is None or scales is None else -zero.float() * scales

    def _stack(self) -> tuple[Tensor, ...]:
        return tuple(plane.unsqueeze(0) for plane in self._planes.values())

    def dequantize(self) -> Tensor:
        """The state in fp32, error correction included."""
        return self._codec.decode(self._stack()).reshape(self.shape)

    @property
    def error_accumulator(self) -> Tensor:
        """What the code rounded away and the second plane holds; empty without error correction."""
        if not isinstance(self._codec, ErrorCorrected):
            return torch.empty(0, device="cpu")
        return self._codec.error(self._stack()).reshape(self.shape)


class StateView(Mapping[int, Mapping[str, Any]]):
    """Parameter index -> name -> value, computed when asked for."""

    def __init__(self, entries: dict[int, Mapping[str, Any]]) -> None:
        self._entries = entries

    def __getitem__(self, key: int) -> Mapping[str, Any]:
        return self._entries[key]

    def __iter__(self) -> Iterator[int]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


class LazyStates(Mapping[str, Any]):
    """Name -> value, each computed on access."""

    def __init__(self, makers: dict[str, Any]) -> None:
        self._makers = makers

    def __getitem__(self, key: str) -> Any:
        return self._makers[key]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)


def quantized(p: Tensor, state: dict[str, Any], fields: list[Field]) -> dict[str, QuantizedState]:
    """Coded states of one parameter."""
    layout = Layout.of(tuple(p.shape))
    found = {}
    for spec, codec in fields:
        if codec is None or spec.domain == "vector":
            continue
        planes = {q.suffix: state[spec.name + q.suffix].reshape(q.shape) for q in codec.planes(layout)}
        if "_q" in planes:
            inner = codec.code if isinstance(codec, ErrorCorrected) else codec
            block = getattr(inner, "block_size", 0)
            found[spec.name] = QuantizedState(tuple(p.shape), block, planes, codec)
    return found


def _decoded(state: dict[str, Any], spec: StateSpec, codec: Codec, layout: Layout) -> Tensor:
    """A coded field in fp32, in the user's own shape."""
    planes = codec.planes(layout)
    stack = tuple(state[spec.name + q.suffix].reshape(1, *q.shape) for q in planes)
    return codec.decode(stack).reshape(spec.own_shape(layout))


def high_precision(
    p: Tensor,
    state: dict[str, Any],
    fields: list[Field],
    hp: Hyper,
    mask_mean: float,
    found: float | Tensor = 1.0,
) -> LazyStates:
    """States of one parameter that are not coded, the mask as rates and signs; ``found`` is the group's d."""
    layout = Layout.of(tuple(p.shape))
    makers: dict[str, Any] = {}
    for spec, codec in fields:
        name = spec.name
        if codec is None and name not in ("lr_mask", "last_polarity"):
            makers[name] = lambda name=name: state[name]
        elif codec is not None and spec.domain == "vector":
            makers[name] = lambda spec=spec, codec=codec: _decoded(state, spec, codec, layout)
    if _read.has_mask(hp):
        makers["lr_mask"] = lambda: _read.mask_rates(state, layout, hp, mask_mean, found)
        makers["last_polarity"] = lambda: _read.polarity(state, layout, hp)
    if hp.allora and layout.matrix:
        stack = stack_params([p], layout, compute_dtype(p.dtype))
        makers["row_scaling"] = lambda: _read.row_scaling(stack, hp)
    return LazyStates(makers)
