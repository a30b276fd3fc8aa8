"""The affine code, error correction, and the small codes: zero, bounds, running means, mixed drops."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from automagic_cameamp.storage import (
    Affine8,
    Dynamic8,
    ErrorCorrected,
    Policy,
    Softsign8,
    StateSpec,
    Unit4,
    choose,
)
from automagic_cameamp.types import Layout
from reference import draws

SHAPES = [(7,), (1,), (64,), (65,), (9, 31), (3, 8, 5), (4, 3, 3, 3), (40, 41)]
MOMENTUM = StateSpec("exp_avg", "full", "signed")


def codes(block: int = 256) -> dict[str, Any]:
    return {
        "affine": Affine8(block),
        "affine+4": ErrorCorrected(Affine8(block), 4),
        "affine+8": ErrorCorrected(Affine8(block), 8),
        "softsign+4": ErrorCorrected(Softsign8(block), 4),
        "softsign+8": ErrorCorrected(Softsign8(block), 8),
    }


def coded(code: Any, x: Tensor, bits: Tensor | None = None) -> Tensor:
    return code.decode(code.encode(x, bits))


def gaussian(count: int, seed: int = 0) -> Tensor:
    return draws.normal((1, 1, 1, count), seed, dtype=torch.float32)


def random_bits(shape: torch.Size, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-(2**31), 2**31 - 1, shape, generator=generator, dtype=torch.int64).to(torch.int32)


# ------------------------------------------------------------------ affine


def plain_affine(block: list[float]) -> list[float]:
    """The documents' code in plain Python, with an integer zero point."""
    low, high = min(0.0, *block), max(0.0, *block)
    step = (high - low) / 255
    if step == 0:
        return [0.0] * len(block)
    zero = round(-low / step)
    return [(min(max(round(x / step) + zero, 0), 255) - zero) * step for x in block]


@given(st.sampled_from(SHAPES), draws.seeds, st.sampled_from([32, 64, 256]))
def test_affine_equals_a_plain_reference(shape, seed, block):
    x = draws.heavy(shape, seed, 2, torch.float32)
    back = coded(Affine8(block), x)
    for row, found in zip(x, back, strict=True):
        values, result = row.flatten().tolist(), found.flatten().tolist()
        for start in range(0, len(values), block):
            part, expected = values[start : start + block], []
            expected = plain_affine(part)
            step = (max(0.0, *part) - min(0.0, *part)) / 255
            for a, b in zip(result[start : start + block], expected, strict=True):
                # fp32 may round a tie the other way: one step, no more
                assert abs(a - b) <= step * 1.001 + 1e-38


@given(st.sampled_from(SHAPES), draws.seeds, st.sampled_from(list(codes())), st.floats(-30, 30))
def test_zero_is_exact_whatever_the_block_holds(shape, seed, name, shift):
    """All positive, all negative, mixed: the zero point is an integer and the range includes 0."""
    code = codes(64)[name]
    x = draws.stack(shape, seed, 2, dtype=torch.float32) + shift
    x.flatten(1)[:, ::3] = 0.0
    back = coded(code, x)
    assert bool((back.flatten(1)[:, ::3] == 0).all())
    nothing = torch.zeros_like(x)
    assert torch.equal(coded(code, nothing), nothing)


@given(st.sampled_from(SHAPES), draws.seeds)
def test_the_zero_point_is_an_integer_and_the_planes_are_as_declared(shape, seed):
    layout, code = Layout.of(shape), Affine8(64)
    stored = code.encode(draws.stack(shape, seed, 3, dtype=torch.float32))
    planes = code.planes(layout)
    assert [p.suffix for p in planes] == ["_q", "_q_scale", "_q_zero"]
    for plane, tensor in zip(planes, stored, strict=True):
        assert tensor.shape == (3, *plane.shape) and tensor.dtype == plane.dtype
    assert stored[2].dtype == torch.uint8
    # value of code 0 of a block: minus an integer number of steps
    low = -stored[2].float() * stored[1]
    assert bool((low <= 0).all())


