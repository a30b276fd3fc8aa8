"""Updates that are kept from step to step: made once, dropped where anything else than their place is new."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from automagic_cameamp import host, release_gradients
from automagic_cameamp.executors.native import again as module
from automagic_cameamp.kernels import native
from engine.helpers import disk
from loops.helpers import NAMES, build, groups_of, loss_of, model, plain, same, twins
from offload.wild import Wild, installed

pytestmark = pytest.mark.skipif(native.why_not() is not None, reason="no kernels")
Change = Callable[[Any, Any], None]


def rate(net: Any, optimizer: Any) -> None:
    optimizer.param_groups[0]["lr"] *= 0.5


def decay(net: Any, optimizer: Any) -> None:
    optimizer.param_groups[0]["weight_decay"] = 0.3


def betas(net: Any, optimizer: Any) -> None:
    optimizer.param_groups[0]["betas"] = (0.8, 0.99, 0.999)


def clip(net: Any, optimizer: Any) -> None:
    optimizer.param_groups[0]["clip_threshold"] = 0.5


def grams(net: Any, optimizer: Any) -> None:
    optimizer.param_groups[0]["use_grams"] ^= True


def mark(net: Any, optimizer: Any) -> None:
    for p in net.parameters():
        p._is_lora_layer = True


def freeze(net: Any, optimizer: Any) -> None:
    net.layers[0].weight.requires_grad_(not net.layers[0].weight.requires_grad)


def reload(net: Any, optimizer: Any) -> None:
    optimizer.load_state_dict(disk(optimizer.state_dict()))


def copied(net: Any, optimizer: Any) -> None:
    for state in optimizer.state.values():
        for name, value in list(state.items()):
            state[name] = value.clone()


def written(net: Any, optimizer: Any) -> None:
    state = optimizer.state[net.layers[1].weight]
    if state:
        state["lr_mask_sum" if "lr_mask_sum" in state else "step"].add_(1)


def reorder(net: Any, optimizer: Any) -> None:
    optimizer.param_groups[0]["params"].reverse()


def reseed(net: Any, optimizer: Any) -> None:
    optimizer.config.seed += 1


def more(net: Any, optimizer: Any) -> None:
    own = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for name in ("early", "late"):
        if not hasattr(net, name):
            net.register_parameter(name, torch.nn.Parameter(torch.zeros(48, 48)))
        if id(getattr(net, name)) not in own:
            optimizer.add_param_group({"params": [getattr(net, name)]})
            return


def nothing(net: Any, optimizer: Any) -> None:
    return


CHANGES = [
    rate,
    decay,
    betas,
    clip,
    grams,
    mark,
    freeze,
    reload,
    copied,
    written,
    reorder,
    reseed,
    more,
    nothing,
]


def run(name: str, changes: list[Change], **options: Any) -> None:
    """A plain run and an offloaded one, with the same changes between their steps."""
    (net, optimizer), (other, far) = twins(name, where="cpu", **options)
    with release_gradients(other, far):
        for t, change in enumerate([nothing, nothing, *changes, nothing], 1):
            for m, o in ((net, optimizer), (other, far)):
                if change is not reload or o is far:  # a plain run that goes on is what a reloaded one equals
                    change(m, o)
            plain(net, optimizer, range(t, t + 1))
            loss_of(other, t).backward()
            far.step()
            found = same(optimizer, far)
            assert [line for line in found if not line.startswith("health")] == [], change


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_whatever_changes_between_steps_it_is_the_plain_step(change: Change, wild: Wild) -> None:
    run("Automagic_CameAMP_COptim8bit", [change, nothing, change], dtype=torch.bfloat16)


@settings(max_examples=15, deadline=None)
@given(
    name=st.sampled_from(NAMES),
    changes=st.lists(st.sampled_from(CHANGES), min_size=2, max_size=6),
    large=st.sampled_from([1, 1000]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_changes_in_any_order(name: str, changes: list[Change], large: int, dtype: torch.dtype) -> None:
    assume(mark not in changes or "Improved" not in name and "8Bit" not in name)  # needs another state there
    with pytest.MonkeyPatch.context() as patch:
        installed(patch)
        patch.setattr(host, "LARGE", large)
        run(name, changes, dtype=dtype)


def test_what_is_large_is_looked_at_once(wild: Wild, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables of the kernels are made at the first step, and at the one after a change."""
    made: list[int] = []
    usual = module.Again.__init__

    def counted(self: Any, work: Any) -> None:
        made.append(work.chunk.layout.numel)
        usual(self, work)

    monkeypatch.setattr(module.Again, "__init__", counted)
    net = model()
    far = build("Automagic_CameAMP8bit", groups_of(net), offload="cpu")
    counts = []
    with release_gradients(net, far):
        for t in range(1, 7):
            if t == 3:
                rate(net, far)  # is read at every step
            if t == 5:
                clip(net, far)
            loss_of(net, t).backward()
            far.step()
            counts.append(len(made))
    assert counts == [3, 3, 3, 3, 6, 6] and set(made) == {48 * 48}


def test_who_searches_for_directions_is_looked_at_anew(wild: Wild) -> None:
    options = {"rank_keep": 2, "rank_penalty_strength": 1.0}  # every third step
    (net, optimizer), (other, far) = twins("Automagic_CameAMP_Improved", where="cpu", **options)
    mark(net, optimizer)
    mark(other, far)
    with release_gradients(other, far):
        for t in range(1, 9):
            plain(net, optimizer, range(t, t + 1))
            loss_of(other, t).backward()
            far.step()
            assert same(optimizer, far) == []
    assert any("lowrank_rate" in state for state in far.state.values())


def test_no_gradient_lives_on(wild: Wild) -> None:
    net = model()
    far = build("Automagic_CameAMP", groups_of(net), offload="cpu")
    with release_gradients(net, far):
        for t in (1, 2):
            loss_of(net, t).backward()
            far.step()
    kept = [thing for thing in gc.get_objects() if type(thing) is module.Again]
    assert kept and all(again._gradient.tensors == () for again in kept)


def test_a_gradient_that_is_not_finite_is_no_update(wild: Wild) -> None:
    (net, optimizer), (other, far) = twins("Automagic_CameAMP8bit", where="cpu")
    with release_gradients(other, far):
        for t in range(1, 5):
            for m in (net, other):
                hook = m.layers[1].weight.register_hook(lambda g, t=t: g * (float("nan") if t == 3 else 1.0))
                loss_of(m, t).backward()
                hook.remove()
            optimizer.step()
            optimizer.zero_grad()
            far.step()
            assert same(optimizer, far) == []
    assert sum(far.health()["parameters"].values()) == 1
