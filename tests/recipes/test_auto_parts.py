"""The automatic level where a step updates only a part of the parameters: dropped layers, experts, turns."""

from __future__ import annotations

import pytest
import torch

from automagic_cameamp import Automagic_CameAMP8bit
from automagic_cameamp.recipes import _level
from reference.draws import normal


@pytest.mark.parametrize("engine", ["reference", "native"])
def test_who_had_no_gradient_when_the_weights_were_remembered_does_so_later(engine):
    """A layer that is dropped in that one step kept its first weights for the rest of the run."""
    params = [torch.nn.Parameter(normal((20, 30), i).float()) for i in range(3)]
    optimizer = Automagic_CameAMP8bit(params, engine=engine)
    sets = 0
    for t in range(250):
        old = {p: optimizer.state[p]["auto_anchor"].clone() for p in params if optimizer.state[p]}
        since = {p: float(optimizer.state[p]["auto_level"].flatten()[_level.SINCE]) for p in old}
        weights = [p.detach().clone() for p in params]
        for i, p in enumerate(params):
            p.grad = None if (t + i) % 3 == 0 else p.detach() + normal((20, 30), 100 + t).float()
        optimizer.step()
        for p, was in zip(params, weights, strict=True):
            if p.grad is None or p not in old:
                continue
            state = optimizer.state[p]
            now = float(state["auto_level"].flatten()[_level.SINCE])
            columns = state["auto_anchor"].shape[-1]
            wanted = was[:, :columns] if now > 0 and now != since[p] else old[p].view(-1, columns)
            assert torch.equal(state["auto_anchor"].view(-1, columns), wanted)
            sets += now > 0 and now != since[p]
    assert sets >= 6


@pytest.mark.parametrize("engine", ["reference", "native"])
@pytest.mark.parametrize("none", [True, False])
@pytest.mark.parametrize("keep", [0.7, 0.4, 0.2])
def test_layers_that_are_dropped_at_random_find_a_rate_that_trains(keep, none, engine):
    """Each saw a growth of 1.2 per step of the others between two of its own: ten times too high."""
    torch.manual_seed(0)
    layers = torch.nn.ModuleList([torch.nn.Linear(32, 32) for _ in range(6)])
    optimizer = Automagic_CameAMP8bit(layers.parameters(), engine=engine)
    losses = []
    for p in layers.parameters() if not none else ():
        p.grad = torch.zeros_like(p)
    for t in range(200):
        drawn = (torch.rand(6, generator=torch.Generator().manual_seed(t)) < keep).tolist()
        x = wanted = normal((32, 32), t).float()
        for layer in [m for m, on in zip(layers, drawn, strict=True) if on] or layers[:1]:
            x = x + torch.tanh(layer(x))
        loss = (x - wanted.roll(1, 1)).square().mean()
        optimizer.zero_grad(set_to_none=none)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-20:]) / 20 < 0.85
    assert 1e-3 < optimizer.get_avg_learning_rate() < 4e-2


@pytest.mark.parametrize("engine", ["reference", "native"])
def test_a_group_of_rate_zero_that_alone_is_found_stands_still(engine):
    rates = []
    still, other = (torch.nn.Parameter(normal((20, 30), i).float()) for i in range(2))
    optimizer = Automagic_CameAMP8bit([other], lr=1e-3, engine=engine)
    optimizer.add_param_group({"params": [still], "lr": 0.0, "lr_level": "auto"})
    before = still.detach().clone()
    for t in range(12):
        for p in (still, other):
            p.grad = p.detach() + normal((20, 30), t).float()
        optimizer.step()
        rates.append(optimizer.get_learning_rates()[1])
    assert torch.equal(still.detach(), before) and not any(rates)
