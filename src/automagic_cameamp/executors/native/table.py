"""Works as the kernels see them: options as numbers, parameters and state as addresses."""

from __future__ import annotations

import math
from collections.abc import Iterator
from operator import itemgetter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...kernels import layout as abi
from ...recipes import SCALE, Hyper, base, contextual, improved
from ...recipes._rate import absolute_floor, has_mask, rate_bounds
from ...schedule import lowest_beta1
from ...state.counts import DIRECTIONS
from ...state.model import AS_IT_IS_NOW, Group
from ...state.tensors import is_wrapper
from ...storage import CORRECTION, ErrorCorrected
from ..work import Work
from . import copies

TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
MASKS = {"element": 1, "row": 2, "tensor": 3}
# Options that the kernels know; another one, where it is on, leaves the work to others.
KNOWN = frozenset(
    """
    lr base_lr lr_floor lr_cap lr_bump eps clip_threshold betas beta1_decay beta1_follows_lr eta weight_decay
    warmup_steps came allora factored confidence_1d final_clip use_agr use_tam use_grams use_orthograd
    use_lr_mask tam_granularity weight_decay_phase hard_min_lr lr_mask_rule lr_mask_granularity lr_level
    lora table use_cautious use_spd edge_suppression edge_penalty edge_threshold
    background_regularization spatial_awareness detail_preservation frequency_penalty lora_rank_penalty
    rank_penalty_strength low_rank_emphasis rank_keep d_coef spatial_mode percentile_clipping
    momentum_scales base_beta1
    """.split()
)
# Names in a group of what ``renew`` reads: they may change from step to step.
RENEWED = ("lr", "base_lr", "lr_floor", "lr_cap", "hard_min_lr", "betas", "weight_decay")
READ = [(RENEWED.index(name), read) for name, read in AS_IT_IS_NOW]
_renewed = itemgetter(*RENEWED)
# Field of the recipe -> column of the table, where the names differ.
COLUMN = {
    "exp_avg_sq": "sq",
    "exp_avg_sq_row": "sq_row",
    "exp_avg_sq_col": "sq_col",
    "exp_avg_res": "res",
    "exp_avg_res_row": "res_row",
    "exp_avg_res_col": "res_col",
    "spatial_variance": "spatial",
    "edge_history": "edge",
    "s": "torque",
    "lr_mask_sum": "mask_sum",
    "lr_mask": "mask",
    "last_polarity": "polarity",
    "auto_level": "level",
    "auto_anchor": "anchor",
    "lowrank_basis": "basis",
    "lowrank_tail": "basis",
    CORRECTION.name: "rest",
}
PLAIN = ("step", "avg_lr", "s", "lr_mask_sum", "lr_mask", "last_polarity", *DIRECTIONS, "lowrank_rate")
PLAIN += ("auto_level", "auto_anchor", CORRECTION.name)
LEAST_FLOOR = 1e-32  # of eps: a millionth of it, in a running mean, is no 0 to vector units
TASK = np.dtype(abi.Task)
OPTIONS = np.dtype(abi.Options)


def reasons(work: Work, hosted: bool = False) -> list[str | None]:
    """Why the kernels cannot step each member of a work, in words; None where they can.

    Args:
        work: state and gradients that are not there yet count as what they will be.
        hosted: the parameters will be stepped on the host, wherever they lie.
    """
    whole = _unsupported_options(work, hosted) or _unsupported_codes(work)
    if whole is not None:
        return [whole] * len(work.chunk.params)
    wanted = [
        (field.spec.name, field.spec.name + plane.suffix, plane.dtype, math.prod(plane.shape))
        for field in work.fields
        for plane in field.planes(work.chunk.layout, torch.float32)
    ]
    return [
        _unsupported_tensor(p, hosted) or (_unsupported_state(state, wanted) if state else None)
        for p, state in zip(work.chunk.params, work.states, strict=True)
    ]


