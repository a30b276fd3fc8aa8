"""What the state of one set of options is worth under another: the arithmetic of conversions.

Every value here is decoded and in the view of a stack of one parameter: [1, *stack_shape]. How a
state was stored, and how it will be, is the engine's business.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .. import techniques as T
from ..storage.spec import CORRECTION, StateSpec
from ..techniques.learning_rate import GEOMETRIC_STEP, MASK_HIGH, MASK_LOW
from ..types import Layout
from . import _rate
from ._data import SCALE, Hyper, State

MOMENTS = ("exp_avg_sq", "exp_avg_res")
RESIDUAL = frozenset({"exp_avg_res", "exp_avg_res_row", "exp_avg_res_col"})
REQUIRED = RESIDUAL | {"step", "exp_avg", "exp_avg_var", "beta1_product"}
REQUIRED |= {"exp_avg_sq", "exp_avg_sq_row", "exp_avg_sq_col"}
MASK = ("lr_mask", "last_polarity", "lr_mask_sum")
RESIZABLE = frozenset({"lowrank_basis", "lowrank_tail"})  # its size is an option; another size starts anew
LEVEL = {"distance": "level_anchor", "vote": "sign_history"}  # the field that only this rule keeps
# Means: far outside what a run can reach. Moments: whatever a step takes, be it an accident.
LIMIT_MEAN, LIMIT_MOMENT = 1e15, torch.finfo(torch.float32).max
MIXED_SIGNS = 0x33  # neither eight equal signs nor eight alternating ones: no vote
NO_NORM = 9e29  # a norm that clips nothing
LEAST_SURPRISE = 0.01


class Carried(NamedTuple):
    """Fields under the new options.

    Args:
        values: name -> [1, *stack_shape].
        fresh: names that start anew.
        missing: names that may not start anew and cannot be derived.
    """

    values: dict[str, Tensor]
    fresh: list[str]
    missing: list[str]


def in_family(name: str) -> bool:
    """Whether some recipe, or the engine for its weights, keeps a field of this name."""
    own = (name in State._fields and name != "scales") or name == CORRECTION.name
    return own or (name.startswith(SCALE) and name[len(SCALE) :].isdigit())


def readable(specs: Sequence[StateSpec], layout: Layout, packed: bool) -> dict[str, list[StateSpec]]:
    """Fields from which these can be made: name -> forms in which a saved state may hold it.

    Args:
        specs: the wanted fields.
        layout: view of the parameter.
        packed: whether the saved mask keeps its signs apart (granularity other than 'element').
    """
    found: dict[str, list[StateSpec]] = {}
    for spec in specs:
        base = spec.name.removesuffix("_row").removesuffix("_col")
        if spec.name == "lr_mask":
            extents = ("row", "tensor") if packed else ("full",)
            dtypes = (torch.int8, torch.int16) if packed else (torch.uint8, torch.int16)
            found["lr_mask"] = [StateSpec("lr_mask", e, dtype=d) for e in extents for d in dtypes]
            if packed:
                bits = T.packed_size(layout.numel)
                found["last_polarity"] = [StateSpec("last_polarity", "bits", dtype=torch.uint8, count=bits)]
        elif base in MOMENTS:
            found[base] = [StateSpec(base, "full", "positive")]
            if layout.matrix:
                found[f"{base}_row"] = [StateSpec(f"{base}_row", "row", "vector")]
                found[f"{base}_col"] = [StateSpec(f"{base}_col", "col", "vector")]
        elif spec.name == "s":
            found["s"] = [StateSpec("s", "row"), StateSpec("s", "tensor")]
        elif spec.name != "last_polarity":
            found[spec.name] = [spec]
    return found


def same_meaning(name: str, saved: set[str], before: Hyper, hp: Hyper) -> bool:
    """Whether a field of the same name, type and shape also means the same under both options."""
    if name in MASK:
        packed = hp.lr_mask_granularity != "element"
        return _same_steps(before, hp) and ("last_polarity" in saved) == packed
    if name in ("lr_level", "level_r", "level_norm"):
        return LEVEL.get(hp.lr_level) in saved
    return True


def _same_steps(before: Hyper, hp: Hyper) -> bool:
    """Whether one count of the mask is the same step under both options, given the same rule."""
    if hp.lr_mask_rule != "additive":
        return True
    return _centre(before) == _centre(hp) and before.lr_bump == hp.lr_bump


def _centre(options: Hyper) -> float:
    """Rate that the additive rule is relative to."""
    return float(T.additive_range(options.lr, options.base_lr, 0.0, None)[0])


def carry(
    specs: Sequence[StateSpec],
    saved: dict[str, Tensor],
    p: Tensor,
    layout: Layout,
    hp: Hyper,
    before: Hyper,
    mask_mean: float,
    initial: Callable[[str], Tensor | None],
) -> Carried:
    """Make the wanted fields from the saved ones.

    Args:
        specs: the wanted fields.
        saved: name -> value of every saved field that ``readable`` names.
        p: [1,K,m,n] the weights.
        layout: their view.
        hp: the new options.
        before: the old options (rates, bounds and ``lr_bump`` are read).
        mask_mean: mean of the old geometric mask over all parameters.
        initial: name -> the recipe's first value of a field that depends on the weights, else None.
    """
    values: dict[str, Tensor] = {}
    fresh, missing = [], []
    mask = _mask(saved, layout, hp, before, mask_mean) if "lr_mask" in saved else {}
    for spec in specs:
        value = mask.get(spec.name) if spec.name in MASK else _value(spec, saved, layout, hp, before)
        optional = spec.name not in REQUIRED or (spec.name in RESIDUAL and not layout.matrix)
        if value is None and not optional:
            missing.append(spec.name)
        elif value is None:
            fresh.append(spec.name)
            value = _fresh(spec, saved, p, layout, hp, initial)
        if value is not None:
            values[spec.name] = value
    return Carried(values, fresh, missing)


def _value(
    spec: StateSpec, saved: dict[str, Tensor], layout: Layout, hp: Hyper, before: Hyper
) -> Tensor | None:
    """A field that is there or follows exactly from others; None where it does not."""
    name, base = spec.name, spec.name.removesuffix("_row").removesuffix("_col")
    if name in saved:
        fits = saved[name].shape[1:] == spec.stack_shape(layout)
        return saved[name] if fits and same_meaning(name, set(saved), before, hp) else None
    if base not in MOMENTS:
        return None
    if name == base:
        row, col = saved.get(f"{base}_row"), saved.get(f"{base}_col")
        return None if row is None or col is None else row * col / T.mean_of_rows(row)
    full = saved.get(base)
    if full is None:
        return None
    return full.mean(-1, keepdim=True) if name.endswith("_row") else full.mean(-2, keepdim=True)


def _fresh(
    spec: StateSpec,
    saved: dict[str, Tensor],
    p: Tensor,
    layout: Layout,
    hp: Hyper,
    initial: Callable[[str], Tensor | None],
) -> Tensor:
    """First value of a field in the middle of a run."""
    value = initial(spec.name)
    if value is not None:
        return value.clone()  # it may be the weights themselves
    started = float(saved["step"]) > 0 if "step" in saved else False
    if started and spec.name in RESIDUAL and "exp_avg" in saved:
        full = surprise(saved["exp_avg"].to(p.dtype), hp)
        if spec.name == "exp_avg_res":
            return full
        return full.mean(-1 if spec.name.endswith("_row") else -2, keepdim=True)
    if started and spec.name.startswith(SCALE) and "exp_avg" in saved:
        return _longer_mean(saved["exp_avg"], float(saved["step"]), int(spec.name[len(SCALE) :]), hp)
    first = {"sign_history": MIXED_SIGNS, "gnorm_history": NO_NORM} if started else {}
    shape = (1, *spec.stack_shape(layout))
    return torch.full(shape, first.get(spec.name, spec.initial), dtype=spec.dtype or p.dtype, device=p.device)


def surprise(m: Tensor, hp: Hyper) -> Tensor:
    r"""Expected surprise of updates of unit size around a mean that is known.

    .. math:: E (u - m_t)^2 = \frac{2 \beta_1^2}{1 + \beta_1} (1 - m^2)

    for independent u of mean m and mean square 1, m_t being their running mean, this u included.
    """
    beta = hp.betas[0]
    share = (1 - m.square()).clamp(min=LEAST_SURPRISE)
    return share.mul(2 * beta**2 / (1 + beta)).add_(hp.eps[1])


def _longer_mean(mean: Tensor, step: float, scale: int, hp: Hyper) -> Tensor:
    """A mean of another length from ``exp_avg``, as far as it would have come from 0 in these steps."""
    own = 1 - hp.betas[0] ** max(step, 1)
    return mean * min(1.0, (1 - (1 - 1 / scale) ** step) / own)


# ---------------------------------------------------------------- the mask


def _mask(
    saved: dict[str, Tensor], layout: Layout, hp: Hyper, before: Hyper, mask_mean: float
) -> dict[str, Tensor]:
    """Counters under another rule or granularity; the sign of the last gradient is kept."""
    if not _rate.has_mask(hp):
        return {}
    word = saved["lr_mask"]
    geometric = word.dtype in (torch.uint8, torch.int8)
    if "last_polarity" in saved:
        counter, negative = word, T.unpack_bits(saved["last_polarity"], layout.view)
    else:
        code = T.GEOMETRIC if geometric else T.MaskCode(torch.int16, torch.int16, 0, 0, 0)
        counter, last = T.split_word(word, code)
        negative = last < 0
    k = counter.double()
    if geometric != (hp.lr_mask_rule == "geometric") or not _same_steps(before, hp):
        k = counter_of(_multiplier(k, geometric, before, mask_mean), hp)
    return mask_fields(k, negative, layout, hp)


def _multiplier(k: Tensor, geometric: bool, options: Hyper, mean: float) -> Tensor:
    """Rates of these counters, relative to the base rate."""
    if geometric:
        return torch.exp2(k * GEOMETRIC_STEP) / mean
    return _rate.additive_mask(k, torch.float64, options)


def counter_of(multiplier: Tensor, hp: Hyper) -> Tensor:
    """Nearest counters, not rounded yet, of rates relative to the base rate."""
    if hp.lr_mask_rule == "geometric":
        return multiplier.double().log2() / GEOMETRIC_STEP
    if hp.lr_bump == 0:
        return torch.zeros_like(multiplier, dtype=torch.float64)
    return (multiplier.double() - 1) * (_centre(hp) / hp.lr_bump)


def mask_fields(k: Tensor, negative: Tensor, layout: Layout, hp: Hyper) -> dict[str, Tensor]:
    """The mask's fields from counters (any granularity) and the signs of the last gradients."""
    code = _rate.mask_code(hp)
    granularity = hp.lr_mask_granularity
    k = T.limited(k, code.low, code.high).expand(1, *layout.view)
    if granularity == "row":
        k = k.mean(-1, keepdim=True)
    elif granularity != "element":
        k = k.mean((1, 2, 3), keepdim=True)
    counter = k.round().to(code.counter)
    fields: dict[str, Tensor] = {"lr_mask": counter}
    if granularity == "element":
        fields["lr_mask"] = T.join_word(counter, 1 - 2 * negative.to(code.counter), code)
    else:
        fields["last_polarity"] = T.pack_bits(negative)
    if hp.lr_mask_rule == "geometric":
        fields["lr_mask_sum"] = mask_sum(counter, layout)
    return fields


