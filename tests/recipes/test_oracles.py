"""With the extras off the recipe is CAME, or AdaBelief, as the papers write them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from automagic_cameamp import Automagic_CameAMP
from reference import came, drive, single
from reference.draws import normal

SHAPES = [(), (1,), (7,), (1, 9), (9, 1), (5, 7), (2, 3, 4), (3, 2, 2, 3), (4, 3, 1, 1), (2, 3, 2, 2, 2)]
BETAS = (0.8, 0.99, 0.999)


def walk(shape, optimizer, p, steps, oracle, lr, decay=0.0):
    """Both walk over the same gradients; yields (ours, theirs) after each step."""
    theirs = p.detach().double().numpy().copy()
    for t in range(steps):
        g = (0.3 * normal(shape, 1) + normal(shape, 100 + t)).to(p.dtype)
        p.grad = g
        optimizer.step()
        g64 = g.double().numpy()
        if decay:
            strength = np.array(single.adadecay(g64.ravel().tolist())).reshape(shape)
            theirs = theirs - lr * decay * strength * theirs
        theirs = theirs - lr * oracle.direction(g64)
        yield p.detach(), theirs


def worst(ours, theirs):
    return float(np.max(np.abs(ours.double().numpy() - theirs), initial=0.0))


@pytest.mark.parametrize("factored", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_came_in_fp64_over_200_steps(shape, factored):
    p = torch.nn.Parameter(normal(shape, 0))
    optimizer = Automagic_CameAMP([p], lr=1e-3, betas=BETAS, factored=factored, **drive.PLAIN)
    oracle = came.Came(shape, BETAS, factored=factored)
    for ours, theirs in walk(shape, optimizer, p, 200, oracle, 1e-3):
        assert worst(ours, theirs) < 1e-12


@pytest.mark.parametrize("shape", SHAPES)
def test_came_in_fp32_per_step(shape):
    """The displacement of every single step; parameters start each step at 0.

    Relative to its length, or to an update of unit size where opposite gradients nearly cancel.
    """
    p = torch.nn.Parameter(torch.zeros(shape))
    optimizer = Automagic_CameAMP([p], lr=1.0, max_lr=2.0, betas=BETAS, **drive.PLAIN)
    oracle = came.Came(shape, BETAS)
    for t in range(200):
        with torch.no_grad():
            p.zero_()
        p.grad = (0.3 * normal(shape, 1) + normal(shape, 100 + t)).float()
        optimizer.step()
        expected = torch.from_numpy(np.asarray(oracle.direction(p.grad.double().numpy())))
        error = float((-p.detach().double() - expected).norm())
        assert error < 1e-6 * max(float(expected.norm()), math.sqrt(p.numel())), f"step {t}"


@pytest.mark.parametrize("phase", ["always", "early"])
@pytest.mark.parametrize("shape", [(), (7,), (5, 7), (2, 3, 4), (3, 2, 2, 3)])
def test_came_with_weight_decay(shape, phase):
    """AdaDecay's strength on every element; 'early' stops after half the warm-up."""
    warmup = {"always": 0, "early": 60}[phase]
    options = {**drive.PLAIN, "weight_decay": 0.3, "weight_decay_phase": phase, "warmup_steps": warmup}
    p = torch.nn.Parameter(normal(shape, 0))
    optimizer = Automagic_CameAMP([p], lr=1e-2, max_lr=1.0, betas=BETAS, **options)
    oracle = came.Came(shape, BETAS)
    if phase == "always":
        for ours, theirs in walk(shape, optimizer, p, 100, oracle, 1e-2, 0.3):
            assert worst(ours, theirs) < 1e-12
        return
    *_, (ours, theirs) = walk(shape, optimizer, p, 29, oracle, 1e-2, 0.3)  # t = 1..29 < 60 / 2
    assert worst(ours, theirs) < 1e-12
    for t in range(29, 60):
        g = normal(shape, 900 + t)
        p.grad = g
        optimizer.step()
        theirs = theirs - 1e-2 * oracle.direction(g.numpy())
    assert worst(p.detach(), theirs) < 1e-12