def _unsupported_options(work: Work, hosted: bool) -> str | None:
    hp, chunk = work.hp, work.chunk
    p = chunk.params[0]
    if chunk.shard is not None:
        return "sharded parameters"
    if (p.device.type != "cpu" and not hosted) or p.dtype not in TYPES:
        return f"{p.dtype} parameters on {p.device.type!r}"
    if work.recipe not in (base, contextual, improved):
        return "another recipe"
    matrix = chunk.layout.matrix
    for name, bad in (
        ("came", not hp.came),
        ("eps", min(hp.eps[:2]) < LEAST_FLOOR),
        ("factored", matrix and not hp.factored),
        ("use_agr", hp.use_agr),
        ("use_orthograd", hp.use_orthograd),
        ("lr_level", hp.lr_level not in ("fixed", "auto")),
        ("tam_granularity", hp.use_tam and matrix and hp.tam_granularity != "tensor"),
        ("lr_mask_rule", has_mask(hp) and hp.lr_mask_rule != "geometric"),
        ("lr_mask_granularity", has_mask(hp) and hp.lr_mask_granularity not in MASKS),
        ("percentile_clipping", hp.percentile_clipping < 100),
    ):
        if bad:
            return f"{name}={getattr(hp, name)!r}"
    for name in hp._fields:
        if name not in KNOWN and getattr(hp, name):
            return f"{name}={getattr(hp, name)!r}"
    if work.recipe is contextual and len(contextual.mixture(hp).kept) > abi.MAX_SCALES:
        return f"more than {abi.MAX_SCALES + 2} momentum_scales"
    return None


def _unsupported_codes(work: Work) -> str | None:
    for spec, codec in work.fields:
        inner = codec.code if isinstance(codec, ErrorCorrected) else codec
        if inner is not None and inner.name not in abi.CODES:
            return f"the code {inner.name!r}"
        if codec is None and spec.extent != "full" and spec.domain == "plain" and spec.name not in PLAIN:
            return f"the state {spec.name!r}"
    return None


def _unsupported_tensor(p: Tensor, hosted: bool) -> str | None:
    g = p.grad
    if is_wrapper(p) or (g is not None and (is_wrapper(g) or g._is_zerotensor())):
        return "tensors without memory of their own"
    if p.is_conj() or p.is_neg() or not (p.is_contiguous() or copies.apart(p)):
        return "parameters whose elements share memory or are negated when they are read"
    if g is None:
        return None
    on_host = g.device.type == "cpu" or hosted
    if not on_host or g.dtype not in TYPES or g.shape != p.shape or g.layout is not torch.strided:
        return "gradients of another kind than their parameters"
    return None


def _unsupported_state(state: dict[str, Any], wanted: list[tuple[str, str, torch.dtype, int]]) -> str | None:
    for name, key, dtype, size in wanted:
        t: Any = state.get(key)
        if t is None or t.dtype != dtype or t.numel() != size or not t.is_cpu or not t.is_contiguous():
            return f"the state {name!r} as it is held"
    return None


def options(hp: Hyper, recipe: Any, signals: bool) -> Any:
    """One row of options; what changes from step to step is set by ``renew``."""
    row: Any = np.zeros((), dtype=OPTIONS)
    plain = {
        "eps": hp.eps,
        "clip": hp.clip_threshold,
        "final_clip": hp.final_clip,
        "log_decay": math.log(hp.beta1_decay),
        "eta": hp.eta,
        "warmup": hp.warmup_steps,
        "multiplier": 1.0,
        "emphasis": 1.0,
        "d_coef": 1,
        "allora": hp.allora,
        "grams": hp.use_grams,
        "tam": hp.use_tam,
        "mask": MASKS[hp.lr_mask_granularity] if has_mask(hp) else 0,
        "signals": signals,
    }
    for name, value in plain.items():
        row[name] = value
    if recipe is improved:
        row["improved"] = 1
        for name, value in {
            "edge_penalty": hp.edge_penalty,
            "edge_threshold": hp.edge_threshold,
            "detail": hp.detail_preservation,
            "frequency": hp.frequency_penalty,
            "emphasis": hp.low_rank_emphasis,
            "rank_strength": hp.rank_penalty_strength,
            "cautious": hp.use_cautious,
            "background": hp.background_regularization,
            "d_coef": hp.d_coef if has_mask(hp) else 1,
            "table": hp.table,
        }.items():
            row[name] = value
    else:
        row["decay_always"] = hp.weight_decay_phase != "early"
    if recipe is contextual:
        mix = contextual.mixture(hp)
        row["mixed"] = mix.mixed
        row["own_share"], row["update_share"] = mix.own, mix.update
        row["scales"] = len(mix.kept)
        for i, (length, share) in enumerate(zip(mix.kept, mix.others, strict=True)):
            row["share"][i], row["scale_rate"][i] = share, 1 / length
    return row


