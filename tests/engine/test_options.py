"""Every option: what is refused and how, what is understood, what the signature says."""

from __future__ import annotations

import dataclasses
import inspect
import logging
import re
import warnings
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from automagic_cameamp import Automagic_CameAMP, Automagic_CameAMP8bit
from automagic_cameamp.aliases import settings as techniques_of
from automagic_cameamp.configs import ENGINE_OPTIONS, GROUP_NAMES
from automagic_cameamp.text import read
from engine.helpers import build, parameters, train

NAN, INF = float("nan"), float("inf")
CLASSES = [Automagic_CameAMP, Automagic_CameAMP8bit]
FLAG = [2, -1, 0.5, "2", "maybe", None, [True]]
ANY_NUMBER = [NAN, "much", "", None, True, [1.0], {}, 1j]
NOT_NEGATIVE = [-1e-9, -INF, *ANY_NUMBER]
POSITIVE = [0, 0.0, *NOT_NEGATIVE]

# option -> values that must be refused. A value that is accepted must never make weights NaN.
BAD: dict[str, list[Any]] = {
    "lr": [*NOT_NEGATIVE, INF, torch.zeros(2), torch.tensor(-1.0), torch.tensor(NAN), torch.tensor(INF)],
    "min_lr": [*NOT_NEGATIVE, INF, 1e-3, 1.0],  # must stay below max_lr
    "max_lr": [*POSITIVE, 1e-7, 1e-9],  # must stay above min_lr
    "lr_bump": [*NOT_NEGATIVE, INF],
    "eps": [-1e-8, NAN, INF, "-1e-8", None, (), (1e-30, -1.0), (1e-30, 1e-16, 1e-8, 1e-8), (None, 1e-16)],
    "clip_threshold": [*POSITIVE],
    "betas": [0.9, (0.9,), (), (0.9, 1.0), (-0.1, 0.9), (0.9, 0.99, 1.0), (0.9, NAN), ("0.9", "x"), None]
    + [(0.9, 0.99, 0.999, 0.9999), "0.9, 1.0", {0.9, 0.99}],
    "beta1_decay": [*POSITIVE, 1.0001, INF],
    "beta1_follows_lr": [x for x in FLAG if x is not None],
    "eta": [*POSITIVE, INF],
    "weight_decay": [*NOT_NEGATIVE, INF],
    "warmup_steps": [-1, 0.5, NAN, INF, "500.5", None, True, [500]],
    "came": FLAG,
    "full_finetune": FLAG,
    "verbose": FLAG,
    "factored": FLAG,
    "confidence_1d": FLAG,
    "final_clip": [0, -1.0, NAN, "0", True, [1.0]],
    "use_agr": FLAG,
    "use_tam": FLAG,
    "use_grams": FLAG,
    "use_orthograd": FLAG,
    "use_lr_mask": FLAG,
    "tam_granularity": ["column", "Tensor", None, 1, ["row"]],
    "weight_decay_phase": ["late", "", None, 0],
    "hard_min_lr": FLAG,
    "lr_mask_rule": ["geometrc", "ADDITIVE", False, 0, np.array([1, 2]), torch.zeros(2)],
    "lr_mask_granularity": ["elements", "column", None, 3],
    "lr_level": ["prodigy", "Fixed", 0.5],
    "stochastic_rounding": [2, -1, 0.5, "yes?", [True]],
    "master_weight_bits": [16, 32, 8, 24.0, "16", True],
    "seed": [-1, 2**32, 0.5, "-7", None, NAN],
    "offload": ["gpu", "disk", True, 0],
    "engine": ["Native", "cuda", None, 0, "eager"],
    "blocksize": [0, 1, 32, 100, 8192, 255, -64, 128.5, "255", None, True],
    "state_code": ["int8", "Dynamic", None, 8],
}


def fields_of(cls: Any) -> list[Any]:
    return list(dataclasses.fields(cls.config_class))


def one_parameter() -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(torch.ones(4, 4))]


def refused(cls: Any, name: str, value: Any) -> str:
    with pytest.raises((ValueError, TypeError)) as caught:
        cls(one_parameter(), **{name: value})
    return str(caught.value)


def test_the_table_is_complete() -> None:
    names = {f.name for cls in CLASSES for f in fields_of(cls)}
    assert names == BAD.keys()


