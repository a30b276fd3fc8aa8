"""The two classes: names, options, and the controller in the loop."""

from __future__ import annotations

import inspect
import math
from typing import Any

import pytest
import torch
from torch import Tensor

import automagic_cameamp
from automagic_cameamp import OPTIMIZERS, Automagic_CameAMP_COptim, ContextualConfig, ContextualConfig8bit
from automagic_cameamp.state import fits, kinds
from contextual.helpers import CLASSES, build, go
from engine.helpers import differences, draw, give_gradients, parameters, snapshot

# ------------------------------------------------------------------ names and options


def test_names_defaults_and_round_trip() -> None:
    for cls, config in zip(CLASSES, (ContextualConfig, ContextualConfig8bit), strict=True):
        assert OPTIMIZERS[cls.__name__] is cls is getattr(automagic_cameamp, cls.__name__)
        optimizer = cls([torch.nn.Parameter(torch.zeros(2))])
        assert type(optimizer.config) is config
        expected = {
            "context_window": 100, "edge_threshold": 0.95, "adaptation_rate": 0.1,
            "momentum_scales": [1, 5, 10, 25], "context_lr_bounds": (0.5, 2.0),
        }  # fmt: skip
        parameters_ = inspect.signature(cls).parameters
        for name, value in expected.items():
            assert getattr(optimizer.config, name) == value == parameters_[name].default
        again = cls([torch.nn.Parameter(torch.zeros(2))], **optimizer.config.__dict__)
        assert again.config == optimizer.config
    assert inspect.signature(CLASSES[1]).parameters["blocksize"].default == 4096


def test_the_documents_threshold_is_an_own_word_by_an_older_name() -> None:
    """``edge_threshold`` is also how sharp an edge of a picture is, in the improved classes."""
    p = [torch.nn.Parameter(torch.zeros(2))]
    by_document = Automagic_CameAMP_COptim(p, edge_threshold=0.9)
    assert by_document.config == Automagic_CameAMP_COptim(p, edge_case_threshold=0.9).config
    assert by_document.c_optim.edge_threshold == by_document.config.edge_threshold == 0.9
    by_document.config.edge_threshold = 0.8
    assert by_document.config.edge_case_threshold == 0.8
    assert ContextualConfig(edge_threshold=0.8).edge_threshold == 0.8
    with pytest.raises(TypeError, match="both say the same"):
        Automagic_CameAMP_COptim(p, edge_threshold=0.9, edge_case_threshold=0.9)
    old = ContextualConfig()
    state = {**vars(old), "edge_threshold": 0.7}  # as pickled before the option had a name of its own
    del state["edge_case_threshold"]
    old.__setstate__(state)
    assert old.edge_case_threshold == 0.7 and "edge_threshold" not in vars(old)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("context_window", 1), ("context_window", 2.5), ("edge_threshold", 0), ("edge_threshold", 1.0),
        ("adaptation_rate", -0.1), ("adaptation_rate", 1.5), ("context_lr_bounds", (1.1, 2)),
        ("context_lr_bounds", (0.0, 2)), ("context_lr_bounds", (0.5, 0.9)), ("context_lr_bounds", 2.0),
    ],
)  # fmt: skip
def test_bad_values_are_named(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=name):
        Automagic_CameAMP_COptim([torch.nn.Parameter(torch.zeros(2))], **{name: value})


OTHERS = {"context_window": 7, "edge_case_threshold": 0.8, "adaptation_rate": 0.3}
OTHERS["context_lr_bounds"] = (0.6, 4.0)


@pytest.mark.parametrize("name", ContextualConfig.CONTROLLER_OPTIONS)
def test_there_is_one_controller_not_one_per_group(name: str) -> None:
    """A group may repeat what the optimizer has, as ZeroRedundancyOptimizer lets it; nothing else."""
    p = torch.nn.Parameter(torch.zeros(2))
    with pytest.raises(ValueError, match=name):
        Automagic_CameAMP_COptim([{"params": [p], name: OTHERS[name]}])
    assert name not in Automagic_CameAMP_COptim([p]).param_groups[0]


