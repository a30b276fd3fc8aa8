"""What a user installs: one wheel, built without the network, that carries all it needs."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "automagic_cameamp"


def written_version() -> str:
    match = re.search(r'^__version__ = "([^"]+)"$', (PACKAGE / "_version.py").read_text("utf-8"), re.M)
    assert match
    return match[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel, built from a copy (a build writes beside its sources) and with no index to ask."""
    folder = tmp_path_factory.mktemp("wheel")
    copy = folder / "source"
    copy.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", "setup.py", "MANIFEST.in"):
        if (ROOT / name).is_file():
            shutil.copy(ROOT / name, copy / name)
    shutil.copytree(ROOT / "src", copy / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--disable-pip-version-check",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "--wheel-dir",
        str(folder),
        str(copy),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (built,) = folder.glob("*.whl")
    return zipfile.ZipFile(built)


def metadata(wheel: zipfile.ZipFile) -> dict[str, list[str]]:
    (name,) = [n for n in wheel.namelist() if n.endswith(".dist-info/METADATA")]
    message = Parser().parsestr(wheel.read(name).decode())
    return {key: message.get_all(key) or [] for key in set(message)}


def test_wheel_holds_every_source_file_and_asset(wheel: zipfile.ZipFile) -> None:
    here = {
        p.relative_to(ROOT / "src").as_posix()
        for p in PACKAGE.rglob("*")
        if p.is_file() and "__pycache__" not in p.parts and p.suffix != ".so"
    }
    assert {"automagic_cameamp/py.typed", "automagic_cameamp/__init__.py"} <= here
    assert any(name.startswith("automagic_cameamp/trainer/assets/") for name in here)
    assert here <= set(wheel.namelist()), sorted(here - set(wheel.namelist()))


def test_wheel_holds_nothing_else(wheel: zipfile.ZipFile) -> None:
    declared = set(
        tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"].get(
            "py-modules", []
        )
    )
    tops = {name.split("/")[0] for name in wheel.namelist()}
    ours = {"automagic_cameamp", *(f"{module}.py" for module in declared)}
    assert {top for top in tops if not top.endswith(".dist-info")} == ours


def test_licences_travel_with_the_wheel(wheel: zipfile.ZipFile) -> None:
    (name,) = [n for n in wheel.namelist() if n.endswith(".dist-info/licenses/LICENSE")]
    assert wheel.read(name) == (ROOT / "LICENSE").read_bytes()
    assert "Apache License" in wheel.read(name).decode()
    assert metadata(wheel)["License-Expression"] == ["Apache-2.0"]
    # The pictures of the demo are rendered from a font under the OFL, whose text must stand beside them.
    assert "SIL OPEN FONT LICENSE" in wheel.read("automagic_cameamp/trainer/assets/OFL.txt").decode().upper()


def test_core_needs_only_torch_and_numpy(wheel: zipfile.ZipFile) -> None:
    required = [r for r in metadata(wheel)["Requires-Dist"] if "extra ==" not in r]
    assert sorted(re.split(r"[^\w-]", r)[0] for r in required) == ["numpy", "torch"]
    assert set(metadata(wheel)["Provides-Extra"]) == {"demo", "bnb", "bench", "dev"}
    assert metadata(wheel)["Requires-Python"] == [">=3.10"]


def test_command_is_installed(wheel: zipfile.ZipFile) -> None:
    (name,) = [n for n in wheel.namelist() if n.endswith("entry_points.txt")]
    assert "automagic = automagic_cameamp.cli:main" in wheel.read(name).decode()
    from automagic_cameamp.cli import main

    assert callable(main)


def test_versions_agree(wheel: zipfile.ZipFile) -> None:
    import automagic_cameamp

    version = written_version()
    assert automagic_cameamp.__version__ == version
    assert metadata(wheel)["Version"] == [version]
    released = re.findall(r"^## \[([^\]]+)\]", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.M)
    numbers = [name for name in released if name != "Unreleased"]
    assert released and (not numbers or numbers[0] == version), (
        f"CHANGELOG.md ends at {released}, the code at {version}"
    )


def test_constraints_pin_every_direct_dependency() -> None:
    pinned = {
        re.split(r"[=\s]", line)[0].lower()
        for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines()
        if line and not line.startswith("#")
    }
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    asked = [
        *project["dependencies"],
        *(r for group in project["optional-dependencies"].values() for r in group),
    ]
    names = {re.split(r"[^\w-]", requirement)[0].lower() for requirement in asked}
    assert names - pinned == {"torch"}, "torch is chosen by `make setup TORCH=...`; everything else is pinned"
