"""The rate that is asked is the rate that is applied: no bound, start or schedule moves the centre."""

from __future__ import annotations

import copy
import io
import itertools
import math
import pickle
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.optim import lr_scheduler

from automagic_cameamp import OPTIMIZERS, Automagic_CameAMP, Automagic_CameAMP8bit, convert_state
from automagic_cameamp.configs import OptimizerConfig8bit
from engine.helpers import usually

pytestmark = pytest.mark.filterwarnings("ignore:.* above max_lr=")
STEPS, SHAPES = 6, [(12, 40), (33,)]
# Nothing but the rate lies between a direction and what a step does.
BARE: dict[str, Any] = {"use_lr_mask": False, "full_finetune": True, "weight_decay": 0.0, "warmup_steps": 4}
OWN: dict[str, dict[str, Any]] = {
    name: {"adaptation_rate": 0.0} if "COptim" in name else {"lora_rank_penalty": False}
    for name in OPTIMIZERS
    if name not in ("Automagic_CameAMP", "Automagic_CameAMP8bit")
}
MASKS: dict[str, dict[str, Any]] = {
    "no mask": {},
    "additive, that stands still": {"use_lr_mask": True, "lr_mask_rule": "additive", "lr_bump": 0.0},
    "level by votes, that none has cast": {"lr_level": "vote"},
}


def by_hand(rates: list[float]) -> Callable[[Any], Iterator[None]]:
    def schedule(optimizer: Any) -> Iterator[None]:
        for rate in rates:
            for group in optimizer.param_groups:
                group["lr"] = rate
            yield

    return schedule


def of_torch(make: Callable[[Any], Any]) -> Callable[[Any], Iterator[None]]:
    def schedule(optimizer: Any) -> Iterator[None]:
        scheduler = make(optimizer)
        plateau = isinstance(scheduler, lr_scheduler.ReduceLROnPlateau)
        for _ in range(STEPS):
            yield
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the order of step() is looked at by torch
                scheduler.step(1.0) if plateau else scheduler.step()

    return schedule


RATES = [0.0, 1e-10, 1e-8, 1e-6, 3e-5, 1e-3, 0.02, 1.0, 30.0]
SCHEDULES = {
    "constant": st.just(of_torch(lambda o: lr_scheduler.LambdaLR(o, lambda t: 1.0))),
    "factors": st.lists(st.sampled_from([0.0, 1e-6, 0.3, 1.0, 7.0]), min_size=STEPS, max_size=STEPS).map(
        lambda f: of_torch(lambda o: lr_scheduler.LambdaLR(o, lambda t: f[t % STEPS]))
    ),
    "by hand": st.lists(st.sampled_from(RATES), min_size=STEPS, max_size=STEPS).map(by_hand),
    "one cycle": st.tuples(st.sampled_from(RATES[1:]), st.booleans()).map(
        lambda x: of_torch(lambda o: lr_scheduler.OneCycleLR(o, x[0], STEPS + 2, cycle_momentum=x[1]))
    ),
    "cyclic": st.booleans().map(
        lambda x: of_torch(lambda o: lr_scheduler.CyclicLR(o, 1e-6, 3e-3, 2, cycle_momentum=x))
    ),
    "plateau": st.just(of_torch(lambda o: lr_scheduler.ReduceLROnPlateau(o, factor=0.1, patience=0))),
    "restarts": st.just(of_torch(lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 3))),
}