@given(st.sampled_from(SHAPES), draws.seeds, st.sampled_from([1e-20, 1e-4, 1.0, 1e10]))
def test_no_error_is_above_half_a_step(shape, seed, scale):
    code = Affine8(64)
    x = draws.heavy(shape, seed, 2, torch.float32) * scale
    stored = code.encode(x)
    error = (code.decode(stored) - x).abs()
    # the zero point is rounded too, so an end of the range may be half a step further away
    assert bool((error <= 2 * code.half_step(stored) * (1 + 1e-5) + 1e-38).all())
    within = (error <= code.half_step(stored) * (1 + 1e-4) + 1e-38).float().mean()
    assert within >= 1 - 2 / min(64, x[0].numel())


@pytest.mark.parametrize(("block", "limit"), [(128, 0.584), (256, 0.639), (512, 0.690)])
def test_one_shot_error_of_affine_on_gaussian_data(block, limit):
    """Measured table of the design: relative L2 in per cent."""
    x = gaussian(2**18)
    error = 100 * draws.relative(coded(Affine8(block), x), x)
    assert error == pytest.approx(limit, rel=0.05)


def test_an_affine_code_is_never_offered_for_a_denominator():
    layout = Layout.of((64, 64))
    for code in ("affine", "softsign", "dynamic"):
        chosen = choose(StateSpec("exp_avg_sq", "full", "positive"), layout, Policy(code, 256, 4))
        assert chosen is not None and chosen.name == "log"


# ------------------------------------------------------------------ error correction


@given(st.sampled_from(SHAPES), draws.seeds, st.sampled_from(["affine", "softsign"]), st.sampled_from([4, 8]))
def test_the_second_plane_holds_the_error_to_half_a_level(shape, seed, name, bits):
    inner = {"affine": Affine8(64), "softsign": Softsign8(64)}[name]
    code = ErrorCorrected(inner, bits)
    x = draws.stack(shape, seed, 2, dtype=torch.float32)
    stored = code.encode(x)
    first = inner.decode(stored[:-1])
    assert torch.equal(stored[0], inner.encode(x)[0]), "the first plane alone is a valid eight-bit state"
    half = inner.half_step(stored[:-1])
    levels = 2 ** (bits - 1) - 1
    assert bool((code.error(stored).abs() <= half * (1 + 1e-6)).all())
    left = (first + code.error(stored) - x).abs()
    held = (first - x).abs() <= half  # elements whose error the range can hold
    assert bool((left[held] <= half[held] / (2 * levels) * 1.01 + 1e-6 * x.abs()[held]).all())
    assert float(held.float().mean()) > 0.95


