"""What is installed, on what machine, and what of it is used. Nothing heavy but torch is imported."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib import metadata, util
from pathlib import Path
from typing import Any

import torch

from .._version import __version__
from ..integrations import hook, install
from ..kernels import build, native

PACKAGES = ("numpy", "bitsandbytes", "triton", "diffusers", "transformers", "peft", "accelerate")
# Programs that need no hook, beside those that it knows: module -> what it is called
OTHERS = {"automagic_trainer": "our trainer", "axolotl": "axolotl", "trl": "trl", "lightning": "lightning"}


def version_of(package: str) -> str | None:
    """Version of what provides a module, 'there' where it has none, or None where it is not installed."""
    try:
        return metadata.version(package.replace("_", "-"))
    except metadata.PackageNotFoundError:
        return "there" if util.find_spec(package) is not None else None


def neutral(text: str) -> str:
    """A text without the paths of this machine: a report goes to strangers."""
    package = Path(__file__).resolve().parents[1]
    for path, word in ((package, package.name), (Path(sys.prefix), "<python>"), (Path.home(), "~")):
        if len(path.parts) > 1:
            text = text.replace(str(path), word)
    return text


def devices() -> list[dict[str, Any]]:
    """The processor, and every accelerator that torch can use."""
    found: list[dict[str, Any]] = [
        {"type": "cpu", "name": torch.backends.cpu.get_cpu_capability(), "cores": build.cores()}
    ]
    for i in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        card = torch.cuda.get_device_properties(i)
        capability = ".".join(map(str, torch.cuda.get_device_capability(i)))
        memory = round(card.total_memory / 2**30, 1)
        found.append(
            {"type": "cuda", "name": card.name, "memory_gib": memory, "compute_capability": capability}
        )
    if hasattr(torch, "xpu") and torch.xpu.is_available():
        found += [
            {"type": "xpu", "name": torch.xpu.get_device_name(i)} for i in range(torch.xpu.device_count())
        ]
    if torch.backends.mps.is_available():
        found.append({"type": "mps", "name": platform.processor()})
    return found


def compiler() -> dict[str, Any]:
    """The C++ compiler, which builds the CPU kernels and serves torch.compile."""
    try:
        name = build.compiler()
        command = [*name.split(), "--version"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (build.BuildError, OSError, subprocess.TimeoutExpired) as error:
        return {"found": None, "version": None, "why_not": neutral(str(error))}
    lines = done.stdout.splitlines() or [""]
    return {"found": Path(name.split()[0]).name, "version": lines[0].strip(), "why_not": None}


def kernels() -> dict[str, Any]:
    """The library of the CPU kernels: its instruction set, or why there is none."""
    reason = native.why_not()
    return {
        "flavour": native.flavour() if reason is None else None,
        "why_not": None if reason is None else neutral(reason),
    }


def trainers() -> dict[str, str | None]:
    """Training programs -> version, 'there' (a checkout that Python sees from here), or None."""
    known = {name: modules[0].partition(".")[0] for name, modules in hook.MODULES.items()}
    found = {name: version_of(package) for name, package in known.items()}
    return {**found, **{name: version_of(package) for package, name in OTHERS.items()}}


def hook_state() -> dict[str, Any]:
    """What `automagic integrate` installed here, and whether this very process runs it."""
    # The hook is a copy of its module, so its class is known by name alone.
    watchers = [finder for finder in sys.meta_path if type(finder).__name__ == hook.Watcher.__name__]
    watched = sorted({name for finder in watchers for name in getattr(finder, "modules", ())})
    return {"trainers": install.hooked(), "watched_modules": watched}


def environment() -> dict[str, Any]:
    """All of it, as plain values."""
    ours = {k: neutral(v) for k, v in sorted(os.environ.items()) if k.startswith("AUTOMAGIC_CAMEAMP_")}
    accelerator = torch.version.cuda or getattr(torch.version, "hip", None)
    return {
        "automagic_cameamp": __version__,
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "system": f"{platform.system()} {platform.machine()}",
        "torch": torch.__version__,
        "torch_built_for": accelerator or "no accelerator of NVIDIA's or AMD's",
        "threads": torch.get_num_threads(),
        "packages": {name: version_of(name) for name in PACKAGES},
        "devices": devices(),
        "kernels": kernels(),
        "compiler": compiler(),
        "variables": ours,
        "trainers": trainers(),
        "hook": hook_state(),
    }
