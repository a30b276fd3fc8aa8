"""docs/coming-from.md: every row of its tables is built, every number of bytes is counted."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import automagic_cameamp as ac

PAGE = Path(__file__).resolve().parents[2] / "docs" / "coming-from.md"
ROW = re.compile(r"^\| `([^`]+)` \| (.+?) \| .*\|$", re.M)
OURS = {"lr": 1e-4}


def rows() -> list[tuple[str, str, str]]:
    """(class, what is written for the other one, what to write here)."""
    found = []
    for name, body in re.findall(r"<!-- from: (\w+) -->\n(.*?)(?=\n## |\Z)", PAGE.read_text("utf-8"), re.S):
        found += [(name, yours, here.strip("`")) for yours, here in ROW.findall(body)]
    return found


def keywords(words: str) -> dict[str, Any]:
    return eval(f"dict({words})")


def weights(size: int = 8) -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.randn(size, size, generator=torch.Generator().manual_seed(0)) * 0.1)


def built(name: str, options: dict[str, Any]) -> ac.CameAMPOptimizer:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return ac.OPTIMIZERS[name]([weights()], **{**OURS, **options})


def test_the_tables_are_read() -> None:
    text = PAGE.read_text("utf-8")
    assert len(rows()) > 35
    assert len(rows()) == len(re.findall(r"^\| `", text, re.M))


@pytest.mark.parametrize(("name", "yours", "here"), rows(), ids=lambda x: x)
def test_what_to_write(name: str, yours: str, here: str) -> None:
    options = keywords(yours)
    if here == "no `lr":  # the row's marks are stripped
        assert ac.OPTIMIZERS[name]([weights()]).param_groups[0]["lr_level"] == "auto"
        return
    if here == "leave out" and "betas" not in options and "beta3" not in options:
        with pytest.raises(TypeError, match=f"has no option '{next(iter(options))}'"):
            built(name, options)
    elif here == "taken":
        bare = built(name, {}).param_groups[0]
        assert {k: v for k, v in built(name, options).param_groups[0].items() if k != "params"} == {
            k: v for k, v in bare.items() if k != "params"
        }
    elif here == "same":
        ((key, value),) = options.items()
        group = built(name, options).param_groups[0]
        held = group[key]
        if key == "eps" and isinstance(value, float):
            held = held[2]
        elif isinstance(value, tuple):
            held = held[: len(value)]
        assert held == value
    elif here != "leave out":
        built(name, keywords(here))


# ---------------------------------------------------------------------------------------------- numbers


def bytes_of(make: Callable[[list[Any]], Any], size: int = 1024) -> float:
    """Bytes of state for each element of a matrix, after a step."""
    p = weights(size)
    optimizer = make([p])
    p.grad = torch.full_like(p, 0.01)
    optimizer.step()
    held = [x for x in optimizer.state[p].values() if isinstance(x, torch.Tensor)]
    return sum(x.numel() * x.element_size() for x in held) / p.numel()


def of_module(name: str, attribute: str, **options: Any) -> Callable[[list[Any]], Any]:
    cls = getattr(pytest.importorskip(name), attribute)
    return lambda params: cls(params, **options)


@pytest.mark.parametrize(
    ("words", "module", "attribute", "options"),
    [
        ("2.04)", "bitsandbytes.optim", "AdamW8bit", {}),
        ("instead of 16", "prodigyopt", "Prodigy", {}),
        ("against 0.02", "torch.optim", "Adafactor", {}),
        ("for 4.03", "came_pytorch", "CAME", {"lr": 1e-4}),
        ("Lion's 4,", "bitsandbytes.optim", "Lion", {}),
        ("1.02.", "bitsandbytes.optim", "Lion8bit", {}),
    ],
)
def test_bytes_of_the_others(words: str, module: str, attribute: str, options: dict[str, Any]) -> None:
    text = PAGE.read_text("utf-8")
    assert words in text
    number = float(re.findall(r"[\d.]*\d", words)[0])
    assert bytes_of(of_module(module, attribute, **options)) == pytest.approx(number, abs=0.02)


@pytest.mark.parametrize(
    ("name", "options", "number"),
    [
        ("Automagic_CameAMP", {}, 5.03),
        ("Automagic_CameAMP8bit", {}, 2.05),
        ("Automagic_CameAMP_Improved_8Bit", {"profile": "minimal"}, 0.66),
    ],
)
def test_bytes_of_ours(name: str, options: dict[str, Any], number: float) -> None:
    assert str(number) in PAGE.read_text("utf-8")
    cls = ac.OPTIMIZERS[name]
    assert bytes_of(lambda p: cls(p, lr=1e-4, verbose=False, **options)) == pytest.approx(number, abs=0.03)


# --------------------------------------------------------------------------------------------- behaviour


def test_without_what_was_added_it_is_came() -> None:
    came = pytest.importorskip("came_pytorch").CAME
    words = re.search(r'^plain = "([^"]+)"$', PAGE.read_text("utf-8"), re.M)
    assert words
    p, q = weights(24), weights(24)
    theirs = came([p], lr=2e-4, betas=(0.9, 0.999, 0.9999))
    options = {"weight_decay": 0.0, "full_finetune": True, "techniques": words[1]}
    ours = ac.Automagic_CameAMP([q], lr=2e-4, betas=(0.9, 0.999, 0.9999), **options)
    draw = torch.Generator().manual_seed(1)
    for _ in range(10):
        p.grad = torch.randn(24, 24, generator=draw) * 0.01
        q.grad = p.grad.clone()
        theirs.step()
        ours.step()
        assert float((p - q).detach().abs().max()) < 1e-3 * 2e-4


@pytest.mark.parametrize("attribute", ["AdamW8bit", "AdamW"])
def test_the_state_of_adamw8bit_is_taken_over(attribute: str) -> None:
    cls = getattr(pytest.importorskip("bitsandbytes").optim, attribute)
    p = weights(128)
    p.grad = torch.randn(128, 128)
    theirs = cls([p], lr=1e-4)
    theirs.step()
    report = ac.import_state(ac.Automagic_CameAMP8bit([p], lr=1e-4), theirs.state_dict())
    assert report.kind == "bitsandbytes" and report.parameters == 1


@pytest.mark.parametrize(("module", "attribute"), [("prodigyopt", "Prodigy"), ("bitsandbytes.optim", "Lion")])
def test_what_cannot_be_taken_over_is_refused(module: str, attribute: str) -> None:
    cls = getattr(pytest.importorskip(module), attribute)
    p = weights(128)
    p.grad = torch.randn(128, 128)
    theirs = cls([p])
    theirs.step()
    with pytest.raises(ac.CheckpointError):
        ac.import_state(ac.Automagic_CameAMP8bit([p], lr=1e-4), theirs.state_dict())
