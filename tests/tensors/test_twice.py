"""A tensor that stands twice in a group, and state whose memory was given back."""

from __future__ import annotations

import pytest
import torch

from automagic_cameamp import OPTIMIZERS
from counts.helpers import ENGINES

EVERY = pytest.mark.parametrize("name", OPTIMIZERS)


@EVERY
def test_a_parameter_twice_in_a_group_counts_once(name: str) -> None:
    """The reference updated it once a step, the kernels twice, on two threads at once."""
    p, q = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(3))
    with pytest.warns(UserWarning, match="duplicate parameters: param_2 is param_0 too"):
        optimizer = OPTIMIZERS[name]([p, q, p], lr=1e-3)
    assert [id(x) for x in optimizer.param_groups[0]["params"]] == [id(p), id(q)]
    with pytest.warns(UserWarning, match="duplicate parameters: head is embed too"):
        named = OPTIMIZERS[name]([("embed", p), ("head", p)], lr=1e-3)
    assert len(named.param_groups[0]["params"]) == 1 and named.param_groups[0]["param_names"] == ["embed"]


@pytest.mark.parametrize("engine", ENGINES)
@EVERY
def test_state_without_memory_is_named(name: str, engine: str) -> None:
    params = [torch.nn.Parameter(torch.ones(16, 24)) for _ in range(2)]
    optimizer = OPTIMIZERS[name](params, lr=1e-3, engine=engine)
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer.step()
    key = next(key for key in optimizer.state[params[0]] if key.startswith("exp_avg"))
    optimizer.state[params[0]][key].untyped_storage().resize_(0)
    before = params[0].detach().clone()
    with pytest.raises(RuntimeError, match=f"state '{key}' of parameter param_0 .* holds no values"):
        optimizer.step()
    assert torch.equal(before, params[0])
