"""Checkpoints of a sharded run: exact on any number of processes, and usable without sharding."""

from __future__ import annotations

import pytest

from automagic_cameamp.optimizers import OPTIMIZERS
from distributed.checks_saved import ON_FOUR


@pytest.mark.parametrize(
    ("name", "world"),
    [(name, world) for world in ("one", "two") for name in OPTIMIZERS] + [(name, "four") for name in ON_FOUR],
)
def test_saved_on_two_loaded_on(name, world, request):
    for rank in request.getfixturevalue(world):
        seen = rank["load"][name]
        assert seen["still"], "torch's dummy step moved a weight"
        assert seen["differs"] == []
        assert seen["after"] <= (0 if world == "two" else 2e-5)


def test_codes_keep_their_types(two):
    held = two[0]["save"]["held"]
    assert held["exp_avg_q"] == held["lr_mask"] == "torch.uint8"
    assert held["exp_avg_sq_row"] == "torch.float32"


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_a_gathered_state_goes_on_whole_and_sharded(name, one):
    seen = one[0]["load_gathered"][name]
    assert seen["cut"] <= 2e-5
    # Blocks that end with a row are coded anew for a whole parameter.
    assert seen["whole"] <= (2e-3 if name.lower().endswith("8bit") else 2e-5)
    assert seen["whole moved"] > 1e-2
