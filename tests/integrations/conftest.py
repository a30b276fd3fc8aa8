"""A throwaway environment: its own folder of packages, in which the hook can be put, used and removed."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from automagic_cameamp import cli
from automagic_cameamp.integrations import hook, install

Automagic = Callable[..., str]
SOURCES = Path(__file__).resolve().parents[2] / "src"


class Environment(NamedTuple):
    """A virtual environment that sees this one's packages, and this checkout."""

    python: Path
    site: Path

    def run(self, *args: str, cwd: Path | None = None, code: int = 0) -> str:
        """What ``python args`` prints, both streams together."""
        unset = ("PYTHONPATH", "PYTHONDONTWRITEBYTECODE", "PYTEST_CURRENT_TEST")
        env = {key: value for key, value in os.environ.items() if key not in unset}
        done = subprocess.run(
            [str(self.python), *args],
            capture_output=True,
            text=True,
            check=False,
            env=env,
            cwd=cwd or self.site,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    def hashes(self) -> dict[str, str]:
        """Every file and folder of the environment, with its content."""
        root = self.python.parents[1]
        return {
            str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
            if path.is_file()
            else ""
            for path in sorted(root.rglob("*"))
        }


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    root = tmp_path_factory.mktemp("environment") / "env"
    venv.EnvBuilder(with_pip=False, symlinks=os.name != "nt").create(root)
    scripts = root / ("Scripts" if os.name == "nt" else "bin")
    python = scripts / ("python.exe" if os.name == "nt" else "python")
    site = Path(sysconfig.get_path("purelib", "venv", {"base": str(root), "platbase": str(root)}))
    (site / "base.pth").write_text(f"{SOURCES}\n{sysconfig.get_path('purelib')}\n", "utf-8")
    # A program that has a table of optimizers, under a name that the hook watches.
    program = site / "simpletuner" / "helpers" / "training"
    program.mkdir(parents=True)
    for folder in (program, program.parent, program.parent.parent):
        (folder / "__init__.py").write_text("", "utf-8")
    (program / "optimizer_param.py").write_text("optimizer_choices = {}\n", "utf-8")
    made = Environment(python, site)
    made.run("-c", "import simpletuner.helpers.training.optimizer_param")  # compiled once
    assert sys.version_info[:2] == tuple(
        map(int, made.run("-c", "import sys; print(*sys.version_info[:2])").split())
    )
    return made


@pytest.fixture
def environment(made: Environment, monkeypatch: pytest.MonkeyPatch) -> Iterator[Environment]:
    """The environment as the place that `automagic integrate` writes to; cleaned of our files afterwards."""
    monkeypatch.setattr(install, "site", lambda: made.site)
    yield made
    install.remove(list(hook.MODULES))


@pytest.fixture
def automagic(environment: Environment, capfd: pytest.CaptureFixture[str]) -> Automagic:
    """Runs ``automagic integrate ...`` on that environment, in this process; gives what it prints."""

    def run(*args: str, code: int = 0) -> str:
        capfd.readouterr()
        try:
            got = cli.main(["integrate", *args])
        except SystemExit as stop:
            got = stop.code
        told = "".join(capfd.readouterr())
        assert got == code, told
        return told

    return run
