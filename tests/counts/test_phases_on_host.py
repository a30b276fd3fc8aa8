"""The host's knowledge of the warm-up: never ahead of the truth, and read so seldom that no step waits."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from automagic_cameamp import Automagic_CameAMP
from automagic_cameamp.state import counts as held
from automagic_cameamp.types import Phase


@given(st.integers(1, 40), st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=120))
def test_late_means_late_for_every_member(warmup: int, updates: list[tuple[bool, bool]]) -> None:
    """Each update counts for a member or, where its gradient was not finite, does not."""
    reads = 0

    def read(steps: list[torch.Tensor]) -> list[int]:
        nonlocal reads
        reads += 1
        return [int(step) for step in steps]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(held, "waits", lambda device: True)
        patch.setattr(held, "read", read)
        known = held.Phases()
        states = [{"step": torch.zeros(())} for _ in range(2)]
        if warmup % 2:  # the others are loaded: unknown until they are read
            known.begin(states, warmup)
        skipped = 0
        for finite in updates:
            over = all(int(state["step"]) + 1 >= warmup for state in states)
            assert known.of(states, warmup) is (Phase.LATE if over else Phase.MIXED)
            for state, counts in zip(states, finite, strict=True):
                state["step"] += counts
                skipped += not counts
    assert reads <= 3 + skipped  # at first sight, at the end, and where the count ran ahead


@pytest.mark.parametrize("warmup", [0, 6])
def test_the_device_chooses_what_the_host_would(warmup: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every step, MIXED or LATE, leaves the bits that the exact phases leave."""
    results = []
    for simulated in (False, True):
        if simulated:
            monkeypatch.setattr(held, "waits", lambda device: True)
        torch.manual_seed(0)
        p = torch.nn.Parameter(torch.randn(6, 10))
        optimizer = Automagic_CameAMP([p], lr=1e-3, warmup_steps=warmup, engine="reference")
        for _ in range(9):
            p.grad = torch.randn(6, 10)
            optimizer.step()
        results.append(p.detach())
    assert torch.equal(*results)
