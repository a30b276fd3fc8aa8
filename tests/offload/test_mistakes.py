"""What programs get wrong: passes that raise, zero_grad in odd places, states in the middle, two at once."""

from __future__ import annotations

import copy
import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from automagic_cameamp import release_gradients
from automagic_cameamp.training import offload, ring
from loops.helpers import build, groups_of, loss_of, model, plain, same, twins
from offload.wild import Wild

WHERE = pytest.mark.parametrize("where", ["none", "cpu"])


class Breaks(torch.autograd.Function):
    """The identity; its backward fails."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:  # type: ignore[override]
        raise MemoryError("no room on the device")


def half_a_pass(net: Any, step: int) -> None:
    """Backward up to the layers, whose own gradients never come."""
    hook = net.layers[1].register_forward_pre_hook(lambda module, inputs: Breaks.apply(*inputs))
    with pytest.raises(MemoryError):
        loss_of(net, step).backward()
    hook.remove()


@pytest.mark.parametrize("then", ["zero_grad", "step", "remove", "state_dict"])
def test_after_a_pass_that_raised_all_weights_are_back(
    then: str, wild: Wild, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody waits at the end of such a pass; whoever comes next does."""
    (net, optimizer), (other, far) = twins("Automagic_CameAMP8bit", where="cpu")
    gate, put = threading.Event(), wild.put

    def held(source: Tensor, target: Tensor) -> Any:
        gate.wait()
        return put(source, target)

    monkeypatch.setattr(wild, "put", held)
    handles = [release_gradients(m, o, unscaled=True) for m, o in ((net, optimizer), (other, far))]
    half_a_pass(net, 1)
    half_a_pass(other, 1)
    assert not gate.is_set()
    threading.Timer(0.2, gate.set).start()
    if then == "state_dict":
        with pytest.raises(RuntimeError, match="in the middle of a step"):
            far.state_dict()
    else:
        {"zero_grad": far.zero_grad, "step": far.step, "remove": handles[1].remove}[then]()
    assert gate.is_set() and not wild.pending
    # What came before it raised is updated, the rest is not; the next step is an ordinary one.
    assert all(map(torch.equal, net.parameters(), other.parameters()))
    assert far.state[other.head.weight] and not far.state[other.embed.weight]
    optimizer.step()
    if then != "step":
        far.step()
    for m, o, handle in zip((net, other), (optimizer, far), handles, strict=True):
        handle.remove()
        plain(m, o, range(2, 3))
    assert same(optimizer, far) == []


def test_a_pass_that_raised_is_half_a_step_as_without_offload(wild: Wild) -> None:
    runs = twins("Automagic_CameAMP_COptim", where="cpu")
    handles = [release_gradients(net, optimizer) for net, optimizer in runs]
    for (net, optimizer), _ in zip(runs, handles, strict=True):
        half_a_pass(net, 1)
        net.zero_grad()
        optimizer.zero_grad()
        with pytest.raises(RuntimeError, match=r"has a gradient for the 2\. time .*call step\(\)"):
            loss_of(net, 2).backward()
        optimizer.step()
        optimizer.zero_grad()
        for t in (3, 4):
            loss_of(net, t).backward()
            optimizer.step()
            optimizer.zero_grad()
    assert same(runs[0][1], runs[1][1]) == []


@pytest.mark.parametrize("begins_anew", [True, False])
@WHERE
def test_zero_grad_among_passes(begins_anew: bool, where: str, wild: Wild) -> None:
    """A batch that is dropped: whether passes are counted from there or go on, the sum is the plain one."""
    (net, optimizer), (other, far) = twins("Automagic_CameAMP8bit", where=where)
    with release_gradients(other, far, accumulation=3):
        for t in range(1, 4):
            for m, o in ((net, optimizer), (other, far)):
                loss_of(m, t, 0).backward()
                if t == 2:
                    o.zero_grad()
                for micro in range(1, 4 if begins_anew and t == 2 else 3):
                    loss_of(m, t, micro).backward()
                o.step()
                o.zero_grad()
            assert same(optimizer, far) == []


@WHERE
def test_zero_grad_after_the_pass_does_not_allow_another(where: str, wild: Wild) -> None:
    """Its weights are updated: what a second pass would bring is a second step."""
    _, (net, far) = twins("Automagic_CameAMP", where=where)
    with release_gradients(net, far):
        loss_of(net, 1).backward()
        far.zero_grad()
        with pytest.raises(RuntimeError, match=r"for the 2\. time"):
            loss_of(net, 2).backward()


@WHERE
def test_step_without_a_pass_and_twice(where: str, wild: Wild) -> None:
    (net, optimizer), (other, far) = twins("Automagic_CameAMP", where=where)
    with release_gradients(other, far):
        far.step()
        optimizer.step()
        for t in (1, 2):
            plain(net, optimizer, range(t, t + 1))
            loss_of(other, t).backward()
            far.step()
        optimizer.step()
        far.step()
    assert same(optimizer, far) == []


