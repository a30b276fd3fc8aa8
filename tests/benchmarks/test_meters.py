"""The meters count what they say they count."""

from __future__ import annotations

import pytest
import torch
from benchmarks.meters import Neighbours, OpMeter, iter_tensors, rss_peak_mib, state_bytes
from benchmarks.workloads import WORKLOADS, GradientPool, Workload, make_params


def test_op_meter_counts_operators_and_peak_of_live_bytes():
    x = torch.zeros(1024)
    with OpMeter() as meter:
        a = x + 1  # 4 KiB live
        b = a * 2  # 8 KiB live
        del a
        c = b - 1  # 8 KiB live again
        c.add_(1)  # in place: nothing new
        c.view(32, 32)[0].mul_(2)  # views: nothing new
    assert meter.ops == 7
    assert meter.peak == 8192
    assert meter.allocated == 3 * 4096
    assert meter.live == 8192  # b and c
    del b, c
    assert meter.live == 0


def test_op_meter_ignores_what_existed_before():
    x, out = torch.ones(256), torch.empty(256)
    with OpMeter() as meter:
        torch.add(x, 1, out=out)
        x.mul_(2)
        x.view(16, 16).t()
    assert (meter.ops, meter.peak) == (4, 0)


@pytest.mark.parametrize("name, expected", [("AdamW", 8.0), ("SGD", 4.0)])
def test_state_bytes_of_known_optimizers(name, expected):
    params = [torch.nn.Parameter(torch.zeros(64, 64)), torch.nn.Parameter(torch.zeros(4096))]
    options = {"momentum": 0.9} if name == "SGD" else {}
    optimizer = getattr(torch.optim, name)(params, lr=0.1, **options)
    assert state_bytes(optimizer) == 0
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer.step()
    scalars = 8 if name == "AdamW" else 0  # two fp32 step counters
    assert state_bytes(optimizer) == expected * 8192 + scalars


def test_state_bytes_finds_hidden_buffers_and_counts_shared_storage_once():
    param = torch.nn.Parameter(torch.zeros(8))
    optimizer = torch.optim.SGD([param], lr=0.1)
    buffer = torch.zeros(100)
    optimizer.hidden = {"work": [buffer, buffer[:10]]}  # type: ignore[attr-defined]
    assert state_bytes(optimizer) == 400


def test_iter_tensors_enters_only_named_packages():
    class Holder:
        __slots__ = ("value",)

    holder = Holder()
    holder.value = torch.zeros(3)
    assert list(iter_tensors(holder, ("elsewhere",))) == []
    assert len(list(iter_tensors(holder, (Holder.__module__.partition(".")[0],)))) == 1


def test_rss_peak_sees_a_large_temporary():
    peak = rss_peak_mib(lambda: torch.ones(16 * 2**20).sum())  # 64 MiB
    if peak is None:
        pytest.skip("this system has no /proc/self/clear_refs")
    assert 56 < peak < 120


def test_neighbours_does_not_count_ourselves():
    neighbours = Neighbours()
    x = torch.randn(300, 300)
    for _ in range(200):
        x = (x @ x).tanh()
    busy = neighbours.cores()
    assert busy >= 0.0  # an upper bound would measure the machine, not the code


def test_workload_counts():
    assert len(WORKLOADS["lora-sdxl"].shapes) == 1444
    assert WORKLOADS["lora-sdxl"].numel == 42_557_440
    assert WORKLOADS["full-124m"].numel == 124_439_808


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_change_without_new_memory_and_repeat_with_the_seed(dtype):
    work = Workload("test", ((33, 7), (5,), (2, 3, 4)), dtype)
    params = make_params(work)
    pool = GradientPool(work)
    pool.redraw(params)
    first = [p.grad.clone() for p in params]
    assert all(p.grad.shape == p.shape and p.grad.dtype == dtype for p in params)
    pool.redraw(params)
    assert not torch.equal(first[0], params[0].grad)
    flips = (first[0].sign() != params[0].grad.sign()).float().mean()
    assert 0.3 < flips < 0.7
    again = GradientPool(work)
    again.redraw(params)
    assert torch.equal(first[0], params[0].grad)
    assert params[0].grad.untyped_storage().data_ptr() == again.pool.untyped_storage().data_ptr()
