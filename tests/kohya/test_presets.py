"""Preset modules and names without the ending "8bit"."""

from __future__ import annotations

import copy
import importlib
import inspect
import pickle

import pytest
import torch

import automagic_cameamp
from automagic_cameamp import OPTIMIZERS, OptimizationProfiles, balanced, memory_optimized, presets

MODULES = {name: importlib.import_module(f"automagic_cameamp.{name}") for name in presets.PROFILES}
IMPROVED = [name for name, cls in OPTIMIZERS.items() if presets.has_profile(cls, "balanced")]
PAIRS = [(p, n) for p in presets.PROFILES for n, cls in OPTIMIZERS.items() if presets.has_profile(cls, p)]


def parameter() -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(torch.zeros(4, 4))]


def test_no_alias_ends_in_8bit_and_none_is_lost() -> None:
    assert len(presets.aliases()) == sum(name.lower().endswith("8bit") for name in OPTIMIZERS)
    assert not any(name.lower().endswith("8bit") for name in presets.aliases())
    assert presets.aliases()["Automagic_CameAMPQ8"] is automagic_cameamp.Automagic_CameAMP8bit
    assert presets.aliases()["Automagic_CameAMP_Q8"] is automagic_cameamp.Automagic_CameAMP_8Bit


@pytest.mark.parametrize(("profile", "name"), PAIRS)
def test_defaults_are_the_profiles(profile: str, name: str) -> None:
    cls = getattr(MODULES[profile], name)
    assert cls.__name__ == name and cls.__module__ == f"automagic_cameamp.{profile}"
    config = cls(parameter(), lr=1e-4).config
    wanted = getattr(OptimizationProfiles, profile)()
    for option in presets.PROFILES[profile]:
        if hasattr(config, option):
            assert getattr(config, option) == getattr(wanted, option), option
    shown = {p.name: p.default for p in inspect.signature(cls).parameters.values()}
    shown |= shown.pop("techniques") or {}
    for option, default in presets.preset_options(OPTIMIZERS[name], profile).items():
        assert shown[option] == default


def test_an_explicit_keyword_wins() -> None:
    optimizer = memory_optimized.Automagic_CameAMP_Improved_Q8(parameter(), 1e-4, edge_suppression=True)
    assert optimizer.config.edge_suppression is True and optimizer.config.spatial_awareness is False
    assert optimizer.config.lr == 1e-4


def test_both_names_are_one_class_and_it_pickles() -> None:
    cls = balanced.Automagic_CameAMP_Improved_8Bit
    assert balanced.Automagic_CameAMP_Improved_Q8 is cls
    assert issubclass(cls, automagic_cameamp.Automagic_CameAMP_Improved_8Bit)
    assert pickle.loads(pickle.dumps(cls)) is cls
    optimizer = cls(parameter(), lr=1e-4)
    assert type(copy.deepcopy(optimizer)) is cls


def test_the_eight_bit_classes_of_every_kind_have_the_lean_profiles() -> None:
    for name in ("Automagic_CameAMPQ8", "Automagic_CameAMP_COptim8bit"):
        optimizer = getattr(memory_optimized, name)(parameter(), 1e-4)
        assert (optimizer.config.lr_mask_granularity, optimizer.config.state_code) == ("row", "dynamic")
        optimizer = getattr(MODULES["minimal"], name)(parameter(), 1e-4)
        assert (optimizer.config.lr_mask_granularity, optimizer.config.state_code) == ("row", "softsign4")


def test_classes_without_such_a_profile_say_so() -> None:
    with pytest.raises(AttributeError, match="Automagic_CameAMP' has no such profile"):
        _ = balanced.Automagic_CameAMP
    with pytest.raises(AttributeError, match="'Nope' is unknown"):
        _ = balanced.Nope
    assert set(IMPROVED) <= set(dir(balanced))
