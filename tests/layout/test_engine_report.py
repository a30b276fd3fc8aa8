"""Who steps what, before the first step and after; and the one warning of a slow way."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch

from automagic_cameamp import OPTIMIZERS
from automagic_cameamp.executors import said as said_once
from automagic_cameamp.kernels import native as kernels

CLASSES = sorted(OPTIMIZERS)
SLOW = "go the slow way"


def weights(odd: int = 1) -> list[Any]:
    """Ten tensors of 100 elements, the last ones in fp64."""
    params = [torch.nn.Parameter(torch.randn(10, 10)) for _ in range(10)]
    for p in params[len(params) - odd :]:
        p.data = p.data.double()
    return params


def take(optimizer: Any, params: list[Any]) -> None:
    for p in params:
        if p.requires_grad:
            p.grad = torch.randn_like(p)
    optimizer.step()


def table(optimizer: Any) -> dict[str, tuple[str, int, int]]:
    return {row.reason: (row.engine, row.parameters, row.elements) for row in optimizer.engine_report().rows}


@pytest.mark.parametrize("name", CLASSES)
def test_before_and_after_the_first_step(name: str) -> None:
    params = [*weights(), torch.nn.Parameter(torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last))]
    params += [torch.nn.Parameter(torch.randn(3), requires_grad=False), torch.nn.Parameter(torch.randn(0, 3))]
    optimizer = OPTIMIZERS[name](params, lr=1e-3)
    before = optimizer.engine_report()
    assert table(optimizer) == {
        "CPU kernels": ("native", 9, 900),
        "the kernels do not take torch.float64 parameters on 'cpu'": ("reference", 1, 100),
        "CPU kernels, through contiguous copies": ("native", 1, 48),
        "it takes no gradient": ("none", 1, 3),
        "it has no elements": ("none", 1, 0),
    }
    take(optimizer, params)
    assert optimizer.engine_report() == before
    assert (before.elements("native"), before.elements("reference")) == (948, 100)
    assert [row.names for row in before.rows if row.engine == "reference"] == [("param_9",)]
    text = str(before).splitlines()
    assert len(text) == 6
    assert text[1].startswith("native")
    assert "900" in text[1]
    assert "param_0, param_1, param_2, ..." in text[1]


@pytest.mark.parametrize(
    ("options", "engine", "reason"),
    [
        ({"engine": "reference"}, "reference", "engine='reference' was asked for"),
        ({"came": False}, "reference", "the kernels do not take came=False"),
        ({"offload": "cpu"}, "native", "CPU kernels, on the host's copies"),
        ({}, "native", "CPU kernels"),
    ],
)
def test_reasons(options: dict[str, Any], engine: str, reason: str) -> None:
    params = weights(0)
    optimizer = OPTIMIZERS["Automagic_CameAMP"](params, lr=1e-3, **options)
    for _ in range(2):
        assert table(optimizer) == {reason: (engine, 10, 1000)}
        take(optimizer, params)


def test_names_and_groups() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2).double())
    groups: list[Any] = [{"params": list(part.named_parameters())} for part in model]
    rows = OPTIMIZERS["Automagic_CameAMP"](groups, lr=1e-3).engine_report().rows
    assert {row.engine: row.names for row in rows} == {
        "native": ("weight", "bias"),
        "reference": ("weight", "bias"),
    }


def test_state_that_the_kernels_cannot_read() -> None:
    params = weights(0)
    optimizer = OPTIMIZERS["Automagic_CameAMP"](params, lr=1e-3)
    take(optimizer, params)
    optimizer.state[params[3]]["exp_avg"] = optimizer.state[params[3]]["exp_avg"].t().contiguous().t()
    assert table(optimizer)["the kernels do not take the state 'exp_avg' as it is held"] == (
        "reference",
        1,
        100,
    )


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(kernels.SWITCH, "0")
    kernels._opened.cache_clear()
    try:
        optimizer = OPTIMIZERS["Automagic_CameAMP"](weights(0), lr=1e-3)
        assert list(table(optimizer)) == [f"the kernels cannot be used: {kernels.SWITCH}=0 is set"]
    finally:
        monkeypatch.undo()
        kernels._opened.cache_clear()


def said(monkeypatch: pytest.MonkeyPatch, way: str, odd: int, **options: Any) -> list[Any]:
    """The warnings of two runs in a process that has said nothing yet."""
    monkeypatch.setattr(said_once, "SAID", set())
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        for _ in range(2):
            params = weights(odd)
            optimizer = OPTIMIZERS["Automagic_CameAMP"](params, lr=1e-3, **options)
            for _ in range(2):
                if way == "release":
                    with optimizer.release_gradients(params):
                        torch.stack([(p * p).sum().float() for p in params]).sum().backward()
                        optimizer.step()
                else:
                    take(optimizer, params)
    return [w for w in found if SLOW in str(w.message)]


@pytest.mark.parametrize("way", ["step", "release"])
@pytest.mark.parametrize("engine", ["auto", "native"])
def test_one_warning_where_more_than_a_tenth_goes_the_slow_way(
    monkeypatch: pytest.MonkeyPatch, way: str, engine: str
) -> None:
    (warning,) = said(monkeypatch, way, 2, engine=engine)
    text = str(warning.message)
    assert text.startswith("20% of the elements")
    assert "200 of 1,000" in text
    assert "torch.float64 parameters on 'cpu'" in text
    assert "engine_report()" in text
    if way == "step":
        assert warning.filename == __file__


@pytest.mark.parametrize("way", ["step", "release"])
def test_silence(monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    """A tenth, or all of it as the user asked, is no news."""
    assert not said(monkeypatch, way, 1)
    assert not said(monkeypatch, way, 10, engine="reference")
    assert len(said(monkeypatch, way, 0, came=False)) == 1