def twins(name: str, engine: str, lr: float, options: dict[str, Any]) -> tuple[Any, Any, list[list[Any]]]:
    """An optimizer, the same with a rate of 1 that nothing bounds, and their parameters."""
    own = {**BARE, **OWN.get(name, {}), **options}
    free = {**own, "min_lr": 0.0, "max_lr": math.inf}
    params = [[torch.nn.Parameter(torch.zeros(s)) for s in SHAPES] for _ in range(2)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        asked = OPTIMIZERS[name](params[0], lr=lr, engine=engine, **own)
        unit = OPTIMIZERS[name](params[1], lr=1.0, engine=engine, **free)
    return asked, unit, params


def take(asked: Any, unit: Any, params: list[list[Any]], t: int) -> None:
    draw = torch.Generator().manual_seed(t)
    for p, q in zip(*params, strict=True):
        p.grad = torch.randn(p.shape, generator=draw)
        q.grad = p.grad.clone()
        p.data.zero_()
        q.data.zero_()
    for group, other in zip(asked.param_groups, unit.param_groups, strict=True):
        other["betas"] = group["betas"]  # a scheduler may move them
    asked.step()
    unit.step()


def agree(params: list[list[Any]], rate: float) -> None:
    """Every move of the first parameters is ``rate`` times that of the second, but for fp32 rounding."""
    for p, q in zip(*params, strict=True):
        torch.testing.assert_close(p.double(), q.double() * rate, rtol=2e-6, atol=abs(rate) * 1e-6)


@pytest.mark.parametrize("engine", ["auto", "reference"])
@pytest.mark.parametrize("kind", SCHEDULES)
@given(data=st.data())
@settings(max_examples=8)
def test_what_is_asked_is_applied(kind: str, engine: str, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(OPTIMIZERS)))
    lr = data.draw(st.sampled_from(RATES))
    bounds = {
        "min_lr": data.draw(st.sampled_from([None, 0.0, 1e-9, 1e-5])),
        "max_lr": data.draw(st.sampled_from([None, 1e-4, 1e-2, 50.0, math.inf])),
    }
    options: dict[str, Any] = {k: v for k, v in bounds.items() if v is not None}
    asked, unit, params = twins(
        name, engine, lr, {**options, **MASKS[data.draw(st.sampled_from(list(MASKS)))]}
    )
    as_tensor = kind == "by hand" and data.draw(st.booleans())
    for t, _ in enumerate(data.draw(SCHEDULES[kind])(asked)):
        rate = float(asked.param_groups[0]["lr"])
        if as_tensor:
            asked.param_groups[0]["lr"] = torch.tensor(rate, dtype=torch.float64)
        take(asked, unit, params, t)
        applied = min(rate, options.get("max_lr", math.inf))
        agree(params, applied)
        assert asked.get_learning_rates()[0] == pytest.approx(applied, rel=1e-6)


@pytest.mark.parametrize("engine", ["auto", "reference"])
@given(
    st.sampled_from([0.0, 1e-10, 1e-7, 1e-5, 1e-3]),
    st.lists(st.sampled_from([0.0, 1e-9, 1e-6, 1e-4, 2e-3]), min_size=8, max_size=8),
    st.sampled_from([None, 1e-4, 0.1]),
    st.sampled_from(["geometric", "additive"]),
    st.sampled_from(["element", "row"]),
    st.booleans(),
)
@settings(max_examples=25)
def test_what_is_shown_is_what_is_applied(engine, lr, rates, cap, rule, granularity, as_tensor) -> None:
    """``lr_mask`` holds the rates of the step that comes; their mean is what that step reports."""
    p = torch.nn.Parameter(torch.randn(6, 50))
    given = {} if cap is None else {"max_lr": cap}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        optimizer = Automagic_CameAMP(
            [p], lr=lr, warmup_steps=4, full_finetune=True, engine=engine, lr_mask_rule=rule,
            lr_mask_granularity=granularity, lr_bump=1e-5, min_lr=1e-8, **given,
        )  # fmt: skip
    for t, rate in enumerate(rates):
        p.grad = torch.randn(6, 50)
        optimizer.param_groups[0]["lr"] = torch.tensor(rate) if as_tensor else rate
        shown = optimizer.high_precision_states[0]["lr_mask"] if t else None
        optimizer.step()
        if t >= 4:  # nothing moves any more
            assert shown is not None
            assert optimizer.get_learning_rates()[0] == pytest.approx(float(shown.double().mean()), rel=1e-5)
            assert float(shown.max()) <= max(cap or 1e-3, 0 if cap else 10 * rate) * (1 + 1e-6)
            assert rate == 0 or float(shown.min()) >= min(1e-8 * min(1, rate / max(lr, 1e-8)), rate) * 0.999
    assert bool(p.isfinite().all())


