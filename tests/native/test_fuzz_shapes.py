"""The kernels read and write inside their tensors only, whatever the shape and the layout.

Parameters and gradients are views into larger buffers whose rims hold a bit pattern; state planes
are moved into such buffers after the first step. A write outside changes a rim; a read outside would
let the rim into the numbers, so the same step is repeated with another pattern and must not change.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from automagic_cameamp import OPTIMIZERS
from automagic_cameamp.kernels.native import why_not

pytestmark = pytest.mark.skipif(why_not() is not None, reason=f"no native library: {why_not()}")
RIM = 64  # bytes on each side: the widest vector
SIZES = st.sampled_from([1, 2, 3, 5, 7, 8, 13, 16, 17, 31, 32, 61, 64, 127, 255, 257, 509])
SHAPES = st.one_of(
    st.just(()),
    st.tuples(st.sampled_from([1, 2, 3, 63, 64, 65, 1021, 4099, 20011])),
    st.tuples(SIZES, SIZES),
    st.tuples(st.integers(1, 5), st.integers(1, 40), st.integers(1, 40)),
    st.tuples(st.integers(1, 9), st.integers(1, 5), st.integers(1, 4), st.integers(1, 4)),
)
TYPES = [torch.float32, torch.bfloat16, torch.float16]


class Fenced:
    """A tensor's bytes with a rim of a pattern on both sides."""

    def __init__(self, value: Tensor, pattern: int) -> None:
        size = value.numel() * value.element_size()
        self.pattern = pattern
        self.held = torch.full((size + 2 * RIM,), pattern, dtype=torch.uint8)
        inside = self.held[RIM : RIM + size].view(value.dtype).view(value.shape)
        self.view = inside.copy_(value)

    def whole(self) -> bool:
        """Whether both rims are as they were."""
        size = self.held.numel() - 2 * RIM
        rims = torch.cat([self.held[:RIM], self.held[RIM + size :]])
        return bool((rims == self.pattern).all())


def steps(
    name: str, shape: tuple[int, ...], dtype: torch.dtype, warmup: int, pattern: int
) -> tuple[list[Fenced], dict[str, Any], Any]:
    """Three steps on fenced memory: the fences, the state, the weights."""
    draw = torch.Generator().manual_seed(math.prod(shape))
    weight = Fenced((torch.randn(shape, generator=draw) * 0.05).to(dtype), pattern)
    p = torch.nn.Parameter(weight.view)
    assert p.data_ptr() == weight.view.data_ptr()
    optimizer = OPTIMIZERS[name]([p], lr=1e-3, engine="native", warmup_steps=warmup)
    fences = [weight]
    for step in range(3):
        g = Fenced((torch.randn(shape, generator=draw) * 0.01).to(dtype), pattern)
        p.grad = g.view
        fences.append(g)
        optimizer.step()
        if step == 0:
            saved = optimizer.state_dict()
            optimizer = OPTIMIZERS[name]([p], lr=1e-3, engine="native", warmup_steps=warmup)
            optimizer.load_state_dict(saved)
            state = optimizer.state[p]
            for key, value in list(state.items()):
                if isinstance(value, Tensor):
                    fence = Fenced(value, pattern)
                    fences.append(fence)
                    state[key] = fence.view
    return fences, optimizer.state[p], p


@pytest.mark.parametrize("name", list(OPTIMIZERS))
@settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(shape=SHAPES, dtype=st.sampled_from(TYPES), warmup=st.sampled_from([0, 2, 100]))
def test_nothing_outside_is_read_or_written(name: str, shape, dtype, warmup) -> None:
    fences, state, p = steps(name, shape, dtype, warmup, 0xFF)  # NaN in every float type
    assert all(fence.whole() for fence in fences)
    assert bool(p.isfinite().all())
    _, again, q = steps(name, shape, dtype, warmup, 0x41)
    assert torch.equal(p, q)
    for key, value in state.items():
        if isinstance(value, Tensor):
            assert torch.equal(value, again[key]), key


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_a_large_odd_tensor(name: str) -> None:
    """Beyond the size whose scratch stays in cache: the path of slabs, with a short last one."""
    fences, _, p = steps(name, (521, 1031), torch.float32, 2, 0xFF)
    assert all(fence.whole() for fence in fences) and bool(p.isfinite().all())


LAYOUTS = {
    "transposed": lambda x: x.t().contiguous().t(),
    "strided": lambda x: torch.stack([x, x], -1)[..., 0],
    "sliced": lambda x: torch.cat([x, x], 1)[:, : x.shape[1]],
}


@pytest.mark.filterwarnings("ignore:engine=.native. cannot do parameters that are not contiguous")
@pytest.mark.parametrize("name", list(OPTIMIZERS))
@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_strides_do_not_change_the_step(name: str, layout: str) -> None:
    draw = torch.Generator().manual_seed(0)
    start, g = (torch.randn(33, 65, generator=draw) for _ in range(2))
    results = []
    for arrange in (lambda x: x.clone(), LAYOUTS[layout]):
        p = torch.nn.Parameter(arrange(start * 0.05))
        optimizer = OPTIMIZERS[name]([p], lr=1e-3, engine="native", warmup_steps=0)
        for _ in range(2):
            p.grad = arrange(g * 0.01)
            optimizer.step()
        results.append(p.detach().clone(memory_format=torch.contiguous_format))
    # A layout that the kernels do not take goes to the reference: equal up to the order of sums.
    assert torch.allclose(*results, rtol=1e-5, atol=2e-8)


@pytest.mark.filterwarnings("ignore:engine=.native. cannot do parameters that are not contiguous")
def test_channels_last() -> None:
    draw = torch.Generator().manual_seed(0)
    start, g = (torch.randn(8, 6, 3, 3, generator=draw) for _ in range(2))
    results = []
    for form in (torch.contiguous_format, torch.channels_last):
        p = torch.nn.Parameter((start * 0.05).to(memory_format=form))
        optimizer = OPTIMIZERS["Automagic_CameAMP"]([p], lr=1e-3, engine="native", warmup_steps=0)
        p.grad = (g * 0.01).to(memory_format=form)
        optimizer.step()
        results.append(p.detach().contiguous())
    assert torch.allclose(*results, rtol=1e-5, atol=2e-8)
