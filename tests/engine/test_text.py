"""Values as text, and one name for one thing: what trainers, YAML and the boxes of a GUI deliver."""

from __future__ import annotations

import doctest
import math
from typing import Any

import pytest
import torch

from automagic_cameamp import (
    OPTIMIZERS,
    Automagic_CameAMP,
    Automagic_CameAMP8bit,
    Automagic_CameAMP_8Bit,
    Automagic_CameAMP_COptim8bit,
    Automagic_CameAMP_Improved_8Bit,
    text,
)
from automagic_cameamp.text import read, split_args


def params() -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(torch.ones(4, 4))]


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("200", 200),
        (" 1e-4 ", 1e-4),
        ("-.5", -0.5),
        ("True", True),
        ("false", False),
        ("None", None),
        ("inf", math.inf),
        ("0.9,0.99", (0.9, 0.99)),
        ("[1, 5]", [1, 5]),
        ("'balanced'", "balanced"),
        ("balanced", "balanced"),
        (["1e-30", 1e-16], [1e-30, 1e-16]),
        (("0.9", "0.99"), (0.9, 0.99)),
        ("__import__('os')", "__import__('os')"),
        (7, 7),
    ],
)
def test_a_text_is_read_as_what_it_says(said: Any, meant: Any) -> None:
    assert read(said) == meant and type(read(said)) is type(meant)


def test_examples() -> None:
    assert doctest.testmod(text).failed == 0


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("warmup_steps=200", ["warmup_steps=200"]),
        ("a=1,b=0.9,0.99, c=x", ["a=1", "b=0.9,0.99", "c=x"]),
        ("a=1 b=2", ["a=1", "b=2"]),
        ("a=[1, 5],b=2", ["a=[1,5]", "b=2"]),
        ("", []),
    ],
)
def test_a_line_of_arguments(line: str, words: list[str]) -> None:
    assert split_args(line) == words


GIVEN: dict[str, Any] = {"lr": "1e-4", "warmup_steps": "200", "came": "true", "betas": "0.9,0.99"}
GIVEN["eps"] = ["1e-30", "1e-16", "1e-8"]


@pytest.mark.parametrize("cls", OPTIMIZERS.values(), ids=lambda c: c.__name__)
def test_every_class_reads_text_in_the_constructor_and_in_groups(cls: Any) -> None:
    optimizer = cls(params(), **GIVEN)
    (group,) = optimizer.param_groups
    assert (group["lr"], group["warmup_steps"], group["came"]) == (1e-4, 200, True)
    assert group["betas"] == (0.9, 0.99, 0.999) and group["eps"] == (1e-30, 1e-16, 1e-8)
    optimizer.add_param_group({"params": params(), "lr": "3e-4", "weight_decay": "0.1"})
    assert (optimizer.param_groups[1]["lr"], optimizer.param_groups[1]["weight_decay"]) == (3e-4, 0.1)


@pytest.mark.parametrize("cls", [Automagic_CameAMP8bit, Automagic_CameAMP_COptim8bit, Automagic_CameAMP_8Bit])
def test_block_size_has_both_names(cls: Any) -> None:
    own = "blocksize" if hasattr(cls.config_class(), "blocksize") else "block_size"
    for name in ("blocksize", "block_size"):
        assert getattr(cls(params(), **{name: "512"}).config, own) == 512
    with pytest.raises(TypeError, match=f"{cls.__name__} got .*both say the same"):
        cls(params(), blocksize=256, block_size=256)


@pytest.mark.parametrize(
    ("cls", "bits", "option", "value"),
    [
        (Automagic_CameAMP, 32, "lr_level", None),
        (Automagic_CameAMP8bit, 8, "state_code", "dynamic"),
        (Automagic_CameAMP8bit, "4", "state_code", "softsign4"),
        (Automagic_CameAMP_COptim8bit, 4, "state_code", "softsign4"),
        (Automagic_CameAMP_8Bit, 8, "quantize_states", True),
        (Automagic_CameAMP_8Bit, 4, "state_code", "softsign4"),
        (Automagic_CameAMP_8Bit, 32, "quantize_states", False),
        (Automagic_CameAMP_Improved_8Bit, 4, "optim_bits", 4),
    ],
)
def test_optim_bits_is_known_to_every_class(cls: Any, bits: Any, option: str, value: Any) -> None:
    config = cls(params(), optim_bits=bits).config
    assert value is None or getattr(config, option) == value


@pytest.mark.parametrize(
    ("cls", "bits"), [(Automagic_CameAMP, 8), (Automagic_CameAMP8bit, 32), (Automagic_CameAMP8bit, [8])]
)
def test_bits_that_a_class_does_not_hold(cls: Any, bits: Any) -> None:
    with pytest.raises(ValueError, match=f"optim_bits=.* is not allowed: {cls.__name__} holds"):
        cls(params(), optim_bits=bits)


def test_errors_name_the_class_typed_and_the_classes_that_have_the_option() -> None:
    with pytest.raises(TypeError, match="Automagic_CameAMP8bit has no option 'min_8bit_size'.*Improved_8Bit"):
        Automagic_CameAMP8bit(params(), min_8bit_size="1024")
