"""The whole improved recipe: stacks, threads, phases, tracing, and where it is the base recipe."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import automagic_cameamp
from automagic_cameamp import (
    Automagic_CameAMP,
    Automagic_CameAMP8bit,
    Automagic_CameAMP_8Bit,
    Automagic_CameAMP_Improved,
)
from automagic_cameamp.state import chunks as buckets
from automagic_cameamp.types import Layout, Phase
from improved import drive
from reference import drive as base_drive
from reference.draws import stack
from rotated import rotated

SHAPES = [(), (1,), (9,), (1, 9), (9, 1), (5, 7), (8, 16), (2, 5, 6), (4, 3, 3, 3), (6, 4, 1, 1)]


@pytest.mark.parametrize(
    ("way", "dtype"), [*((way, torch.float32) for way in drive.WAYS), ("default", torch.float64)]
)
def test_stacked_equals_looped_in_every_phase(way, dtype):
    """Seven updates of a stack of three (W = 6: all phases), against each tensor alone."""
    for shape in SHAPES:
        layout = Layout.of(shape)
        hp = drive.hyper(layout, **drive.WAYS[way])
        p, gs = stack(shape, 0, 3, 0.1, dtype), base_drive.gradients(shape, 7, batch=3, dtype=dtype)
        together = list(drive.run(p, gs, hp, layout))
        for i in range(3):
            row = slice(i, i + 1)
            alone = drive.run(p[row], [g[row] for g in gs], hp, layout)
            for t, (whole, part) in enumerate(zip(together, alone, strict=True), start=1):
                assert whole.keys() == part.keys()
                for name, x in part.items():
                    assert torch.equal(whole[name][row], x), f"{name} of {shape} at t={t}"


@rotated("way, code", ["default", "strong", "percentile", "mask per row", "unfactored"], drive.CODED)
def test_the_size_of_a_chunk_changes_no_bit(way, code, monkeypatch):
    """The whole optimizer, with stacks as large as they get, in pairs, and one by one."""
    cls, own = drive.CODED[code]
    shapes = [(40, 32)] * 5 + [(7,)] * 4 + [(2, 6, 5)] * 3 + [(12, 12, 3, 3)] * 2
    results = []
    for limit in (buckets.CPU_CHUNK_ELEMENTS, 2560, 1):
        monkeypatch.setattr(buckets, "CPU_CHUNK_ELEMENTS", limit)
        params = base_drive.parameters(shapes)
        results.append(base_drive.bits(drive.train(params, 8, cls, **{**own, **drive.WAYS[way]})))
    assert base_drive.equal(results[0], results[1])
    assert base_drive.equal(results[0], results[2])


@rotated("way, warmup", drive.WAYS, [0, 5, 6])
def test_mixed_equals_static_bitwise(way, warmup):
    for shape in ((5, 7), (3,), (2, 4, 5), (4, 3, 3, 3)):
        layout = Layout.of(shape)
        hp = drive.hyper(layout, **{**drive.WAYS[way], "warmup_steps": warmup})
        p, gs = stack(shape, 0, 2, 0.1, torch.float32), base_drive.gradients(shape, 8, batch=2)
        static = drive.run(p, gs, hp, layout)
        mixed = drive.run(p, gs, hp, layout, phase=lambda t: Phase.MIXED)
        for t, (a, b) in enumerate(zip(static, mixed, strict=True), start=1):
            assert a.keys() == b.keys()
            for name in a:
                assert torch.equal(a[name], b[name]), f"{name} at t={t} of {shape}"


# ------------------------------------------------------------------ threads

THREADS = """
import torch
from improved import drive
from reference import drive as base_drive

SHAPES = [(35_001, 2), (2, 40_009), (128, 300), (65, 129), (50_003,)]
for code in ("fp32", "affine", "dynamic"):
    for way in ["strong"] if code == "fp32" else ["default"]:
        results = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            cls, own = drive.CODED[code]
            options = {**own, **drive.WAYS[way], "warmup_steps": 3, "sync_frequency": 2, "rank_keep": 10}
            results.append(base_drive.bits(drive.train(base_drive.parameters(SHAPES), 3, cls, **options)))
        if not base_drive.equal(*results):
            print(code, way)
