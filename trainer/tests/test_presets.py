"""What is filled in, and that the user's own words win."""

from __future__ import annotations

from automagic_trainer.presets import DEFAULT_LR, LEARNING_RATES, filled
from automagic_trainer.settings import build


def test_known_optimizers_get_a_rate() -> None:
    assert filled(build({"optimizer": "ADAMW"})).lr == LEARNING_RATES["adamw"]
    assert filled(build({"optimizer": "SGD"})).lr == DEFAULT_LR
    assert filled(build({"optimizer": "SGD"})).optimizer_args == {}


def test_ours_get_a_warm_up_that_fits_the_run() -> None:
    for name in ("automagic_cameamp", "Automagic_CameAMP8bit", "automagic_cameamp.Automagic_CameAMP"):
        settings = filled(build({"optimizer": name, "steps": 90}))
        assert settings.lr is None
        assert settings.optimizer_args == {"warmup_steps": 30, "min_lr": 0.0, "max_lr": 1.0}
    assert filled(build({"optimizer": "Automagic_CameAMP", "steps": 1})).optimizer_args["warmup_steps"] == 1


def test_the_user_wins() -> None:
    asked = {"lr": 0.5, "optimizer": "Automagic_CameAMP", "optimizer_args": {"warmup_steps": 7, "eps2": 1e-9}}
    settings = filled(build(asked))
    assert settings.lr == 0.5
    assert settings.optimizer_args == {"warmup_steps": 7, "eps2": 1e-9, "min_lr": 0.0, "max_lr": 1.0}
    by_args = filled(build({"optimizer": "AdamW", "optimizer_args": {"lr": 0.25}}))
    assert by_args.lr is None and by_args.optimizer_args == {"lr": 0.25}


def test_a_name_that_nobody_has_is_left_for_the_check_before_training() -> None:
    settings = build({"optimizer": "Nothing"})
    assert filled(settings) == settings