@pytest.mark.parametrize(("name", "value"), [(n, v) for n, values in BAD.items() for v in values], ids=repr)
def test_bad_values_are_refused_by_name_value_and_range(name: str, value: Any) -> None:
    for cls in CLASSES:
        if name not in {f.name for f in fields_of(cls)}:
            continue
        message = refused(cls, name, value)
        partner = {"min_lr": "max_lr", "max_lr": "min_lr"}.get(name, name)
        assert re.match(rf"({name}|{partner})(\[\d\])?=", message), message
        assert "is not allowed: " in message
        shown = value if not isinstance(value, torch.Tensor | np.ndarray) else None
        value = read(value)
        inner = value if isinstance(value, tuple | list | set | dict) else [value]
        if shown is not None and partner == name:
            assert any(repr(v) in message for v in [value, *inner]), message
        allowed = message.split("is not allowed: ")[1]
        assert re.search(r"\d|one|True|must|only", allowed), message
        assert "\n" not in message


@pytest.mark.parametrize("name", BAD)
def test_a_group_is_checked_like_the_constructor(name: str) -> None:
    if name in ENGINE_OPTIONS:
        return
    for value in BAD[name]:
        with pytest.raises((ValueError, TypeError)):
            Automagic_CameAMP8bit([{"params": one_parameter(), name: value}])
        optimizer = Automagic_CameAMP8bit(one_parameter())
        with pytest.raises((ValueError, TypeError)):
            optimizer.add_param_group({"params": one_parameter(), name: value})
        assert len(optimizer.param_groups) == 1


# Sizes that somebody could mean, and what is no size at all.
numbers = st.one_of(
    st.floats(1e-9, 1e6), st.floats(-1e6, -1e-9), st.sampled_from([0.0, -0.0, NAN, INF, -INF])
)
junk = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**40), 2**40),
    numbers,
    st.text(max_size=5),
    st.binary(max_size=3),
    st.lists(numbers, max_size=4),
    st.tuples(st.floats(1e-6, 1), st.floats(1e-6, 1)),
    st.dictionaries(st.text(max_size=2), st.integers(), max_size=2),
    st.sampled_from([object, torch.float32, torch.zeros(()), torch.ones(3), np.float32(0.1), np.int64(3)]),
    st.sampled_from([np.zeros(2), range(3), {0.5}, complex(0, 1), Ellipsis]),
)


