"""The reference path on a CUDA device: the same numbers, no waiting, the same bits after a resume."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from automagic_cameamp import Automagic_CameAMP, Automagic_CameAMP8bit
from automagic_cameamp.state.random_bits import parameter_key, random_bits, stochastic_round
from automagic_cameamp.storage import Dynamic8, Log8, Softsign8
from engine.helpers import (
    CLASSES,
    FLOATS,
    NEVER,
    OPTIONS,
    SHAPES,
    build,
    differences,
    disk,
    give_gradients,
    name_of,
    parameters,
    same_bits,
    snapshot,
    state_bytes,
    train,
    twin_of,
)

pytestmark = pytest.mark.gpu

KINDS = pytest.mark.parametrize("kind", CLASSES)
EACH = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
CUDA = "cuda"


@pytest.fixture(autouse=True)
def _deterministic() -> Iterator[None]:
    """Resume is promised bitwise; matrix products of the tests themselves must not spoil it."""
    torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.cuda.set_sync_debug_mode("default")


def on_gpu(dtype: torch.dtype = torch.float32, shapes: Any = SHAPES) -> list[Tensor]:
    return [torch.nn.Parameter(p.detach().to(CUDA)) for p in parameters(dtype, shapes)]


# ---------------------------------------------------------------- no waiting for the device


@EACH
@KINDS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=name_of)
def test_step_never_waits(kind: str, dtype: torch.dtype, options: dict[str, Any]) -> None:
    """The first step after creation included, which makes the state and every table it needs.

    One step of another optimizer comes first: what is made once per process may wait.
    """
    warm = on_gpu(dtype)
    train(build(kind, warm, **options), warm, range(3, 4))

    params = on_gpu(dtype)
    optimizer = build(kind, params, **options)
    for t in range(1, 10):
        give_gradients(params, t)
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            optimizer.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert optimizer.health()["skipped_updates"] == 0


@KINDS
def test_a_bad_gradient_costs_no_wait_either(kind: str) -> None:
    params = on_gpu(torch.bfloat16)
    optimizer = build(kind, params)
    train(optimizer, params, range(1, 3))
    give_gradients(params, 3)
    params[2].grad[0, 0] = float("nan")
    before = params[2].detach().clone(), {k: v.clone() for k, v in optimizer.state[params[2]].items()}
    torch.cuda.set_sync_debug_mode("error")
    optimizer.step()
    torch.cuda.set_sync_debug_mode("default")
    assert same_bits(before[0], params[2])
    assert all(same_bits(v, optimizer.state[params[2]][k]) for k, v in before[1].items())
    assert optimizer.health()["parameters"] == {"param_2": 1}


@pytest.mark.parametrize(
    "read", ["get_learning_rates", "get_avg_learning_rate", "health", "get_memory_stats"]
)
def test_a_report_waits_at_most_once(read: str) -> None:
    params = on_gpu()
    optimizer = build("dynamic", [{"params": params[:4]}, {"params": params[4:]}])
    train(optimizer, params, range(1, 5))
    getattr(optimizer, read)()
    torch.cuda.set_sync_debug_mode("warn")
    import warnings

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        getattr(optimizer, read)()
    waits = [w for w in caught if "synchroniz" in str(w.message)]
    assert len(waits) <= 1, [str(w.message) for w in waits]


# ---------------------------------------------------------------- the same numbers as on the CPU


@EACH
@KINDS
def test_agrees_with_the_cpu(kind: str, options: dict[str, Any]) -> None:
    """fp32 sums in another order: updates agree to rounding, codes to a neighbouring code."""
    host, device = parameters(), on_gpu()
    start = [p.detach().clone() for p in host]
    a, b = build(kind, host, **options), build(kind, device, **options)
    train(a, host, range(1, 10))
    train(b, device, range(1, 10))
    for i, (first, p, q) in enumerate(zip(start, host, device, strict=True)):
        if i == NEVER:
            continue
        moved, other = p.detach() - first, q.detach().cpu() - first
        error = (moved - other).norm() / moved.norm().clamp(min=1e-12)
        assert error < (1e-4 if kind == "32bit" else 1e-2), f"parameter {i}: {error:.2e}"
        for key, value in a.state[p].items():
            twin = b.state[q][key].cpu()
            assert twin.dtype == value.dtype and twin.shape == value.shape
            if value.dtype in (torch.uint8, torch.int8) and key.endswith("_q"):
                wrong = (twin.int() - value.int()).abs()
                assert wrong.max() <= 1 and (wrong > 0).float().mean() < 0.01, key


@KINDS
def test_agrees_with_the_cpu_in_fp64(kind: str) -> None:
    if kind != "32bit":
        return  # codes are of fp32 values
    host, device = parameters(torch.float64), on_gpu(torch.float64)
    a, b = build(kind, host), build(kind, device)
    train(a, host, range(1, 10))
    train(b, device, range(1, 10))
    for p, q in zip(host, device, strict=True):
        torch.testing.assert_close(q.cpu(), p, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("coder", [Dynamic8(64), Softsign8(64), Log8(64)], ids=lambda c: c.name)
def test_codes_agree_with_the_cpu(coder: Any) -> None:
    x = torch.randn(3, 1, 40, 33) * torch.exp(2 * torch.randn(3, 1, 40, 33))
    x = x.abs() + 1e-6 if coder.name == "log" else x
    here, there = coder.encode(x), coder.encode(x.to(CUDA))
    assert all(a.dtype == b.dtype for a, b in zip(here, there, strict=True))
    different = (here[0].int() - there[0].cpu().int()).abs()
    assert different.max() <= 1 and (different > 0).float().mean() < 1e-3
    torch.testing.assert_close(coder.decode(there).cpu(), coder.decode(here), rtol=0.08, atol=0.0)
    same = tuple(t.to(CUDA) for t in here)
    torch.testing.assert_close(coder.decode(same).cpu(), coder.decode(here), rtol=1e-5, atol=0.0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=name_of)
def test_stochastic_rounding_gives_the_cpus_bits(dtype: torch.dtype) -> None:
    keys = torch.tensor([parameter_key(5, i) for i in (0, 3, 9)], dtype=torch.int32)
    step = torch.tensor([1.0, 7.0, 100_000.0])
    here, there = random_bits(keys, step, 100_003), random_bits(keys.to(CUDA), step.to(CUDA), 100_003)
    assert torch.equal(here, there.cpu())
    for size in (1e-7, 1e-4, 1.0, 1e4):
        x = size * torch.randn(3, 100_003)
        assert same_bits(stochastic_round(x, here, dtype), stochastic_round(x.to(CUDA), there, dtype).cpu())


# ---------------------------------------------------------------- resume


@EACH
@KINDS
@pytest.mark.parametrize("dtype", FLOATS, ids=name_of)
def test_resume_is_bitwise(kind: str, dtype: torch.dtype, options: dict[str, Any]) -> None:
    params = on_gpu(dtype)
    whole = build(kind, params, **options)
    train(whole, params, range(1, 5))
    saved = disk({k: v for k, v in whole.state_dict().items()})
    weights = [twin_of(p) for p in params]
    train(whole, params, range(5, 9))
    again = build(kind, weights, **options)
    again.load_state_dict(saved)
    train(again, weights, range(5, 9))
    assert differences(snapshot(whole), snapshot(again)) == []


@KINDS
def test_resume_through_a_file_read_on_the_cpu(kind: str) -> None:
    """map_location='cpu' is what trainers pass; the state must follow the parameters."""
    import io

    params = on_gpu(torch.bfloat16)
    whole = build(kind, params)
    train(whole, params, range(1, 5))
    buffer = io.BytesIO()
    torch.save(whole.state_dict(), buffer)
    buffer.seek(0)
    saved = torch.load(buffer, weights_only=True, map_location="cpu")
    weights = [twin_of(p) for p in params]
    again = build(kind, weights)
    again.load_state_dict(saved)
    assert {v.device.type for s in again.state.values() for v in s.values()} == {"cuda"}
    train(whole, params, range(5, 9))
    train(again, weights, range(5, 9))
    assert differences(snapshot(whole), snapshot(again)) == []


@KINDS
def test_model_moved_after_its_last_step(kind: str) -> None:
    """CPU -> GPU in mid-run: the state follows at the next step."""
    module = torch.nn.ParameterList([twin_of(p) for p in parameters()])
    optimizer = build(kind, module.parameters())
    train(optimizer, list(module.parameters()), range(1, 4))
    module.to(CUDA)
    params = list(module.parameters())
    train(optimizer, params, range(4, 7))
    devices = {v.device.type for i, p in enumerate(params) if i != NEVER for v in optimizer.state[p].values()}
    assert devices == {"cuda"}
    again = [twin_of(p) for p in params]
    second = build(kind, again)
    second.load_state_dict(disk(optimizer.state_dict()))
    train(optimizer, params, range(7, 10))
    train(second, again, range(7, 10))
    assert differences(snapshot(optimizer), snapshot(second)) == []


@KINDS
def test_parameters_on_two_devices(kind: str) -> None:
    """Block swap: some parameters stand on the CPU at step()."""
    params = [p if i % 2 else torch.nn.Parameter(p.detach().to(CUDA)) for i, p in enumerate(parameters())]
    optimizer = build(kind, params)
    train(optimizer, params, range(1, 6))
    for p in params:
        assert all(v.device == p.device for v in optimizer.state.get(p, {}).values())
    assert optimizer.health()["skipped_updates"] == 0
    assert optimizer.get_learning_rates()[0] > 0


def test_two_streams() -> None:
    """Work goes to the current stream, as torch's own optimizers do it."""
    a, b = on_gpu(), on_gpu()
    one, other = build("dynamic", a), build("dynamic", b)
    train(one, a, range(1, 5))
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        train(other, b, range(1, 5))
    torch.cuda.current_stream().wait_stream(stream)
    assert differences(snapshot(one), snapshot(other)) == []


