"""The stand-in of sd-scripts behaves as the real one: every way to name us, without the launcher."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import automagic_cameamp
from automagic_cameamp.kohya import register
from automagic_cameamp.profiles import PROFILES

FULL = "automagic_cameamp.Automagic_CameAMP_Improved_8Bit"
BARE = "Automagic_CameAMP_Improved_8Bit"


def test_documented_name_fails_without_bitsandbytes(plain: Any, no_bitsandbytes: None) -> None:
    with pytest.raises(ImportError, match="bitsandbytes"):
        plain(f"--optimizer_type={BARE}")


def test_documented_name_fails_with_bitsandbytes(plain: Any, some_bitsandbytes: None) -> None:
    with pytest.raises(AttributeError, match=BARE):
        plain(f"--optimizer_type={BARE}")


def test_full_name_of_8bit_needs_bitsandbytes(plain: Any, no_bitsandbytes: None) -> None:
    with pytest.raises(ImportError, match="bitsandbytes"):
        plain(f"--optimizer_type={FULL}")


def test_full_name_of_8bit_works_with_bitsandbytes(plain: Any, some_bitsandbytes: None) -> None:
    assert plain(f"--optimizer_type={FULL}", "--learning_rate=1e-4")["class"] == BARE


def test_full_name_of_32bit_needs_no_bitsandbytes(plain: Any, no_bitsandbytes: None) -> None:
    result = plain("--optimizer_type=automagic_cameamp.Automagic_CameAMP", "--learning_rate=1e-4")
    assert result["class"] == "Automagic_CameAMP" and result["lr"] == [1e-4] and result["moved"]


def test_bare_word_fails(plain: Any, some_bitsandbytes: None) -> None:
    with pytest.raises(ValueError, match="malformed node or string"):
        plain(f"--optimizer_type={FULL}", "--optimizer_args", "profile=memory_optimized")


def test_quoted_word_works(plain: Any, some_bitsandbytes: None) -> None:
    result = plain(f"--optimizer_type={FULL}", "--optimizer_args", "profile='memory_optimized'")
    assert result["config"]["profile"] == "memory_optimized"
    assert result["config"]["edge_suppression"] is False


def test_lr_among_the_arguments_fails(plain: Any, some_bitsandbytes: None) -> None:
    with pytest.raises(TypeError, match="multiple values for keyword argument 'lr'"):
        plain(f"--optimizer_type={FULL}", "--optimizer_args", "lr=1e-4")


def test_literals_arrive(plain: Any, some_bitsandbytes: None) -> None:
    words = ["edge_penalty=0.15", "verbose=True", "warmup_steps=1000", "betas=0.9,0.99"]
    result = plain(f"--optimizer_type={FULL}", "--optimizer_args", *words)
    assert (result["config"]["edge_penalty"], result["config"]["warmup_steps"]) == (0.15, 1000)


def test_a_second_equals_sign_fails(plain: Any, no_bitsandbytes: None) -> None:
    with pytest.raises(ValueError, match="too many values"):
        plain("--optimizer_type=automagic_cameamp.Automagic_CameAMP", "--optimizer_args", "a=b=c")


def test_registered_bare_name_works_with_bitsandbytes(plain: Any, some_bitsandbytes: None) -> None:
    register()
    assert plain(f"--optimizer_type={BARE}")["class"] == BARE


def test_registered_bare_name_of_32bit_works_without(plain: Any, no_bitsandbytes: None) -> None:
    register()
    assert plain("--optimizer_type=Automagic_CameAMP")["class"] == "Automagic_CameAMP"


# ------------------------------------------------------- names that need neither bitsandbytes nor quotes


@pytest.mark.parametrize("profile", PROFILES)
def test_preset_module_needs_neither(plain: Any, no_bitsandbytes: None, profile: str) -> None:
    name = f"automagic_cameamp.{profile}.Automagic_CameAMP_Improved_Q8"
    result = plain(f"--optimizer_type={name}", "--learning_rate=1e-4", "--optimizer_args", "warmup_steps=10")
    assert (result["config"]["profile"], result["config"]["warmup_steps"]) == (profile, 10)
    assert result["ss_optimizer"].startswith(f"automagic_cameamp.{profile}.{BARE}(")


def test_alias_needs_no_bitsandbytes(plain: Any, no_bitsandbytes: None) -> None:
    assert plain("--optimizer_type=automagic_cameamp.kohya.Automagic_CameAMPQ8")["class"] == (
        "Automagic_CameAMP8bit"
    )


def test_register_puts_every_class_under_every_name() -> None:
    before = set(dir(torch.optim))
    try:
        names = register()
        assert set(automagic_cameamp.OPTIMIZERS) < set(names) <= set(dir(torch.optim))
        assert not any(
            name.lower().endswith("8bit") for name in set(names) - set(automagic_cameamp.OPTIMIZERS)
        )
        for name in names:
            assert issubclass(getattr(torch.optim, name), torch.optim.Optimizer)
    finally:
        for name in set(dir(torch.optim)) - before:
            delattr(torch.optim, name)
