"""How a step spreads over threads: in enough shares for eight of them, and looking changes nothing."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from benchmarks.common import build, parse_candidate
from benchmarks.scaling import Watch, deal, foretell
from benchmarks.step_cpu import FAMILY
from hypothesis import given
from hypothesis import strategies as st

from automagic_cameamp.kernels import native

EIGHT = 8
pytestmark = pytest.mark.skipif(native.why_not() is not None, reason="the CPU kernels are not built")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


Shapes = list[tuple[int, ...]]


def made(candidate: str, shapes: Shapes) -> tuple[torch.optim.Optimizer, list[torch.nn.Parameter]]:
    name, options = parse_candidate(candidate)
    generator = torch.Generator().manual_seed(3)
    params = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator)
        p._is_lora_layer = "lora" in candidate  # type: ignore[attr-defined]
    return build(name, params, lr=1e-3, **options), params


def shares(candidate: str, shapes: Shapes) -> list[int]:
    """Of each parallel section of a step, the second, how many shares it has for eight threads."""
    optimizer, _ = made(candidate, shapes)
    optimizer.step()
    torch.set_num_threads(EIGHT)
    with Watch() as watch:
        optimizer.step()
    return list(map(len, watch.sections()))


@pytest.mark.parametrize("candidate", FAMILY)
def test_each_pass_over_a_large_matrix_has_enough(candidate: str) -> None:
    """Three for each of eight threads: seven wait for the last of them a third of their work at most."""
    passes = shares(candidate, [(1024, 640)])
    assert len(passes) >= 3 and min(passes) >= 3 * EIGHT


@pytest.mark.parametrize("shape", [(640, 1024), (4096, 256), (640, 320, 3, 3), (1 << 16, 8)], ids=str)
def test_of_whatever_shape(shape: tuple[int, ...]) -> None:
    passes = shares("Automagic_CameAMP8bit", [shape])
    assert min(passes) >= 3 * EIGHT


@pytest.mark.parametrize("candidate", FAMILY[:2])
def test_many_small_ones_are_bundled_for_all(candidate: str) -> None:
    (bundles,) = shares(candidate, [(16, 640), (640, 16)] * 160)
    assert 3 * EIGHT <= bundles <= 256


@pytest.mark.parametrize("candidate", FAMILY)
def test_matrices_of_a_whole_model_do_not_wait_for_each_other(candidate: str) -> None:
    """A matrix that is a small part of a thread's work is one share; the others' passes end in no barrier."""
    assert shares(candidate, [(768, 768)] * 40) == [40]


def test_only_the_largest_is_spread() -> None:
    optimizer, _ = made("Automagic_CameAMP8bit", [(64, 64)] * 20 + [(768, 768)] * 40 + [(2048, 4096)])
    optimizer.step()
    torch.set_num_threads(EIGHT)
    with Watch() as watch:
        optimizer.step()
    *passes, rest = watch.sections()
    assert list(map(len, passes)) == [32] * len(passes)
    assert len(rest) in (41, 42)  # the small ones are a bundle or two


LOWRANK = "lora_rank_penalty=True"  # wants the whole update at once
LARGE: list[tuple[str, tuple[int, ...]]] = [
    ("Automagic_CameAMP", (1 << 20,)), ("Automagic_CameAMP8bit", (2, 1 << 19)),
    (f"Automagic_CameAMP_Improved:{LOWRANK}", (36864, 16)),
    (f"Automagic_CameAMP_Improved_8Bit:profile=balanced;verbose=False;{LOWRANK}", (36864, 16)),
]  # fmt: skip


@pytest.mark.parametrize(("candidate", "shape"), LARGE, ids=str)
def test_scratch_as_large_as_a_tensor_is_wanted_once(candidate: str, shape: tuple[int, ...]) -> None:
    """Threads keep what they had: one tensor after the other has all threads."""
    assert len(shares(candidate, [shape] * 40)) >= 3 * 40


def test_looking_changes_nothing_and_ends() -> None:
    optimizer, params = made("Automagic_CameAMP8bit", [(1024, 640), (16, 64), (7,)])
    twin, same = made("Automagic_CameAMP8bit", [(1024, 640), (16, 64), (7,)])
    for _ in range(2):
        with Watch() as watch:
            optimizer.step()
        twin.step()
    found = watch.sections()
    assert all(torch.equal(p, q) for p, q in zip(params, same, strict=True))
    optimizer.step()
    assert watch.sections() == found
    assert all(taken >= 0 for section in found for taken in section)


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=60), st.integers(1, 9))
def test_work_is_dealt_as_a_free_thread_would_take_it(taken: list[int], threads: int) -> None:
    busy = deal(taken, threads)
    mean = sum(taken) / threads
    assert sum(busy) == sum(taken)
    # Graham 1969 (Bounds on Multiprocessing Timing Anomalies): at most the mean and one share more.
    assert max(mean, max(taken)) <= max(busy) <= mean + max(taken)


def test_what_is_serial_stays() -> None:
    taken, uneven = foretell([[10, 10, 10, 10], [6]], total=66, threads=4)
    assert taken == 20 + 10 + 6
    assert uneven == pytest.approx(16 * 4 / 46)
