"""Momentum over several lengths: weights, fixed points, and the base class as a special case."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from automagic_cameamp import (
    Automagic_CameAMP,
    Automagic_CameAMP8bit,
    Automagic_CameAMP_COptim,
    Automagic_CameAMP_COptim8bit,
    recipes,
)
from automagic_cameamp import techniques as T
from engine.helpers import differences, parameters, snapshot, train

SCALES = [[1, 5, 10, 25], [1, 3, 7, 15], [1, 10, 25, 50], [25, 1, 5], [2], [1], [5], [40, 100], None]
ids = [str(s) for s in SCALES]


def follow(u: torch.Tensor, scales: list[int] | None, beta1: float) -> torch.Tensor:
    """[steps] -> the mixture after each step, through the functions of the recipe, without schedule."""
    own = torch.zeros(1, 1, 1, 1, dtype=u.dtype)
    means = [torch.zeros_like(own) for _ in T.kept_scales(beta1, scales)]
    result = []
    for x in u:
        x = x.view(1, 1, 1, 1)
        own = T.ema(own, x, T.own_beta(beta1, scales))
        kept = T.kept_scales(beta1, scales)
        means = [T.ema(m, x, 1 - 1 / s) for m, s in zip(means, kept, strict=True)]
        result.append(T.multiscale(own, x, means, beta1, scales).flatten())
    return torch.cat(result)


@pytest.mark.parametrize("beta1", [0.8, 0.9, 0.5, 0.0])
@pytest.mark.parametrize("scales", SCALES[:-1], ids=ids[:-1])
def test_the_formula(scales: list[int], beta1: float) -> None:
    """A sum over every scale, each with its own plain running mean, written a second time."""
    u = torch.randn(60, dtype=torch.float64)
    expected = []
    means = dict.fromkeys(scales, 0.0)
    for x in u.tolist():
        means = {s: m + (x - m) / s for s, m in means.items()}
        expected.append(sum(means.values()) / len(scales))
    torch.testing.assert_close(follow(u, scales, beta1), torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("scales", SCALES, ids=ids)
def test_a_constant_update_is_a_fixed_point(scales: list[int] | None) -> None:
    """Gain 1 at frequency 0: the mixture converges to a constant update, and then stays."""
    m = follow(torch.full((3000,), 0.7, dtype=torch.float64), scales, 0.8)
    assert m[-1] == pytest.approx(0.7, rel=1e-9)
    assert bool((m.diff() >= -1e-15).all())  # from below, without overshoot
    x = torch.full((1, 1, 1, 3), 0.7)
    kept = [x] * len(T.kept_scales(0.8, scales))
    torch.testing.assert_close(T.multiscale(x, x, kept, 0.8, scales), x)


@pytest.mark.parametrize("scales", SCALES, ids=ids)
def test_the_gain_is_that_of_a_constant_update(scales: list[int] | None) -> None:
    beta = T.own_beta(0.8, scales)
    m = follow(torch.ones(30, dtype=torch.float64), scales, 0.8)
    for t in (1, 2, 7, 30):
        product = torch.full((1, 1, 1, 1), beta**t, dtype=torch.float64)
        step = torch.full((1, 1, 1, 1), float(t), dtype=torch.float64)
        gain = T.multiscale_gain(product, step, 0.8, scales)
        assert float(gain) == pytest.approx(float(m[t - 1]), rel=1e-12)


@given(st.lists(st.integers(1, 500), min_size=1, max_size=6, unique=True), st.floats(0, 0.999))
def test_weights(scales: list[int], beta1: float) -> None:
    own = T.own_scale(beta1, scales)
    share, update, others = T.scale_weights(beta1, scales)
    assert share + update + sum(others) == pytest.approx(1)
    by_scale = {own: share, **dict(zip(T.kept_scales(beta1, scales), others, strict=True))}
    if update:
        by_scale[1] = update
    assert sorted(by_scale) == sorted(scales)
    weights = [by_scale[s] for s in sorted(by_scale)]
    assert weights == pytest.approx([1 / len(scales)] * len(scales))


def test_which_scale_is_exp_avg() -> None:
    assert T.own_scale(0.8, [1, 5, 10, 25]) == 5
    assert T.own_scale(0.9, [1, 5, 10, 25]) == 10
    assert T.own_scale(0.0, [1, 5, 10, 25]) == 1
    assert T.own_beta(0.8, [1, 5]) == 0.8 and T.own_beta(0.9, [1, 10]) == 0.9  # no bit is lost
    assert T.own_beta(0.8, [1, 3, 7, 15]) == 1 - 1 / 7  # the list says the lengths
    assert T.own_beta(0.8, None) == 0.8
    assert T.kept_scales(0.8, [1, 5, 10, 25]) == (10, 25)
    assert T.kept_scales(0.8, None) == T.kept_scales(0.8, [5]) == T.kept_scales(0.8, [1, 5]) == ()


OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "belief": {"came": False},
    "unfactored": {"factored": False, "confidence_1d": True},
    "other stages": {"use_agr": True, "use_orthograd": True, "weight_decay_phase": "always"},
    "no warm-up": {"warmup_steps": 0},
    "vote": {"lr_level": "vote"},
}


@pytest.mark.parametrize("scales", [[5], None], ids=["5", "None"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
@pytest.mark.parametrize(
    ("dtype", "eight"),
    [(torch.float32, False), (torch.bfloat16, True), (torch.float64, False)],
    ids=["fp32", "bf16-8bit", "fp64"],
)
def test_one_scale_and_a_still_controller_are_the_base_class(
    scales: list[int] | None, options: dict[str, Any], dtype: torch.dtype, eight: bool
) -> None:
    """Bit for bit, state included."""
    plain, contextual_class = (
        (Automagic_CameAMP8bit, Automagic_CameAMP_COptim8bit)
        if eight
        else (Automagic_CameAMP, Automagic_CameAMP_COptim)
    )
    common = {"lr": 5e-4, "warmup_steps": 7, "weight_decay": 0.1, **options}
    common |= {"blocksize": 64} if eight else {}
    a, b = parameters(dtype), parameters(dtype)
    one = plain(a, **common)
    two = contextual_class(b, momentum_scales=scales, adaptation_rate=0.0, **common)
    train(one, a, range(1, 16))
    train(two, b, range(1, 16))
    for p in b:
        two.state.get(p, {}).pop("c_optim", None)
    for group in two.param_groups:
        del group["momentum_scales"]
    assert differences(snapshot(one), snapshot(two)) == []


@pytest.mark.parametrize("eight", [False, True])
def test_fields_are_held_like_the_momentum(eight: bool) -> None:
    params = parameters()
    cls = Automagic_CameAMP_COptim8bit if eight else Automagic_CameAMP_COptim
    optimizer = cls(params, lr=1e-4, momentum_scales=[1, 5, 10, 25], warmup_steps=4)
    train(optimizer, params, range(1, 6))
    large, small = optimizer.state[params[0]], optimizer.state[params[1]]
    for s in (10, 25):
        name = f"momentum_scale_{s}"
        assert small[name].dtype == torch.float32 and small[name].shape == params[1].shape
        if eight:
            assert large[name + "_q"].dtype == torch.uint8 == large["exp_avg_q"].dtype
            assert large[name + "_q_scale"].shape == large["exp_avg_q_scale"].shape
        else:
            assert large[name].shape == params[0].shape
    assert not {
        k
        for s in optimizer.state.values()
        for k in s
        if k.startswith(("momentum_scale_1_", "momentum_scale_5"))
    }
    assert not {"momentum_scale_1", "momentum_scale_5"} & large.keys()


def test_the_eight_bit_class_follows_its_twin() -> None:
    a, b = parameters(shapes=[(64, 96)] * 2), parameters(shapes=[(64, 96)] * 2)
    none = lambda i, t: False  # noqa: E731
    one = Automagic_CameAMP_COptim(a, lr=1e-3, warmup_steps=20)
    two = Automagic_CameAMP_COptim8bit(b, lr=1e-3, warmup_steps=20, blocksize=256)
    start = [p.detach().clone() for p in a]
    train(one, a, range(1, 61), none)
    train(two, b, range(1, 61), none)
    for p, q, s in zip(a, b, start, strict=True):
        moved = (p.detach() - s).norm()
        assert float((p - q).detach().norm() / moved) < 0.02
    assert two.c_optim.compute_contextual_lr_multiplier() == pytest.approx(
        one.c_optim.compute_contextual_lr_multiplier(), rel=0.02
    )


def test_belief_of_a_constant_gradient_starts_at_full_size() -> None:
    """came=False is bias corrected: so is the mixture."""
    moves = {}
    for name, scales in {"one": [5], "many": [1, 5, 10, 25]}.items():
        p = torch.nn.Parameter(torch.zeros(64))
        optimizer = Automagic_CameAMP_COptim(
            [p], lr=1e-3, came=False, momentum_scales=scales, use_tam=False, adaptation_rate=0.0,
            final_clip=float("inf"), use_lr_mask=False,
        )  # fmt: skip
        p.grad = torch.full_like(p, 0.3)
        optimizer.step()
        moves[name] = optimizer.state[p]["exp_avg"].clone(), p.detach().clone()
    assert torch.equal(moves["one"][0], moves["many"][0])
    # Same corrected momentum; the same variance too, because the residual sees the same mean.
    torch.testing.assert_close(moves["one"][1], moves["many"][1], rtol=1e-5, atol=0)


def test_means_are_fields_of_their_own_outside_of_the_recipe() -> None:
    fields = {name: torch.zeros(1) for name in ("step", "exp_avg", "avg_lr", "momentum_scale_10")}
    state = recipes.make_state(fields)
    assert state.scales == {"momentum_scale_10": fields["momentum_scale_10"]}
    assert {name: x for name, x in recipes.as_dict(state).items() if x is not None} == fields


@pytest.mark.parametrize("bad", [[], [0, 5], [1, 1], [2.5], "15", 5, [1, None]], ids=str)
def test_bad_scales_are_named(bad: Any) -> None:
    with pytest.raises(ValueError, match="momentum_scales"):
        Automagic_CameAMP_COptim([torch.nn.Parameter(torch.zeros(2))], momentum_scales=bad)


def test_scales_may_differ_between_groups() -> None:
    a, b = torch.nn.Parameter(torch.ones(8, 8)), torch.nn.Parameter(torch.ones(8, 8))
    optimizer = Automagic_CameAMP_COptim(
        [{"params": [a], "momentum_scales": [1, 5, 50]}, {"params": [b]}], lr=1e-3
    )
    for p in (a, b):
        p.grad = torch.randn_like(p)
    optimizer.step()
    assert "momentum_scale_50" in optimizer.state[a] and "momentum_scale_25" not in optimizer.state[a]
    assert "momentum_scale_25" in optimizer.state[b]
