"""``torch.set_default_device``: tensors of ours that say nothing of a device would land there.

The default is 'meta' here: what lands there holds no values, and fails or shows.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext

import pytest
import torch

from automagic_cameamp import release_gradients
from engine.helpers import disk
from loops.helpers import NAMES, plain, same, twins
from rotated import rotated


@pytest.fixture
def elsewhere() -> Iterator[torch.device]:
    yield torch.device("meta")
    torch.set_default_device(None)


@pytest.fixture(scope="module", autouse=True)
def fresh() -> None:
    """What is made once for a process is made under the default device."""
    from automagic_cameamp.executors.native import copies, given, looks, versions
    from automagic_cameamp.storage import dynamic8

    copies.own.scratch = copies.Scratch()
    for made in (given._types, looks._code, looks._interface, versions._takes_lists, dynamic8.dynamic_map):
        made.cache_clear()
    dynamic8._tables.cache_clear()


@rotated("engine, released, name", ["auto", "reference"], [False, True], NAMES)
def test_a_default_device_changes_nothing(
    name: str, released: bool, engine: str, where: str, elsewhere: torch.device
) -> None:
    options = {"engine": engine, "lr_level": "auto" if released else "fixed"}
    (net, optimizer), (other, far) = twins(name, where=where, **options)
    plain(net, optimizer, range(1, 6))
    # Two forms of the same, of which the first is of this thread only.
    with release_gradients(other, far) if released else nullcontext():
        with elsewhere:
            plain(other, far, range(1, 3))
        torch.set_default_device(elsewhere)
        plain(other, far, range(3, 5))
        saved = disk(far.state_dict())
        far.load_state_dict(saved)
        plain(other, far, range(5, 6))
        far.get_learning_rates(), far.get_memory_stats(), far.engine_report()
    assert same(optimizer, far) == []
