"""Traced, an update is one graph per phase, and no schedule makes it a second one."""

from __future__ import annotations

import pytest
import torch

from automagic_cameamp import techniques as T
from automagic_cameamp.recipes import base
from automagic_cameamp.schedule import phase_of
from automagic_cameamp.types import Layout, Phase
from reference import drive
from reference.draws import stack

WAYS = [
    "default",
    "plain",
    "adabelief",
    "unfactored",
    "agr and orthograd",
    "additive mask",
    "mask per row",
    "mask per group",
    "distance",
    "vote",
]


class Counter:
    """A backend that runs what it is given and counts the graphs."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph, inputs):
        self.graphs += 1
        return graph.forward


def sixty_steps(way, phase=None, warmup=40):
    """Traced and eager side by side, lr moving every step as a 0-D tensor; returns the graph count."""
    torch._dynamo.reset()
    counter = Counter()
    traced = torch.compile(base.update, fullgraph=True, backend=counter, dynamic=False)
    layout = Layout.of((5, 7))
    p = stack((5, 7), 0, 2, 0.1, torch.float32)
    options = {**drive.WAYS[way], "warmup_steps": warmup}
    hp = drive.hyper(layout, **options)
    state, q = drive.fresh(p, hp, layout), p
    other = state
    for t, g in enumerate(drive.gradients((5, 7), 60, batch=2), start=1):
        now = phase_of(t, warmup) if phase is None else phase
        moving = hp._replace(lr=torch.tensor(1e-3 * (1 - t / 61)))
        shared = drive.shared(hp, t)
        a = traced(p, g, state, shared, moving, now, layout)
        b = T.alone(base.update(q, g, other, shared, moving, now, layout))
        p, state, q, other = a.p, a.state, b.p, b.state
        for name, x in drive.flatten(b).items():
            assert torch.equal(drive.flatten(a)[name], x), f"{name} at t={t}"
    return counter.graphs


@pytest.mark.parametrize("way", WAYS)
def test_one_graph_per_phase(way):
    # Without a mask, torque and decay nothing depends on the phase, so there is only one.
    assert sixty_steps(way) == (1 if way == "plain" else 3)


@pytest.mark.parametrize("way", ["default", "distance"])
def test_one_graph_in_all_where_the_phase_is_left_to_the_device(way):
    assert sixty_steps(way, Phase.MIXED) == 1
