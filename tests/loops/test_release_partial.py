"""Gradient release where a backward pass reaches some parameters only: experts, adapters in turn."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from automagic_cameamp import release_gradients
from counts.helpers import ENGINES
from engine.helpers import draw
from loops.helpers import NAMES, build, loss_of, model, same, told
from rotated import rotated

EXPERTS = 4
# Per backward pass: the experts that it reaches, and whether it reaches what all of them share.
passes = st.tuples(st.sets(st.integers(0, EXPERTS - 1), max_size=3), st.booleans())


class Experts(nn.Module):
    """Matrices with directions beyond the kept ones, of which a pass uses some."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Linear(9, 14)
        self.experts = nn.ModuleList([nn.Linear(14, 12) for _ in range(EXPERTS)])
        with torch.no_grad():
            for i, p in enumerate(self.parameters()):
                p.copy_(0.3 * draw(4, i, shape=tuple(p.shape)))

    def forward(self, step: int, chosen: set[int], shared: bool) -> Tensor:
        x = torch.tanh(draw(5, step, shape=(6, 14)))
        if shared:
            x = x + torch.tanh(self.shared(draw(6, step, shape=(6, 9))))
        parts = [self.experts[i](x).square().mean() for i in sorted(chosen)]
        return sum(parts, x.sum() * 0 if shared else torch.zeros((), requires_grad=True))


def pair(name: str, engine: str) -> list[tuple[Experts, Any]]:
    own = {"rank_keep": 3} if "Improved" in name or name.endswith("_8Bit") else {}
    return [(net, build(name, net.parameters(), engine=engine, **own)) for net in (Experts(), Experts())]


NO_SHRINKING = (Phase.explicit, Phase.generate)
PROGRAM = [({t % 4}, t % 3 == 0) for t in range(16)]
LATE = [({0}, False)] * 5 + [({0, 1}, True)] * 3 + [({2}, False)] * 2


@rotated("engine, accumulation, name", ENGINES, [1, 2], NAMES)
@settings(max_examples=3, phases=NO_SHRINKING)
@example(PROGRAM)
@example(LATE)
@given(st.lists(passes, min_size=4, max_size=14))
def test_equals_the_plain_step(
    name: str, accumulation: int, engine: str, program: list[tuple[set[int], bool]]
) -> None:
    (net, plain), (other, released) = pair(name, engine)
    with release_gradients(other, released, accumulation=accumulation):
        for start in range(0, len(program), accumulation):
            for model, optimizer in ((net, plain), (other, released)):
                for step, (chosen, shared) in enumerate(program[start : start + accumulation], start):
                    model(step, chosen, shared).backward()
                optimizer.step(loss=told(name, start))
                optimizer.zero_grad()
            assert same(plain, released) == [], start


@pytest.mark.parametrize("engine", ENGINES)
@settings(max_examples=5, phases=NO_SHRINKING)
@example(PROGRAM)
@example(LATE)
@given(st.lists(passes, min_size=4, max_size=14))
def test_hooks_of_a_trainer(engine: str, program: list[tuple[set[int], bool]]) -> None:
    """``step_parameter`` by hand, and plain steps between."""
    (net, plain), (other, released) = pair("Automagic_CameAMP_Improved", engine)
    for step, (chosen, shared) in enumerate(program):
        net(step, chosen, shared).backward()
        plain.step()
        plain.zero_grad()
        other(step, chosen, shared).backward()
        if step % 3:
            for p in reversed(list(other.parameters())):
                released.step_parameter(p)
                p.grad = None
        released.step()
        released.zero_grad()
        assert same(plain, released) == [], step


ALONE: dict[str, dict[str, Any]] = {
    "COptim": {"adaptation_rate": 0.0},
    "CameAMP_8Bit": {"edge_suppression": False},
    "Improved_8Bit": {"optim_bits": 32},
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", NAMES)
def test_an_optimizer_for_each_parameter(name: str, engine: str) -> None:
    """docs/training.md, end of gradient release: equal where it says so, and not without its conditions."""
    own = {k: v for part, given in ALONE.items() if part in name for k, v in given.items()}
    conditions = {"lr_mask_rule": "none", **own}
    for left_out in (None, *conditions):
        options = {k: v for k, v in conditions.items() if k != left_out}
        net, other = model(), model()
        whole = build(name, net.parameters(), engine=engine, **options)
        each = {p: build(name, [p], engine=engine, **options) for p in other.parameters()}

        def arrived(p: Tensor, each: dict[Tensor, Any] = each) -> None:
            each[p].step()
            each[p].zero_grad()

        for p in each:
            p.register_post_accumulate_grad_hook(arrived)
        for t in range(7):
            loss_of(net, t).backward()
            whole.step()
            whole.zero_grad()
            loss_of(other, t).backward()
        alike = all(map(torch.equal, net.parameters(), other.parameters()))
        assert alike == (left_out is None), left_out
