"""Shared by the benchmark scripts: rows, the description of the machine, optimizers by name, tables."""

from __future__ import annotations

import argparse
import ast
import datetime
import importlib
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).resolve().parent / "results"

for package, folder in (("automagic_cameamp", "src"), ("automagic_trainer", "trainer/src")):
    if importlib.util.find_spec(package) is None:  # run from a checkout that is not installed
        sys.path.insert(0, str(ROOT / folder))

import torch  # noqa: E402  (after the path is set, so that workers see the same one)

from automagic_cameamp.profiles import PROFILES  # noqa: E402

OURS = "automagic_cameamp"
CANDIDATE_HELP = "Name or 'Name:key=value;key=value'"


# --- optimizers by name -------------------------------------------------------------------------------

# name -> (dotted path, fixed options). Anything else is a class of ours or a dotted path.
PEERS: dict[str, tuple[str, dict[str, Any]]] = {
    "adamw": ("torch.optim.AdamW", {}),
    "adamw-fused": ("torch.optim.AdamW", {"fused": True}),
    "adamw-foreach": ("torch.optim.AdamW", {"foreach": True}),
    "adamw-forloop": ("torch.optim.AdamW", {"foreach": False}),
    "adafactor": ("torch.optim.Adafactor", {}),
    "sgdm-fused": ("torch.optim.SGD", {"fused": True, "momentum": 0.9}),
    "bnb-adamw8bit": ("bitsandbytes.optim.AdamW8bit", {}),
    "bnb-adamw32bit": ("bitsandbytes.optim.AdamW", {}),
    "torchao-adamw8bit": ("torchao.optim.AdamW8bit", {}),
    "flash-adamw": ("flashoptim.FlashAdamW", {}),
    "came": ("came_pytorch.CAME", {}),
    "ao-adamw8bit": ("torchao.optim.AdamW8bit", {}),
    "adafactor8bit": ("adafactor8bit.Adafactor8Bit", {}),
    "adv-adamw": ("adv_optm.AdamW_adv", {"state_precision": "int8_sr"}),
    "prodigy": ("prodigyopt.Prodigy", {}),
    "prodigy-plus": ("prodigyplus.ProdigyPlusScheduleFree", {}),
    "adv-prodigy": ("adv_optm.Prodigy_adv", {}),
    # of ostris' ai-toolkit, whose checkout has to stand in PYTHONPATH
    "automagic-v3": ("toolkit.optimizers.automagic3.Automagic3", {"fused": False}),
    "sdnq-adamw": ("sdnq.optim.AdamW", {"use_quantized_buffers": True}),
    "heavyball-adamw": ("heavyball.AdamW", {}),
    "optimi-adamw": ("optimi.AdamW", {}),
}

# One candidate for each class of the family, and for each profile of the class that has profiles.
FAMILY = [
    "Automagic_CameAMP",
    "Automagic_CameAMP8bit",
    "Automagic_CameAMP_COptim",
    "Automagic_CameAMP_COptim8bit",
    "Automagic_CameAMP_Improved",
    "Automagic_CameAMP_8Bit",
    *(f"Automagic_CameAMP_Improved_8Bit:profile={name}" for name in PROFILES),
]


def resolve(name: str) -> tuple[type[torch.optim.Optimizer], dict[str, Any]]:
    """The class and the fixed options that a name stands for. ImportError says what is missing."""
    path, options = PEERS.get(name, (name if "." in name else f"{OURS}.{name}", {}))
    module_name, _, attribute = path.rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ImportError(f"optimizer {name!r} needs {module_name!r}: {error}") from error
    if not hasattr(module, attribute):
        peers = ", ".join(PEERS)
        raise ImportError(f"optimizer {name!r}: {module_name!r} has no {attribute!r}; peers: {peers}")
    return getattr(module, attribute), dict(options)


def is_ours(name: str) -> bool:
    return name not in PEERS and (name.startswith(OURS) or "." not in name)


def available(name: str) -> bool:
    try:
        resolve(name)
    except ImportError:
        return False
    return True


def build(name: str, params, **options) -> torch.optim.Optimizer:
    cls, fixed = resolve(name)
    return cls(params, **{**fixed, **options})


