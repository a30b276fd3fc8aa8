"""Reading the saved state of optimizers outside the family, one parameter at a time, checked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..recipes import _foreign
from ..recipes._foreign import Learned
from ..types import Layout
from .saved import ADVICE, CheckpointError

QUANT_KEY = "__bnb_optimizer_quant_state__"


class Reader:
    """Checked access to the saved values of one parameter."""

    def __init__(
        self, name: str, entry: Mapping[str, Any], p: Tensor, layout: Layout, group: Mapping[str, Any]
    ) -> None:
        self.name, self.p, self.layout, self.group = name, p, layout, group
        nested = entry.get(QUANT_KEY, {})
        if not isinstance(nested, Mapping):
            raise CheckpointError(f"state {QUANT_KEY!r} of {name} is no dict. {ADVICE}")
        self.entry = {**{k: v for k, v in entry.items() if k != QUANT_KEY}, **nested}
        shape = tuple(p.shape)
        self.shapes = {"full": shape, "row": shape[:-1], "col": shape[:-2] + shape[-1:]}

    def refuse(self, key: str, what: str) -> CheckpointError:
        return CheckpointError(f"state {key!r} of {self.name} {what}. {ADVICE}")

    def tensor(self, key: str, shape: tuple[int, ...], *, floating: bool = True) -> Tensor:
        """A finite tensor of this shape, floating ones in the type of our arithmetic."""
        value = self.entry.get(key)
        if not isinstance(value, Tensor):
            raise self.refuse(key, f"is {'missing' if value is None else 'a ' + type(value).__name__}")
        if tuple(value.shape) != shape:
            raise self.refuse(key, f"has shape {tuple(value.shape)}, this model needs {shape}")
        value = value.detach().to(self.p.device)
        if floating:
            if not value.is_floating_point():
                raise self.refuse(key, f"is {value.dtype}, expected a floating type: it was cast or coded")
            value = value.to(torch.float64 if self.p.dtype == torch.float64 else torch.float32)
            if not bool(value.isfinite().all()):
                raise self.refuse(key, "holds NaN or infinities: that run had diverged")
        return value

    def full(self, key: str) -> Tensor:
        """[1,K,m,n] of a value per element."""
        return self.tensor(key, self.shapes["full"]).reshape(1, *self.layout.view)

    def positive(self, key: str, kind: str = "full") -> Tensor:
        """A second moment, >= 0."""
        value = self.tensor(key, self.shapes[kind])
        if value.numel() and float(value.min()) < 0:
            raise self.refuse(key, "holds negative numbers; it is a mean of squares")
        return value

    def number(self, key: str, low: float = 1) -> float:
        value = self.entry.get(key)
        if isinstance(value, Tensor) and value.numel() == 1 and not value.is_complex():
            value = value.item()
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value < 2**24:
            raise self.refuse(key, f"is {value!r}, expected a number >= {low:g}")
        return float(value)

    def option(self, key: str, default: Any) -> Any:
        value = self.group.get(key, default)
        numbers = value if isinstance(value, (list, tuple)) else [value]
        pair = isinstance(default, tuple)
        good = all(isinstance(x, (int, float)) and not isinstance(x, bool) for x in numbers)
        if not good or (pair and (len(numbers) < len(default) or not all(0 <= x < 1 for x in numbers))):
            raise CheckpointError(f"{key}={value!r} in the groups of the state dict is unusable. {ADVICE}")
        return tuple(value) if pair else value

    def moment(self, name: str) -> dict[str, Tensor | None]:
        """A second moment that is factored over the last two dimensions, in our view.

        Rows of a kernel (O, I, kh, kw) are ours; its other factors are multiplied out and averaged.
        """
        if len(self.shapes["full"]) < 2:
            full = self.positive(name).reshape(1, *self.layout.view)
            return {"square": full}
        row, col = self.positive(f"{name}_row", "row"), self.positive(f"{name}_col", "col")
        if len(self.shapes["full"]) <= 3:
            k, m, n = self.layout.view
            return {"row": row.reshape(1, k, m, 1), "col": col.reshape(1, k, 1, n)}
        mean = row.mean(-1, keepdim=True).clamp(min=1e-38).unsqueeze(-1)
        full = row.unsqueeze(-1) * col.unsqueeze(-2) / mean
        return {"square": full.reshape(1, *self.layout.view)}


def _adam(r: Reader) -> Learned:
    square = r.positive("exp_avg_sq").reshape(1, *r.layout.view)
    betas, eps = r.option("betas", (0.9, 0.999)), r.option("eps", 1e-8)
    return _foreign.adam(r.full("exp_avg"), square, r.number("step"), betas, eps)


def _came(r: Reader) -> Learned:
    learned = Learned(r.number("step"), unit=r.full("exp_avg"), **r.moment("exp_avg_sq"))
    if "exp_avg_res_row" not in r.entry and "exp_avg_res_col" not in r.entry:
        return learned  # vectors
    res = r.moment("exp_avg_res")
    row, col, full = res.get("row"), res.get("col"), res.get("square")
    if full is not None:
        row, col = full.mean(-1, keepdim=True), full.mean(-2, keepdim=True)
    return learned._replace(surprise_row=row, surprise_col=col)


def _bitsandbytes(r: Reader) -> Learned:
    if "state2" not in r.entry:
        raise r.refuse("state2", "is missing: only Adam and AdamW can be imported, not one-state optimizers")
    betas, eps = r.option("betas", (0.9, 0.999)), r.option("eps", 1e-8)
    mean, square = (_blockwise(r, i) for i in (1, 2))
    if float(square.min()) < 0:
        raise r.refuse("state2", "holds negative numbers; it is a mean of squares")
    return _foreign.adam(mean, square, r.number("step"), betas, eps)


def _blockwise(r: Reader, number: int) -> Tensor:
    """A state of bitsandbytes, decoded with the map that it was saved with: [1,K,m,n]."""
    key = f"state{number}"
    if not isinstance(r.entry.get(key), Tensor) or r.entry[key].is_floating_point():
        return r.full(key)
    codes = r.tensor(key, r.shapes["full"], floating=False)
    if codes.dtype != torch.uint8:
        raise r.refuse(key, f"is {codes.dtype}, expected torch.uint8 or torch.float32: it was cast")
    scale = r.entry.get(f"absmax{number}")
    if not isinstance(scale, Tensor) or scale.dim() != 1:
        raise r.refuse(f"absmax{number}", "is missing: only blockwise states can be imported")
    scale, values = r.tensor(f"absmax{number}", (len(scale),)), r.tensor(f"qmap{number}", (256,))
    n = codes.numel()
    for block in (256, 2048, 4096, 1024, 512, 128, 64):
        if -(-n // block) == len(scale):
            wide = scale.repeat_interleave(block)[:n]
            return (values[codes.flatten().long()] * wide).reshape(1, *r.layout.view)
    raise r.refuse(f"absmax{number}", f"has {len(scale)} scales for {n} elements: no block size gives that")


def _automagic(r: Reader) -> Learned:
    moment = r.moment("exp_avg_sq")
    return Learned(r.number("step"), rates=_rates(r), negative=_negative(r), **moment)


def _rates(r: Reader) -> Tensor | None:
    """Learned rates: one per element in version 1, one per tensor or group later."""
    mask = r.entry.get("lr_mask")
    if mask is None:
        return torch.full((1, 1, 1, 1), r.number("lr", 0.0), device=r.p.device)
    if isinstance(mask, Mapping):
        inner = Reader(r.name, mask, r.p, r.layout, r.group)
        codes = inner.tensor("quantized", r.shapes["full"], floating=False)
        rates = codes.float() * inner.number("scale", 0.0)
    else:
        rates = r.tensor("lr_mask", r.shapes["full"])
    # A rate that the saved code rounded to 0 was below half its step, not 0.
    least = float(rates.max()) / 254
    if not least > 0:
        raise r.refuse("lr_mask", "holds no rate above 0")
    return rates.clamp(min=least).reshape(1, *r.layout.view)


def _negative(r: Reader) -> Tensor:
    """Signs of the last gradient."""
    if "last_polarity" in r.entry:
        return r.tensor("last_polarity", r.shapes["full"], floating=False).reshape(1, *r.layout.view) == 0
    history = r.entry.get("sign_history")
    n = r.layout.numel
    if not isinstance(history, Tensor) or history.dim() != 2 or history.dtype != torch.uint8:
        raise r.refuse("sign_history", "is missing or no packed history of signs")
    planes = len(history)
    history = r.tensor("sign_history", (planes, (n + 7) // 8), floating=False)
    newest = history[(int(r.number("hist_idx", 0)) - 1) % planes]
    shifts = torch.arange(8, dtype=torch.uint8, device=newest.device)
    bits = (newest.unsqueeze(-1) >> shifts) & 1
    return bits.flatten()[:n].reshape(1, *r.layout.view) == 0


READERS: dict[str, Callable[[Reader], Learned]] = {
    "adam": _adam,
    "came": _came,
    "bitsandbytes": _bitsandbytes,
    "automagic": _automagic,
}
_MOMENTUM = "momentum (direction of the last updates, within the RMS limit)"
_SECOND = "second moment (row and column means where factored)"
_STEP = (("step",), "step count")
_FROM_MEAN = (("exp_avg", "state1"), "confidence (from the momentum)")
# kind -> (taken, approximated): keys that it needs, words
NOTES: dict[str, tuple[tuple[Any, ...], tuple[Any, ...]]] = {
    "adam": (
        (_STEP,),
        (
            (("exp_avg",), _MOMENTUM),
            (("exp_avg_sq",), _SECOND),
            _FROM_MEAN,
        ),
    ),
    "came": (
        (
            _STEP,
            (("exp_avg",), "momentum"),
            (("exp_avg_sq", "exp_avg_sq_row", "exp_avg_sq_col"), "second moment"),
            (("exp_avg_res_row", "exp_avg_res_col"), "confidence"),
        ),
        (),
    ),
    "bitsandbytes": (
        (_STEP,),
        (
            (
                ("state1", "qmap1", "absmax1"),
                _MOMENTUM,
            ),
            (("state2", "qmap2", "absmax2"), _SECOND),
            _FROM_MEAN,
        ),
    ),
    "automagic": (
        (
            _STEP,
            (("exp_avg_sq", "exp_avg_sq_row", "exp_avg_sq_col"), "second moment"),
            (("last_polarity", "sign_history", "hist_idx"), "signs of the last gradients"),
        ),
        ((("lr_mask", "lr"), "learned rates (relative to their mean; set lr to the reported rate)"),),
    ),
}
