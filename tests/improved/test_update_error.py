"""How far coded state moves an update from its exact twin's: relative L2, against twice the design's table.

The whole measurement (500 steps, more seeds, more data) is ``benchmarks/quant_update_error.py``; here
is a shorter run of the same kind, past the warm-up, that a wrong code cannot pass.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from automagic_cameamp import (
    Automagic_CameAMP_8Bit,
    Automagic_CameAMP_Improved,
    Automagic_CameAMP_Improved_8Bit,
)
from automagic_cameamp.profiles import PROFILES
from reference.draws import normal

SHAPE, STEPS, WARMUP = (128, 256), 45, 30
DATA = {"homogeneous": (0.0, 0.0), "heavy": (1.0, 0.0), "heavy, dead": (1.0, 0.01)}


def of_blocks(size: int, homogeneous: float, heavy: float) -> tuple[float, float, float]:
    """Limits for other blocks than the table's 256: an affine code errs by a share of its block's range.

    The largest of n normal numbers is near sqrt(2 ln n), that of lognormal ones near its exponential.
    """
    reach, usual = (math.sqrt(2 * math.log(n)) for n in (size, 256))
    grown = heavy * math.exp(reach - usual)
    return homogeneous * reach / usual, grown, grown


A8, N8 = Automagic_CameAMP_8Bit, Automagic_CameAMP_Improved_8Bit
NO_EDGES = {"edge_suppression": False}
PLAIN = {"error_correction": False, **NO_EDGES}
# code -> class, its own options, options that it shares with its twin, limits in per cent for DATA.
# The table of the design has .85/1.3/1.3 for affine, .79/1.0/1.0 for softsign, 1.4/1.9/1.9 for the
# dynamic code, .05/.06/.06 for softsign and four bits of correction (heavy data at its 500th step;
# here at the 45th, where means still jump, hence .2). Edges keep four bits of their own,
# rounded stochastically: they alone put .46% into an update, within the documents' .5, 1 and 2%.
CODES: dict[str, tuple[Any, dict[str, Any], dict[str, Any], tuple[float, float, float]]] = {
    "affine": (A8, PLAIN, NO_EDGES, (1.7, 2.6, 2.6)),
    "affine, blocks of 128": (A8, {**PLAIN, "block_size": 128}, NO_EDGES, of_blocks(128, 1.7, 2.6)),
    "affine, blocks of 512": (A8, {**PLAIN, "block_size": 512}, NO_EDGES, of_blocks(512, 1.7, 2.6)),
    "softsign": (A8, {**PLAIN, "state_code": "softsign"}, NO_EDGES, (1.58, 2.0, 2.0)),
    "affine+4": (A8, NO_EDGES, NO_EDGES, (0.1, 0.2, 0.2)),
    "softsign+4": (A8, {"state_code": "softsign", **NO_EDGES}, NO_EDGES, (0.1, 0.2, 0.2)),
    "affine+8": (A8, {"error_bits": 8, **NO_EDGES}, NO_EDGES, (0.1, 0.12, 0.12)),
    "8Bit, blocks of 128": (A8, {"block_size": 128}, {}, (0.5, 0.5, 0.5)),
    "8Bit": (A8, {}, {}, (1.0, 1.0, 1.0)),
    "8Bit, blocks of 512": (A8, {"block_size": 512}, {}, (2.0, 2.0, 2.0)),
    "8Bit, half vectors": (A8, {"mixed_precision": False}, {}, (1.0, 1.0, 1.0)),
    "dynamic": (A8, {"state_code": "dynamic"}, {}, (2.8, 3.8, 3.8)),
    **{
        profile: (
            N8,
            {**options, "verbose": False},
            {k: v for k, v in options.items() if "8bit" not in k and k != "optim_bits"},
            # Four bits carry the noise of their rounding, unbiased: the design has 17/28/27 for nearest.
            (34, 56, 54) if profile == "minimal" else (2.8, 3.8, 3.8),
        )
        for profile, options in PROFILES.items()
    },
}


@cache
def gradients(data: str) -> list[Tensor]:
    """Noise with a constant mean per element; lognormal scales over rows, columns and elements."""
    spread, dead = DATA[data]
    rows, columns = SHAPE
    logs = normal((rows, 1), 1) + normal((1, columns), 2) + normal(SHAPE, 3)
    size = 1e-3 * torch.exp(spread * logs)
    size[normal(SHAPE, 4).abs() < dead * 1.2533] = 0.0
    mean = 0.3 * size * normal(SHAPE, 5).sign()
    return [(mean + size * normal(SHAPE, 100 + t)).float() for t in range(STEPS)]


def last_updates(runs: list[tuple[Any, dict[str, Any]]], data: str) -> list[Tensor]:
    """Displacement of the last step of each run, from the same weights."""
    params = [torch.nn.Parameter(normal(SHAPE, 0, 0.02, torch.float32)) for _ in runs]
    optimizers = [
        cls([p], **{"lr": 1e-3, "warmup_steps": WARMUP, **options})
        for p, (cls, options) in zip(params, runs, strict=True)
    ]
    for t, g in enumerate(gradients(data), start=1):
        for p in params:
            if t == STEPS:
                p.data.copy_(params[0].detach())
            p.grad = g.clone()
        before = params[0].detach().clone()
        for optimizer in optimizers:
            optimizer.step()
    return [p.detach().double() - before.double() for p in params]


# Dead elements are hard for a code in which 0 is not exact; three kinds of codes show that ours is.
CASES = [(c, d) for c in CODES for d in DATA if d != "heavy, dead" or c in ("affine", "8Bit", "balanced")]


@pytest.mark.parametrize(("code", "data"), CASES)
def test_update_error_within_twice_the_table(code, data):
    cls, own, shared, limits = CODES[code]
    shared = {k: v for k, v in shared.items() if k != "verbose"}
    coded, twin = last_updates([(cls, own), (Automagic_CameAMP_Improved, shared)], data)
    error = 100 * float((coded - twin).norm() / twin.norm())
    assert error <= limits[list(DATA).index(data)]
    assert error > 1e-3, "the twin is not coded"


def test_correction_is_worth_its_bits():
    """Four bits cut the error of eight by ten, eight bits by more."""
    runs = [
        (A8, PLAIN),
        (A8, NO_EDGES),
        (A8, {"error_bits": 8, **NO_EDGES}),
        (Automagic_CameAMP_Improved, NO_EDGES),
    ]
    *coded, twin = last_updates(runs, "homogeneous")
    none, four, eight = (float((x - twin).norm() / twin.norm()) for x in coded)
    assert four < none / 8 and eight < four / 2
