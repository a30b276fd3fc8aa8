"""`automagic integrate`: puts the start-up hook into this environment, and takes it out again.

Written are two files beside the installed packages: a ``.pth`` file, which Python runs at every start, with
the names of the trainers in it, and a copy of ``hook.py``. For ai-toolkit, which loads what lies in its
folder ``extensions``, one folder there does without the hook. Each file begins with a checksum of the rest:
what is not ours, or was edited since, is neither overwritten nor removed.
"""

from __future__ import annotations

import sys
import sysconfig
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..kohya.config_file import LauncherError
from ..kohya.shims import is_ours, marked
from . import hook

MODULE = "_automagic_cameamp_hook"
PTH = "automagic_cameamp_integrations.pth"
EXTENSION = "automagic_cameamp_ext"
# What a user writes, by trainer; `list` shows it.
USE = {
    "transformers": 'optim="automagic_cameamp8bit", optim_args="warmup_steps=200"; also TRL, axolotl',
    "sd-scripts": "--optimizer_type Automagic_CameAMP8bit --optimizer_args warmup_steps=200; kohya_ss GUI",
    "musubi-tuner": "--optimizer_type Automagic_CameAMP8bit --optimizer_args warmup_steps=200",
    "ai-toolkit": "train: {optimizer: automagic_cameamp8bit, optimizer_params: {warmup_steps: 200}}",
    "onetrainer": "optimizer CAME_8BIT is Automagic_CameAMP8bit",
    "simpletuner": "--optimizer=automagic_cameamp8bit --optimizer_config=warmup_steps=200",
    "llama-factory": "v1: optim_config: {name: automagic_cameamp8bit}; v0: transformers",
    "diffusion-pipe": "[optimizer] type = 'Automagic_CameAMP8bit' (pytorch-optimizer has to be installed)",
}
_EXTENSION_BODY = '''"""Registers automagic-cameamp's optimizers, as in: optimizer: automagic_cameamp8bit."""

from automagic_cameamp.integrations import enable

enable("ai-toolkit")
AI_TOOLKIT_EXTENSIONS = []
'''


def site() -> Path:
    """The folder of this environment whose ``.pth`` files Python runs."""
    return Path(sysconfig.get_path("purelib"))


def hooked(folder: Path | None = None) -> list[str]:
    """The trainers that the hook of an environment registers with."""
    path = (folder or site()) / PTH
    if not path.is_file():
        return []
    words = path.read_text("utf-8").split("watch(")[-1].split(")")[0]
    return [word.strip(" '\"") for word in words.split(",") if word.strip()]


def install(trainers: Sequence[str], folder: Path | None = None) -> list[Path]:
    """Let the hook watch these trainers, besides those that it watches already; returns what was written."""
    return _write([*hooked(folder), *trainers], folder or site())


def remove(trainers: Sequence[str], folder: Path | None = None) -> list[Path]:
    """Let the hook watch these trainers no longer; with none left, every trace of it goes."""
    folder = folder or site()
    rest = [name for name in hooked(folder) if name not in trainers]
    if rest:
        return _write(rest, folder)
    files = [path for path in (folder / PTH, folder / f"{MODULE}.py") if path.exists()]
    _refuse_foreign(files)
    for path in files:
        path.unlink()
    _forget(folder, MODULE)
    return files


def extend(checkout: Path) -> list[Path]:
    """Write the extension's folder into an ai-toolkit checkout; returns what was written."""
    path = _extension(checkout)
    _refuse_foreign([path] if path.exists() else [])
    path.parent.mkdir(exist_ok=True)
    path.write_text(marked(_EXTENSION_BODY), "utf-8")
    return [path]


def retract(checkout: Path) -> list[Path]:
    """Remove that folder again; returns what was removed."""
    path = _extension(checkout)
    if not path.exists():
        return []
    _refuse_foreign([path])
    path.unlink()
    _forget(path.parent, "__init__")
    if not any(path.parent.iterdir()):
        path.parent.rmdir()
    return [path]


