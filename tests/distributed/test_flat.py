"""Programs that flatten parameters are refused by name; ZeroRedundancyOptimizer is bitwise."""

from __future__ import annotations

import sys
import types

import pytest
import torch
from torch import nn

from automagic_cameamp.optimizers import OPTIMIZERS


def is_refusal(text: str) -> bool:
    return text.startswith("ValueError: parameter ") and "fully_shard" in text and "DistributedData" in text


def test_fsdp1_is_refused_when_it_is_added_or_at_the_first_step(two):
    for rank in two:
        assert len(rank["flat"]) == 2 * len(OPTIMIZERS) + 3
        assert all(is_refusal(text) and "FSDP1" in text for text in rank["flat"].values()), rank["flat"]


@pytest.mark.parametrize("world", ["one", "two"])
@pytest.mark.parametrize("engine", ["auto", "reference"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_zero_redundancy_optimizer_is_bitwise(name, engine, world, request):
    for rank in request.getfixturevalue(world):
        seen = rank["zero"][f"{name} {engine}"]
        assert seen["weights"] and seen["state"] and seen["joined"]
        controlled = "COptim" in name
        several = controlled and world == "two"
        assert seen["memories"] == controlled + several and seen["taken"] == controlled
        assert len(seen["said"]) == several and all("the first is taken" in text for text in seen["said"])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_sharded_state_that_was_cast_or_cut_is_refused(name, two):
    for rank in two:
        key, cast, same, cut, same_too = rank["changed_shards"][name]
        assert same and same_too
        assert "a.weight" in cast and repr(key) in cast and "torch.float16" in cast
        assert "a.weight" in cut and repr(key) in cut and "(33, 20)" in cut


def test_deepspeed_stage_3_is_refused_by_its_marks():
    p = nn.Parameter(torch.empty(0))
    p.ds_id, p.ds_shape = 0, (4, 4)  # type: ignore[attr-defined]
    for cls in OPTIMIZERS.values():
        with pytest.raises(ValueError, match="ZeRO stage 3 .* fully_shard"):
            cls([("layer.weight", p)])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_groups_that_are_flattened_after_the_optimizer_was_built(name):
    """As DeepSpeed's stages 1 and 2 and its bf16 and fp16 optimizers do with an optimizer they are given."""
    layers = [nn.Linear(8, 8), nn.Linear(8, 4)]
    optimizer = OPTIMIZERS[name]([{"params": list(layer.parameters())} for layer in layers])
    for group in optimizer.param_groups:
        flat = torch.cat([p.detach().flatten() for p in group["params"]]).clone().float().detach()
        flat.requires_grad = True
        group["params"] = [flat]
        flat.grad = torch.ones_like(flat)
    before = [group["params"][0].detach().clone() for group in optimizer.param_groups]
    for call in (optimizer.step, lambda: optimizer.step_parameter(optimizer.param_groups[0]["params"][0])):
        with pytest.raises(ValueError, match="flattens parameters .* fully_shard"):
            call()
    assert all(torch.equal(b, g["params"][0]) for b, g in zip(before, optimizer.param_groups, strict=True))
    assert not any(optimizer.state.values())


def test_vectors_that_were_vectors_all_along_are_fine():
    optimizer = OPTIMIZERS["Automagic_CameAMP"]([torch.ones(8, requires_grad=True)])
    optimizer.param_groups[0]["params"] = [torch.ones(9, requires_grad=True)]
    optimizer.param_groups[0]["params"][0].grad = torch.ones(9)
    optimizer.step()


def test_marks_that_appear_later_are_seen_where_their_program_is_loaded(monkeypatch):
    p = nn.Parameter(torch.ones(8))
    optimizer = OPTIMIZERS["Automagic_CameAMP"]([("layer.weight", p)])
    p.grad = torch.ones(8)
    optimizer.step()
    monkeypatch.setitem(sys.modules, "deepspeed", types.ModuleType("deepspeed"))
    p.ds_id = 3  # type: ignore[attr-defined]
    p.data = torch.ones(4)
    p.grad = torch.ones(4)
    with pytest.raises(ValueError, match="parameter layer.weight .* fully_shard"):
        optimizer.step()
