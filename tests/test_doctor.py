"""`automagic doctor`: a page that is true, names no machine, and sees a step that is wrong."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from automagic_cameamp import OPTIMIZERS, __version__, cli
from automagic_cameamp.doctor import command, environment, selftest
from automagic_cameamp.kernels import native

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "doctor.md"


@pytest.fixture(scope="module")
def facts() -> dict[str, Any]:
    return command.examine("cpu", timed=False)


def test_it_says_what_is_here(facts: dict[str, Any]) -> None:
    assert facts["automagic_cameamp"] == __version__ and facts["torch"] == torch.__version__
    assert facts["packages"]["numpy"] and facts["devices"][0]["type"] == "cpu"
    assert (facts["kernels"]["flavour"] is None) == (native.why_not() is not None)
    assert {row["optimizer"] for row in facts["engines"]} == set(OPTIMIZERS)
    for name in OPTIMIZERS:
        assert sum(row["share"] for row in facts["engines"] if row["optimizer"] == name) == pytest.approx(1)


def test_the_kernels_step_like_the_reference(facts: dict[str, Any]) -> None:
    rows = [row for row in facts["self_test"] if row["engine"] == "native"]
    assert [row["optimizer"] for row in rows] == list(OPTIMIZERS)
    wanted = "ok" if native.why_not() is None else "not there"
    assert {row["verdict"] for row in rows} == {wanted}, rows
    assert not command.wrong(facts)


def test_text_and_json_hold_the_same(facts: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    page = command.text(facts)
    assert max(map(len, page.splitlines())) <= 112
    assert all(name in page for name in OPTIMIZERS) and "hook " in page and "self-test" in page
    assert cli.main(["doctor", "--json", "--no-speed", "--device", "cpu"]) == 0
    assert json.loads(capsys.readouterr().out).keys() == json.loads(json.dumps(facts)).keys()


def test_nothing_of_the_machine_is_in_it(facts: dict[str, Any]) -> None:
    whole = json.dumps(facts) + command.text(facts)
    for secret in (os.uname().nodename, str(ROOT), str(Path.home()), os.environ.get("USER", "")):
        if len(secret) > 4:
            assert secret not in whole
    assert not re.search(r"(?<![\w<])/(?:work|home|root|tmp|Users|usr)/", whole)


def test_paths_are_made_neutral() -> None:
    package = Path(environment.__file__).resolve().parents[1]
    assert environment.neutral(f"{package}/kernels/x.so is old") == "automagic_cameamp/kernels/x.so is old"
    assert environment.neutral(str(Path.home() / "deep" / "x")) == str(Path("~/deep/x"))


def test_a_wrong_step_is_seen(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """One element, moved by a thousandth more than it should be."""
    name = "Automagic_CameAMP8bit"

    class Wrong(OPTIMIZERS[name]):  # type: ignore[misc]
        def step(self, *args: Any, **kwargs: Any) -> Any:
            done = super().step(*args, **kwargs)
            if self.config.engine == "native":
                p = self.param_groups[0]["params"][0]
                p.data.view(-1)[7] += 1e-3 * 1e-3
            return done

    if native.why_not() is not None:
        pytest.skip("no kernels to be wrong")
    monkeypatch.setitem(OPTIMIZERS, name, Wrong)
    assert cli.main(["doctor", "--no-speed", "--device", "cpu"]) == 1
    assert "DIFFERS" in capsys.readouterr().out


def test_missing_kernels_are_said_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_opened", lambda: "it was never built")
    row = selftest.compared("Automagic_CameAMP", "native", "cpu", selftest.LORA)
    assert row["verdict"] == "not there" and "it was never built" in row["why"]
    assert {r["engine"] for r in selftest.engines("cpu")} == {"reference"}
    assert "it was never built" in selftest.engines("cpu")[0]["why"]
    assert environment.kernels() == {"flavour": None, "why_not": "it was never built"}


def test_the_sharded_step_is_tried_too() -> None:
    row = selftest.sharded("Automagic_CameAMP")
    assert row["verdict"] == "ok", row
    assert not torch.distributed.is_initialized()


def test_speed_is_beside_adamw(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selftest, "SPEED", [(40, 30), (30,)])
    rows = selftest.speed("cpu")
    assert [row["optimizer"] for row in rows] == ["torch AdamW, fused", *OPTIMIZERS]
    assert rows[0]["of_adamw"] == 1.0 and all(row["of_adamw"] > 0 for row in rows)


def test_a_device_that_is_not_here_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--device", "tpu"]) == 2
    assert capsys.readouterr().err == "automagic doctor: --device 'tpu' is not here: cpu\n"


def test_the_committed_example_is_of_this_program(facts: dict[str, Any]) -> None:
    """Its headings and rows are those of a page made now; numbers and versions are the machine's."""
    text = PAGE.read_text("utf-8")
    now = command.text(facts)
    for line in now.splitlines():
        if line and not line.startswith(" ") and "variables" not in line:
            assert re.split(r"\s{2,}|,", line)[0] in text
    assert all(f"{name} " in text for name in OPTIMIZERS)


def test_bug_reports_ask_for_it() -> None:
    template = (ROOT / ".github" / "ISSUE_TEMPLATE" / "bug.yml").read_text("utf-8")
    assert "automagic doctor" in template
