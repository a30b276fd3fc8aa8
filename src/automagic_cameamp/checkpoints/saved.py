"""One parameter of a saved state: what its keys, types and shapes say, and the values behind them."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import storage
from ..recipes import Hyper, _carry
from ..state.fields import Field
from ..state.names import SUFFIXES, is_ours, split_key
from ..storage import StateSpec
from ..types import Layout

HALF_MAX = 65504.0
ADVICE = "Nothing was loaded."


class CheckpointError(ValueError):
    """A state dict that does not fit this optimizer."""


def foreign_kind(state: Mapping[Any, Any]) -> str | None:
    """Which optimizer outside the family writes such a state for a parameter; None if unknown."""
    if "__bnb_optimizer_quant_state__" in state or "state1" in state:
        return "bitsandbytes"
    if "avg_lr" in state and ("exp_avg" in state or "exp_avg_q" in state):
        return None
    polarity = "last_polarity" in state and ("lr_mask" in state or "lr" in state)
    if polarity or ("hist_idx" in state and "lr" in state):
        return "automagic"
    if "exp_avg" in state and "RMS" in state:
        return "came"
    # With these the moments are in units of a rate that was found (Prodigy), or of other weights.
    if {"step", "exp_avg", "exp_avg_sq"} <= state.keys() and not state.keys() & {"p0", "z"}:
        return "adam"
    return None


KINDS = {
    "adam": "torch's Adam or AdamW",
    "came": "CAME",
    "bitsandbytes": "a bitsandbytes optimizer",
    "automagic": "ai-toolkit's Automagic",
}


def refuse_foreign(name: str, state: Mapping[Any, Any]) -> None:
    """Raise where an optimizer outside the family is known to have written this state."""
    kind = foreign_kind(state)
    if kind is not None:
        raise CheckpointError(
            f"state of {name} looks like that of {KINDS[kind]}, not of this family: "
            f"automagic_cameamp.import_state(optimizer, state_dict) can take it. {ADVICE}"
        )


def apart(state: Mapping[Any, Any], wanted: Collection[str]) -> tuple[Mapping[Any, Any], dict[Any, Any]]:
    """A saved state, and what a program keeps beside it under names of its own.

    Args:
        state: saved for one parameter.
        wanted: keys that this optimizer keeps; where one is missing, nothing is set apart, for a strange
            name may be that of another optimizer.
    """
    if len(state) == len(wanted) or not state.keys() >= set(wanted):
        return state, {}
    own = {k: v for k, v in state.items() if not is_ours(k)}
    return {k: v for k, v in state.items() if k not in own}, own


def check_family(name: str, state: Mapping[Any, Any], wanted: Sequence[str]) -> None:
    """Raise unless these are tensors of fields of the family, the indispensable ones among them.

    Args:
        name: how the parameter is called in messages.
        state: its saved state, not empty.
        wanted: keys that this optimizer would keep.
    """
    keys = {str(k) for k in state}
    unknown = sorted(k for k in keys if not _carry.in_family(split_key(k)[0]))
    needed = [("step",), ("avg_lr",), ("exp_avg", "exp_avg_q")]
    missing = [names[0] for names in needed if not keys & set(names)]
    if unknown or missing:
        lacking = sorted(set(wanted) - keys) or missing
        raise CheckpointError(
            f"state of {name} does not belong to this optimizer and its options: missing "
            f"{lacking or 'nothing'}, unknown {unknown or 'nothing'}. Build the optimizer with the class "
            f"and options of the run that was saved. {ADVICE}"
        )
    for key, value in state.items():
        if not isinstance(value, Tensor):
            raise CheckpointError(
                f"state {key!r} of {name} is a {type(value).__name__}, not a tensor. {ADVICE}"
            )
        if value.layout is not torch.strided or value.is_meta:
            raise CheckpointError(f"state {key!r} of {name} is not a dense tensor with data. {ADVICE}")


def check_form(
    name: str, key: str, value: Tensor, forms: Sequence[tuple[tuple[int, ...], tuple[torch.dtype, ...]]]
) -> int:
    """Index of the first (shape, types) that a saved tensor has; CheckpointError where it has none."""
    for i, (shape, dtypes) in enumerate(forms):
        if tuple(value.shape) == shape and value.dtype in dtypes:
            return i
    shapes = [shape for shape, _ in forms]
    if tuple(value.shape) not in shapes:
        expected = " or ".join(str(shape) for shape in dict.fromkeys(shapes))
        raise CheckpointError(
            f"state {key!r} of {name} has shape {tuple(value.shape)}, this model needs {expected}: "
            f"the checkpoint is of another model or of other options. {ADVICE}"
        )
    expected = " or ".join(dict.fromkeys(str(d) for _, dtypes in forms for d in dtypes))
    raise CheckpointError(
        f"state {key!r} of {name} is {value.dtype}, expected {expected}: it was cast after "
        f"saving (by a trainer, or by loading it through another optimizer). {ADVICE}"
    )


def check_values(name: str, key: str, value: Tensor, spec: StateSpec, layout: Layout, hp: Hyper) -> None:
    """Refuse numbers that no run can have produced; they would poison this one."""
    suffix = split_key(key)[1]
    if suffix in ("_q", "_q_zero", "_q_residual"):
        return  # every code means something
    low, high = _carry.bounds(spec, layout, hp)
    if suffix in ("_q_scale", "_scale"):
        value, low = _extent(value.detach(), suffix, spec), min(low, 0.0)
    elif value.dtype == torch.float16:
        high = HALF_MAX  # in units of its scale
    if not value.numel() or (low == -math.inf and high == math.inf):
        return
    least, most = (float(x) for x in value.detach().aminmax())
    if not (low <= least and most <= high):  # also where either is NaN
        raise CheckpointError(
            f"state {key!r} of {name} has values in [{least:g}, {most:g}], possible are [{low:g}, "
            f"{high:g}]: the checkpoint is damaged or the run had diverged. {ADVICE}"
        )


def _extent(scale: Tensor, suffix: str, spec: StateSpec) -> Tensor:
    """Largest values that these scales can produce; NaN for a scale that no code writes."""
    if suffix == "_scale":
        return torch.where(scale > 0, scale.double() * 2**15, math.nan)
    if spec.domain in ("positive", "vector"):  # logarithmic: low end and step
        low, step = scale.double().unbind(-1)
        steps = 255 if spec.domain == "positive" else storage.Log16.top
        return torch.where(step >= 0, (low + steps * step).exp(), math.nan)
    return torch.where(scale >= 0, scale.double() * 255, math.nan)


class SavedState:
    """The saved state of one parameter, decoded field by field.

    Args:
        name: how the parameter is called in messages.
        state: key -> tensor, of the family.
        p: the parameter.
        layout: its view.
        block_size: tried first where a scale count fits several block sizes.
    """

    def __init__(
        self, name: str, state: Mapping[str, Tensor], p: Tensor, layout: Layout, block_size: int
    ) -> None:
        self.name, self.state, self.layout, self.block_size = name, state, layout, block_size
        self.device = p.device
        self.names = {split_key(key)[0] for key in state}
        self.packed = "last_polarity" in self.names

    def value(self, forms: Sequence[StateSpec], hp: Hyper) -> Tensor | None:
        """[1, *stack_shape] of a field in one of these forms; None where it was not saved."""
        name = forms[0].name
        if name not in self.names:
            return None
        keys = {name + s for s in SUFFIXES} & self.state.keys()
        if name in _carry.RESIZABLE and self.state[name].shape != forms[0].own_shape(self.layout):
            return None
        half = {name, f"{name}_scale"}  # a vector as the first checkpoints held it
        if name in keys and keys - half:
            raise CheckpointError(
                f"state of {self.name} holds {name!r} twice: as it is and coded ({sorted(keys)}). {ADVICE}"
            )
        if keys == {name}:
            return self._plain(name, forms, hp)
        codec = storage.Half16(forms[0], self.layout) if keys <= half else self._codec(forms[0])
        return self._decoded(forms[0], codec, hp)

    def _plain(self, name: str, forms: Sequence[StateSpec], hp: Hyper) -> Tensor:
        value = self.state[name]
        i = check_form(self.name, name, value, [(f.own_shape(self.layout), _types(f)) for f in forms])
        check_values(self.name, name, value, forms[i], self.layout, hp)
        return value.detach().to(self.device).reshape(1, *forms[i].stack_shape(self.layout))

    def _decoded(self, spec: StateSpec, codec: storage.Codec | storage.Half16, hp: Hyper) -> Tensor:
        planes = []
        for plane in codec.planes(self.layout):
            key = spec.name + plane.suffix
            if key not in self.state:
                raise CheckpointError(f"state of {self.name} is incomplete: {key!r} is missing. {ADVICE}")
            check_form(self.name, key, self.state[key], [(plane.own_shape, (plane.dtype,))])
            check_values(self.name, key, self.state[key], spec, self.layout, hp)
            planes.append(self.state[key].detach().to(self.device).reshape(1, *plane.shape))
        return codec.decode(tuple(planes))

    def _codec(self, spec: StateSpec) -> storage.Codec:
        """The code that wrote these planes."""
        name, state = spec.name, self.state
        codes, scale = state.get(f"{name}_q"), state.get(f"{name}_q_scale")
        if codes is None or (scale is None and spec.domain != "unit"):
            gone = name + ("_q" if codes is None else "_q_scale")
            raise CheckpointError(f"state of {self.name} is incomplete: {gone!r} is missing. {ADVICE}")
        if scale is None:
            return storage.Unit4(self.layout)
        if spec.domain == "vector":
            return storage.Log16(spec, self.layout)
        last = 2 if spec.domain == "positive" else 1  # dimensions of the scales of one row
        by_rows = scale.dim() > last
        count = scale.shape[-last] if by_rows else len(scale) if scale.dim() else 0
        block = self._block(name, count, self.layout.cols if by_rows else self.layout.numel)
        code = self._code(spec, block)
        return storage.RowBlocks(code) if by_rows else code

    def _code(self, spec: StateSpec, block: int) -> Any:
        """The code with blocks of this length that wrote these planes."""
        name, state = spec.name, self.state
        codes, scale = state[f"{name}_q"], state[f"{name}_q_scale"]
        if spec.domain == "positive":
            return storage.Log8(block)
        # By the packed codes too: other codes' scales may come cast to bf16, which has its own message.
        if scale.dtype == torch.bfloat16 and tuple(codes.shape) == ((self.layout.numel + 1) // 2,):
            return storage.Softsign4(self.layout, block)
        if f"{name}_q_zero" in state:
            code: Any = storage.Affine8(block)
        elif codes.dtype == torch.int8:
            code = storage.Softsign8(block)
        else:
            code = storage.Dynamic8(block)
        residual = state.get(f"{name}_q_residual")
        if residual is None:
            return code
        if isinstance(code, storage.Dynamic8):
            raise CheckpointError(
                f"state {name!r} of {self.name} is in a code that has no error correction, "
                f"but {name + '_q_residual'!r} was saved: codes were cast or mixed. {ADVICE}"
            )
        return storage.ErrorCorrected(code, 8 if residual.numel() == self.layout.numel else 4)

    def _block(self, name: str, count: int, n: int) -> int:
        """Elements per scale, from the number of scales of n elements."""
        for size in (self.block_size, *(1 << i for i in range(5, max(6, n.bit_length() + 1)))):
            if math.ceil(n / max(1, min(size, n))) == count:
                return size
        raise CheckpointError(
            f"state {name + '_q_scale'!r} of {self.name} has {count} scales for {n} elements: no block "
            f"size gives that number, so the checkpoint is of another model or was cut. {ADVICE}"
        )


def _types(spec: StateSpec) -> tuple[torch.dtype, ...]:
    """Types in which a field may have been saved as it is."""
    if spec.dtype is not None:
        return (spec.dtype,)
    return (torch.float32, torch.float64)


def decoded(state: Mapping[str, Tensor], fields: Sequence[Field], layout: Layout) -> dict[str, Tensor]:
    """An optimizer's own state of one parameter: name -> [1, *stack_shape]."""
    found = {}
    for spec, codec in fields:
        if codec is None:
            found[spec.name] = state[spec.name].reshape(1, *spec.stack_shape(layout))
        else:
            planes = codec.planes(layout)
            found[spec.name] = codec.decode(
                tuple(state[spec.name + q.suffix].reshape(1, *q.shape) for q in planes)
            )
    return found


__all__ = [
    "ADVICE",
    "KINDS",
    "CheckpointError",
    "SavedState",
    "check_family",
    "check_form",
    "check_values",
    "decoded",
    "foreign_kind",
    "refuse_foreign",
    "split_key",
]