def test_options_reach_the_controller() -> None:
    values = {
        "context_window": 7,
        "edge_threshold": 0.8,
        "adaptation_rate": 0.3,
        "context_lr_bounds": (0.6, 4.0),
    }
    c = Automagic_CameAMP_COptim([torch.nn.Parameter(torch.zeros(2))], **values).c_optim  # type: ignore[arg-type]
    assert {name: getattr(c, name) for name in values} == values


# ------------------------------------------------------------------ in the loop


def bare(p: Tensor, **options: Any) -> Any:
    """Rates without mask and row gain: what is applied is lr x M."""
    return Automagic_CameAMP_COptim(
        [p], **{"lr": 1e-4, "use_lr_mask": False, "full_finetune": True, **options}
    )


def test_every_rate_is_multiplied_one_step_late() -> None:
    p = torch.nn.Parameter(torch.randn(12, 9))
    optimizer = bare(p)
    g = torch.randn_like(p)
    for _ in range(30):
        expected = 1e-4 * optimizer.c_optim.compute_contextual_lr_multiplier()
        p.grad = g + 0.3 * torch.randn_like(p)
        optimizer.step()
        assert optimizer.get_avg_learning_rate() == pytest.approx(expected, rel=1e-5)
    assert optimizer.c_optim.compute_contextual_lr_multiplier() > 1.3
    assert optimizer.param_groups[0]["lr"] == 1e-4
    assert optimizer.c_optim.lr_history == pytest.approx([1e-4] * 30)


def test_m_respects_max_lr() -> None:
    p = torch.nn.Parameter(torch.randn(12, 9))
    optimizer = bare(p, max_lr=1.2e-4)
    for _ in range(40):
        p.grad = torch.ones_like(p)
        optimizer.step()
    assert optimizer.c_optim.compute_contextual_lr_multiplier() > 1.9
    assert optimizer.get_avg_learning_rate() == pytest.approx(1.2e-4)


def test_overshoot_slows_a_quadratic_down_and_descent_speeds_it_up() -> None:
    found = {}
    for lr in (1e-4, 0.5):
        p = torch.nn.Parameter(draw(1, shape=(20, 30)))
        target = p.detach() + 0.5
        optimizer = Automagic_CameAMP_COptim([p], lr=lr, max_lr=1.0, warmup_steps=0, full_finetune=True)
        for _ in range(60):
            optimizer.zero_grad()
            loss = (p - target).square().mean()
            loss.backward()
            optimizer.step(loss=loss)
        found[lr] = optimizer.c_optim.compute_contextual_lr_multiplier()
    assert found[1e-4] > 1.5
    assert found[0.5] < 0.75


def losses_of(how: str) -> list[float]:
    p = torch.nn.Parameter(torch.ones(3))
    optimizer = bare(p)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = p.square().sum()
        loss.backward()
        return loss

    for _ in range(3):
        if how == "closure":
            assert optimizer.step(closure).requires_grad
            continue
        loss = closure()
        if how == "keyword":
            assert optimizer.step(loss=loss) is loss
        elif how == "number":
            optimizer.step(loss=loss.item())
        else:
            (optimizer if how == "optimizer" else optimizer.c_optim).record_loss(loss)
            assert optimizer.step() is None
    return optimizer.c_optim.loss_history


def test_all_ways_to_tell_the_loss_are_the_same() -> None:
    expected = losses_of("closure")
    assert len(expected) == 3 and expected[0] == 3.0
    for how in ("keyword", "number", "optimizer", "controller"):
        assert losses_of(how) == expected


def test_without_losses_the_trend_is_neutral() -> None:
    params = parameters()
    optimizer = build(CLASSES[0], params)
    go(optimizer, params, range(1, 15), losses=False)
    c = optimizer.c_optim
    assert c.loss_history == [] and c.convergence_rate == 0.0 and c.compute_loss_stability() == 1.0
    assert c.compute_gradient_consistency() > 0  # the gradients of the helper have a mean


