"""A parameter group that is added: its options by the names that groups use, what is refused or warned of."""

from __future__ import annotations

import difflib
import math
import warnings
from dataclasses import fields
from typing import Any

from torch import Tensor

from .. import aliases, configs, foreign, marked
from ..lora import MARKS
from ..types import Layout
from ..validate import NICKNAMES, Untouched, callers_depth, fail
from . import kinds
from .limit import LIMIT
from .model import AS_IT_IS_NOW, Model

# Read anew at every step, whatever form they have; of these names in a group some are a scheduler's.
NOT_KEPT = {name for name, _ in AS_IT_IS_NOW} | set(configs.GROUP_NAMES)


def new_group(model: Model, param_group: dict[str, Any]) -> dict[str, Any]:
    """A group as the optimizer holds it, its options checked like the constructor's."""
    config_class = model.owner.config_class
    known, whole = {f.name for f in fields(config_class)}, set(configs.engine_options(config_class))
    spoken = {name: value for name, value in param_group.items() if name not in whole}
    kept = {name: param_group[name] for name in param_group.keys() & whole}
    param_group = {**kept, **aliases.understood(config_class, spoken, "parameter group")}
    own = param_group.keys() & whole
    for name in own:  # ZeroRedundancyOptimizer writes all options into groups
        mine = getattr(model.config, name, None)
        if type(param_group[name]) is not type(mine) or param_group[name] != mine:
            raise fail(f"group[{name!r}]", param_group[name], "it belongs to the optimizer, not to a group")
    param_group = {name: value for name, value in param_group.items() if name not in own}
    for name in param_group.keys() - known - set(configs.GROUP_NAMES.values()):
        meant = NICKNAMES.get(str(name), str(name))
        if near := difflib.get_close_matches(meant, known, 1, 0.87):
            raise TypeError(f"parameter group has no option {name!r}. Did you mean {near[0]!r}?")
    foreign.refuse_in_group(param_group)
    if "params" not in param_group:
        raise ValueError("a parameter group needs a 'params' entry: {'params': model.parameters()}.")
    params = param_group["params"]
    if isinstance(params, (set, frozenset)):
        raise TypeError("parameters in a set have no order that a checkpoint could keep: pass a list.")
    unsaid = isinstance(param_group.get("lr", model.config.lr), Untouched)
    group = configs.checked_group(config_class, param_group, "parameter group")
    if group.get("lr_level") is None:
        group.pop("lr_level", None)
        if "lr" in group and model.config.lr_level is None:  # a rate of its own is meant
            group["lr_level"] = "fixed"
    group["params"] = [params] if isinstance(params, Tensor) else list(params)
    group["params"] = kinds.check_parameters(model, group["params"])
    marked.restore(group["params"], MARKS)
    merged = {**model.owner.defaults, **group}
    configs.check_together(merged, "in the group")
    # What schedules are measured against; a scheduler may change lr and betas from the first step on.
    begun = {"base_lr": float(merged["lr"]), "base_beta1": merged["betas"][0], "clock": 0, LIMIT: math.inf}
    for name, value in begun.items():
        group.setdefault(name, value)
        merged[name] = group[name]
    if unsaid and merged["lr_level"] == "auto":
        model.kept.unsaid.append(group)
    check_rate(merged)
    model.recipe.specs(Layout.of(()), model.hyper(merged, lora=False))  # what excludes each other
    return group


def check_options(model: Model) -> None:
    """Check what a program has put into groups since the last time, like the constructor's options.

    Raises:
        ValueError: a value that no option takes.
    """
    every = fields(model.owner.config_class)
    known = model.kept.options
    for number, group in enumerate(model.groups):
        before = known.setdefault(number, {})
        for field in every:
            key = field.name
            if key not in group or key in NOT_KEPT:
                continue
            value = group[key]
            if value is before.get(key, before) or isinstance(value, Tensor):
                continue
            checked = field.metadata["check"](key, value)
            if type(checked) is not type(value) or checked != value:
                group[key] = checked
            before[key] = group[key]


def heed_schedulers(model: Model) -> None:
    """What schedulers have written, before it counts.

    Raises:
        ValueError: a rate that is found would be multiplied out of all bounds.
    """
    for group in model.groups:
        _follow(group)
    model.tell_raised()


def _follow(group: dict[str, Any]) -> None:
    """Where the rate is found, the rates of ``OneCycleLR`` count relative to their highest.

    It writes ``max_lr`` and ``min_lr`` (our options of these names are ``lr_cap`` and ``lr_floor`` in a
    group); relative to a first rate that nobody has chosen they would mean nothing. One that comes after the
    first step counts so where it would go above what has been 1.
    """
    top = group.get("max_lr")
    if group["lr_level"] != "auto" or not isinstance(top, (int, float)) or not top > 0:
        return
    if group["clock"] == 0 or ("min_lr" in group and top > group["base_lr"]):
        group["base_lr"] = float(top)


def check_rate(group: dict[str, Any]) -> None:
    """Warn where bounds change what lr asks for; refuse a level rule without a start."""
    lr, low, high = group["base_lr"], group["lr_floor"], group["lr_cap"]
    if group["lr_level"] == "distance" and lr == 0:
        raise fail("lr", lr, "lr_level='distance' needs a start above 0", "For example lr=1e-6.")
    text = None
    if group["lr_level"] == "auto":
        return  # lr is no rate then
    if high is not None and lr > high:
        text = f"lr={lr:g} is above max_lr={high:g}: no rate is above {high:g}. Pass a higher max_lr."
    elif 0 < lr < low and group["hard_min_lr"]:
        text = (
            f"lr={lr:g} is below min_lr={low:g} and hard_min_lr=True: no rate is below {low:g}. "
            "Pass a lower min_lr."
        )
    elif 0 < lr < low and not (group["full_finetune"] and not has_mask(group)):
        text = (
            f"lr={lr:g} is below min_lr={low:g}: as long as it is, the mask and the row gain can raise rates "
            "but not lower them. Pass a lower min_lr."
        )
    if text is not None:
        warnings.warn(text, stacklevel=callers_depth())


def has_mask(group: dict[str, Any]) -> bool:
    """Whether rates are learned in this group."""
    return group["use_lr_mask"] and group["lr_mask_rule"] != "none" and group["warmup_steps"] > 0
