"""What the statistics of other optimizers mean in our state: formulas of the importers.

Everything is in the view of a stack of one parameter, [1,K,m,n] and its row and column statistics.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .. import techniques as T
from ..types import Layout
from . import _carry, _rate
from ._data import Hyper


class Learned(NamedTuple):
    """What another optimizer has learned about one parameter; None where it keeps no such thing.

    Args:
        step: number of updates.
        mean: running mean of the raw gradient, without bias.
        unit: running mean of the update of unit size.
        square: running mean of the squared gradient, without bias.
        row, col: its row and column means.
        surprise_row, surprise_col: CAME's confidence statistics.
        rates: learned rate of every element, broadcastable.
        negative: whether the last gradient was negative.
    """

    step: float
    mean: Tensor | None = None
    unit: Tensor | None = None
    square: Tensor | None = None
    row: Tensor | None = None
    col: Tensor | None = None
    surprise_row: Tensor | None = None
    surprise_col: Tensor | None = None
    rates: Tensor | None = None
    negative: Tensor | None = None


def second_moment(learned: Learned) -> Tensor:
    """The squared gradient's mean, element by element."""
    if learned.square is not None:
        return learned.square
    assert learned.row is not None and learned.col is not None
    return learned.row * learned.col / T.mean_of_rows(learned.row).clamp(min=1e-38)


def adam(exp_avg: Tensor, exp_avg_sq: Tensor, step: float, betas: tuple[float, ...], eps: float) -> Learned:
    r"""Adam's means without bias, and the direction of its update.

    .. math:: \hat m = \frac{m}{1 - \beta_1^t}, \quad \hat v = \frac{v}{1 - \beta_2^t}, \qquad
              u = \frac{\hat m}{\sqrt{\hat v} + \epsilon}
    """
    mean = exp_avg / (1 - betas[0] ** step)
    square = exp_avg_sq / (1 - betas[1] ** step)
    return Learned(step, mean, mean / (square.sqrt() + eps), square)


def fields(
    learned: Learned, step: float, mean_rate: float | None, layout: Layout, hp: Hyper
) -> dict[str, Tensor]:
    """Fields of our state, plain and of full size where both are possible; the rest starts fresh.

    Args:
        learned: the other optimizer's.
        step: number of updates to count from.
        mean_rate: mean of the learned rates of all elements of the group.
        layout: view of the parameter.
        hp: our options.
    """
    square = second_moment(learned)
    device, like = square.device, square
    scalar = {"step": torch.full((1, 1, 1, 1), float(step), dtype=torch.float32, device=device)}
    scalar["avg_lr"] = torch.full((1, 1, 1, 1), float(hp.lr), dtype=torch.float32, device=device)
    result = {**scalar, **(_came(learned, square, hp) if hp.came else _belief(learned, square, step, hp))}
    if hp.came and learned.row is not None and learned.col is not None and hp.factored and layout.matrix:
        del result["exp_avg_sq"]
        result.update(exp_avg_sq_row=learned.row, exp_avg_sq_col=learned.col)
    if learned.negative is not None and _rate.has_mask(hp):
        k = torch.zeros_like(like, dtype=torch.float64)
        if learned.rates is not None and mean_rate:
            # The geometric mask distributes around the group's lr; the additive one holds rates.
            scale = mean_rate if hp.lr_mask_rule == "geometric" else max(hp.base_lr, float(hp.lr))
            k = _carry.counter_of(learned.rates.double() / scale, hp).expand_as(k)
        # Element by element; what else the options want is made of it like in any conversion.
        whole = hp._replace(lr_mask_granularity="element")
        result.update(_carry.mask_fields(k, learned.negative, layout, whole))
    return result


def _came(learned: Learned, square: Tensor, hp: Hyper) -> dict[str, Tensor]:
    """The direction within the RMS limit, CAME's statistics; confidence is started from the direction."""
    unit = torch.zeros_like(square) if learned.unit is None else T.rms_clip(learned.unit, hp.clip_threshold)
    result = {"exp_avg": unit, "exp_avg_sq": square + hp.eps[0]}
    if learned.surprise_row is not None and learned.surprise_col is not None:
        return {**result, "exp_avg_res_row": learned.surprise_row, "exp_avg_res_col": learned.surprise_col}
    return {**result, "exp_avg_res": _carry.surprise(unit, hp)}


def _belief(learned: Learned, square: Tensor, step: float, hp: Hyper) -> dict[str, Tensor]:
    r"""AdaBelief's biased means: :math:`(1 - \beta_1^t)\hat m` and :math:`(1 - \beta_2^t) E(g - m_t)^2`."""
    mean = learned.mean
    if mean is None:
        mean = torch.zeros_like(square) if learned.unit is None else learned.unit * square.sqrt()
    beta = hp.betas[0]
    rest = torch.maximum(square - mean.square(), _carry.LEAST_SURPRISE * square)
    variance = rest * (2 * beta**2 / (1 + beta)) * (1 - hp.betas[1] ** step) + hp.eps[1]
    product = torch.full((1, 1, 1, 1), beta**step, dtype=square.dtype, device=square.device)
    return {"exp_avg": mean * (1 - product), "exp_avg_var": variance, "beta1_product": product}


def to_adam(state: dict[str, Tensor], betas: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """Our decoded state -> Adam's ``exp_avg`` and ``exp_avg_sq``, with the bias that Adam divides away."""
    step = float(state["step"])
    if "exp_avg_var" in state:
        mean = state["exp_avg"] / (1 - state["beta1_product"]).clamp(min=1e-8)
        square = state["exp_avg_var"] + mean.square()
    else:
        learned = Learned(
            step,
            square=state.get("exp_avg_sq"),
            row=state.get("exp_avg_sq_row"),
            col=state.get("exp_avg_sq_col"),
        )
        square = second_moment(learned)
        mean = state["exp_avg"] * square.sqrt()
    return mean * (1 - betas[0] ** step), square * (1 - betas[1] ** step)
