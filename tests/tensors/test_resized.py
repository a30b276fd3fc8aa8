"""A parameter that changed its shape is refused by name, before anything is written."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from automagic_cameamp.optimizers import OPTIMIZERS
from tensors.runs import WAYS, build, differences, everything, step, weights

OTHERS = [
    (),
    (1,),
    (7,),
    (96,),
    (11, 8),
    (13, 8),
    (12, 7),
    (8, 12),
    (96, 1),
    (3, 4, 8),
    (12, 2, 2, 2),
    (600, 8),
]


def refused(optimizer: Any, params: list[nn.Parameter], t: int, way: str, *words: str) -> None:
    """The step raises these words and changes nothing."""
    before = everything(optimizer)
    with pytest.raises(RuntimeError) as error:
        step(optimizer, params, t, way)
    assert all(word in str(error.value) for word in words), str(error.value)
    assert differences(before, everything(optimizer)) == []


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_resized_parameter_is_refused_whole(name: str, way: str) -> None:
    for shape in ((15, 8), (10, 8), (96,)):
        params = weights()
        optimizer = build(name, params, way)
        for t in range(2):
            step(optimizer, params, t, way)
        params[2].data = torch.ones(shape)
        refused(optimizer, params, 2, way, "layer.2", "state", str(shape), "(12, 8)")
        optimizer.state.pop(params[2])  # what the message advises
        step(optimizer, params, 3, way)


@settings(max_examples=40)
@given(
    name=st.sampled_from(sorted(OPTIMIZERS)),
    way=st.sampled_from(WAYS),
    old=st.sampled_from(OTHERS),
    new=st.sampled_from(OTHERS),
    where=st.integers(0, 2),
)
def test_any_shape_after_any_other(name: str, way: str, old: Any, new: Any, where: int) -> None:
    shapes: list[Any] = [(12, 8), (10,), (12, 8)]
    shapes[where] = old
    params = weights(shapes)
    optimizer = build(name, params, way)
    step(optimizer, params, 0, way)
    params[where].data = torch.ones(new)
    if old == new:
        step(optimizer, params, 1, way)
    else:
        refused(optimizer, params, 1, way, f"layer.{where}", "state", str(tuple(new)), str(tuple(old)))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", [n for n in OPTIMIZERS if "8" in n])
def test_a_state_that_was_resized_but_for_one_plane(name: str, way: str) -> None:
    """The codes alone, or the scales of their blocks alone."""
    params = weights([(1200, 8), (10,)])
    optimizer = build(name, params, way)
    step(optimizer, params, 0, way)
    twin_params = weights([(600, 8), (10,)])
    twin = build(name, twin_params, way)
    step(twin, twin_params, 0, way)
    planes = [k for k in optimizer.state[params[0]] if k in twin.state[twin_params[0]]]
    differing = [
        k for k in planes if optimizer.state[params[0]][k].shape != twin.state[twin_params[0]][k].shape
    ]
    assert any(key.endswith("_q_scale") for key in differing)
    old = {k: optimizer.state[params[0]][k] for k in differing}
    params[0].data = params[0].data[:600].clone()
    for left in differing:
        for k in differing:
            optimizer.state[params[0]][k] = old[k] if k == left else twin.state[twin_params[0]][k].clone()
        refused(optimizer, params, 1, way, "layer.0", repr(left), "(600, 8)", str(tuple(old[left].shape)))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_pruning_recipes_that_index_the_state(name: str, way: str) -> None:
    """Everything with a row per row is indexed: it goes on where that is all, else it is refused by name."""
    params = weights([(12, 8), (10,)])
    optimizer = build(name, params, way)
    for t in range(2):
        step(optimizer, params, t, way)
    keep = torch.tensor([0, 2, 3, 7, 11])
    params[0].data = params[0].data[keep]
    state = optimizer.state[params[0]]
    for key, value in state.items():
        if key != "c_optim" and value.dim() and value.shape[0] == 12:
            state[key] = value[keep]
    before = everything(optimizer)
    try:
        step(optimizer, params, 2, way)
    except RuntimeError as error:
        assert "layer.0" in str(error) and any(repr(k) in str(error) for k in state)
        assert differences(before, everything(optimizer)) == []
    else:
        assert bool(params[0].isfinite().all())


@pytest.mark.parametrize("way", WAYS)
def test_a_gradient_of_the_old_shape(way: str) -> None:
    params = weights()
    optimizer = build("Automagic_CameAMP8bit", params, way)
    step(optimizer, params, 0, way)
    before = everything(optimizer)
    for p in params:
        p.grad = torch.ones(p.shape)
    params[2].data = torch.ones(5, 8)
    before = everything(optimizer)
    with pytest.raises(RuntimeError, match="layer.2") as error:
        if way == "release":
            optimizer.step_parameter(params[2])
        else:
            optimizer.step()
    assert "(5, 8)" in str(error.value) and "(12, 8)" in str(error.value)
    assert differences(before, everything(optimizer)) == []


def test_packed_codes_whose_planes_all_have_the_same_shape() -> None:
    """Four bits in vectors: only the statistics know that a matrix was one."""
    for old, new in (((16, 16), (256,)), ((256,), (16, 16))):
        params = weights([old])
        optimizer = build("Automagic_CameAMP_Improved_8Bit", params, profile="minimal")
        step(optimizer, params, 0, "auto")
        params[0].data = torch.ones(new)
        refused(optimizer, params, 1, "auto", "layer.0", str(new))