@pytest.mark.parametrize("engine", ["auto", "reference"])
def test_a_hard_floor_still_lifts_but_not_from_zero(engine: str) -> None:
    asked, unit, params = twins("Automagic_CameAMP", engine, 1e-3, {"hard_min_lr": True, "min_lr": 1e-4})
    for t, rate in enumerate([1e-3, 1e-5, 1e-8, 0.0]):
        asked.param_groups[0]["lr"] = rate
        take(asked, unit, params, t)
        agree(params, max(rate, 1e-4) if rate else 0.0)


def test_bounds_changed_by_hand_count_under_their_names_in_groups() -> None:
    for engine in ("auto", "reference"):
        asked, unit, params = twins("Automagic_CameAMP8bit", engine, 1e-3, {})
        for t, (key, value, applied) in enumerate(
            [
                ("max_lr", 1e-5, 1e-3),  # a scheduler's
                ("min_lr", 1.0, 1e-3),
                ("lr_cap", 1e-4, 1e-4),
                ("lr_cap", None, 1e-3),
                ("lr_floor", 5e-3, 1e-3),
                ("hard_min_lr", True, 5e-3),
            ]
        ):
            asked.param_groups[0][key] = value
            take(asked, unit, params, t)
            agree(params, applied)


# ---------------------------------------------------------------- names and forms


def test_a_default_that_is_passed_on_is_not_a_cap() -> None:
    """The documents build optimizers from the fields of a config."""
    for config in (
        OptimizerConfig8bit(),
        copy.deepcopy(OptimizerConfig8bit()),
        pickle.loads(pickle.dumps(OptimizerConfig8bit())),
    ):
        assert config.max_lr == 1e-3 and repr(config.max_lr) == "0.001"
        p = torch.nn.Parameter(torch.zeros(3))
        optimizer = Automagic_CameAMP8bit([p], **{**config.__dict__, "lr": 0.1, **BARE})
        twice = pickle.loads(pickle.dumps(optimizer))
        group = Automagic_CameAMP8bit([{"params": [p], **{"max_lr": config.max_lr}}], lr=0.1)
        for made in (optimizer, copy.deepcopy(optimizer), twice, group):
            assert made.param_groups[0]["lr_cap"] is None
        config.max_lr = 1e-3
        with pytest.warns(UserWarning, match="above max_lr"):
            capped = Automagic_CameAMP8bit([p], **{**config.__dict__, "lr": 0.1})
        assert capped.param_groups[0]["lr_cap"] == 1e-3


@pytest.mark.parametrize("given", [None, 1e-3, 5e-2])
def test_caps_survive_checkpoints_copies_and_conversions(given: float | None) -> None:
    options = {} if given is None else {"max_lr": given}
    p = torch.nn.Parameter(torch.zeros(3, 5))
    optimizer = Automagic_CameAMP([p], lr=1e-3, **options)
    lr_scheduler.OneCycleLR(optimizer, 2e-3, 10)
    p.grad = torch.ones(3, 5)
    optimizer.step()
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    assert bool(optimizer.verify_resume())
    for cls in (Automagic_CameAMP, Automagic_CameAMP8bit):
        other = cls([torch.nn.Parameter(torch.zeros(3, 5))], lr=1e-3, max_lr=7.0)
        for state in (saved, convert_state(saved, other)):
            other.load_state_dict(state)
            group = other.param_groups[0]
            assert group["lr_cap"] == given and group["lr_floor"] == 1e-7
            assert group["max_lr"] == 2e-3, "the scheduler's own, for the scheduler"