def mask_sum(counter: Tensor, layout: Layout) -> Tensor:
    """[1,1,1,1] sum of the geometric multipliers over the elements of one parameter."""
    total = torch.exp2(counter.double() * GEOMETRIC_STEP).sum() * (layout.numel / counter.numel())
    return total.float().view(1, 1, 1, 1)


# ---------------------------------------------------------------- what values are possible


def bounds(spec: StateSpec, layout: Layout, hp: Hyper) -> tuple[float, float]:
    """Smallest and largest value of a field that a run of this optimizer can produce."""
    name, n = spec.name, layout.numel
    if name == "lr_mask" and spec.dtype == torch.uint8:
        low, high = int(T.GEOMETRIC.low), int(T.GEOMETRIC.high)
        return 2 * (low + T.GEOMETRIC.offset), 2 * (high + T.GEOMETRIC.offset) + 1
    if name == "lr_mask" and spec.dtype == torch.int8:
        return int(T.GEOMETRIC.low), int(T.GEOMETRIC.high)
    if spec.dtype in (torch.uint8, torch.int16):
        return -math.inf, math.inf  # every bit pattern means something
    if name == "lr_level" and hp.lr_level == "vote":
        return -1e6, 1e6
    named = {
        "step": (0.0, 2.0**24),
        "s": (-1.001, 1.001),
        "beta1_product": (0.0, 1.0),
        "avg_lr": (0.0, LIMIT_MEAN),
        "lr_mask_sum": (n * MASK_LOW * 0.99, n * MASK_HIGH * 1.01),
        "lr_mask_vote": (-float(n * hp.d_coef), float(n * hp.d_coef)),
        "vote_clock": (-1.0, LIMIT_MEAN),
        "lr_level": (1.0, LIMIT_MEAN),
        "level_anchor": (-LIMIT_MOMENT, LIMIT_MOMENT),
        "auto_anchor": (-LIMIT_MOMENT, LIMIT_MOMENT),
        "auto_level": (-LIMIT_MOMENT, LIMIT_MOMENT),
        "level_norm": (0.0, LIMIT_MEAN),
        "lowrank_basis": (-1.1, 1.1),
        "lowrank_tail": (-127, 127),
        "lowrank_rate": (0.0, LIMIT_MEAN),
        "gnorm_history": (0.0, math.inf),  # a norm whose square has no room is infinite
    }
    if name in named:
        return named[name]
    if spec.domain == "unit":
        return 0.0, 1.0
    if spec.domain in ("vector", "positive"):
        return 0.0, LIMIT_MOMENT
    return -LIMIT_MEAN, LIMIT_MEAN
