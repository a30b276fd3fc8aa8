"""Turns the documented command lines into ones that sd-scripts' resolver accepts.

What that resolver does (read in kohya-ss/sd-scripts 48d368f and kohya-ss/musubi-tuner 30c658c): each
``key=value`` is split at "=" and the value read with ``ast.literal_eval``; ``lr`` is passed by the trainer
itself; a bare name is looked up in ``torch.optim``; a name that ends in "8bit" imports bitsandbytes.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

from .. import presets
from .config_file import LauncherError, read_config, words

# option -> its shortest spelling that argparse takes for it
OPTIONS = {
    "--optimizer_type": "--optimizer_t",
    "--optimizer_args": "--optimizer_a",
    "--learning_rate": "--learning_rate",
    "--config_file": "--config_f",
    "--fused_backward_pass": "--fused_b",
}
NOT_LITERALS = {"true": "True", "false": "False", "none": "None", "null": "None"}
NOT_LITERALS |= {"inf": "1e999", "infinity": "1e999"}  # a literal that reads as infinity
NEGATIVE_NUMBER = re.compile(r"-\d+$|-\d*\.\d+$")
TRAINERS_DEFAULT_LR = 2e-6


class Rewritten(NamedTuple):
    """The arguments to run with, and what the user should know about the changes."""

    args: list[str]
    notes: list[str]


class Scanned(NamedTuple):
    """A command line taken apart: the options that concern us, and all other words in order."""

    rest: list[str]
    found: dict[str, list[str]]


def rewrite(args: Sequence[str]) -> Rewritten:
    """Rewrite a training script's arguments, if the optimizer they name is ours."""
    rest, found = scan(args)
    config = read_config(found["--config_file"][-1]) if found.get("--config_file") else {}
    given = found["--optimizer_type"][-1] if found.get("--optimizer_type") else config.get("optimizer_type")
    name = our_name(str(given)) if given else None
    if name is None:
        return Rewritten(list(args), [])
    if "--fused_backward_pass" in found or config.get("fused_backward_pass"):
        raise LauncherError(
            "--fused_backward_pass is written for Adafactor and would put Adafactor's step in place of "
            f"{given}'s: leave it out"
        )
    if "--optimizer_args" in found:
        given_args, from_file = found["--optimizer_args"], False
    else:
        given_args, from_file = words(config.get("optimizer_args") or []), True
    options = quoted(given_args)
    notes: list[str] = []
    rate = _rate(options.pop("lr", None), found.get("--learning_rate"), config, from_file, notes)
    _check(name, options, rate if rate is not None else config.get("learning_rate"))
    new = [f"--optimizer_type={name}", "--optimizer_args", *(f"{k}={v}" for k, v in options.items())]
    if rate is not None:
        new.append(f"--learning_rate={rate}")
    notes.append("runs with " + " ".join(new))
    return Rewritten([*rest, *new], notes)


def scan(args: Sequence[str]) -> Scanned:
    """Take the options that concern us out of a command line; config_file stays in it as well."""
    rest: list[str] = []
    found: dict[str, list[str]] = {}
    i = 0
    while i < len(args):
        word, inline = _option(args[i])
        start, i = i, i + 1
        values = [] if inline is None else [inline]
        if word == "--optimizer_args":
            while inline is None and i < len(args) and not _is_option(args[i]):
                values.append(args[i])
                i += 1
        elif word not in (None, "--fused_backward_pass") and inline is None:
            if i == len(args) or _is_option(args[i]):
                raise LauncherError(f"{args[start]} needs a value")
            values = [args[i]]
            i += 1
        if word is not None:
            found[word] = values  # as argparse: the last one counts
        if word in (None, "--config_file", "--fused_backward_pass"):
            rest += args[start:i]
    return Scanned(rest, found)


def _option(text: str) -> tuple[str | None, str | None]:
    """(one of OPTIONS or None, the value written behind "=" or None)."""
    head, sign, value = text.partition("=")
    for name, shortest in OPTIONS.items():
        if head.startswith(shortest) and name.startswith(head):
            return name, value if sign else None
    return None, None


def _is_option(text: str) -> bool:
    return text.startswith("-") and not NEGATIVE_NUMBER.match(text)


def our_name(given: str) -> str | None:
    """The name to hand to the trainer for one of our classes, in any spelling; None for any other."""
    try:
        name = presets.canonical(given)
    except ValueError as error:
        raise LauncherError(f"--optimizer_type {error}") from None
    return name if name is None else presets.q8_name(name)


def quoted(args: Sequence[str]) -> dict[str, str]:
    """key=value words as keyword -> text of a Python literal."""
    options: dict[str, str] = {}
    for arg in args:
        key, sign, value = arg.partition("=")
        key, value = key.strip().replace("-", "_"), value.strip()
        if not sign or not key.isidentifier() or not value:
            raise LauncherError(f"optimizer argument {arg!r} must be written key=value, without spaces")
        if "=" in value:
            raise LauncherError(f"optimizer argument {arg!r}: a value may not contain '='")
        if key in options:
            raise LauncherError(f"optimizer argument {key!r} is given twice; keep one")
        options[key] = _literal(value)
    return options


def _literal(value: str) -> str:
    """`value` if it reads as a Python literal, else one that means the same."""
    if value.lower() in NOT_LITERALS:
        return NOT_LITERALS[value.lower()]
    try:
        ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return repr(value)
    return value


def _rate(
    literal: str | None,
    explicit: list[str] | None,
    config: dict[str, Any],
    from_file: bool,
    notes: list[str],
) -> str | None:
    """What to give as --learning_rate, or None to leave it to the config file or the trainer.

    An explicit --learning_rate wins over an lr of the same place; the command line wins over the file.
    """
    if literal is None:
        return explicit[-1] if explicit else None
    text = literal.strip("'\"")
    try:
        lr = float(text)
    except ValueError:
        raise LauncherError(f"optimizer argument lr={text}: it must be a number") from None
    winner, where = (explicit[-1], "--learning_rate") if explicit else (None, "")
    if winner is None and from_file and config.get("learning_rate") is not None:
        winner, where = config["learning_rate"], "the config file's learning_rate"
    if winner is None:
        notes.append(f"lr={text} is given as --learning_rate={text}")
        return text
    try:
        same = float(winner) == lr
    except (TypeError, ValueError):
        same = False  # the trainer will complain about its own option
    if not same:
        notes.append(f"{where}={winner} wins over lr={text} of the optimizer arguments")
    return explicit[-1] if explicit else None


def _check(name: str, options: dict[str, str], rate: Any) -> None:
    """Build the optimizer once on a toy, so that a mistake shows before a model is loaded."""
    import torch

    values = {key: ast.literal_eval(text) for key, text in options.items()}
    if values.get("verbose") is True or "verbose" not in values:
        values["verbose"] = False
    try:
        _, profile, last = name.split(".") if "." in name else ("", "", name)
        cls: Any = presets.preset_class(profile, last) if profile else presets.every_name()[last]
        lr = TRAINERS_DEFAULT_LR if rate is None else float(rate)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it will be said when the trainer builds it
            cls([torch.nn.Parameter(torch.zeros(2))], lr=lr, **values)
    except (AttributeError, TypeError, ValueError) as error:
        raise LauncherError(f"--optimizer_type {name}: {' '.join(str(error).split())}") from None