@pytest.mark.parametrize("name", BAD)
@given(value=junk)
@settings(max_examples=40, suppress_health_check=list(HealthCheck))
def test_whatever_is_given_is_accepted_or_refused_by_name(name: str, value: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            p = torch.nn.Parameter(torch.ones(4, 4))
            optimizer = Automagic_CameAMP8bit([p], **{name: value})
        except (ValueError, TypeError) as error:
            assert name in str(error) or {"min_lr", "max_lr"} & set(re.findall(r"\w+", str(error))), error
            return
    for g in (torch.zeros(4, 4), torch.eye(4)):  # what is accepted must work
        p.grad = g
        optimizer.step()
    assert bool(p.isfinite().all()), f"{name}={value!r} was accepted and made the weights NaN"


# ---------------------------------------------------------------- names


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize(
    ("typo", "meant"),
    [
        ("weight_decy", "weight_decay"),
        ("warmup_step", "warmup_steps"),
        ("beta", "betas"),
        ("lr_mask_granularty", "lr_mask_granularity"),
        ("clip_treshold", "clip_threshold"),
        ("Came", "came"),
        ("use_gram", "use_grams"),
    ],
)
def test_an_unknown_keyword_names_the_nearest(cls: Any, typo: str, meant: str) -> None:
    with pytest.raises(TypeError) as caught:
        cls(one_parameter(), **{typo: 1})
    for word in (typo, f"'{meant}'", cls.__name__):
        assert word in str(caught.value)


def test_a_keyword_like_nothing_lists_what_there_is() -> None:
    with pytest.raises(TypeError) as caught:
        Automagic_CameAMP(one_parameter(), zzzzqqq=1)
    assert all(f.name in str(caught.value) for f in fields_of(Automagic_CameAMP))


@pytest.mark.parametrize("name", ["weight_decy", "warmup_step", "max_lrs", "lr_levels", "full_finetunes"])
def test_typos_in_a_group(name: str) -> None:
    with pytest.raises(TypeError, match=f"{name}.*Did you mean"):
        Automagic_CameAMP([{"params": one_parameter(), name: 1}])


@pytest.mark.parametrize(
    "name", ["name", "initial_lr", "optim_type", "d", "effective_lr", "lr_scale", "lr_mult", "is_lora"]
)
def test_what_trainers_put_into_groups_is_kept(name: str) -> None:
    optimizer = Automagic_CameAMP([{"params": one_parameter(), name: 0.5}], lr=1e-4)
    assert optimizer.param_groups[0][name] == 0.5
    assert optimizer.state_dict()["param_groups"][0][name] == 0.5


@pytest.mark.parametrize("name", ENGINE_OPTIONS)
def test_options_of_the_whole_optimizer_are_refused_in_a_group(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}.*belongs to the optimizer"):
        Automagic_CameAMP8bit([{"params": one_parameter(), name: 1}])


@pytest.mark.parametrize("cls", CLASSES)
def test_the_signature_lists_every_option(cls: Any) -> None:
    """Trainers filter keywords by it; single techniques are words of ``techniques``."""
    found = inspect.signature(cls).parameters
    own = [f for f in fields_of(cls) if not f.metadata["technique"]]
    assert list(found) == ["params", *(f.name for f in own), "techniques", "single"]
    for f in fields_of(cls):
        assert f in own or f.name.removeprefix("use_") in techniques_of(cls.config_class)
        assert f not in own or found[f.name].default == f.default
        assert f.name.removeprefix("use_") + ": " + f.metadata["doc"] in cls.__doc__
    assert list(inspect.signature(cls.__init__).parameters)[:3] == ["self", "params", "lr"]


@pytest.mark.parametrize("cls", CLASSES)
def test_a_config_is_a_set_of_keywords(cls: Any) -> None:
    config = cls.config_class(lr=2e-4, betas=(0.9, 0.95, 0.99))
    optimizer = cls(one_parameter(), **config.__dict__)
    assert optimizer.config == config
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.95, 0.99)


@pytest.mark.parametrize("cls", CLASSES)
def test_all_options_but_the_engines_live_in_the_groups(cls: Any) -> None:
    group = cls(one_parameter()).param_groups[0]
    names = {f.name for f in fields_of(cls)} - set(ENGINE_OPTIONS)
    assert {GROUP_NAMES.get(name, name) for name in names} <= group.keys()
    assert not GROUP_NAMES.keys() & group.keys(), "names that schedulers write"


def test_positional_arguments() -> None:
    assert Automagic_CameAMP(one_parameter(), 3e-4).param_groups[0]["lr"] == 3e-4
    with pytest.raises(TypeError, match="by position"):
        Automagic_CameAMP(one_parameter(), 3e-4, 1e-7)
    with pytest.raises(TypeError, match="lr twice"):
        Automagic_CameAMP(one_parameter(), 3e-4, lr=3e-4)
    with pytest.raises(TypeError):
        Automagic_CameAMP()  # type: ignore[call-arg]


# ---------------------------------------------------------------- what is understood


@pytest.mark.parametrize(
    ("name", "given_value", "kept"),
    [
        ("betas", [0.9, 0.99], (0.9, 0.99, 0.999)),
        ("betas", (0.9, 0.99), (0.9, 0.99, 0.999)),
        ("betas", [0, 0, 0], (0.0, 0.0, 0.0)),
        ("eps", 1e-6, (1e-30, 1e-16, 1e-6)),
        ("eps", [1e-20], (1e-20, 1e-16, 1e-8)),
        ("eps", (1e-20, 1e-12), (1e-20, 1e-12, 1e-8)),
        ("weight_decay", 0, 0.0),
        ("clip_threshold", 1, 1.0),
        ("clip_threshold", INF, INF),
        ("final_clip", INF, INF),
        ("max_lr", 1, 1.0),
        ("warmup_steps", 100.0, 100),
        ("came", 0, False),
        ("lr_mask_rule", None, "none"),  # the bare word of a command line
        ("full_finetune", 1, True),
    ],
)
def test_lists_integers_and_scalars(name: str, given_value: Any, kept: Any) -> None:
    params = parameters()
    optimizer = Automagic_CameAMP8bit(params, lr=1e-4, **{name: given_value})
    value = optimizer.param_groups[0][GROUP_NAMES.get(name, name)]
    assert value == kept and type(value) is type(kept)
    train(optimizer, params, range(1, 4))
    assert all(bool(p.isfinite().all()) for p in params)


