"""DistributedDataParallel: replicas stay the same bit for bit, losses are averaged, nobody waits for ever."""

from __future__ import annotations

import pytest

from automagic_cameamp.optimizers import OPTIMIZERS

CASES = [
    *OPTIMIZERS,
    "Automagic_CameAMP bf16",
    "Automagic_CameAMP_Improved_8Bit bf16",
    "Automagic_CameAMP_COptim8bit reference",
    "Automagic_CameAMP_8Bit bf16 reference",
]


ON_FOUR = ["Automagic_CameAMP_COptim8bit", "Automagic_CameAMP_Improved_8Bit bf16"]


@pytest.mark.parametrize(
    ("case", "world"), [*((case, "two") for case in CASES), *((case, "four") for case in ON_FOUR)]
)
def test_replicas_are_equal_after_forty_steps(case, world, request):
    seen = [rank["replicas"][case] for rank in request.getfixturevalue(world)]
    assert all(rank == seen[0] for rank in seen)
    assert seen[0]["moved"] and seen[0]["finite"]
    # One process had a bad batch: after the reduction of the gradients all of them saw it.
    assert seen[0]["skipped"] == 6
    assert seen[0]["coded"] == case.split()[0].lower().endswith("8bit")


@pytest.mark.parametrize("world", ["two", "four"])
def test_losses_are_averaged_over_those_who_tell_one(world, request):
    ranks = request.getfixturevalue(world)
    seen = [rank["losses"] for rank in ranks]
    last = len(ranks) - 1
    assert all(rank == seen[0] for rank in seen)
    assert seen[0]["history"] == [10.0, 20.0 + last / 2, 30.0 + last]
