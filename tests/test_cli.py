"""The command `automagic` of the optimizers' package: its own commands, and the place of the trainer's."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from automagic_cameamp import OPTIMIZERS, __version__, cli

COMMANDS = ["demo", "train", "sample", "sd-scripts", "optimizers"]
ADVICE = (
    "the trainer is a package of its own and is not installed: in a clone of the repository, "
    "pip install . ./trainer\n"
)


@pytest.fixture
def no_trainer(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As where only the optimizers are installed."""
    with monkeypatch.context() as patch:
        for name in [n for n in sys.modules if n.partition(".")[0] == "automagic_trainer"]:
            patch.delitem(sys.modules, name)
        patch.setattr(sys, "meta_path", [Without(), *sys.meta_path])
        yield


class Without:
    """An import system that has no trainer."""

    def find_spec(self, name: str, *_: object) -> None:
        if name.partition(".")[0] == "automagic_trainer":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name.partition(".")[0])


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--version"])
    assert capsys.readouterr().out.strip() == f"automagic-cameamp {__version__}"


def test_help_of_the_optimizers(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["optimizers", "--help"])
    assert stop.value.code == 0
    assert capsys.readouterr().out.startswith("usage: automagic optimizers")


def test_optimizers_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["optimizers"]) == 0
    out = capsys.readouterr().out
    for name in OPTIMIZERS:
        assert any(line.split()[:1] == [name] and len(line.split()) > 3 for line in out.splitlines())
    assert not any(line.startswith("RMSprop") for line in out.splitlines())
    assert cli.main(["optimizers", "--all"]) == 0
    assert any(line.startswith("RMSprop") for line in capsys.readouterr().out.splitlines())


@pytest.mark.parametrize("trainer", [True, False])
def test_help_lists_every_command(
    trainer: bool, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    if not trainer:
        request.getfixturevalue("no_trainer")
    assert (cli.trainer() is not None) is trainer
    with pytest.raises(SystemExit) as stop:
        cli.main(["--help"])
    assert stop.value.code == 0
    rows = capsys.readouterr().out.split("commands:")[1].split("examples:")[0].splitlines()
    listed = {row.split()[0]: row for row in rows if row.startswith("    ") and row.split()[0] in COMMANDS}
    assert list(listed) == COMMANDS
    for name, row in listed.items():
        assert ("(needs the trainer)" in row) is (not trainer and name in cli.TRAINER)
        assert cli.TRAINER.get(name, "") in row


def test_the_trainer_has_the_commands_that_are_promised() -> None:
    commands = cli.trainer()
    assert commands is not None and list(commands.COMMANDS) == list(cli.TRAINER)


@pytest.mark.usefixtures("no_trainer")
@pytest.mark.parametrize(
    "line",
    [
        "demo",
        "demo --quick",
        "train --data my_pictures --optimizer AdamW",
        "sample --prompt x --out x.png",
        "train --help",
    ],
)
def test_without_the_trainer_one_sentence_says_how_to_install_it(
    line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(line.split()) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == f"automagic {line.split()[0]}: {ADVICE}"


@pytest.mark.usefixtures("no_trainer")
def test_without_the_trainer_the_rest_works(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["optimizers"]) == 0
    (tmp_path / "library").mkdir()
    assert cli.main(["sd-scripts", "--install", str(tmp_path), "--dry-run"]) == 0
    assert "would write" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        cli.main(["trian"])
    assert stop.value.code == 2 and "invalid choice" in capsys.readouterr().err


def test_a_trainer_that_is_there_and_broken_is_not_called_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever else cannot be imported has a traceback of its own."""
    package = tmp_path / "automagic_trainer"
    package.mkdir()
    (package / "__init__.py").write_text("", encoding="utf-8")
    (package / "commands.py").write_text("import no_such_package_at_all", encoding="utf-8")
    for name in [n for n in sys.modules if n.partition(".")[0] == "automagic_trainer"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ModuleNotFoundError, match="no_such_package_at_all"):
        cli.main(["demo"])


def test_the_package_alone_in_a_process_of_its_own(tmp_path: Path) -> None:
    """A copy of the optimizers and nothing else of ours: what `pip install .` gives."""
    source = Path(cli.__file__).parent
    ignore = shutil.ignore_patterns("__pycache__", "cpu")
    shutil.copytree(source, tmp_path / source.name, ignore=ignore)
    program = (
        "import sys\n"
        "sys.path[:] = [p for p in sys.path if 'trainer' not in p]\n"
        "from automagic_cameamp.cli import main\n"
        "codes = [main(['optimizers']), main(['demo', '--quick'])]\n"
        "print(codes, 'automagic_trainer' in sys.modules)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment, cwd=tmp_path)
    assert done.stdout.endswith("[0, 2] False\n")
    assert done.stderr == f"automagic demo: {ADVICE}"


def shell(line: str) -> subprocess.CompletedProcess[str]:
    text = f"{sys.executable} -u -m automagic_cameamp"
    return subprocess.run(
        ["bash", "-c", f"set -o pipefail; {line.replace('automagic', text)}"],
        capture_output=True, text=True, check=False, cwd=Path(cli.__file__).parents[1],
    )  # fmt: skip


@pytest.mark.skipif(
    not shutil.which("bash") or not Path("/dev/full").exists(), reason="no bash, or no /dev/full"
)
def test_a_reader_that_goes_and_a_disk_that_is_full_end_in_no_traceback() -> None:
    gone = shell("automagic optimizers --all | (exec 0<&-; sleep 4)")
    assert gone.returncode == 1 and gone.stderr == ""
    full = shell("automagic optimizers > /dev/full")
    assert full.returncode == 1
    assert full.stderr == "automagic optimizers: the output could not be written: No space left on device\n"


def test_ctrl_c_while_the_command_line_is_read(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "parser", stopped)
    assert cli.main(["doctor"]) == 130
    assert capsys.readouterr().err == "automagic: stopped\n"