def _write(trainers: Sequence[str], folder: Path) -> list[Path]:
    names = [name for name in hook.MODULES if name in trainers]
    line = f"import {MODULE}; {MODULE}.watch({', '.join(map(repr, names))})\n"
    texts = {
        folder / PTH: marked(line),
        folder / f"{MODULE}.py": marked(Path(hook.__file__).read_text("utf-8")),
    }
    _refuse_foreign([path for path in texts if path.exists()])
    for path, text in reversed(texts.items()):  # the module first: no start in between may miss it
        path.write_text(text, "utf-8")
    return list(texts)


def _refuse_foreign(paths: Sequence[Path]) -> None:
    foreign = [str(path) for path in paths if not is_ours(path)]
    if foreign:
        raise LauncherError(
            "not touching what automagic-cameamp did not write, or what was edited since: "
            f"{', '.join(foreign)}. Move it away first. Nothing was changed."
        )


def _forget(folder: Path, module: str) -> None:
    """Remove what Python has compiled of a module, and its folder where nothing else is in it."""
    cache = folder / "__pycache__"
    for path in cache.glob(f"{module}.*.pyc"):
        path.unlink()
    if cache.is_dir() and not any(cache.iterdir()):
        cache.rmdir()


def _extension(checkout: Path) -> Path:
    folder = checkout / "extensions"
    if not folder.is_dir() or not (checkout / "toolkit" / "optimizer.py").is_file():
        raise LauncherError(
            f"{checkout} is no ai-toolkit checkout: it has no extensions/ and toolkit/optimizer.py"
        )
    return folder / EXTENSION / "__init__.py"


EPILOG = """examples:
  automagic integrate list
  automagic integrate install --trainer transformers --trainer simpletuner
  automagic integrate install --trainer ai-toolkit --dir ~/ai-toolkit   a folder there, no hook
  automagic integrate remove                                            all of it

Registered is when a trainer imports its own module of optimizers; no file of a trainer is edited.
axolotl needs no hook: plugins: [automagic_cameamp.integrations.axolotl.Plugin].
"""


def add_parser(commands: Any) -> None:
    """The subcommand's options."""
    p = commands.add_parser(
        "integrate",
        help="make the optimizers known to your training program",
        description="Register the optimizers with training programs of this Python environment.",
        epilog=EPILOG,
    )
    p.add_argument("action", choices=["list", "install", "remove"])
    p.add_argument(
        "--trainer",
        action="append",
        choices=list(hook.MODULES),
        help="may be repeated; left out: all of them",
    )
    p.add_argument("--dir", metavar="DIR", help="an ai-toolkit checkout, to write a folder there")


def run(options: dict[str, Any]) -> int:
    """The subcommand."""
    action, trainers = options["action"], options.get("trainer") or list(hook.MODULES)
    try:
        if "dir" in options:
            if options.get("trainer", ["ai-toolkit"]) != ["ai-toolkit"] or action == "list":
                raise LauncherError("--dir goes with --trainer ai-toolkit, and with install or remove")
            changed = (extend if action == "install" else retract)(Path(options["dir"]))
        elif action == "list":
            return _list()
        else:
            changed = (install if action == "install" else remove)(trainers)
    except (LauncherError, OSError) as error:
        print(f"automagic integrate: {error}", file=sys.stderr)
        return 2
    for path in changed:
        print(f"{'wrote' if path.exists() else 'removed'} {path}")
    if not changed:
        print("nothing of ours is there")
    if action == "install":
        for name in trainers:
            print(f"{name}: {USE[name]}")
    return 0


def _list() -> int:
    on = hooked()
    for name, modules in hook.MODULES.items():
        there = (
            "installed"
            if _is_installed(modules[0].partition(".")[0])
            else "not in this environment's packages"
        )
        print(f"{name:<15}{'on ' if name in on else 'off'}  {there}\n{'':<20}{USE[name]}")
    print(f"\nthe hook's place: {site()}")
    return 0


def _is_installed(package: str) -> bool:
    # "library", "toolkit" and "modules" are folders of a checkout: they count where the work is.
    return find_spec(package) is not None