@pytest.mark.parametrize("own", [None, 1e-3, 7.0])
@pytest.mark.parametrize("cycled", [False, True])
def test_old_checkpoints_load(own: float | None, cycled: bool) -> None:
    """Groups once held ``min_lr`` and ``max_lr``, over which OneCycleLR wrote its own."""
    options = {} if own is None else {"max_lr": own}

    def fresh() -> Any:
        return Automagic_CameAMP([torch.nn.Parameter(torch.zeros(3, 5))], lr=1e-3, **options)

    for cap in (1e-3, 5e-2):
        old = fresh().state_dict()
        group = old["param_groups"][0]
        del group["lr_floor"], group["lr_cap"], group["base_beta1"]
        group |= {"min_lr": 1e-9, "max_lr": cap, "initial_lr": 1e-3}
        if cycled:
            group |= {"initial_lr": 4e-5, "min_lr": 4e-9, "max_lr": cap, "lr": 4e-5}
        optimizer = fresh()
        optimizer.load_state_dict(old)
        now = optimizer.param_groups[0]
        assert now["base_beta1"] == 0.8 and "max_lr" not in now
        if cycled:
            assert (now["lr_floor"], now["lr_cap"]) == (1e-7, own)
        else:
            assert now["lr_floor"] == 1e-9
            assert now["lr_cap"] == (None if own is None and cap == 1e-3 else cap)


def test_a_group_gives_its_bounds_by_the_options_names() -> None:
    p, q = (torch.nn.Parameter(torch.zeros(3)) for _ in range(2))
    optimizer = Automagic_CameAMP([{"params": [p], "max_lr": 0.5, "min_lr": 1e-9}], lr=1e-3)
    optimizer.add_param_group({"params": [q], "max_lr": 0.25})
    found = [(g["lr_floor"], g["lr_cap"]) for g in optimizer.param_groups]
    assert found == [(1e-9, 0.5), (1e-7, 0.25)]
    assert not any({"min_lr", "max_lr"} & g.keys() for g in optimizer.param_groups)
    with pytest.raises(ValueError, match=r"max_lr=0 is not allowed"):
        optimizer.add_param_group({"params": [torch.nn.Parameter(torch.zeros(3))], "max_lr": 0})
    with pytest.raises(ValueError, match="min_lr=0.5 is not allowed: it must be below max_lr=0.25"):
        optimizer.add_param_group(
            {"params": [torch.nn.Parameter(torch.zeros(3))], "max_lr": 0.25, "min_lr": 0.5}
        )


def test_no_option_of_a_group_has_a_name_that_schedulers_write() -> None:
    """All that torch's schedulers write, but for ``betas``, which means the same to us, and ``lr``."""
    written: set[str] = set()

    class Noted(dict):  # type: ignore[type-arg]
        def __setitem__(self, key: str, value: Any) -> None:
            if key != "clock":  # ours, at every step
                written.add(key)
            super().__setitem__(key, value)

    makers: list[Callable[[Any], Any]] = [
        lambda o: lr_scheduler.OneCycleLR(o, 1e-3, 20),
        lambda o: lr_scheduler.CyclicLR(o, 1e-5, 1e-3, 3),
        lambda o: torch.optim.swa_utils.SWALR(o, 1e-3),
        lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0),
        lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 3),
    ]
    for make in makers:
        optimizer = Automagic_CameAMP([torch.nn.Parameter(torch.zeros(3))], lr=1e-3)
        optimizer.param_groups[0] = Noted(optimizer.param_groups[0])
        scheduler = make(optimizer)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for _ in range(3):
                optimizer.step()
                scheduler.step(*[1.0] * isinstance(scheduler, lr_scheduler.ReduceLROnPlateau))
    assert {"max_lr", "min_lr", "base_momentum", "max_momentum"} <= written
    for cls in OPTIMIZERS.values():
        options = cls([torch.nn.Parameter(torch.zeros(3))]).param_groups[0].keys()
        assert written & options == {"lr", "betas"}


# ---------------------------------------------------------------- cycled momentum


def _cycled() -> Iterator[Any]:
    """The kernels, which have CAME only, with every class at every run; the reference in one of two ways."""
    for number, name in enumerate(sorted(OPTIMIZERS)):
        for engine, came in itertools.product(["auto", "reference"], [True, False]):
            usual = came if engine == "auto" else came == (number % 2 == 0)
            yield usually(engine, name, came, name=f"{engine}-{name}-{came}", usual=usual)


