"""A stack is a loop that was written differently: the same bits, whatever is stacked with what."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import automagic_cameamp
from automagic_cameamp import Automagic_CameAMP, Automagic_CameAMP8bit
from automagic_cameamp.state import chunks as buckets
from automagic_cameamp.types import Layout
from reference import drive
from reference.draws import stack
from rotated import rotated

SHAPES = [(), (1,), (3,), (9,), (4097,), (1, 1), (1, 9), (9, 1), (5, 7), (8, 16), (2, 3, 5), (3, 2, 3, 3)]


@pytest.mark.parametrize(
    ("way", "dtype"), [*((way, torch.float32) for way in drive.WAYS), ("default", torch.float64)]
)
def test_stacked_equals_looped_in_every_phase(way, dtype):
    """Seven updates of a stack of three (W = 6: all phases), against each tensor alone."""
    for shape in SHAPES:
        layout = Layout.of(shape)
        hp = drive.hyper(layout, **drive.WAYS[way])
        p, gs = stack(shape, 0, 3, 0.1, dtype), drive.gradients(shape, 7, batch=3, dtype=dtype)
        together = list(drive.run(p, gs, hp, layout))
        for i in range(3):
            row = slice(i, i + 1)
            alone = drive.run(p[row], [g[row] for g in gs], hp, layout)
            for t, (whole, part) in enumerate(zip(together, alone, strict=True), start=1):
                for name, x in part.items():
                    assert torch.equal(whole[name][row], x), f"{name} of {shape} at t={t}"


@rotated("way, cls", drive.WAYS, [Automagic_CameAMP, Automagic_CameAMP8bit])
def test_the_size_of_a_chunk_changes_no_bit(way, cls, monkeypatch):
    """The whole optimizer, with stacks as large as they get, in pairs, and one by one."""
    shapes = [(40, 32)] * 5 + [(7,)] * 4 + [(2, 3, 5)] * 3
    results = []
    for limit in (buckets.CPU_CHUNK_ELEMENTS, 2560, 1):
        monkeypatch.setattr(buckets, "CPU_CHUNK_ELEMENTS", limit)
        results.append(drive.bits(drive.train(drive.parameters(shapes), 8, cls, **drive.WAYS[way])))
    assert drive.equal(results[0], results[1])
    assert drive.equal(results[0], results[2])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_size_of_a_chunk_changes_no_random_rounding(dtype, monkeypatch):
    shapes = [(5, 7)] * 4
    results = []
    for limit in (buckets.CPU_CHUNK_ELEMENTS, 1):
        monkeypatch.setattr(buckets, "CPU_CHUNK_ELEMENTS", limit)
        params = drive.parameters(shapes, dtype=dtype)
        results.append(drive.bits(drive.train(params, 8)))
    assert drive.equal(*results)


def test_the_order_of_different_shapes_changes_no_bit():
    shapes = [(5, 7), (9,), (5, 7), (2, 3, 4)]
    params, others = drive.parameters(shapes), drive.parameters(shapes)
    a, b = Automagic_CameAMP(params, lr=1e-3), Automagic_CameAMP([others[i] for i in (1, 0, 3, 2)], lr=1e-3)
    for t in range(1, 6):
        for p, g in zip(others, drive.give_gradients(params, t), strict=True):
            p.grad = g.clone()
        a.step()
        b.step()
    # The mean of the mask is a sum over parameters in their order: fp32 rounding, no more.
    for p, q in zip(params, others, strict=True):
        torch.testing.assert_close(p.detach(), q.detach(), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("way", ["default", "distance", "mask per row", "adabelief"])
def test_groups_of_equal_options_are_one_group(way):
    """What is known over all parameters is one step old for every group alike."""
    shapes = [(5, 7), (9,), (5, 7), (2, 3, 4)]
    results = []
    for split in (False, True):
        params = drive.parameters(shapes)
        groups = [{"params": [p]} for p in params] if split else params
        optimizer = Automagic_CameAMP(groups, lr=1e-3, max_lr=1e-1, warmup_steps=20, **drive.WAYS[way])
        for t in range(1, 12):
            drive.give_gradients(params, t)
            optimizer.step()
        results.append([p.detach() for p in params])
    assert drive.equal(*results)


THREADS = """
import torch
from reference import drive
from automagic_cameamp import Automagic_CameAMP, Automagic_CameAMP8bit

SHAPES = [(100_003,), (35_001, 2), (2, 40_009)]
WAYS = ["default", "agr and orthograd", "distance", "vote"]
for cls in (Automagic_CameAMP, Automagic_CameAMP8bit):
    for way in WAYS if cls is Automagic_CameAMP else ["default"]:
        results = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            options = {**drive.WAYS[way], "warmup_steps": 3}
            results.append(drive.bits(drive.train(drive.parameters(SHAPES), 3, cls, **options)))
        if not drive.equal(*results):
            print(cls.__name__, way)
"""


def test_one_and_two_threads_give_the_same_bits():
    """Long vectors and tall matrices, where torch likes to split a sum over its threads."""
    tests, source = Path(drive.__file__).parents[1], Path(automagic_cameamp.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", THREADS],
        env={
            **os.environ,
            "OMP_NUM_THREADS": "2",
            "OMP_WAIT_POLICY": "PASSIVE",  # beside other processes, threads that spin cost seconds
            "PYTHONPATH": os.pathsep.join([str(source), str(tests)]),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "", f"depends on the number of threads:\n{done.stdout}"
