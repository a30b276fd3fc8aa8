"""`automagic sd-scripts`: import files in a checkout; nothing that is not ours is touched."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

import automagic_cameamp
from automagic_cameamp import cli
from automagic_cameamp.kohya import profile_example, shims
from automagic_cameamp.kohya.config_file import LauncherError
from automagic_cameamp.profiles import PROFILES

NAMES = {
    "automagic_cameamp.py",
    "automagic_cameamp_improved.py",
    "automagic_cameamp_improved_8bit.py",
    "automagic_cameamp_8bit.py",
    "optimizer_profile_example.py",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "library").mkdir()
    (tmp_path / "library" / "__init__.py").touch()
    (tmp_path / "library" / "train_util.py").write_text("theirs = 1\n", encoding="utf-8")
    return tmp_path


def files(folder: Path) -> dict[str, str]:
    return {p.name: p.read_text("utf-8") for p in (folder / "library").iterdir() if p.is_file()}


def test_install_and_uninstall_leave_nothing(folder: Path) -> None:
    before = files(folder)
    changes = shims.install(folder)
    assert {c.path.name for c in changes} == NAMES and {c.action for c in changes} == {"write"}
    assert set(files(folder)) == set(before) | NAMES
    assert {c.action for c in shims.install(folder)} == {"keep"}
    assert {c.path.name for c in shims.uninstall(folder)} == NAMES
    assert files(folder) == before
    assert shims.uninstall(folder) == []


def test_the_documents_imports_work_there(folder: Path) -> None:
    shims.install(folder)
    program = (
        "from library.automagic_cameamp import Automagic_CameAMP, Automagic_CameAMP8bit, OptimizerConfig\n"
        "from library.automagic_cameamp_improved import Automagic_CameAMP_Improved\n"
        "from library.automagic_cameamp_8bit import Automagic_CameAMP_8Bit, Optimizer8BitConfig\n"
        "from library.automagic_cameamp_improved_8bit import Automagic_CameAMP_Improved_8Bit\n"
        "from library.automagic_cameamp_improved_8bit import create_improved_8bit_optimizer\n"
        "from library.automagic_cameamp_improved_8bit import BITSANDBYTES_AVAILABLE, OptimizationProfiles\n"
        "import automagic_cameamp\n"
        "assert Automagic_CameAMP_8Bit is automagic_cameamp.Automagic_CameAMP_8Bit\n"
        "import runpy\n"
        "runpy.run_path('library/optimizer_profile_example.py', run_name='__main__')\n"
    )
    src = str(Path(automagic_cameamp.__file__).parents[1])
    env = {**os.environ, "PYTHONPATH": src, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Where the profiles differ" in done.stdout


@pytest.mark.parametrize(
    "text", ["class Automagic_CameAMP: ...\n", "", shims.MARKER + "0\n", "\n" + shims.MARKER]
)
def test_what_is_not_ours_stops_everything(folder: Path, text: str) -> None:
    theirs = folder / "library" / "automagic_cameamp_improved.py"
    theirs.write_text(text, encoding="utf-8")
    before = files(folder)
    for dry_run in (True, False):
        with pytest.raises(LauncherError, match="automagic_cameamp_improved.py"):
            shims.install(folder, dry_run=dry_run)
    assert files(folder) == before
    assert {c.action for c in shims.uninstall(folder)} == {"keep"}
    assert files(folder) == before


def test_an_edited_shim_is_not_ours_any_more(folder: Path) -> None:
    shims.install(folder)
    edited = folder / "library" / "automagic_cameamp.py"
    edited.write_text(edited.read_text("utf-8") + "mine = 1\n", encoding="utf-8")
    with pytest.raises(LauncherError, match="edited"):
        shims.install(folder)
    actions = {c.path.name: c.action for c in shims.uninstall(folder)}
    assert actions.pop("automagic_cameamp.py") == "keep" and set(actions.values()) == {"remove"}
    assert "mine" in edited.read_text("utf-8")


def test_an_older_shim_of_ours_is_replaced(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setitem(shims.BODIES, "automagic_cameamp.py", '"""Of an older version."""\n')
        shims.install(folder)
    changes = {c.path.name: c.action for c in shims.install(folder)}
    assert changes.pop("automagic_cameamp.py") == "write" and set(changes.values()) == {"keep"}


def test_links_and_binary_files_are_not_ours(folder: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside.py"
    outside.write_text(shims.content("automagic_cameamp.py"), encoding="utf-8")
    link = folder / "library" / "automagic_cameamp.py"
    link.symlink_to(outside)
    (folder / "library" / "automagic_cameamp_8bit.py").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(LauncherError, match="automagic_cameamp_8bit.py"):
        shims.install(folder)
    assert {c.action for c in shims.uninstall(folder)} == {"keep"}
    assert outside.is_file() and link.is_symlink()


def test_command_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["sd-scripts", "--install", str(folder), "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert out.count("would write ") == len(NAMES) and not NAMES & set(files(folder))
    assert cli.main(["sd-scripts", "--install", str(folder)]) == 0
    assert capsys.readouterr().out.count("write ") == len(NAMES) and NAMES < set(files(folder))
    assert cli.main(["sd-scripts", "--uninstall", str(folder), "--dry-run"]) == 0
    assert capsys.readouterr().out.count("would remove ") == len(NAMES) and NAMES < set(files(folder))
    assert cli.main(["sd-scripts", "--uninstall", str(folder)]) == 0
    capsys.readouterr()
    assert cli.main(["sd-scripts", "--uninstall", str(folder)]) == 0
    assert capsys.readouterr().out == "nothing of ours is there\n"


@pytest.mark.parametrize("options", [[], ["--install", "a", "--uninstall", "b"], ["--dry-run"]])
def test_one_of_the_two_is_needed(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["sd-scripts", *options])
    assert stop.value.code == 2 and capsys.readouterr().err.count("\n") == 1


def test_a_folder_that_is_no_checkout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["sd-scripts", "--install", str(tmp_path)]) == 2
    assert "no folder 'library'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "module", ["automagic_cameamp_8bit", "automagic_cameamp_improved", "automagic_cameamp_improved_8bit"]
)
def test_top_level_modules_are_re_exports(module: str) -> None:
    found = importlib.import_module(module)
    assert found.__all__
    for name in found.__all__:
        assert getattr(found, name) is getattr(automagic_cameamp, name)


def test_profile_example_shows_every_profile(capsys: pytest.CaptureFixture[str]) -> None:
    profile_example.main()
    out = capsys.readouterr().out
    for profile in PROFILES:
        (row,) = [line for line in out.splitlines() if line.startswith(f"  {profile} ")]
        assert "bytes per parameter" in row
    assert "min_8bit_size" in out and "bytes per parameter" in out