def test_copies_and_states_in_the_middle_are_refused(wild: Wild) -> None:
    net = model()
    far = build("Automagic_CameAMP_COptim8bit", groups_of(net), offload="cpu")
    seen: list[str] = []

    def look(p: Any) -> None:
        for ask in (
            far.state_dict,
            lambda: copy.deepcopy(far),
            lambda: far.add_param_group({"params": [more]}),
        ):
            with pytest.raises(RuntimeError, match="in the middle of a step"):
                ask()
            seen.append("refused")

    more = nn.Parameter(torch.ones(3))
    with release_gradients(net, far):
        net.layers[0].weight.register_post_accumulate_grad_hook(look)
        loss_of(net, 1).backward()
        far.step()
    assert len(seen) == 3
    far.add_param_group({"params": [more]})
    copy.deepcopy(far)


def test_a_state_loaded_in_the_middle_takes_the_place_of_the_half_step(wild: Wild) -> None:
    (net, optimizer), (other, far) = twins("Automagic_CameAMP8bit", where="cpu")
    start = copy.deepcopy([p.detach() for p in other.parameters()])
    saved = far.state_dict()
    with release_gradients(other, far):
        loss_of(other, 1).backward()
        far.load_state_dict(saved)
        with torch.no_grad():
            for p, old in zip(other.parameters(), start, strict=True):
                p.copy_(old)
        for t in (1, 2):
            plain(net, optimizer, range(t, t + 1))
            loss_of(other, t).backward()
            far.step()
    found = [line for line in same(optimizer, far) if not line.startswith("health")]
    assert found == []


def test_two_optimizers_on_one_model_and_a_third_beside(wild: Wild) -> None:
    """Each takes what it holds; one ring serves all, also for a model that is trained in between."""
    names = ("Automagic_CameAMP8bit", "Automagic_CameAMP_COptim")
    runs = []
    for where in ("none", "cpu"):
        net, third = model(), model()
        params = list(net.parameters())
        own = [build(names[i], params[i::2], offload=where) for i in (0, 1)]
        own.append(build(names[0], third.parameters(), offload=where))
        handles = [release_gradients(m, o) for m, o in zip((net, net, third), own, strict=True)]
        for t in (1, 2, 3):
            (loss_of(net, t) + loss_of(third, t + 5)).backward()  # all in one pass
            for optimizer in own:
                optimizer.step()
        runs.append((own, handles))
    for a, b in zip(runs[0][0], runs[1][0], strict=True):
        assert same(a, b) == []


def test_an_optimizer_that_goes_away_in_the_middle_leaves_the_ring_to_others(wild: Wild) -> None:
    net = model()
    far = build("Automagic_CameAMP", groups_of(net), offload="cpu")
    handle = release_gradients(net, far)
    half_a_pass(net, 1)
    handle.remove()
    del far, handle
    (plainly, optimizer), (other, again) = twins("Automagic_CameAMP", where="cpu")
    with release_gradients(other, again):
        for t in (1, 2):
            plain(plainly, optimizer, range(t, t + 1))
            loss_of(other, t).backward()
            again.step()
    assert same(optimizer, again) == []


class Late(offload.Clones):
    """The call of one copy raises; what it had begun happens when all are waited for, or after two others."""

    def __init__(self, raises: int) -> None:
        self.left = raises
        self.begun: tuple[Tensor, Tensor] | None = None

    def fetch(self, source: Tensor, target: Tensor) -> None:
        self.left -= 1
        if self.left == 0:
            self.begun = (source, target)
            raise KeyboardInterrupt
        target.copy_(source)
        if self.left <= -2:
            self.wait()

    def wait(self) -> None:
        if self.begun is not None:
            source, target = self.begun
            target.copy_(source)
            self.begun = None


@pytest.mark.parametrize("raises", [3, 5, 6])
def test_what_an_interrupted_load_has_begun_does_not_write_into_the_next(
    raises: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = Late(raises)
    monkeypatch.setattr(offload, "transfer_for", lambda _: device)
    monkeypatch.setattr(ring, "_SHARED", [])
    (net, optimizer), (other, far) = twins("Automagic_CameAMP", where="cpu")
    with release_gradients(other, far, unscaled=True):
        with pytest.raises(KeyboardInterrupt):
            loss_of(other, 1).backward()
        far.zero_grad()
        far.step()
        loss_of(net, 1).backward()
        for p, q in zip(net.parameters(), other.parameters(), strict=True):
            p.grad = p.grad if far.state[q] else None  # what had been sent before is updated
        optimizer.step()
        optimizer.zero_grad()
        assert same(optimizer, far) == []
        plain(net, optimizer, range(2, 3))
        loss_of(other, 2).backward()
        far.step()
    assert same(optimizer, far) == []
