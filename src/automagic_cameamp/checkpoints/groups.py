"""The outside of a saved state dict: its groups, its numbering, its options."""

from __future__ import annotations

import math
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import fields as dataclass_fields
from typing import Any

from torch import Tensor

from .. import configs
from ..state.limit import LIMIT
from ..state.model import Model
from ..types import CAP, Layout
from ..validate import ROUNDED_AWAY
from . import pairs as saved_pairs
from .saved import ADVICE, CheckpointError

FORMAT_VERSION = 1
LARGEST = 2.0**53  # of a rate or a count
SMALLEST = 2.0**-126  # of a rate that something is divided by
# In the groups of torch's, CAME's and bitsandbytes' optimizers, not in ours.
FOREIGN_GROUP_KEYS = frozenset({"amsgrad", "maximize", "momentum", "dampening", "rho", "t_alpha"})


def structure(
    model: Model, state_dict: Any
) -> tuple[list[Mapping[str, Any]], dict[int, Mapping[str, Any]], dict[Any, Any]]:
    """Saved groups, saved state by index of the parameter, and state of no parameter."""
    if not isinstance(state_dict, Mapping) or not {"state", "param_groups"} <= state_dict.keys():
        kind = sorted(map(str, state_dict)) if isinstance(state_dict, Mapping) else type(state_dict).__name__
        raise CheckpointError(
            f"a state dict has the keys 'state' and 'param_groups', this has {kind}: pass what "
            f"optimizer.state_dict() returned. {ADVICE}"
        )
    version = state_dict.get("magic_version", FORMAT_VERSION)
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise CheckpointError(
            f"the state dict has format {version}, this version of automagic-cameamp knows formats up to "
            f"{FORMAT_VERSION}: install the version that saved it, or a newer one. {ADVICE}"
        )
    state, groups = state_dict["state"], state_dict["param_groups"]
    if not isinstance(state, Mapping) or not isinstance(groups, (list, tuple)):
        raise CheckpointError(f"'state' must be a dict and 'param_groups' a list of dicts. {ADVICE}")
    own = model.groups
    for number, saved in enumerate(groups):
        if not isinstance(saved, Mapping) or not isinstance(saved.get("params"), (list, tuple)):
            raise CheckpointError(
                f"group {number} of the state dict is no dict with a list 'params'. {ADVICE}"
            )
    ids = [i for saved in groups for i in saved["params"]]
    if not all(isinstance(i, (int, str)) for i in ids) or len(set(ids)) < len(ids):
        raise CheckpointError(f"the parameters of the state dict are not numbered one by one. {ADVICE}")
    theirs, ours = saved_pairs.saved(groups, state), saved_pairs.here(own)
    if len(groups) != len(own):
        raise CheckpointError(
            f"the state dict has a different number of parameter groups: {len(groups)} saved, "
            f"{len(own)} here. {saved_pairs.unpaired(theirs, ours)} {ADVICE}"
        )
    for number, (here, saved) in enumerate(zip(own, groups, strict=True)):
        if len(here["params"]) != len(saved["params"]):
            raise CheckpointError(
                f"group {number} has {len(saved['params'])} parameters in the state dict and "
                f"{len(here['params'])} here: its size doesn't match. "
                f"{saved_pairs.unpaired(theirs, ours)} {ADVICE}"
            )
    if found := saved_pairs.exchanged(theirs, ours):
        raise CheckpointError(f"the state dict has the same parameters in another order: {found}. {ADVICE}")
    entries: dict[int, Mapping[str, Any]] = {}
    for i, key in enumerate(ids):
        entry = state.get(key, {})
        if not isinstance(entry, Mapping):
            raise CheckpointError(f"state of parameter {i} is a {type(entry).__name__}, not a dict. {ADVICE}")
        if entry:
            entries[i] = entry
    known = set(ids)
    return list(groups), entries, {k: v for k, v in state.items() if k not in known}


