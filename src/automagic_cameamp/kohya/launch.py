"""Runs a training script with the optimizers registered and its arguments rewritten."""

from __future__ import annotations

import os
import runpy
import shlex
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from . import register
from .config_file import LauncherError
from .rewrite import rewrite

PROGRAM = "python -m automagic_cameamp.kohya"
USAGE = f"""usage: {PROGRAM} [--show] SCRIPT [arguments of the script]
       {PROGRAM} [--show] -m MODULE [arguments of the module]
       accelerate launch [...] -m automagic_cameamp.kohya SCRIPT [arguments of the script]

Runs a training script of kohya sd-scripts or musubi-tuner with every Automagic_CameAMP optimizer known by its
bare name. Words in --optimizer_args need no quotes (profile=balanced), lr=1e-4 becomes --learning_rate=1e-4
(an explicit --learning_rate wins), and bitsandbytes is not imported for the names that end in 8bit. The same
holds for optimizer_type, optimizer_args and learning_rate in the file of --config_file.

  --show   print the command line that would run, and stop
"""


def main(argv: Sequence[str] | None = None) -> int:
    """The launcher; returns 2 on a mistake of the user's, else what the script does decides."""
    args = list(sys.argv[1:] if argv is None else argv)
    try:
        if args and args[0] in ("-h", "--help"):
            print(USAGE, end="")
            return 0
        show = args[:1] == ["--show"]
        args = args[1:] if show else args
        args = _past_accelerate(args)
        as_module = args[:1] == ["-m"]
        args = args[1:] if as_module else args
        if not args or args[0].startswith("-"):
            what = "a module after -m" if as_module else "a training script, as in train_network.py"
            raise LauncherError(f"name {what} (see {PROGRAM} --help)")
        target = args[0]
        _find(target, as_module)
        new, notes = rewrite(args[1:])
    except LauncherError as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return 2
    if show:
        print(shlex.join([*(["-m"] if as_module else []), target, *new]))
        return 0
    if os.environ.get("LOCAL_RANK", "0") == "0":  # accelerate starts one of us per GPU
        for note in notes:
            print(f"automagic-cameamp: {note}", file=sys.stderr, flush=True)
    register()
    _run(target, as_module, new)
    return 0


# What kohya_ss' GUI writes for accelerate behind its extra arguments, with which `-m automagic_cameamp.kohya`
# comes in: accelerate takes all that follows for ours. -> what it has to be for one process, None: anything.
ACCELERATES: dict[str, tuple[str, ...] | None] = {
    "--gpu_ids": None,
    "--main_process_port": None,
    "--mixed_precision": None,
    "--num_processes": ("1",),
    "--num_machines": ("1",),
    "--num_cpu_threads_per_process": None,
}


def _past_accelerate(args: list[str]) -> list[str]:
    """The arguments behind accelerate's own; what those ask of this one process is done."""
    while args and args[0].partition("=")[0] in {*ACCELERATES, "--multi_gpu"}:
        name, inline, value = args[0].partition("=")
        width = 1 if inline or name == "--multi_gpu" else 2
        value = value if inline or width == 1 else " ".join(args[1:2])
        if name == "--multi_gpu" or value not in (ACCELERATES[name] or (value,)):
            raise LauncherError(
                f"{name} {value}".rstrip()
                + " stands behind -m, where accelerate does not see it; take -m away and "
                "run `automagic integrate install --trainer sd-scripts` once instead"
            )
        if name == "--gpu_ids" and value != "all":
            os.environ["CUDA_VISIBLE_DEVICES"] = value
        elif name == "--mixed_precision":
            os.environ["ACCELERATE_MIXED_PRECISION"] = value
        elif name == "--num_cpu_threads_per_process" and value.isdigit():
            import torch

            torch.set_num_threads(int(value))
        args = args[width:]
    return args


def _find(target: str, as_module: bool) -> None:
    if not as_module:
        path = Path(target)
        if path.is_dir():
            raise LauncherError(f"{target} is a folder; name a script in it, as {path / 'train_network.py'}")
        if not path.is_file():
            here = f"looked from {Path.cwd()}; start where it lies, or give its full path"
            raise LauncherError(f"there is no script {target} ({here})")
        return
    try:
        found = find_spec(target) is not None
    except ImportError:
        found = False
    if not found:
        raise LauncherError(f"there is no module {target} in this environment")


def _run(target: str, as_module: bool, args: list[str]) -> None:
    """As ``python target args`` would."""
    sys.argv = [target, *args]
    if as_module:
        runpy.run_module(target, run_name="__main__", alter_sys=True)
        return
    if not getattr(sys.flags, "safe_path", False):
        sys.path[0] = str(Path(target).resolve().parent)
    runpy.run_path(target, run_name="__main__")