@given(st.sampled_from(SHAPES), draws.seeds, st.sampled_from([4, 8]))
def test_planes_of_a_corrected_code_are_as_declared(shape, seed, bits):
    layout, code = Layout.of(shape), ErrorCorrected(Affine8(64), bits)
    stored = code.encode(draws.stack(shape, seed, 3, dtype=torch.float32))
    for plane, tensor in zip(code.planes(layout), stored, strict=True):
        assert tensor.shape == (3, *plane.shape) and tensor.dtype == plane.dtype
    assert stored[-1].shape[1] == (-(-layout.numel // 2) if bits == 4 else layout.numel)


@pytest.mark.parametrize("name", [n for n in codes() if "+" in n])
def test_a_corrected_state_is_not_larger_than_fp32(name):
    """A fp32 accumulator beside eight bits would be five bytes; this is at most two and a scale."""
    layout, code = Layout.of((64, 64)), codes(256)[name]
    size = sum(math.prod(p.shape) * p.dtype.itemsize for p in code.planes(layout))
    assert size <= (2 + 8 / 256) * layout.numel < 4 * layout.numel


@pytest.mark.parametrize(
    ("name", "beta", "steps"),
    [
        ("affine+4", 0.8, 1000),
        ("affine+4", 0.99, 10_000),
        ("affine+8", 0.99, 1000),
        ("softsign+4", 0.99, 1000),
        ("softsign+8", 0.8, 1000),
    ],
)
def test_the_error_never_accumulates(name, beta, steps):
    """|acc| <= D/2 after 10,000 updates, and the state stays where an exact one would be."""
    code = codes(64)[name]
    exact = torch.zeros(1, 1, 1, 128)
    held = code.encode(exact)
    noise = draws.normal((100, 1, 1, 1, 128), 5, dtype=torch.float32)
    for t in range(steps):
        new = noise[t % 100]
        exact = torch.lerp(new, exact, beta)
        held = code.encode(torch.lerp(new, code.decode(held), beta))
        if t % 100 == 99:
            half = code.code.half_step(held[:-1])
            assert bool((code.error(held).abs() <= half * (1 + 1e-6)).all())
    half = code.code.half_step(held[:-1])
    error = (code.decode(held) - exact).abs()
    # model: |d| <= D / (2^(b+1) (1 - b)) with nearest rounding of the second plane
    bound = 2 * half / (2 * code.levels) / (1 - beta)
    assert bool((error <= 1.5 * bound).all())


# Measured tables D2 and D3 of the design: relative L2 of a running mean of Gaussian data, per cent.
IN_THE_LOOP = [
    ("affine", 256, 0.8, 1.04),
    ("affine", 256, 0.9, 1.45),
    ("affine", 256, 0.99, 4.5),
    ("affine", 128, 0.8, 1.02),
    ("affine", 512, 0.8, 1.21),
    ("affine+4", 128, 0.8, 0.062),
    ("affine+4", 256, 0.8, 0.070),
    ("affine+4", 512, 0.8, 0.074),
    ("affine+8", 256, 0.8, 0.004),
    ("affine+4", 256, 0.99, 0.29),
    ("softsign+4", 256, 0.8, 0.070),
    ("softsign+8", 256, 0.8, 0.004),
]


@pytest.mark.parametrize(("name", "block", "beta", "table"), IN_THE_LOOP)
def test_running_means_within_twice_the_table(name, block, beta, table):
    code = codes(block)[name]
    exact = torch.zeros(1, 1, 1, 8192)
    held = code.encode(exact)
    for t in range(int(5 / (1 - beta)) + 20):
        new = gaussian(8192, t)
        exact = torch.lerp(new, exact, beta)
        held = code.encode(torch.lerp(new, code.decode(held), beta))
    error = 100 * draws.relative(code.decode(held), exact)
    assert error <= 2 * table
    if "+" not in name:
        assert error >= table / 2, "a code this good would be another code"


@pytest.mark.parametrize("name", list(codes()))
@pytest.mark.parametrize("beta", [0.8, 0.99])
def test_a_mixed_drop_is_followed(name, beta):
    """Half of a block gets ten times smaller: nearest rounding can freeze what moves against its block."""
    code = codes(256)[name]
    size = torch.ones(1, 1, 1, 1024)
    exact = torch.zeros_like(size)
    held = code.encode(exact)
    steps = int(4 / (1 - beta))
    for t in range(3 * steps):
        if t == steps:
            size[..., ::2] *= 0.1
        new = size * gaussian(1024, t)
        exact = torch.lerp(new, exact, beta)
        held = code.encode(torch.lerp(new, code.decode(held), beta))
    back = code.decode(held)
    assert draws.relative(back, exact) < (0.02 if "+" in name else 0.1)
    ratio = float(back[..., ::2].norm() / exact[..., ::2].norm())
    assert ratio == pytest.approx(1.0, abs=0.01 if "+" in name else 0.35)


@pytest.mark.parametrize("name", list(codes()))
def test_a_constant_state_does_not_drift(name):
    code = codes(64)[name]
    first = coded(code, gaussian(512))
    x = first
    for _ in range(200):
        x = coded(code, x)
    step = (first.max() - first.min()) / 255
    assert float((x - first).abs().max()) <= (0.2 if "+" in name else 1.01) * float(step)


@pytest.mark.parametrize("name", list(codes()))
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_tensor_is_coded_the_same_in_every_stack(name, shape):
    code = codes(64)[name]
    x = draws.heavy(shape, 0, 5, torch.float32)
    x[2] *= 1e15
    together = code.encode(x)
    decoded = code.decode(together)
    for i in range(5):
        alone = code.encode(x[i : i + 1])
        assert all(torch.equal(a, t[i : i + 1]) for a, t in zip(alone, together, strict=True))
        assert torch.equal(code.decode(alone), decoded[i : i + 1])


# ------------------------------------------------------------------ small codes


def test_unit4_holds_sixteen_values_and_is_unbiased():
    layout = Layout.of((40, 50))
    code = Unit4(layout)
    exact = torch.arange(16).float().repeat(125).view(1, *layout.view) / 15
    assert torch.equal(coded(code, exact), exact)
    assert torch.equal(coded(code, exact, random_bits(exact.shape, 0)), exact)
    x = torch.full((1, *layout.view), 0.137)
    means = [float(coded(code, x, random_bits(x.shape, seed)).mean()) for seed in range(20)]
    spread = math.sqrt(0.137 * 15 % 1 * (1 - 0.137 * 15 % 1)) / 15 / math.sqrt(2000 * 20)
    assert sum(means) / 20 == pytest.approx(0.137, abs=4 * spread + 2**-13 / 15)


@settings(max_examples=20)
@given(draws.seeds, st.sampled_from(SHAPES))
def test_unit4_never_leaves_the_unit_interval(seed, shape):
    layout = Layout.of(shape)
    x = draws.stack(shape, seed, 2, dtype=torch.float32).abs().clamp(max=1.0)
    x.flatten(1)[:, 0] = 1.0
    back = coded(Unit4(layout), x, random_bits(x.shape, seed))
    assert bool(((back >= 0) & (back <= 1)).all())
    assert bool(((back - x).abs() < 1 / 15 + 1e-6).all())
    assert bool((back.flatten(1)[:, 0] == 1).all())
    planes = Unit4(layout).planes(layout)
    assert planes[0].shape == ((layout.numel + 1) // 2,)


def test_unit4_follows_a_slow_running_mean_where_nearest_would_freeze():
    """An edge in one step of ten: the mean of .9-EMAs is .1; steps of .1/15 are below half a code."""
    layout = Layout.of((64, 64))
    code = Unit4(layout)
    held = frozen = torch.zeros(1, *layout.view)
    for t in range(400):
        new = (draws.normal((1, *layout.view), t).float() > 1.2816).float()
        held = coded(code, torch.lerp(new, held, 0.9), random_bits(new.shape, t))
        frozen = coded(code, torch.lerp(new * 0.02, frozen, 0.9))
    assert float(held.mean()) == pytest.approx(0.1, abs=0.01)
    assert float(frozen.mean()) == 0.0  # what nearest rounding does to small means


# ------------------------------------------------------------------ who gets which code


def test_who_is_coded():
    momentum, vector_spec = StateSpec("x", "full", "signed"), StateSpec("x", "row", "vector")
    unit = StateSpec("x", "full", "unit")
    matrix, thin, bias, small = (Layout.of(s) for s in ((300, 300), (16, 640), (100_000,), (31, 33)))

    def name(spec: StateSpec, layout: Layout, *policy: Any) -> str | None:
        code = choose(spec, layout, Policy(*policy))
        return None if code is None else code.name

    assert name(momentum, matrix, "affine", 256, 4) == "affine+4"
    assert name(momentum, matrix, "affine", 256, 0) == "affine"
    assert name(momentum, matrix, "softsign", 256, 8) == "softsign+8"
    assert name(momentum, matrix, "dynamic", 256, 4) == "dynamic"  # it has no correction
    assert name(momentum, bias, "affine", 256, 4) is None
    assert name(momentum, small, "affine", 256, 4) is None
    assert name(momentum, bias, "dynamic", 256, 0, 4096, "fp32", True) == "dynamic"
    assert name(momentum, small, "dynamic", 256, 0, 1023) == "dynamic"
    assert name(vector_spec, matrix, "affine", 256, 4, 1024, "log16") == "log16"
    assert name(vector_spec, matrix, "affine", 256, 4, 1024, "thin") is None
    assert name(vector_spec, thin, "affine", 256, 4, 1024, "thin") == "log16"
    assert name(vector_spec, thin, "affine", 256, 4, 1024, "fp32") is None
    assert name(unit, matrix, "affine") == "unit4"
    for spec in (momentum, vector_spec, unit):
        assert name(spec, matrix, "fp32") is None
    assert isinstance(choose(MOMENTUM, matrix, Policy("dynamic")), Dynamic8)
