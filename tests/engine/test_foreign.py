"""Keywords of other optimizers: accepted where they say what holds anyway, else refused with a reason."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from automagic_cameamp import OPTIMIZERS, Automagic_CameAMP, Automagic_CameAMP8bit
from automagic_cameamp.foreign import KEYWORDS

OFF = ["fused", "foreach", "amsgrad", "maximize", "capturable", "differentiable", "nesterov"]
OFF += ["relative_step", "scale_parameter", "warmup_init"]


@pytest.mark.parametrize("name", OFF)
def test_what_is_off_here_may_be_said(name: str) -> None:
    params = [torch.nn.Parameter(torch.zeros(3))]
    for cls in OPTIMIZERS.values():
        for value in (False, None, 0):
            assert name not in cls(params, **{name: value}).param_groups[0]
        with pytest.raises(
            TypeError, match=rf"^{cls.__name__} has no option '{name}' \(got True\): .+\. .+\.$"
        ):
            cls(params, **{name: True})
        with pytest.raises(TypeError, match=f"^parameter group has no option '{name}'"):
            cls([{"params": params, name: True}])
        cls([{"params": params, name: False}])


def test_groups_of_adamw_are_taken() -> None:
    groups = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(3))], lr=1e-3).param_groups
    optimizer = Automagic_CameAMP([{k: v for k, v in g.items() if k != "betas"} for g in groups])
    assert optimizer.param_groups[0]["lr"] == 1e-3


@pytest.mark.parametrize(
    ("name", "value"), [("relative_step", "False"), ("decouple", "True"), ("amsgrad", "false")]
)
def test_text_says_what_holds_as_well(name: str, value: str) -> None:
    Automagic_CameAMP8bit([torch.nn.Parameter(torch.zeros(3))], lr=1e-4, **{name: value})


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("amsgrad", "True", "second moments"),
        ("decouple", False, "never enters the gradient"),
        ("d0", 1e-6, "an lr up to 1e-5 beside lr_level='auto'"),
        ("momentum_scales", [1], "Automagic_CameAMP_COptim, Automagic_CameAMP_COptim8bit"),
        ("max_grad_norm", 1.0, "clip_grad_norm_"),
        ("beta2", 0.9, "betas="),
        ("is_paged", True, "offload='cpu'"),
    ],
)
def test_a_hint_names_a_reason(name: str, value: Any, words: str) -> None:
    class Mine(Automagic_CameAMP8bit):
        pass

    for cls in (Automagic_CameAMP8bit, Mine):
        with pytest.raises(TypeError) as caught:
            cls([torch.nn.Parameter(torch.zeros(3))], **{name: value})
        assert str(caught.value).startswith(f"{cls.__name__} has no option {name!r}") and words in str(
            caught.value
        )


def test_no_reason_is_given_for_an_option_that_exists_everywhere() -> None:
    shared = set.intersection(*(set(cls.config_class.__dataclass_fields__) for cls in OPTIMIZERS.values()))
    assert not KEYWORDS.keys() & shared