@pytest.mark.parametrize(("engine", "name", "came"), list(_cycled()))
def test_cycled_momentum_keeps_the_state_and_resumes_bitwise(name: str, engine: str, came: bool) -> None:
    def run(scheduler_of: Callable[[Any], Any], stop: int | None) -> list[torch.Tensor]:
        draw = torch.Generator().manual_seed(1)
        params = [torch.nn.Parameter(torch.randn(s, generator=draw)) for s in SHAPES]
        optimizer = OPTIMIZERS[name](params, lr=1e-3, warmup_steps=6, came=came, engine=engine)
        scheduler = scheduler_of(optimizer)
        for t in range(14):
            if t == stop:
                saved, place = copy.deepcopy(optimizer.state_dict()), scheduler.state_dict()
                params = [torch.nn.Parameter(p.detach().clone()) for p in params]
                optimizer = OPTIMIZERS[name](params, lr=1e-3, warmup_steps=6, came=came, engine=engine)
                scheduler = scheduler_of(optimizer)
                optimizer.load_state_dict(saved)
                scheduler.load_state_dict(place)
            for p in params:
                p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(t))
            optimizer.step()
            scheduler.step()
        assert optimizer.param_groups[0]["betas"][1:] == (0.99, 0.999)
        return [p.detach() for p in params]

    for make in (
        lambda o: lr_scheduler.OneCycleLR(o, 2e-3, 20),
        lambda o: lr_scheduler.CyclicLR(o, 1e-5, 1e-3, 3, base_momentum=0.5, max_momentum=0.97),
    ):
        whole = run(make, None)
        assert all(bool(p.isfinite().all()) for p in whole)
        for stop in (3, 8):
            assert all(map(torch.equal, whole, run(make, stop)))


@pytest.mark.parametrize(
    "name", ["Automagic_CameAMP8bit", "Automagic_CameAMP_COptim", "Automagic_CameAMP_8Bit"]
)
def test_what_moves_from_step_to_step_is_renewed_in_the_plan(name: str) -> None:
    """Rates, bounds, betas, weight decay: no new plan, and the reference's numbers."""
    made = []
    for engine in ("auto", "reference"):
        draw = torch.Generator().manual_seed(1)
        params = [torch.nn.Parameter(torch.randn(s, generator=draw)) for s in SHAPES]
        optimizer = OPTIMIZERS[name](params, lr=1e-3, warmup_steps=6, engine=engine, **OWN.get(name, {}))
        made.append((optimizer, params))
    plans = set()
    for t in range(8):
        for optimizer, params in made:
            for p in params:
                p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(t))
            group = optimizer.param_groups[0]
            group["lr"], group["betas"] = 1e-3 * (t % 3 + 1), (0.6 + 0.04 * t, 0.98, 0.99 + 0.001 * t)
            group["weight_decay"], group["lr_cap"] = 0.1 * (t % 2), 2e-3 if t % 2 else None
            group["lr_floor"], group["hard_min_lr"] = 1e-4 * t, t % 4 == 3
            group["anything"] = t  # a note of the program's own
            optimizer.step()
        if t:
            plans.add(id(made[0][0].stepper.plans.current))
        for p, q in zip(made[0][1], made[1][1], strict=True):
            torch.testing.assert_close(p, q, rtol=1e-5, atol=2e-6)
    assert len(plans) == 1 and made[0][0].stepper.plans.current is not None


def test_the_length_of_the_own_mean_follows_beta1_in_proportion() -> None:
    from automagic_cameamp import techniques as T

    assert T.own_beta(0.95, [1, 5, 10, 25], 0.8) == 0.95  # the scale that beta1 said itself
    for scales, start in (([1, 3, 7, 15], 0.8), ([2, 9], 0.9)):
        first = T.own_beta(start, scales)
        assert T.own_beta(start, scales, start) == first
        for now in (0.0, 0.5, 0.85, 0.99):
            moved = T.own_beta(now, scales, start)
            assert 0 <= moved < 1
            if (1 - first) * (1 - now) < 1 - start:
                assert (1 - moved) / (1 - first) == pytest.approx((1 - now) / (1 - start))