def parse_value(text: str) -> Any:
    """'1e-3' -> 0.001, '(1,2)' -> tuple, 'true' -> True, any other word stays a string."""
    # 'none' is a word that options take (lr_mask_rule=none); write None for the object.
    special = {"true": True, "false": False, "inf": float("inf")}
    if text.lower() in special:
        return special[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def parse_options(items: list[str]) -> dict[str, Any]:
    options = {}
    for item in items:
        key, sep, value = item.partition("=")
        if not sep or not key:
            raise SystemExit(f"option {item!r}: write it as key=value")
        options[key] = parse_value(value)
    return options


def parse_candidate(text: str) -> tuple[str, dict[str, Any]]:
    """'Name' or 'Name:key=value;key=value' (';' because tuples hold commas)."""
    name, _, rest = text.partition(":")
    return name, parse_options([item for item in rest.split(";") if item])


def label(name: str, options: dict[str, Any]) -> str:
    if not options:
        return name
    return name + ":" + ";".join(f"{key}={value}" for key, value in sorted(options.items()))


# --- rows ---------------------------------------------------------------------------------------------


def environment(device: str = "cpu") -> dict[str, Any]:
    """What a number depends on: kept in every row."""
    info = {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "package": package_version(),
        "commit": git_commit(),
    }
    if device.startswith("cuda"):
        info["gpu"] = torch.cuda.get_device_name(torch.device(device))
    return info


def cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def package_version() -> str | None:
    try:
        return importlib.import_module(f"{OURS}._version").__version__
    except (ImportError, AttributeError):
        return None


def git_commit() -> str | None:
    """Short commit, with '+' when the sources measured differ from it. None outside a checkout."""
    command = ["git", "-C", str(ROOT)]
    try:
        head = subprocess.run([*command, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True)
        if head.returncode:
            return None
        status = [*command, "status", "--porcelain", "src", "trainer/src"]
        dirty = subprocess.run(status, capture_output=True, text=True)
    except OSError:
        return None
    return head.stdout.strip() + ("+" if dirty.stdout.strip() else "")


def append_row(path: Path, row: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as file:  # one write per row: parallel writers do not interleave
        file.write(json.dumps(row, default=str) + "\n")


def read_rows(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]


def argument_parser(text: str | None) -> argparse.ArgumentParser:
    """Parser whose help is the module's own text."""
    return argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)


def model_parser(
    text: str | None, optimizers: list[str], layers: int, width: int, bench: str
) -> argparse.ArgumentParser:
    """Parser of a benchmark that looks at candidates on a model of so many layers."""
    parser = argument_parser(text)
    parser.add_argument("--optimizers", nargs="+", default=optimizers, help=CANDIDATE_HELP)
    parser.add_argument("--layers", type=int, default=layers)
    parser.add_argument("--width", type=int, default=width)
    parser.add_argument("--quick", action="store_true", help="a tiny model: does it run?")
    parser.add_argument("--out", type=Path, default=RESULTS / f"{bench}.jsonl")
    parser.set_defaults(bench=bench)
    return parser


def candidate_rows(
    arguments: argparse.Namespace,
    measure: Callable[[str, dict[str, Any]], Iterable[dict[str, Any]]],
    **settings: Any,
) -> list[dict[str, Any]]:
    """What is measured of every candidate; a row is written as soon as it is there."""
    rows: list[dict[str, Any]] = []
    for candidate in arguments.optimizers:
        name, options = parse_candidate(candidate)
        for found in measure(name, options):
            row = {"bench": arguments.bench, "optimizer": name, "options": options}
            rows.append({**row, **settings, **found, **environment()})
            append_row(arguments.out, rows[-1])
    return rows


# --- numbers and tables -------------------------------------------------------------------------------


def quantile(values: list[float], q: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, round(q * (len(ordered) - 1))))]


def median(values: list[float]) -> float:
    return statistics.median(values)


def markdown(header: list[str], rows: list[list[Any]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    lines += ["| " + " | ".join(_cell(value) for value in row) + " |" for row in rows]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)
