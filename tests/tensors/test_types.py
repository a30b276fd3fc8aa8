"""A parameter that changed its type is carried over exactly; state that was cast is refused."""

from __future__ import annotations

import warnings
from copy import deepcopy

import pytest
import torch
from torch import nn

from automagic_cameamp.optimizers import OPTIMIZERS
from tensors.runs import WAYS, build, differences, everything, step, weights

CASTS = [
    (torch.float32, torch.float64),
    (torch.float64, torch.float32),
    (torch.float32, torch.bfloat16),
    (torch.float32, torch.float16),
    (torch.bfloat16, torch.float64),
    (torch.bfloat16, torch.float16),
]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_model_of_another_type_goes_on_as_one_that_was_loaded(name: str, way: str) -> None:
    """Bit for bit the run that saved, made a model of the new type and loaded; and so after a resume."""
    for old, new in CASTS:
        params = weights(dtype=old)
        optimizer = build(name, params, way)
        for t in range(2):
            step(optimizer, params, t, way)
        saved = deepcopy(optimizer.state_dict())
        others = [nn.Parameter(p.detach().to(new)) for p in params]
        loaded = build(name, others, way)
        loaded.load_state_dict(saved)
        for p in params:
            p.data = p.data.to(new)
        words = f"layer.0 and 2 more changed its type in mid-run, from {old} to {new}"
        with pytest.warns(UserWarning, match=words):
            step(optimizer, params, 2, way)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            step(loaded, others, 2, way)
            step(optimizer, params, 3, way)  # said once
            step(loaded, others, 3, way)
        assert differences(everything(optimizer), everything(loaded)) == []
        again_params = [nn.Parameter(p.detach().clone()) for p in params]
        again = build(name, again_params, way)
        again.load_state_dict(deepcopy(optimizer.state_dict()))
        for t in (4, 5):
            step(optimizer, params, t, way)
            step(again, again_params, t, way)
        assert differences(everything(optimizer), everything(again)) == []


@pytest.mark.parametrize("way", WAYS)
def test_one_parameter_that_changes_while_it_has_no_gradient(way: str) -> None:
    params = weights()
    optimizer = build("Automagic_CameAMP_COptim8bit", params, way)
    for t in range(2):
        step(optimizer, params, t, way)
    params[1].data = params[1].data.double()
    with pytest.warns(UserWarning, match="layer.1 changed its type"):
        step(optimizer, params, 2, way, absent=(1,))
    step(optimizer, params, 3, way)
    assert optimizer.state[params[1]]["exp_avg"].dtype == torch.float64


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("new", [torch.float32, torch.float16])
def test_weights_of_24_bits_are_not_carried(way: str, new: torch.dtype) -> None:
    params = weights(dtype=torch.bfloat16)
    optimizer = build("Automagic_CameAMP8bit", params, way, master_weight_bits=24)
    step(optimizer, params, 0, way)
    for p in params:
        p.data = p.data.to(new)
    before = everything(optimizer)
    with pytest.raises(RuntimeError, match=f"layer.0 has the type {new} now and had torch.bfloat16"):
        step(optimizer, params, 1, way)
    assert differences(before, everything(optimizer)) == []


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_state_that_was_cast_is_noticed_at_the_next_step(name: str, way: str) -> None:
    params = weights([(12, 8), (10,), (1200, 8)])
    optimizer = build(name, params, way)
    for t in range(2):
        step(optimizer, params, t, way)
    for number, p in enumerate(params):
        for key, value in list(optimizer.state[p].items()):
            for new in (torch.bfloat16, torch.float16, torch.float64, torch.int64):
                if value.dtype == new:
                    continue
                optimizer.state[p][key] = value.to(new)
                before = everything(optimizer)
                with pytest.raises(RuntimeError) as error:
                    step(optimizer, params, 2, way)
                words = (f"layer.{number}", repr(key), str(new), str(value.dtype))
                assert all(word in str(error.value) for word in words), str(error.value)
                assert differences(before, everything(optimizer)) == []
                optimizer.state[p][key] = value
    step(optimizer, params, 2, way)


@pytest.mark.parametrize("new", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("way", WAYS)
def test_a_trainer_that_casts_all_floating_state(way: str, new: torch.dtype) -> None:
    params = weights()
    optimizer = build("Automagic_CameAMP_COptim8bit", params, way)
    step(optimizer, params, 0, way)
    for state in optimizer.state.values():
        for value in state.values():
            if value.is_floating_point():
                value.data = value.data.to(new)  # the same objects, as Module.to would leave them
    before = everything(optimizer)
    with pytest.raises(RuntimeError, match=f"of parameter layer.0 .*{new}"):
        step(optimizer, params, 1, way)
    assert differences(before, everything(optimizer)) == []


@pytest.mark.parametrize("way", WAYS)
def test_state_on_meta_is_refused(way: str) -> None:
    for key in ("exp_avg", "step", "avg_lr"):
        params = weights()
        optimizer = build("Automagic_CameAMP", params, way)
        step(optimizer, params, 0, way)
        optimizer.state[params[1]][key] = optimizer.state[params[1]][key].to("meta")
        before = everything(optimizer)
        with pytest.raises(RuntimeError, match=f"{key!r} of parameter layer.1 is a Tensor on 'meta'"):
            step(optimizer, params, 1, way)
        assert differences(before, everything(optimizer)) == []


@pytest.mark.parametrize("engine", ["auto", "reference"])
@pytest.mark.parametrize("change", ["load", "double"])
def test_torch_may_swap_what_is_behind_a_parameter(change: str, engine: str) -> None:
    """As modules do with ``set_swap_module_params_on_conversion``; a weak reference to it forbids that."""
    torch.manual_seed(0)
    nets = [nn.Linear(8, 6) for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    optimizers = [OPTIMIZERS["Automagic_CameAMP8bit"](net.parameters(), engine=engine) for net in nets]
    before = torch.__future__.get_swap_module_params_on_conversion()
    for t in range(4):
        for net, optimizer, swaps in zip(nets, optimizers, (False, True), strict=True):
            if t == 2:
                torch.__future__.set_swap_module_params_on_conversion(swaps)
                other = {key: value + 1 for key, value in net.state_dict().items()}
                net.load_state_dict(other) if change == "load" else net.double()
                torch.__future__.set_swap_module_params_on_conversion(before)
            optimizer.zero_grad()
            x = torch.ones(3, 8, dtype=net.weight.dtype)
            net(x).square().sum().backward()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                optimizer.step()
    assert torch.equal(nets[0].weight, nets[1].weight)
    assert nets[0].weight.dtype is (torch.float64 if change == "double" else torch.float32)
    assert differences(everything(optimizers[0]), everything(optimizers[1])) == []
