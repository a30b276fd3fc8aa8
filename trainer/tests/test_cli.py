"""The commands `automagic demo`, `train`, `sample`: help, exit codes, one line for mistakes, Ctrl-C."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from automagic_cameamp import cli
from automagic_trainer import commands, loop, progress
from automagic_trainer.metrics import MetricsFile

SOURCES = os.pathsep.join(str(Path(module.__file__).parents[1]) for module in (cli, loop))
ENVIRONMENT = {**os.environ, "PYTHONPATH": SOURCES}
SMALL = ["--steps", "3", "--batch", "2", "--rank", "2", "--optimizer", "AdamW"]


@pytest.fixture
def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("training began")

    monkeypatch.setattr(loop.Run, "__init__", refuse)


@pytest.fixture(autouse=True)
def _quick_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    from automagic_trainer import gallery

    monkeypatch.setattr(gallery.Drawing, "steps", 2)
    fields = gallery.Drawing.__init__.__defaults__
    monkeypatch.setattr(gallery.Drawing.__init__, "__defaults__", (fields[0], 2, *fields[2:]))


@pytest.mark.parametrize("command", [[], ["demo"], ["train"], ["sample"]])
def test_help_has_examples_and_exits_with_0(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main([*command, "--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert out.startswith(f"usage: automagic{' ' if command else ''}{' '.join(command)}")
    assert "examples:" in out and "automagic " in out.split("examples:")[1]


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys\nfrom automagic_cameamp.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "print('HEAVY', [m for m in ('diffusers', 'peft', 'transformers', 'rich', 'matplotlib', 'PIL') "
        "if m in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=ENVIRONMENT
    )
    assert done.stdout.endswith("HEAVY []\n")


def test_python_dash_m() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "automagic_cameamp", "train", "--steps", "0"],
        capture_output=True,
        text=True,
        check=False,
        env=ENVIRONMENT,
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and "steps must be a whole number from 1" in done.stderr


MISTAKES: dict[str, list[str]] = {
    "": ["command"],
    "paint": ["paint", "demo"],
    "train --stepz 3": ["--stepz"],
    "train --steps many": ["steps", "'many'", "whole number"],
    "train --steps 2.5": ["2.5", "whole number"],
    "train --lr 0,1": ["lr", "(0, 1)"],
    "train --precision fp8": ["fp32, bf16"],
    "train --data NOWHERE": ["NOWHERE", "no such folder", "cats"],
    "train --data EMPTY": ["no pictures"],
    "train --optimizer AdamV": ["AdamW"],
    "train --optimizer SGD --optimizer-args momentumm=0.9": ["momentumm", "did you mean momentum"],
    "train --optimizer SGD --optimizer-args momentum": ["momentum", "key=value"],
    "train --optimizer SGD --optimizer-args momentum=-3": ["SGD", "-3"],
    "train --optimizer bitsandbites.AdamW8bit": ["bitsandbites"],
    "train --device cuda:99": ["cuda:99"],
    "train --config NOWHERE": ["no such file"],
    "train --config TOML": ["run.toml", "'stepz'", "did you mean steps"],
    "train --resume --out NOWHERE": ["holds no run"],
    "train --threads 0": ["threads", "from 1"],
    "train --out FILE/x": ["cannot write"],
    "demo --optimizers AdamW adamw": ["AdamW", "twice"],
    "demo --optimizers Nothing": ["Nothing"],
    "demo --steps -1": ["steps", "-1"],
    "demo --resume --out NOWHERE": ["holds no run"],
    "sample": ["--prompt"],
    "sample --prompt x --out x.txt": ["x.txt", ".png"],
    "sample --prompt x --adapter NOWHERE": ["NOWHERE", "missing"],
    "sample --prompt x --steps 0": ["--steps", "'0'"],
    "sample --prompt x --guidance much": ["--guidance", "'much'"],
}


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_is_one_line_and_exit_code_2(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "EMPTY").mkdir()
    (tmp_path / "FILE").write_text("", encoding="utf-8")
    (tmp_path / "run.toml").write_text("stepz = 3\n", encoding="utf-8")
    threads = torch.get_num_threads()
    try:
        code: Any = cli.main([word.replace("TOML", "run.toml") for word in line.split()])
    except SystemExit as stop:  # argparse's own
        code = stop.code
    assert code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1, captured.err
    for word in MISTAKES[line]:
        assert word in captured.err
    assert torch.get_num_threads() == threads
    assert not (tmp_path / "runs").exists(), "nothing may be written before all is checked"


def test_a_missing_package_is_named_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(options: dict[str, Any]) -> int:
        raise ImportError("No module named 'diffusers'", name="diffusers")

    monkeypatch.setitem(commands.COMMANDS, "demo", fail)
    assert cli.main(["demo"]) == 2
    assert capsys.readouterr().err.strip() == (
        "automagic demo: the package 'diffusers' is missing: in a clone of the repository, "
        "pip install . ./trainer"
    )

    def bug(options: dict[str, Any]) -> int:
        raise ImportError("other", name="other")

    monkeypatch.setitem(commands.COMMANDS, "demo", bug)
    with pytest.raises(ImportError):
        cli.main(["demo"])


def test_ctrl_c_prints_a_command_that_goes_on(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Two words in the folder's name: the printed command must survive a shell."""
    monkeypatch.setattr(sys, "argv", ["automagic"])
    monkeypatch.delenv("MAKELEVEL", raising=False)
    whole, parts = tmp_path / "whole run", tmp_path / "parts of it"
    line = ["train", "--data", str(folder), *SMALL, "--eval-every", "1"]
    assert cli.main([*line, "--out", str(whole)]) == 0
    told = capsys.readouterr().out
    assert "report.html" in told and "samples.png" in told and "AdamW" in told
    first = told.splitlines()[0]
    assert first == f"automagic train: loading the model; results will be in {whole}"
    for stage in (r"AdamW: \d+ steps \.\.\. loss \d\.\d{4}, \d+ s", r"drawing: \d+ steps \.\.\. \d+ s"):
        assert len(re.findall(f"^{stage}$", told, re.M)) == 1, told

    original = progress.Lines.on_row

    def interrupt(self: progress.Lines, row: Any) -> None:
        original(self, row)
        if row["step"] == 2:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(progress.Lines, "on_row", interrupt)
        assert cli.main([*line, "--out", str(parts)]) == 130
    told = capsys.readouterr().out
    command = next(row for row in told.splitlines() if "--resume" in row)
    assert shlex.split(command) == ["automagic", "train", "--resume", "--out", str(parts)]
    assert not (parts / "report.html").exists()
    assert cli.main(shlex.split(command)[1:]) == 0
    assert (parts / "report.html").exists()
    for a, b in zip(*(MetricsFile(p / "metrics.jsonl").rows() for p in (whole, parts)), strict=True):
        assert (a["step"], a["loss"], a["held_out"]) == (b["step"], b["loss"], b["held_out"])
    adapters = [(p / "adapter.safetensors").read_bytes() for p in (whole, parts)]
    assert adapters[0] == adapters[1]

    # a finished run is not trained over by accident, and a resume does not change what was trained
    capsys.readouterr()
    assert cli.main([*line, "--out", str(parts)]) == 2
    assert "--resume" in capsys.readouterr().err
    assert cli.main(["train", "--resume", "--out", str(parts), "--lr", "0.5"]) == 2
    assert "lr=" in capsys.readouterr().err
    assert cli.main(["demo", "--resume", "--out", str(parts)]) == 2
    assert "automagic train" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "make", "expected"),
    [
        (["/a b/automagic"], False, "'/a b/automagic' demo --resume --out x"),
        (["-c"], True, "make demo ARGS='--resume --out x'"),
        (["-c"], False, f"{shlex.quote(sys.executable)} -m automagic_cameamp demo --resume --out x"),
    ],
)
def test_the_way_on_is_written_as_the_user_started(
    argv: list[str], make: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.setenv("MAKELEVEL", "1") if make else monkeypatch.delenv("MAKELEVEL", raising=False)
    assert commands._resume_command("demo", Path("x")) == expected


def test_options_from_toml_lose_against_the_command_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "run.toml"
    config.write_text(
        f'data = "{folder}"\nsteps = 9\nbatch = 2\nrank = 2\noptimizer = "SGD"\nlr = 0.01\n'
        'prompt = ["a green square"]\n[optimizer_args]\nmomentum = 0.9\n',
        encoding="utf-8",
    )
    out = tmp_path / "run"
    assert cli.main(["train", "--config", str(config), "--steps", "1", "--out", str(out)]) == 0
    record = json.loads((out / "session.json").read_text(encoding="utf-8"))
    (run,) = record["runs"]
    assert (run["steps"], run["batch"], run["optimizer"], run["lr"]) == (1, 2, "SGD", 0.01)
    assert run["optimizer_args"] == {"momentum": 0.9}
    assert run["lr"] == 0.01
    assert record["prompts"] == ["a green square"]
    assert "a green square" in (out / "report.html").read_text(encoding="utf-8")


def test_a_terminal_gets_bars_and_a_file_gets_lines() -> None:
    row = {"step": 3, "loss": 0.25, "lr": 1e-3, "state_bytes": 2048}
    for terminal in (True, False):
        out = io.StringIO()
        with progress.progress(Console(file=out, force_terminal=terminal, width=120)) as watch:
            watch.start("AdamW", 9)
            assert terminal or out.getvalue() == "AdamW: 9 steps ..."  # seen before it is over
            watch.on_row(row)
            watch.say("a word between")
            watch.start("drawing", 2)
            watch.tick()
        assert isinstance(watch, progress.Bars if terminal else progress.Lines)
        text = out.getvalue()
        if terminal:
            assert "a word between" in text and "0.2500" in text
        else:
            assert text.splitlines() == [
                "AdamW: 9 steps ... loss 0.2500, 0 s",
                "a word between",
                "drawing: 2 steps ... 0 s",
            ]