@pytest.mark.parametrize("lr", [1, 0, 1e-4, torch.tensor(1e-4), torch.tensor([1e-4]), np.float64(1e-4)])
def test_forms_of_lr(lr: Any) -> None:
    params = parameters()
    optimizer = build("dynamic", params, lr=lr, max_lr=2.0)
    assert optimizer.get_learning_rates() == [pytest.approx(float(lr))]
    train(optimizer, params, range(1, 3))
    assert optimizer.get_learning_rates()[0] >= 0
    assert torch.is_tensor(optimizer.param_groups[0]["lr"]) is torch.is_tensor(lr)


def test_zero_floors() -> None:
    """eps = 0 is either refused or safe where a whole gradient is 0."""
    for eps in ((0.0, 0.0, 0.0), (0.0, 1e-16, 1e-8), (1e-30, 0.0, 1e-8), (1e-50, 1e-50, 1e-8), 0.0):
        for came in (True, False):
            params = parameters()
            start = [p.detach().clone() for p in params]
            try:
                optimizer = build("32bit", params, eps=eps, came=came, weight_decay=0.0)
            except ValueError:
                continue
            for p in params:
                p.grad = torch.zeros_like(p)
            optimizer.step()
            optimizer.step()
            assert all(torch.equal(a, p) for a, p in zip(start, params, strict=True)), (eps, came)


def test_starts_that_are_refused() -> None:
    with pytest.raises(ValueError, match="distance"):
        Automagic_CameAMP(one_parameter(), lr=0.0, lr_level="distance")
    with pytest.raises(ValueError, match="lr_bump"):
        Automagic_CameAMP(one_parameter(), lr_mask_rule="additive", lr_bump=1e-12)
    with pytest.raises(ValueError, match=r"lr=0\.0 is not allowed: with lr_level='auto'.*Leave it out"):
        Automagic_CameAMP(one_parameter(), lr=0.0, lr_level="auto")
    still = {"params": one_parameter(), "lr": 0.0}
    Automagic_CameAMP([still, {"params": one_parameter(), "lr": 1.0}], lr_level="auto")


@pytest.mark.parametrize("value", [np.float32(0.5), np.float64(0.5), np.float16(0.5), Fraction(1, 2), "0.5"])
def test_numbers_of_every_kind_are_numbers(value: Any) -> None:
    optimizer = Automagic_CameAMP8bit(one_parameter(), lr=value, weight_decay=value, max_lr=value)
    group = optimizer.param_groups[0]
    assert group["lr"] == group["weight_decay"] == 0.5 and type(group["weight_decay"]) is float


def test_whole_numbers_of_every_kind_are_whole_numbers() -> None:
    for value in (np.int64(7), np.uint8(7), np.float32(7), 7.0, "7"):
        group = Automagic_CameAMP8bit(one_parameter(), warmup_steps=value, use_tam=np.True_).param_groups[0]
        assert type(group["warmup_steps"]) is int and group["warmup_steps"] == 7 and group["use_tam"] is True


@pytest.mark.parametrize("name", ["lr", "min_lr", "max_lr", "lr_bump", "eps", "weight_decay", "warmup_steps"])
def test_what_no_float_holds_is_refused_by_name(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}=1000.* is not allowed"):
        Automagic_CameAMP8bit(one_parameter(), **{name: 10**400})


@pytest.mark.parametrize("eps", [1e20, (1e20, 1e-16, 1e-8), (1e-30, 1e20, 1e-8)])
def test_an_eps_whose_square_is_infinite_is_refused(eps: Any) -> None:
    with pytest.raises(ValueError, match=r"eps.*is not allowed: a number in .* 1e\+10\]"):
        Automagic_CameAMP8bit(one_parameter(), eps=eps)


