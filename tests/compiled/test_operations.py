"""What a late eager step asks of a device: the way of those who have no compiler."""

from __future__ import annotations

from benchmarks.launches import Operations, eager
from torch import ones


def test_a_late_stack_of_the_base_class_takes_at_most_100_operations() -> None:
    assert eager("Automagic_CameAMP", {}) <= 100


def test_operations_are_counted() -> None:
    with Operations() as operations:
        (ones(3).view(3, 1) + 1).sum()
    assert operations.count == 3  # the view is none
