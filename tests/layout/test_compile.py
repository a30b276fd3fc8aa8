"""``torch.compile`` around a training step, or the step alone, changes nothing and traces nothing anew."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from automagic_cameamp import OPTIMIZERS

CLASSES = sorted(OPTIMIZERS)
STEPS = 4
# The compiler itself looks at the gradient of a loss that it is handed.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    import torch._dynamo

    torch._dynamo.reset()
    with torch._dynamo.config.patch(error_on_recompile=True):
        yield
    torch._dynamo.reset()


def run(name: str, way: str, compiler: Callable[[Any], Any], **options: Any) -> list[Tensor]:
    """Losses and weights of a short run; what is compiled depends on the way."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(16, 24), torch.nn.Tanh(), torch.nn.Linear(24, 4))
    optimizer = OPTIMIZERS[name](model.parameters(), lr=1e-3, warmup_steps=3, **options)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: 1 / (1 + k))
    handle = optimizer.release_gradients(model) if way == "release" else None
    if way == "recorded":
        optimizer.record(3)
    alone: Any = {"bound": optimizer.step, "lambda": lambda: optimizer.step()}.get(way)
    step = optimizer.step if alone is None else compiler(alone)

    def forward(x: Tensor) -> Tensor:
        return model(x).square().mean()

    def train(x: Tensor) -> Tensor:
        if way == "closure":

            def closure() -> Tensor:
                optimizer.zero_grad()
                loss = forward(x)
                loss.backward()
                return loss

            loss = step(closure)
        else:
            optimizer.zero_grad()
            loss = forward(x)
            loss.backward()
            if way == "parameter":
                for group in optimizer.param_groups:
                    for i, p in enumerate(group["params"]):
                        optimizer.step_parameter(p, group, i)
                        p.grad = None
            if way == "loss":
                step(loss=loss.detach())
            else:
                step()
        schedule.step()
        return loss

    train = train if alone is not None else compiler(train)
    told = []
    for k in range(STEPS):
        told.append(train(torch.randn(5, 16, generator=torch.Generator().manual_seed(k))).detach().clone())
    assert optimizer.health()["steps"] == STEPS
    if handle is not None:
        handle.remove()
    return [*told, *(p.detach().clone() for p in model.parameters())]


def check(name: str, way: str, backend: str = "eager", **options: Any) -> None:
    plain = run(name, way, lambda f: f, **options)
    compiled = run(name, way, lambda f: torch.compile(f, backend=backend), **options)
    for a, b in zip(plain, compiled, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("engine", ["auto", "reference"])
def test_a_training_step(name: str, engine: str) -> None:
    check(name, "step", engine=engine)


@pytest.mark.parametrize("way", ["closure", "loss", "release", "parameter", "bound", "lambda", "recorded"])
def test_ways_to_step(way: str) -> None:
    check("Automagic_CameAMP_COptim8bit", way)


@pytest.mark.parametrize("way", ["step", "release"])
def test_through_the_ahead_of_time_compiler(way: str) -> None:
    check("Automagic_CameAMP8bit", way, backend="aot_eager")


def test_offload_inside() -> None:
    check("Automagic_CameAMP", "step", offload="cpu")


def test_weights_in_another_order_and_a_mixed_step() -> None:
    p = torch.nn.Parameter(torch.randn(6, 5).t())
    q = torch.nn.Parameter(torch.randn(4, 4).double())
    optimizer = OPTIMIZERS["Automagic_CameAMP"]([p, q], lr=1e-3)

    @torch.compile(backend="eager")
    def train() -> None:
        optimizer.zero_grad()
        (p.square().sum() + q.square().sum()).backward()
        optimizer.step()

    before = p.detach().clone(), q.detach().clone()
    for _ in range(3):
        train()
    assert not torch.equal(before[0], p)
    assert not torch.equal(before[1], q)


def test_reading_inside() -> None:
    """Rates, health and reports in a compiled function, as a logger calls them."""
    p = torch.nn.Parameter(torch.ones(4, 4))
    optimizer = OPTIMIZERS["Automagic_CameAMP"]([p], lr=1e-3)

    @torch.compile(backend="eager")
    def train() -> tuple[Any, ...]:
        p.square().sum().backward()
        optimizer.step()
        saved = optimizer.state_dict()
        return optimizer.get_learning_rates(), optimizer.health(), optimizer.engine_report(), saved

    rates, health, report, saved = train()
    assert rates == optimizer.get_learning_rates()
    assert health == optimizer.health()
    assert report == optimizer.engine_report()
    assert saved["state"][0].keys() == optimizer.state_dict()["state"][0].keys()


def test_a_users_own_step_is_left_to_python_too() -> None:
    class Mine(OPTIMIZERS["Automagic_CameAMP"]):  # type: ignore[misc]
        def step(self, closure: Any = None, *, loss: Any = None) -> Any:
            self.calls = getattr(self, "calls", 0) + 1
            return super().step(closure, loss=loss)

    p = torch.nn.Parameter(torch.ones(4, 4))
    optimizer = Mine([p], lr=1e-3)
    p.grad = torch.ones(4, 4)
    torch.compile(optimizer.step, backend="eager")()
    assert optimizer.calls == 1
    assert not torch.equal(p, torch.ones(4, 4))


@pytest.mark.parametrize("name", CLASSES)
def test_a_backward_pass_that_is_compiled_releases_gradients_as_a_plain_one(name: str) -> None:
    plain, compiled = (released_weights(name, compile_) for compile_ in (False, True))
    assert all(map(torch.equal, plain, compiled))


def released_weights(name: str, compiled: bool) -> list[Tensor]:
    """Weights after steps inside backward; compiled autograd turns the whole pass into one graph."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.GELU(), torch.nn.Linear(8, 4))
    optimizer = OPTIMIZERS[name](model.parameters(), lr=1e-3)
    optimizer.release_gradients(model)

    def train(x: Tensor) -> None:
        model(x).square().mean().backward()

    with torch._dynamo.config.patch(compiled_autograd=compiled, error_on_recompile=False):
        run_ = torch.compile(train, backend="eager") if compiled else train
        for step in range(STEPS):
            run_(torch.randn(16, 8, generator=torch.Generator().manual_seed(step)))
            optimizer.step()
            optimizer.zero_grad()
    return [p.detach().clone() for p in model.parameters()]
