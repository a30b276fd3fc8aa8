"""Options, state and shared numbers of the recipes: what they are, and nothing that is done with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

SCALE = "momentum_scale_"  # and a length: name of a mean that a parameter keeps besides ``exp_avg``


class Shared(NamedTuple):
    """Scalars over all parameters, from the previous step; 0-D tensors.

    Args:
        mask_mean: mean of the mask over all parameters.
        mask_vote: sum of the sign agreements of the group (granularity 'group').
        mask_count: the group's counter, as those that moved it last left it, or None.
        level: d / d0 (lr_level 'distance'), the logarithm of the level ('vote'), or the level under the
            schedule relative to the largest learning rate of all groups ('auto').
        level_start: d0, the base rate that the level multiplies.
        multiplier: factor of a controller over the whole model, or None.
        clock: number of steps that the group has taken before this one, as a tensor: a number
            would be traced anew at every step.
        refresh: places in the stack of those whose own count makes them renew, at this step, what is
            only renewed every ``sync_frequency`` updates.
        steering: [8] the automatic level of this step (``techniques.Level``), or None.
    """

    mask_mean: Tensor
    mask_vote: Tensor
    level: Tensor
    level_start: float
    multiplier: Tensor | None = None
    mask_count: Tensor | None = None
    clock: Tensor | None = None
    refresh: tuple[int, ...] = ()
    steering: Tensor | None = None


class Hyper(NamedTuple):
    """Options of one parameter group. Rates are per step; everything else has no unit.

    ``base_lr`` is the rate at construction, ``lr_floor`` and ``lr_cap`` are min_lr and max_lr (None where
    the user gave none). What has a default here is not an option of every class, and off where it is none.
    ``base_beta1`` is betas[0] at construction: which means exist must not change when a scheduler moves
    betas[0]. ``table`` is 1 where rows are no neighbours, 2 where columns are none either.
    """

    lr: float | Tensor
    base_lr: float
    lr_floor: float
    lr_cap: float | None
    lr_bump: float
    eps: tuple[float, float, float]
    clip_threshold: float
    betas: tuple[float, float, float]
    beta1_decay: float
    beta1_follows_lr: bool
    eta: float
    weight_decay: float
    warmup_steps: int
    came: bool
    allora: bool
    factored: bool
    confidence_1d: bool
    final_clip: float
    use_agr: bool
    use_tam: bool
    use_grams: bool
    use_orthograd: bool
    use_lr_mask: bool
    tam_granularity: str
    hard_min_lr: bool
    lr_mask_rule: str
    lr_mask_granularity: str
    lr_level: str
    weight_decay_phase: str = "early"
    # Momentum of several lengths.
    momentum_scales: Sequence[int] | None = None
    base_beta1: float = 0.0
    # Regularisers.
    lora: bool = False
    table: int = 0
    use_cautious: bool = False
    use_spd: bool = False
    edge_suppression: bool = False
    edge_penalty: float = 0.0
    edge_threshold: float = 0.0
    background_regularization: bool = False
    spatial_awareness: bool = False
    detail_preservation: float = 0.0
    frequency_penalty: float = 0.0
    lora_rank_penalty: bool = False
    rank_penalty_strength: float = 0.0
    low_rank_emphasis: float = 1.0
    rank_keep: int = 0
    d_coef: int = 1
    spatial_mode: str = "linear"
    percentile_clipping: int = 100


class State(NamedTuple):
    """State of a stack; None where the options need no such field. Shapes: see ``StateSpec``.

    ``scales`` are the fields of momentum of several lengths, by name.
    """

    step: Tensor
    exp_avg: Tensor
    avg_lr: Tensor
    exp_avg_sq: Tensor | None = None
    exp_avg_sq_row: Tensor | None = None
    exp_avg_sq_col: Tensor | None = None
    exp_avg_res: Tensor | None = None
    exp_avg_res_row: Tensor | None = None
    exp_avg_res_col: Tensor | None = None
    exp_avg_var: Tensor | None = None
    beta1_product: Tensor | None = None
    s: Tensor | None = None
    lr_mask: Tensor | None = None
    lr_mask_sum: Tensor | None = None
    lr_mask_vote: Tensor | None = None
    last_polarity: Tensor | None = None
    lr_level: Tensor | None = None
    level_anchor: Tensor | None = None
    level_sum: Tensor | None = None
    level_r: Tensor | None = None
    level_norm: Tensor | None = None
    vote_clock: Tensor | None = None
    auto_level: Tensor | None = None
    auto_anchor: Tensor | None = None
    edge_history: Tensor | None = None
    spatial_variance: Tensor | None = None
    lowrank_basis: Tensor | None = None
    lowrank_tail: Tensor | None = None
    lowrank_rate: Tensor | None = None
    gnorm_history: Tensor | None = None
    sign_history: Tensor | None = None
    scales: Mapping[str, Tensor] = {}