"""


def test_one_and_two_threads_give_the_same_bits():
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


# ------------------------------------------------------------------ where it is the base recipe

COMMON = {"weight_decay": 0.0, "warmup_steps": 6}


def twins(shapes, steps, first, second):
    results = []
    for cls, options in (first, second):
        params = base_drive.parameters(shapes)
        optimizer = base_drive.train(params, steps, cls, **{**COMMON, **options})
        shared = (
            "exp_avg",
            "lr_mask",
            "exp_avg_sq_row",
            "exp_avg_q",
            "exp_avg_q_scale",
            "s",
            "avg_lr",
            "step",
        )
        states = [optimizer.state[p][name] for p in params for name in shared if name in optimizer.state[p]]
        results.append([p.detach() for p in params] + [x.clone() for x in states])
    return results


@pytest.mark.parametrize("way", ["default", "unfactored", "adabelief", "mask per row", "agr and orthograd"])
def test_all_off_is_the_base_recipe(way):
    """Without signs, in all phases, bit for bit."""
    options = {**base_drive.WAYS.get(way, {}), "use_grams": False}
    shapes = [(5, 7), (9,), (2, 3, 4), (4, 3, 3, 3), (40, 32)]
    a, b = twins(
        shapes, 9, (Automagic_CameAMP_Improved, {**drive.OFF, **options}), (Automagic_CameAMP, options)
    )
    assert base_drive.equal(a, b)


@pytest.mark.parametrize("decay", [1.0, 0.9])
def test_all_off_with_grams_is_the_base_recipe(decay):
    first, second = (
        (Automagic_CameAMP_Improved, {**drive.OFF, "beta1_decay": decay}),
        (Automagic_CameAMP, {"beta1_decay": decay}),
    )
    assert base_drive.equal(*twins([(5, 7), (9,)], 12, first, second))


def test_cautious_takes_over_where_grams_has_faded_to_a_half():
    """Nothing shows until then, whatever the phase; beta1_decay ** 6 is above 1/2, ** 7 below."""
    shapes, off = [(5, 7), (9,)], {**drive.OFF, "beta1_decay": 0.9, "warmup_steps": 4}
    kinds = [(Automagic_CameAMP_Improved, {**off, "use_cautious": on}) for on in (True, False)]
    assert base_drive.equal(*twins(shapes, 6, *kinds))
    assert not base_drive.equal(*twins(shapes, 7, *kinds))
    early = [(cls, {**options, "warmup_steps": 16}) for cls, options in kinds]
    assert base_drive.equal(*twins(shapes, 7, *early)), "never in the early phase"
    plain = [(cls, {**options, "use_grams": False}) for cls, options in kinds]
    assert base_drive.equal(*twins(shapes, 1, *plain))
    assert not base_drive.equal(*twins(shapes, 2, *plain)), "without Grams after the early phase"


@pytest.mark.parametrize("code", ["softsign", "dynamic"])
def test_all_off_in_eight_bits_is_the_base_class_in_eight_bits(code):
    options = {"use_grams": False, "state_code": code}
    a, b = twins(
        [(40, 32), (33, 65), (9,)],
        9,
        (Automagic_CameAMP_8Bit, {**drive.OFF, **options, "block_size": 128, "error_correction": False}),
        (Automagic_CameAMP8bit, {**options, "blocksize": 128}),
    )
    assert base_drive.equal(a, b)


@pytest.mark.parametrize("option", sorted(set(drive.OFF) - {"d_coef"}))
def test_every_regulariser_changes_something(option):
    """Each of them alone, on a matrix; otherwise the comparison above would prove little."""
    results = []
    for value in (drive.OFF[option], drive.hyper(Layout.of((9, 11)))._asdict().get(option)):
        params = base_drive.parameters([(9, 11)], scale=1e-3)
        options = {**drive.OFF, "weight_decay": 0.5, "rank_keep": 2, option: value}
        if option == "use_cautious":
            options["beta1_decay"] = 0.5  # or Grams would stand before it
        optimizer = drive.train(params, 0, Automagic_CameAMP_Improved, **options)
        for t in range(1, 9):
            (g,) = base_drive.give_gradients(params, t)
            g[4] *= 1e-4  # an almost empty row
            optimizer.step()
        results.append(params[0].detach().clone())
    assert not torch.equal(*results)


def test_vectors_know_no_regulariser_of_matrices():
    """0-D and 1-D: edges, frequencies, background, rows and ranks are the identity without state."""
    off = {
        name: value for name, value in drive.OFF.items() if name not in ("use_cautious", "use_spd", "d_coef")
    }
    results = []
    for options in ({}, off):
        params = base_drive.parameters([(), (1,), (9,), (300,)])
        optimizer = drive.train(params, 8, Automagic_CameAMP_Improved, **options)
        results.append(base_drive.bits(optimizer))
    assert base_drive.equal(*results)


def test_gradients_are_not_written_to():
    params = base_drive.parameters([(5, 7), (4, 3, 3, 3)])
    optimizer = drive.train(params, 0, Automagic_CameAMP_Improved)
    for t in range(1, 5):
        given = base_drive.give_gradients(params, t)
        kept = [g.clone() for g in given]
        optimizer.step()
        assert all(torch.equal(g, k) for g, k in zip(given, kept, strict=True))