# ---------------------------------------------------------------- launches and memory, reported


def launches(optimizer: Any) -> int:
    from torch.profiler import ProfilerActivity, profile

    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        optimizer.step()
        torch.cuda.synchronize()
    names = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx")
    return sum(e.count for e in seen.key_averages() if e.key in names)


@pytest.mark.parametrize("cls", [Automagic_CameAMP, Automagic_CameAMP8bit])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_launches_grow_with_shapes_not_with_tensors(cls: Any, record_property: Any) -> None:
    counts = {}
    for copies in (4, 64):
        params = [torch.nn.Parameter(torch.randn(s, device=CUDA)) for s in [(16, 320), (320, 16)] * copies]
        optimizer = cls(params, lr=1e-4)
        for p in params:
            p.grad = torch.randn_like(p)
        for _ in range(3):
            optimizer.step()
        counts[copies] = launches(optimizer)
    record_property("launches", counts)
    print(f"\n{cls.__name__}: kernel launches per step {counts} (tensors = 2 x key)")
    assert 0 < counts[4] and counts[64] <= 1.5 * counts[4]


@pytest.mark.parametrize("cls", [Automagic_CameAMP, Automagic_CameAMP8bit])
def test_peak_memory(cls: Any, record_property: Any) -> None:
    """A step's transient memory is that of a few stacks, not of the model."""
    params = [torch.nn.Parameter(torch.randn(1024, 1024, device=CUDA)) for _ in range(64)]
    optimizer = cls(params, lr=1e-4)
    for p in params:
        p.grad = torch.randn_like(p)
    optimizer.step()
    torch.cuda.synchronize()
    held = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    optimizer.step()
    torch.cuda.synchronize()
    transient = torch.cuda.max_memory_allocated() - held
    model = sum(p.numel() * 4 for p in params)
    numbers = {"state": state_bytes(optimizer), "transient": transient, "weights": model}
    record_property("bytes", numbers)
    print(f"\n{cls.__name__}: {numbers}")
    assert transient < model
