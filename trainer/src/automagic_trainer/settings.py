"""The options of a training run: one dataclass, checked in one place, from the command line and from TOML."""

from __future__ import annotations

import dataclasses
import difflib
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .errors import UserError

SCHEDULES = ("constant", "cosine", "warmup")
PRECISIONS = ("fp32", "bf16")


@dataclasses.dataclass(frozen=True)
class TrainSettings:
    """What decides a run. Every field is an option of `automagic train` and a key of its TOML file."""

    data: str = "cats"
    out: str = "runs/train"
    optimizer: str = "Automagic_CameAMP8bit"
    optimizer_args: dict[str, Any] = dataclasses.field(default_factory=dict)
    lr: float | None = None
    steps: int = 300
    batch: int = 16
    accumulate: int = 1
    clip: float = 1.0
    schedule: str = "constant"
    warmup: int = 0
    rank: int = 8
    caption_dropout: float = 0.0
    seed: int = 0
    precision: str = "fp32"
    device: str = "auto"
    eval_every: int = 25
    save_every: int = 50
    keep: int = 2


# What --resume may change: none of these alters a step that was already made.
FREE_ON_RESUME = frozenset({"out", "steps", "eval_every", "save_every", "keep", "device"})

HELP = {
    "data": "folder of pictures with captions, or a shipped set: cats, base",
    "out": "folder for everything the run writes",
    "optimizer": "a name from `automagic optimizers`, or a dotted path like bitsandbytes.AdamW8bit",
    "lr": "learning rate; left out: ours find theirs, others get a tuned one",
    "steps": "optimizer steps of the whole run",
    "batch": "pictures in one forward pass",
    "accumulate": "forward passes in one step",
    "clip": "largest norm of the whole gradient; 0 switches clipping off",
    "schedule": "constant, cosine (falls to zero at the last step) or warmup (rises, then constant)",
    "warmup": "steps over which the rate rises from zero, with any schedule",
    "rank": "rank of the LoRA matrices",
    "caption_dropout": "share of captions replaced by the empty one, for guidance above 1",
    "seed": "decides the noise, the order of the pictures and the first LoRA matrices",
    "precision": "fp32, or bf16 (model, LoRA and arithmetic in bfloat16)",
    "device": "auto, cpu, cuda or cuda:N",
    "eval_every": "steps between two measurements of the held-out loss",
    "save_every": "steps between two checkpoints",
    "keep": "checkpoints to keep; a damaged one is replaced by the one before it",
}

LIMITS: dict[str, tuple[float, float]] = {
    "steps": (1, 10_000_000),
    "batch": (1, 4096),
    "accumulate": (1, 4096),
    "clip": (0.0, 1e9),
    "warmup": (0, 10_000_000),
    "rank": (1, 96),
    "caption_dropout": (0.0, 1.0),
    "seed": (0, 2**63 - 1),
    "eval_every": (1, 10_000_000),
    "save_every": (1, 10_000_000),
    "keep": (1, 1000),
    "lr": (0.0, 1e3),
}
COMMAND_LINE = {"threads", "resume", "overwrite", "config"}
CHOICES = {"schedule": SCHEDULES, "precision": PRECISIONS}


def build(values: Mapping[str, Any], source: str = "options") -> TrainSettings:
    """Settings from names and values; the first bad one is reported with what is allowed."""
    fields = {f.name: f for f in dataclasses.fields(TrainSettings)}
    checked: dict[str, Any] = {}
    for raw, value in values.items():
        name = raw.replace("-", "_")
        if name in COMMAND_LINE:
            raise UserError(f"{source}: {raw!r} belongs on the command line: --{name}")
        if name not in fields:
            near = difflib.get_close_matches(name, fields, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"known keys: {', '.join(fields)}"
            raise UserError(f"{source}: unknown key {raw!r}; {hint}")
        if name in checked:
            raise UserError(f"{source}: {raw!r} is given twice; keep one")
        checked[name] = _check(name, value, str(fields[name].type), source)
    settings = TrainSettings(**checked)
    if settings.warmup > settings.steps:
        raise UserError(f"{source}: warmup={settings.warmup} is longer than the run, steps={settings.steps}")
    if settings.schedule == "warmup" and settings.warmup == 0:
        raise UserError(f"{source}: schedule='warmup' needs the number of rising steps: give warmup=50")
    return settings


def _check(name: str, value: Any, kind: str, source: str) -> Any:
    if name == "optimizer_args":
        return _optimizer_args(value, source)
    if name == "lr" and value is None:
        return None
    if kind in ("int", "float", "float | None"):
        return _number(name, value, kind == "int", source)
    if not isinstance(value, str) or not value:
        raise UserError(f"{source}: {name} must be text, got {value!r}")
    if name in CHOICES and value not in CHOICES[name]:
        near = difflib.get_close_matches(value, CHOICES[name], n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise UserError(f"{source}: {name}={value!r} is not one of {', '.join(CHOICES[name])}{hint}")
    return value


def _number(name: str, value: Any, whole: bool, source: str) -> int | float:
    low, high = LIMITS[name]
    allowed = f"a {'whole ' if whole else ''}number from {low:g} to {high:g}"
    good = isinstance(value, (int, float)) and not isinstance(value, bool)
    if good and whole and value != int(value if abs(value) < 1e300 else 0):
        good = False
    if not good or not low <= value <= high:
        raise UserError(f"{source}: {name} must be {allowed}, got {value!r}")
    return int(value) if whole else float(value)


def _optimizer_args(value: Any, source: str) -> dict[str, Any]:
    from automagic_cameamp.factory import OptimizerArgumentError, parse_optimizer_args

    if isinstance(value, Mapping):
        return {str(k): tuple(v) if isinstance(v, list) else v for k, v in value.items()}
    if isinstance(value, (list, tuple)) and all(isinstance(v, str) for v in value):
        try:
            return parse_optimizer_args(value)
        except OptimizerArgumentError as error:
            raise UserError(f"{source}: {error}") from None
    raise UserError(f"{source}: optimizer_args must be a table or a list of key=value words, got {value!r}")


def read_toml(path: Path) -> dict[str, Any]:
    """The keys and values of a TOML file."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib  # pyright: ignore[reportMissingImports]
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"--config {path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--config {path}: cannot read it: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"--config {path}: not valid TOML: {error}") from None


def lr_factor(settings: TrainSettings, step: int) -> float:
    """What the schedule multiplies the rate with at `step`, counted from 0."""
    rise = min(1.0, (step + 1) / settings.warmup) if settings.warmup else 1.0
    if settings.schedule != "cosine" or step < settings.warmup:
        return rise
    span = max(1, settings.steps - settings.warmup)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - settings.warmup) / span)))