def test_a_wrong_loss_changes_nothing() -> None:
    params = parameters()
    optimizer = build(CLASSES[0], params)
    go(optimizer, params, range(1, 3))
    before, memory = snapshot(optimizer), optimizer.c_optim.memory
    give_gradients(params, 3)
    with pytest.raises(ValueError, match="loss"):
        optimizer.step(loss=torch.ones(3))
    assert differences(before, snapshot(optimizer)) == [] and optimizer.c_optim.memory is memory


def test_bad_gradients_are_edge_cases() -> None:
    params = parameters()
    optimizer = build(CLASSES[0], params)
    go(optimizer, params, range(1, 15))
    kappa, edges = optimizer.c_optim.compute_gradient_consistency(), optimizer.c_optim.edge_case_count
    give_gradients(params, 15)
    assert params[0].grad is not None
    params[0].grad[0, 0] = math.inf
    optimizer.step()
    assert optimizer.c_optim.detect_edge_case() and optimizer.c_optim.edge_case_count == edges + 1
    assert optimizer.c_optim.compute_gradient_consistency() == kappa
    assert bool(optimizer.c_optim.memory.isfinite().all())


def test_missing_gradients_do_not_look_like_a_turn() -> None:
    """A stack of five; every other step two of them rest. The others keep their buckets."""
    params = [torch.nn.Parameter(draw(3, i, shape=(30, 40))) for i in range(5)]
    optimizer = build(CLASSES[0], params)
    means = [draw(4, i, shape=(30, 40)) for i in range(5)]
    for t in range(40):
        for i, p in enumerate(params):
            p.grad = None if t % 2 and i in (0, 3) else means[i].clone()
        optimizer.step()
    # three fifths of the elements are seen twice in a row: cos = 3 / sqrt(5 * 3)
    assert optimizer.c_optim.compute_gradient_consistency() == pytest.approx(3 / math.sqrt(15), abs=0.02)


def test_sketch_of_the_loop_is_the_cosine_of_the_updates() -> None:
    """Against vectors that are put together by hand: constant size, so u is g up to a factor."""
    shapes = [(40, 32), (8,), (40, 32), (3, 5, 7), (4, 3, 3, 3), (), (90, 70)]
    params = [torch.nn.Parameter(draw(7, i, shape=s)) for i, s in enumerate(shapes)]
    optimizer = build(CLASSES[0], params, betas=(0.8, 0.0, 0.999), factored=False, adaptation_rate=1.0)
    last = None
    for t in range(1, 6):
        signs = [torch.sign(draw(1, i, shape=s) + 0.7 * draw(2, i, t, shape=s)) for i, s in enumerate(shapes)]
        for p, s in zip(params, signs, strict=True):
            p.grad = s.clone()
        optimizer.step()
        now = torch.cat([s.flatten() for s in signs])
        if last is not None:
            exact = float(now @ last / now.numel())
            assert optimizer.c_optim.compute_gradient_consistency() == pytest.approx(exact, abs=0.05)
        last = now


def test_a_step_reads_nothing_back_from_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """A meta tensor has no values: whoever asks for one raises. (Such weights are refused otherwise.)"""
    monkeypatch.setattr(kinds, "before_step", lambda *args, **options: None)
    monkeypatch.setattr(fits, "check", lambda *args, **options: None)
    for cls in CLASSES:
        params = [
            torch.nn.Parameter(torch.empty(s, device="meta")) for s in [(40, 32), (8,), (3, 5, 7), (40, 32)]
        ]
        optimizer = cls(params, lr=1e-4)
        for t in range(4):
            for i, p in enumerate(params):
                p.grad = None if t == 2 and i == 0 else torch.empty_like(p)
            optimizer.step(loss=1.0)
        with pytest.raises((RuntimeError, NotImplementedError)):
            float(optimizer.c_optim.memory[0])
