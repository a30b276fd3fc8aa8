"""Counter-based randomness: every draw is named by what it is for, so nothing depends on history.

A run that is stopped at step 70 and resumed draws at step 71 what the uninterrupted run draws there, because
the generator of step 71 is made from (seed, "train", 71) and not from the state that step 70 left behind.
"""

from __future__ import annotations

import hashlib

import torch


def generator(seed: int, *key: object) -> torch.Generator:
    """A CPU generator that depends on `seed` and `key` alone, on every machine."""
    digest = hashlib.sha256(repr((seed, *key)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") & (2**63 - 1))