@pytest.mark.parametrize("engine", ["reference", "native"])
@pytest.mark.parametrize("value", [torch.tensor(NAN), torch.tensor(-1.0), torch.ones(2), torch.tensor(True)])
def test_a_tensor_put_into_a_group_is_read_by_every_engine(engine: str, value: Tensor) -> None:
    params = one_parameter()
    optimizer = Automagic_CameAMP8bit(params, lr=1e-3, engine=engine)
    params[0].grad = torch.ones_like(params[0])
    optimizer.step()
    before = params[0].detach().clone()
    optimizer.param_groups[0]["lr"] = value
    with pytest.raises(ValueError, match="lr=.* is not allowed"):
        optimizer.step()
    assert torch.equal(before, params[0])


@pytest.mark.parametrize(("said", "meant"), [("learning_rate", "lr"), ("wd", "weight_decay")])
def test_other_programs_words_are_translated(said: str, meant: str) -> None:
    with pytest.raises(TypeError, match=f"{said}.*Did you mean '{meant}'"):
        Automagic_CameAMP8bit(one_parameter(), **{said: 1e-3})
    with pytest.raises(TypeError, match=f"{said}.*Did you mean '{meant}'"):
        Automagic_CameAMP8bit([{"params": one_parameter(), said: 1e-3}])


# ---------------------------------------------------------------- warnings, words, silence


def test_warning_outside_the_range() -> None:
    above = r"lr=0\.01 is above max_lr=0\.001: no rate is above 0\.001\."
    with pytest.warns(UserWarning, match=above) as caught:
        Automagic_CameAMP(one_parameter(), lr=1e-2, max_lr=1e-3)
    assert caught[0].filename == __file__, "the warning points at the caller"
    with pytest.warns(UserWarning, match=r"lr=1e-09 is below min_lr=1e-07: .* can raise rates but not lower"):
        Automagic_CameAMP(one_parameter(), lr=1e-9)
    with pytest.warns(UserWarning, match=r"min_lr=1e-07 and hard_min_lr=True: no rate is below 1e-07\."):
        Automagic_CameAMP(one_parameter(), lr=1e-9, hard_min_lr=True)
    with pytest.warns(UserWarning, match="above max_lr"):
        Automagic_CameAMP([{"params": one_parameter(), "lr": 0.5, "max_lr": 0.1}])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for lr in (0.0, 1e-7, 1e-3, 1e-5, 1.0):  # 1: nothing but a cap that somebody gave can lower it
            Automagic_CameAMP(one_parameter(), lr=lr)
        Automagic_CameAMP(one_parameter(), lr=1e-9, use_lr_mask=False, full_finetune=True)


