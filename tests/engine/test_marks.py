"""Marks that get lost with the parameters that carried them are put back by the optimizer."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from typing import Any

import pytest
import torch
from torch import nn

from automagic_cameamp import Automagic_CameAMP, mark_lora, unmark_lora
from automagic_cameamp.lora import EMBEDDING, LORA, is_embedding, mark_of
from automagic_cameamp.marked import remember
from engine.test_adapters import Adapted


class Unnamed(nn.Module):
    """A LoRA that neither its names nor the shapes of a square base give away, and an embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (nn.Parameter(0.02 * torch.randn(8, 8)) for _ in range(2))
        self.tokens = nn.Parameter(torch.randn(16, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.first @ self.second @ self.tokens.T


def deep_copy(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model)


def nested(model: nn.Module) -> nn.Module:
    return copy.deepcopy(nn.ModuleDict({"inner": model}))["inner"]


def assigned(model: nn.Module) -> nn.Module:
    model.load_state_dict({k: v.clone() for k, v in model.state_dict().items()}, assign=True)
    return model


def sharded(model: nn.Module) -> nn.Module:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.testing._internal.distributed.fake_pg import FakeStore

    torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    try:
        fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    finally:
        torch.distributed.destroy_process_group()
    return model


@pytest.mark.parametrize("lose", [deep_copy, nested, assigned, sharded])
def test_marks_that_get_lost_are_put_back_by_the_optimizer(lose: Any) -> None:
    model = Unnamed()
    remember(model, {LORA: ["first", "second"], EMBEDDING: ["tokens"]})
    model = lose(model)
    assert all(mark_of(p) is None for p in model.parameters())  # lost, all of them
    optimizer = Automagic_CameAMP(model.parameters(), lr=1e-4)
    assert (optimizer.lora_report().by_mark, optimizer.lora_report().tables) == (2, 1)
    assert [name for name, p in model.named_parameters() if mark_of(p)] == ["first", "second"]
    assert is_embedding(dict(model.named_parameters())["tokens"])


def test_marks_that_were_taken_back_stay_away_and_a_no_stays_a_no() -> None:
    model = Adapted()
    mark_lora(model)
    unmark_lora(model)
    copied = copy.deepcopy(model)
    assert Automagic_CameAMP(copied.parameters(), lr=1e-4).lora_report().by_mark == 0
    mark_lora(model)
    copied = copy.deepcopy(model)
    copied.lora_A.weight._is_lora_layer = False  # type: ignore[assignment]
    assert Automagic_CameAMP(copied.parameters(), lr=1e-4).lora_report().by_mark == 1


def test_what_is_remembered_keeps_no_model_alive_and_is_not_pickled() -> None:
    model = Adapted()
    mark_lora(model)
    saved = pickle.dumps(model)
    assert b"automagic_cameamp.marked" not in saved
    other = pickle.loads(saved)
    Automagic_CameAMP(other.parameters(), lr=1e-4)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None
    Automagic_CameAMP(other.parameters(), lr=1e-4)