def test_equal_gradients_decay_as_adamw():
    p = torch.nn.Parameter(normal((5, 7), 0))
    before = p.detach().clone()
    options = {**drive.PLAIN, "weight_decay": 0.3, "weight_decay_phase": "always"}
    optimizer = Automagic_CameAMP([p], lr=1e-2, max_lr=1.0, betas=BETAS, **options)
    p.grad = torch.full_like(p, 2.0)
    optimizer.step()
    step = torch.from_numpy(came.Came((5, 7), BETAS).direction(np.full((5, 7), 2.0)))
    torch.testing.assert_close(p.detach(), before * (1 - 1e-2 * 0.3) - 1e-2 * step, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", [(7,), (1, 9), (5, 7), (2, 3, 4)])
def test_our_reference_agrees_with_the_authors_code(shape):
    """The reference itself is held against the paper's own implementation, where it is installed."""
    authors = pytest.importorskip("came_pytorch")
    a = torch.nn.Parameter(normal(shape, 0))
    theirs = authors.CAME([a], lr=1e-3, betas=BETAS, weight_decay=0.0)
    b = a.detach().numpy().copy()
    oracle = came.Came(shape, BETAS)
    for t in range(60):
        g = normal(shape, 100 + t)
        a.grad = g.clone()
        theirs.step()
        b = b - 1e-3 * oracle.direction(g.numpy())
        # The authors keep their factors in fp32 whatever the parameter's type.
        assert worst(a.detach(), b) < 1e-5


@pytest.mark.parametrize("shape", [(), (7,), (5, 7), (2, 3, 4), (4, 3, 1, 1)])
def test_adabelief_in_fp64(shape):
    p = torch.nn.Parameter(normal(shape, 0))
    optimizer = Automagic_CameAMP([p], lr=1e-3, came=False, betas=(0.9, 0.999), **drive.PLAIN)
    oracle = came.AdaBelief(shape, 0.9, 0.999, eps=1e-16, root_eps=1e-8)
    for ours, theirs in walk(shape, optimizer, p, 200, oracle, 1e-3):
        assert worst(ours, theirs) < 1e-12


@pytest.mark.parametrize("came_on", [True, False])
@pytest.mark.parametrize("shape", [(7,), (5, 7), (2, 3, 4), (4, 2, 3, 3)])
def test_rank_one_gradients_need_no_full_moments(shape, came_on):
    """Factored equals unfactored where every square is a multiple of one rank-one matrix."""
    view = (1, 1, 7) if len(shape) == 1 else came.matrices(shape)
    a, b = normal((*view[:2], 1), 1), normal((view[0], 1, view[2]), 2)
    one, full = (torch.nn.Parameter(normal(shape, 0)) for _ in range(2))
    options = {**drive.PLAIN, "lr": 1e-2, "max_lr": 1.0, "came": came_on, "eps": (1e-38, 1e-38, 1e-8)}
    optimizers = [Automagic_CameAMP([p], factored=f, **options) for p, f in ((one, True), (full, False))]
    for t in range(50):
        g = (a * b * float(normal((), 50 + t))).reshape(shape)
        for p, optimizer in zip((one, full), optimizers, strict=True):
            p.grad = g.clone()
            optimizer.step()
    torch.testing.assert_close(one.detach(), full.detach(), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("came_on", [True, False])
@pytest.mark.parametrize("shape", [(), (6,), (3, 4), (2, 2, 3)])
def test_a_constant_gradient_never_moves_faster_than_the_final_clip(shape, came_on):
    """Without the final clip CAME's step grows without bound here (to 220 times lr, and on)."""
    p = torch.nn.Parameter(torch.zeros(shape))
    options = {**drive.PLAIN, "final_clip": 1.0, "came": came_on, "lr": 1.0, "max_lr": 2.0}
    optimizer = Automagic_CameAMP([p], **options)
    g = normal(shape, 0).float()
    fastest, last = 0.0, p.detach().clone()
    for _ in range(5000 if shape == (3, 4) else 500):
        p.grad = g
        optimizer.step()
        fastest = max(fastest, float((p.detach() - last).square().mean().sqrt()))
        last = p.detach().clone()
    assert fastest <= 1.0 + 1e-3  # fp32 positions up to 5000 carry a rounding of 2e-4
    assert fastest > 0.5


def test_without_the_final_clip_the_same_run_exceeds_it():
    p = torch.nn.Parameter(torch.zeros(3, 4))
    optimizer = Automagic_CameAMP([p], **{**drive.PLAIN, "lr": 1.0, "max_lr": 2.0})
    for _ in range(500):
        p.grad = torch.ones(3, 4)
        optimizer.step()
    assert float(p.detach().abs().max()) / 500 > 10
    assert math.isfinite(float(p.detach().abs().max()))
