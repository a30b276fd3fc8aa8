"""Parameters in few bits and state as it is stored, held beside a running optimizer."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .. import storage
from ..state import memory
from ..state.family import Family
from ..types import Layout

BLOCK = 256


class Snapshot:
    r"""The last good moment of a run.

    A parameter x of a block with smallest and largest value :math:`l \le 0 \le h` comes back
    within :math:`(h - l)/510` in 8 bits and, in 16, within :math:`(h - l)/(510 \cdot 254)`,
    besides the rounding of fp32 and of its own type.

    Args:
        bits: 8, 16 or 32 of the parameters.
    """

    def __init__(self, bits: int) -> None:
        self.bits = bits
        self.step = 0
        self._codes: list[tuple[Tensor, ...]] = []
        self._state: dict[int, dict[str, Any]] = {}
        self._clocks: list[int] = []

    def take(self, optimizer: Family, step: int) -> None:
        """Copy parameters and state; memory of the last snapshot is used again."""
        params = optimizer.model.params()
        codes = [self._encoded(p) for p in params]
        if [[c.shape for c in old] for old in self._codes] == [[c.shape for c in new] for new in codes]:
            for old, new in zip(self._codes, codes, strict=True):
                for a, b in zip(old, new, strict=True):
                    a.copy_(b)
        else:
            self._codes = [tuple(c.clone() for c in new) for new in codes]
        held = {i: optimizer.state[p] for i, p in enumerate(params) if optimizer.state.get(p)}
        fresh: dict[int, dict[str, Any]] = {}
        for i, own in held.items():
            old = self._state.get(i, {})
            fresh[i] = {key: _renewed(old.get(key), value) for key, value in own.items()}
        self._state = fresh
        self._clocks = [group["clock"] for group in optimizer.param_groups]
        self.step = step

    def restore(self, optimizer: Family) -> int:
        """Write everything back; returns the step of the snapshot."""
        params = optimizer.model.params()
        if len(params) != len(self._codes) or len(optimizer.param_groups) != len(self._clocks):
            raise RuntimeError(
                f"the snapshot is of {len(self._codes)} parameters, the optimizer has {len(params)} now: "
                "take a new one after adding a group."
            )
        values = [self._decoded(p, coded) for p, coded in zip(params, self._codes, strict=True)]
        finite = [v.isfinite().all() for v in values]
        if not all(f.item() for f in finite):
            raise RuntimeError(
                f"the snapshot after step {self.step} holds weights that are not finite: nothing was "
                "changed. Load a checkpoint."
            )
        saved = optimizer.state_dict()
        for group, clock in zip(saved["param_groups"], self._clocks, strict=True):
            group["clock"] = clock
        ids = [i for group in saved["param_groups"] for i in group["params"]]
        # Copies: a state that is not there any more would be this very memory, and change with it.
        saved["state"] = {
            ids[i]: {k: _renewed(None, v) for k, v in own.items()} for i, own in self._state.items()
        }
        saved.pop(memory.KEY, None)
        optimizer.load_state_dict(saved)
        for p, value in zip(params, values, strict=True):
            p.copy_(value)
        return self.step

    def nbytes(self) -> int:
        """Bytes that the snapshot holds."""
        state = [v for own in self._state.values() for v in own.values() if isinstance(v, Tensor)]
        return sum(t.nbytes for coded in self._codes for t in coded) + sum(t.nbytes for t in state)

    def _codec(self, p: Tensor) -> storage.Codec | None:
        if p.element_size() * 8 <= self.bits or self.bits == 32 or not p.numel():
            return None
        code = storage.Affine8(BLOCK)
        return code if self.bits == 8 else storage.ErrorCorrected(code, 8)

    def _decoded(self, p: Tensor, coded: tuple[Tensor, ...]) -> Tensor:
        codec = self._codec(p)
        return coded[0] if codec is None else codec.decode(coded).reshape(p.shape)

    def _encoded(self, p: Tensor) -> tuple[Tensor, ...]:
        codec = self._codec(p)
        if codec is None:
            return (p.detach(),)
        layout = Layout.of(tuple(p.shape))
        return codec.encode(p.detach().float().reshape(1, *layout.view))


def _renewed(old: Any, value: Any) -> Any:
    """A copy of a value, in the memory of an older copy where it fits."""
    if not isinstance(value, Tensor):
        return value
    fits = isinstance(old, Tensor) and old.shape == value.shape and old.dtype == value.dtype
    if fits and old.device == value.device:
        return old.copy_(value)
    return value.detach().clone()