@pytest.mark.parametrize("verbose", [False, True])
def test_nothing_is_printed(
    verbose: bool, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    params = parameters()
    optimizer = build("dynamic", params, verbose=verbose)
    train(optimizer, params, range(1, 4))
    optimizer.load_state_dict(optimizer.state_dict())
    out, err = capfd.readouterr()
    assert out == "" and err == ""
    ours = [r for r in caplog.records if r.name.startswith("automagic_cameamp")]
    assert bool(ours) is verbose
    if verbose:
        assert "Automagic_CameAMP8bit" in ours[0].getMessage()


def test_logging_is_rate_limited(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "automagic_cameamp")
    p = torch.nn.Parameter(torch.ones(2))
    p.grad = torch.ones(2)
    optimizer = Automagic_CameAMP([p], verbose=True)
    for _ in range(250):
        optimizer.step()
    assert 3 <= len(caplog.records) <= 6


# ---------------------------------------------------------------- what is read


def test_learning_rates_before_the_first_step() -> None:
    groups = [
        {"params": one_parameter(), "lr": 1e-4},
        {"params": []},
        {"params": one_parameter(), "lr": torch.tensor(5e-4)},
    ]
    optimizer = Automagic_CameAMP(groups, lr=2e-5)
    assert optimizer.get_learning_rates() == pytest.approx([1e-4, 2e-5, 5e-4])
    assert all(type(x) is float for x in optimizer.get_learning_rates())
    average = optimizer.get_avg_learning_rate()
    assert type(average) is float and 1e-4 <= average <= 5e-4


def test_learning_rates_are_what_was_applied() -> None:
    """With the update's size known, the rate can be measured on the weights."""
    p, q = torch.nn.Parameter(torch.zeros(64, 64)), torch.nn.Parameter(torch.zeros(300))
    optimizer = Automagic_CameAMP(
        [{"params": [p], "lr": 2e-4}, {"params": [q], "lr": 1e-5}],
        lr_mask_rule="none",
        weight_decay=0.0,
        full_finetune=True,
        warmup_steps=0,
        final_clip=1.0,
    )
    for _ in range(3):
        before = p.detach().clone(), q.detach().clone()
        p.grad, q.grad = torch.ones_like(p), -torch.ones_like(q)
        optimizer.step()
    assert optimizer.get_learning_rates() == pytest.approx([2e-4, 1e-5], rel=1e-5)
    assert ((p.detach() - before[0]).square().mean().sqrt() / 2e-4).item() == pytest.approx(1.0, rel=0.01)
    expected = (4096 * 2e-4 + 300 * 1e-5) / 4396
    assert optimizer.get_avg_learning_rate() == pytest.approx(expected, rel=1e-5)


def test_reading_changes_nothing_and_groups_keep_their_lr() -> None:
    params = parameters()
    optimizer = build("dynamic", params)
    train(optimizer, params, range(1, 9))
    assert optimizer.param_groups[0]["lr"] == 5e-4
    assert optimizer.get_learning_rates() == optimizer.get_learning_rates()


# ---------------------------------------------------------------- parameters and gradients


def test_sparse_and_complex_are_refused_when_added() -> None:
    complex_one = torch.nn.Parameter(torch.ones(2, 2, dtype=torch.complex64))
    sparse = torch.eye(3).to_sparse().requires_grad_()
    good = Automagic_CameAMP(one_parameter())
    for bad, word in ((complex_one, "view_as_real"), (sparse, "dense")):
        with pytest.raises(ValueError, match=word):
            Automagic_CameAMP([bad])
        with pytest.raises(ValueError, match=word):
            good.add_param_group({"params": [bad]})
        with pytest.raises(ValueError, match=word):
            Automagic_CameAMP([("name", bad)])
    assert len(good.param_groups) == 1


def test_a_sparse_gradient_is_refused_before_anything_moves() -> None:
    embedding = torch.nn.Embedding(5, 3, sparse=True)
    other = torch.nn.Parameter(torch.ones(2))
    optimizer = Automagic_CameAMP([("other", other), ("table", embedding.weight)], lr=1e-3)
    (embedding(torch.tensor([1, 2])).sum() + other.sum()).backward()
    before = other.detach().clone(), embedding.weight.detach().clone()
    with pytest.raises(RuntimeError, match="table.*sparse=False"):
        optimizer.step()
    assert torch.equal(other, before[0]) and torch.equal(embedding.weight, before[1])
    assert not any(optimizer.state.values())


@pytest.mark.parametrize(
    ("params", "error"),
    [
        ([], ValueError),
        (torch.ones(3), TypeError),
        ({torch.nn.Parameter(torch.ones(1))}, TypeError),
        ([{"params": {torch.nn.Parameter(torch.ones(1))}}], TypeError),
        ([1.0], TypeError),
        ([{"params": ["weight"]}], TypeError),
        ([torch.ones(2, requires_grad=True) * 2], ValueError),
        ([{"lr": 1e-3}], (KeyError, ValueError, TypeError)),
    ],
    ids=["empty", "a tensor", "a set", "a set in a group", "a number", "a string", "non-leaf", "no params"],
)
def test_what_torch_refuses_is_refused(params: Any, error: Any) -> None:
    """Sets above all: their order changes from run to run, and state is kept by position."""
    with pytest.raises(error):
        Automagic_CameAMP(params)


def test_a_parameter_in_two_groups_is_refused() -> None:
    p = torch.nn.Parameter(torch.ones(2))
    optimizer = Automagic_CameAMP([p])
    with pytest.raises(ValueError, match="more than one parameter group"):
        optimizer.add_param_group({"params": [p]})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize(("written", "meant"), [("wd", "weight_decay"), ("LR", "lr"), ("Betas", "betas")])
def test_initials_and_capitals_are_understood_as_what_was_meant(written: str, meant: str) -> None:
    with pytest.raises(TypeError, match=rf"no option '{written}'. Did you mean '{meant}'\?"):
        Automagic_CameAMP([torch.nn.Parameter(torch.zeros(2))], **{written: 1e-3})
