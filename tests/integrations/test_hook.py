"""`automagic integrate`: what is put into an environment, what it does there, and that it leaves no trace."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from automagic_cameamp.integrations import hook, install
from integrations.conftest import Automagic, Environment

USE = "import simpletuner.helpers.training.optimizer_param as m; print(sorted(m.optimizer_choices)[:1])"
HEAVY = "import sys; print([m for m in ('torch', 'automagic_cameamp', 'importlib.util') if m in sys.modules])"


def test_install_use_remove_leaves_every_file_as_it_was(
    environment: Environment, automagic: Automagic
) -> None:
    before = environment.hashes()
    automagic("install")
    assert before.items() < environment.hashes().items(), "two files more, and nothing else changed"
    assert environment.run("-c", USE) == "['automagic_cameamp']\n"
    assert len(environment.hashes()) - len(before) in (3, 4), (
        "the two files, what Python compiled, and its folder"
    )
    automagic("remove")
    assert environment.hashes() == before
    assert environment.run("-c", USE) == "[]\n"


def test_a_start_of_python_imports_nothing_heavy(environment: Environment, automagic: Automagic) -> None:
    without = environment.run("-c", HEAVY)
    automagic("install")
    assert environment.run("-c", HEAVY) == without
    watched = environment.run("-c", "import _automagic_cameamp_hook, sys; print(sys.meta_path[0].modules)")
    assert all(name in watched for names in hook.MODULES.values() for name in names)


def test_only_what_was_asked_for_is_touched(environment: Environment, automagic: Automagic) -> None:
    automagic("install", "--trainer", "transformers")
    assert environment.run("-c", USE) == "[]\n"
    automagic("install", "--trainer", "simpletuner")
    assert environment.run("-c", USE) == "['automagic_cameamp']\n"
    assert install.hooked(environment.site) == ["transformers", "simpletuner"]
    automagic("remove", "--trainer", "simpletuner")
    assert environment.run("-c", USE) == "[]\n"
    assert install.hooked(environment.site) == ["transformers"]


def test_list_says_what_is_on(environment: Environment, automagic: Automagic) -> None:
    automagic("install", "--trainer", "simpletuner")
    rows = {line.split()[0]: line for line in automagic("list").splitlines() if line[:1].strip()}
    assert " on " in rows["simpletuner"] and all(name in rows for name in hook.MODULES)
    assert " off " in rows["transformers"] and " off " in rows["ai-toolkit"]


def test_a_hook_without_its_package_says_so_and_stops_nothing(
    environment: Environment, automagic: Automagic
) -> None:
    automagic("install")
    base = environment.site / "base.pth"
    text = base.read_text("utf-8")
    base.write_text("", "utf-8")  # automagic-cameamp is gone, with torch
    try:
        told = environment.run("-c", USE)
    finally:
        base.write_text(text, "utf-8")
    assert (
        told.splitlines()[-1].startswith("automagic-cameamp: not registered with simpletuner") or "[]" in told
    )
    assert "[]" in told and "No module named 'automagic_cameamp'" in told


def test_files_of_others_stay(environment: Environment, automagic: Automagic) -> None:
    path = environment.site / install.PTH
    path.write_text("import os\n", "utf-8")
    try:
        for action in ("install", "remove"):
            assert "did not write" in automagic(action, code=2)
            assert path.read_text("utf-8") == "import os\n"
            assert not (environment.site / f"{install.MODULE}.py").exists()
    finally:
        path.unlink()


def test_an_edited_file_of_ours_stays(environment: Environment, automagic: Automagic) -> None:
    automagic("install")
    path = environment.site / install.PTH
    own = path.read_text("utf-8")
    path.write_text(own + "# mine\n", "utf-8")
    assert "edited since" in automagic("remove", code=2)
    path.write_text(own, "utf-8")


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["install", "--trainer", "nobody"], "invalid choice"),
        (["install", "--dir", "nowhere"], "no ai-toolkit checkout"),
        (["install", "--trainer", "transformers", "--dir", "."], "--dir goes with --trainer ai-toolkit"),
    ],
)
def test_mistakes_are_one_line(
    environment: Environment, automagic: Automagic, args: list[str], said: str
) -> None:
    told = automagic(*args, code=2)
    assert said in told and len(told.splitlines()) == 1


def test_importing_the_package_registers_nothing() -> None:
    program = (
        "import sys, torch; before = set(dir(torch.optim)), list(sys.meta_path)\n"
        "import automagic_cameamp, automagic_cameamp.integrations\n"
        "assert (set(dir(torch.optim)), list(sys.meta_path)) == before"
    )
    subprocess.run(
        [sys.executable, "-c", program], check=True, env=None, cwd=Path(install.__file__).parents[2]
    )


def test_the_hook_needs_nothing_but_sys() -> None:
    lines = Path(hook.__file__).read_text("utf-8").splitlines()
    assert [line for line in lines if line.startswith(("import", "from"))] == [
        "import sys",
    ]