def merged(model: Model, number: int, own: dict[str, Any], saved: Mapping[str, Any]) -> dict[str, Any]:
    """Our group with the saved options that we have; options of other classes and engines stay out."""
    if "clock" not in saved and (strange := FOREIGN_GROUP_KEYS & saved.keys()):
        raise CheckpointError(
            f"group {number} of the state dict is of another optimizer (it has {sorted(strange)}): "
            f"automagic_cameamp.import_state(optimizer, state_dict) takes those of Adam, CAME, bitsandbytes "
            f"and Automagic. {ADVICE}"
        )
    config = model.owner.config_class
    others = _family_options() - {f.name for f in dataclass_fields(config)}
    others |= set(configs.engine_options(config))
    saved = _by_todays_names(own, saved)
    taken = {k: deepcopy(v) for k, v in saved.items() if k != "params" and k not in others}
    group = {**own, **taken}
    try:
        group = configs.checked_group(config, group, "state dict")
        _check_bookkeeping(number, group)
        configs.check_together(group, f"in group {number} of the state dict")
        model.recipe.specs(Layout.of(()), model.hyper(group, lora=False))  # what excludes each other
    except CheckpointError:
        raise
    except (ValueError, TypeError, OverflowError) as error:
        raise CheckpointError(f"group {number} of the state dict: {error} {ADVICE}") from error
    # In our order: a run that was resumed writes what one that was not would write.
    return {key: group[key] for key in (*own, *(key for key in group if key not in own)) if key in group}


def _by_todays_names(own: dict[str, Any], saved: Mapping[str, Any]) -> Mapping[str, Any]:
    """A saved group with the names and entries that groups have today.

    Once the bounds were called ``min_lr`` and ``max_lr`` in the groups, where OneCycleLR wrote its own over
    them: then, and where the cap is the default that nobody need have set, ours stay.
    """
    if "base_beta1" not in saved and isinstance(saved.get("betas"), (list, tuple)) and saved["betas"]:
        saved = {**saved, "base_beta1": saved["betas"][0]}  # what its fields were chosen by
    if isinstance(saved.get("lr"), float) and -ROUNDED_AWAY < saved["lr"] < 0:
        saved = {**saved, "lr": 0.0}  # what a scheduler's rounding leaves at its end
    if "base_lr" in saved:  # a run of an older version goes on as it was
        saved = {"beta1_follows_lr": False, LIMIT: math.inf, **saved}
    if "lr_floor" in saved or "base_lr" not in saved:
        return saved
    rest = {k: v for k, v in saved.items() if k not in configs.GROUP_NAMES}
    first = saved.get("initial_lr", saved["base_lr"])
    if isinstance(first, Tensor):
        first = float(first) if first.numel() == 1 else saved["base_lr"]
    if first != saved["base_lr"]:
        return rest
    bounds = {key: saved[name] for name, key in configs.GROUP_NAMES.items() if name in saved}
    if bounds.get("lr_cap") == CAP and own["lr_cap"] is None:
        bounds["lr_cap"] = None
    return {**rest, **bounds}


def _family_options() -> set[str]:
    """Names of the options of all classes."""
    classes = [configs.SharedConfig]
    for cls in classes:
        classes += cls.__subclasses__()
    return {f.name for cls in classes for f in dataclass_fields(cls)}


def _check_bookkeeping(number: int, group: dict[str, Any]) -> None:
    """What a group holds besides options."""
    for name, kinds in (("base_lr", (int, float)), ("clock", (int,)), ("lr", (int, float, Tensor))):
        value = group[name]
        numeric = isinstance(value, kinds) and not isinstance(value, bool)
        if not numeric or not 0 <= value < LARGEST:  # also refuses NaN
            raise CheckpointError(f"{name}={value!r} of group {number}: it must be a number >= 0. {ADVICE}")
    if group["lr_level"] == "distance" and group["base_lr"] < SMALLEST:  # it divides by it
        raise CheckpointError(
            f"base_lr={group['base_lr']!r} of group {number}: with lr_level='distance' it must be above 0. "
            + ADVICE
        )
    limit = group[LIMIT]
    if not isinstance(limit, (int, float, Tensor)) or isinstance(limit, bool) or not limit > 0:
        raise CheckpointError(f"{LIMIT}={limit!r} of group {number}: it must be a number above 0. {ADVICE}")
    if not isinstance(group["base_beta1"], (int, float)) or not 0 <= group["base_beta1"] < 1:
        raise CheckpointError(
            f"base_beta1={group['base_beta1']!r} of group {number}: it must be in [0, 1). {ADVICE}"
        )
    names = group.get("param_names")
    if names is not None and (not isinstance(names, (list, tuple)) or len(names) != len(group["params"])):
        raise CheckpointError(
            f"group {number} has {len(group['params'])} parameters, not those of 'param_names'={names!r}. "
            + ADVICE
        )
