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

from automagic_cameamp import Automagic_CameAMP, mark_lora, marked, unmark_lora
from automagic_cameamp.lora import EMBEDDING, LORA, MARKS, is_embedding, mark_of
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
    for name, mark in (("first", LORA), ("second", LORA), ("tokens", EMBEDDING)):
        setattr(dict(model.named_parameters())[name], mark, True)
    remember(model, MARKS)
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


def test_a_second_marking_keeps_what_the_first_one_found() -> None:
    model = nn.Sequential(nn.Linear(64, 4, bias=False), nn.Linear(4, 64, bias=False), nn.Linear(64, 64))
    assert len(mark_lora(model, by_shape=True).lora) == 2
    mark_lora(model)
    copied = copy.deepcopy(model)
    optimizer = Automagic_CameAMP(copied.parameters(), lr=1e-4)
    assert optimizer.lora_report().by_mark == 2


def test_marks_and_noes_by_hand_are_remembered_with_the_others() -> None:
    model = Adapted()
    model.head.weight._is_lora_layer = True  # type: ignore[assignment]
    model.head.bias._is_lora_layer = False  # type: ignore[assignment]
    mark_lora(model)
    copied = copy.deepcopy(model)
    Automagic_CameAMP(copied.parameters(), lr=1e-4)
    assert [mark_of(p) for p in copied.parameters()] == [True, True, True, False]


def test_marks_taken_back_from_a_part_are_not_put_back_for_the_whole() -> None:
    model = nn.ModuleDict({"a": Adapted(), "b": Adapted()})
    mark_lora(model)
    unmark_lora(model["a"])
    for way in (model, copy.deepcopy(model)):
        optimizer = Automagic_CameAMP(way.parameters(), lr=1e-4)
        assert optimizer.lora_report().by_mark == 2
        assert all(mark_of(p) is None for p in way["a"].parameters())


def test_models_are_looked_through_only_where_a_mark_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Adapted()
    mark_lora(model)
    looks: list[Any] = []
    original = marked.Marked.restore
    monkeypatch.setattr(marked.Marked, "restore", lambda self: (looks.append(self), original(self))[1])
    for p in (model.lora_A.weight, model.lora_B.weight):
        Automagic_CameAMP([p], lr=1e-4)
    assert not looks
    Automagic_CameAMP([model.head.weight], lr=1e-4)
    assert looks