def heard(group: Group) -> tuple[Any, ...]:
    """What ``renew`` reads of a group, as it is now: copies of what a program may change where it is."""
    now = list(_renewed(group))
    for place, read in READ:
        now[place] = read(now[place])
    return tuple(float(x) if isinstance(x, Tensor) else x for x in now)


def renewed(hp: Hyper, now: tuple[Any, ...]) -> Hyper:
    """The options of a group with what was ``heard`` of it."""
    return hp._replace(**dict(zip(RENEWED, now, strict=True)))


def renew(options: Any, rows: Any, hp: Hyper, recipe: Any, multiplier: float) -> None:
    """Set what schedulers and the controller change from step to step.

    Args:
        options: all rows of ``OPTIONS``.
        rows: numbers of those of one group.
        hp: the group's options of now; ``lr`` is a number.
        recipe: the group's recipe.
        multiplier: the controller's, times the level.
    """
    low, high = rate_bounds(hp)
    betas = (contextual.mixture(hp).beta, *hp.betas[1:]) if recipe is contextual else hp.betas
    now = {
        "lr": hp.lr,
        "low": low,
        "high": high,
        "floor": absolute_floor(hp) if hp.hard_min_lr else -math.inf,
        "multiplier": multiplier,
        "beta": betas,
        "lowest_beta1": lowest_beta1(betas[0], hp.lr, hp.base_lr, hp.beta1_follows_lr),
        "weight_decay": hp.weight_decay,
        "spd": recipe is improved and hp.use_spd and hp.weight_decay > 0,
    }
    for name, value in now.items():
        options[name][rows] = value


def addresses(states: list[dict[str, Any]], name: str) -> list[int]:
    """Where a plane of each state lies."""
    return [state[name].data_ptr() for state in states]


def fill(rows: Any, work: Work, number: int) -> Iterator[tuple[str, str]]:
    """Fill the rows of a chunk's members.

    Args:
        rows: [B] of ``TASK``, zero.
        work: the chunk's.
        number: its row of options.

    Yields:
        The names of the state planes whose addresses were taken, with the field's name.
    """
    view = work.chunk.layout
    p = work.chunk.params[0]
    rows["p"] = [q.data_ptr() for q in work.chunk.params]
    rows["p_type"] = TYPES[p.dtype]
    rows["options"] = number
    rows["rounds"] = work.rounds
    rows["matrix"] = view.matrix
    rows["batch"], rows["rows"], rows["cols"] = view.view
    if work.keys is not None:
        rows["key"] = work.keys.tolist()
    if work.recipe is improved and improved.has_picture(view, work.hp):
        rows["height"], rows["width"] = view.shape[-2:]
    scales = contextual.mixture(work.hp).kept if work.recipe is contextual else ()
    for index, field in enumerate(work.fields):
        spec, codec = field
        planes = field.planes(view, torch.float32)
        found = {plane.suffix: addresses(work.states, spec.name + plane.suffix) for plane in planes}
        yield from ((spec.name + plane.suffix, spec.name) for plane in planes)
        if spec.name in PLAIN:
            rows[COLUMN.get(spec.name, spec.name)] = found[""]
            if spec.name in DIRECTIONS:
                rows["kept"], rows["tail"] = spec.count, spec.name == "lowrank_tail"
            if spec.name == "auto_anchor":
                rows["sampled"] = spec.stack_shape(view)[-1]
            continue
        if spec.name.startswith(SCALE):
            coded = rows["scale"][:, scales.index(int(spec.name[len(SCALE) :]))]
        else:
            coded = rows[COLUMN.get(spec.name, spec.name)]
        _fill_coded(coded, codec, found, index + 1, view.numel)


def _fill_coded(coded: Any, codec: Any, found: dict[str, list[int]], salt: int, numel: int) -> None:
    """One field: addresses of its planes and how to read them."""
    coded["salt"] = salt
    if codec is None:
        coded["q"] = found[""]
        return
    if isinstance(codec, ErrorCorrected):
        coded["bits"] = codec.bits
        codec = codec.code
    coded["code"] = abi.CODES[codec.name]
    coded["block"] = max(1, min(getattr(codec, "block_size", 0) or numel, numel))
    names = {"_q": "q", "_q_scale": "scale", "_q_zero": "zero", "_q_residual": "residual"}
    for suffix, column in names.items():
        if suffix in found:
            coded[column] = found[suffix]
